"""The image: made without engine and registry, run by runc as a Kubernetes node would run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.process import PATIENCE_S, until
from tests.packages.building import ROOT, run, run_online
from tests.packages.machines import Load, Machine, Network, needs
from tests.packages.test_kubernetes import FOLDER, rendered
from tests.unit.test_file_watch import configmap

CONTAINER = ROOT / "deploy" / "container"
IMAGE_BYTES_MAX = 60_000_000
USER = 65532

CALL = """\
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) as sock:
    sock.sendall(b"hello")
    print(sock.recv(100).decode())
"""

ORPHAN = """\
import os, time
if not os.fork():
    if not os.fork():
        os._exit(0)  # its parent is gone when it ends
    os._exit(0)
os.wait()
"""

STATES = """\
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    print(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0])
"""


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="session")
def rootfs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the image."""
    needs(("apt-get", "apt"), ("dpkg-deb", "dpkg"))
    place = tmp_path_factory.mktemp("image") / "rootfs"
    debian = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys, venv; print(f'cp{sys.version_info[0]}{sys.version_info[1]}')"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if debian not in wheel.name.split("-"):
        pytest.skip("the wheel is for another Python than Debian's")
    # The lists of an image of a machine name packages that the mirror no longer has.
    run_online("apt-get", "update", "-qq")
    run_online("sh", CONTAINER / "rootfs.sh", wheel, place)
    return place


class Container:
    """One container of the image, with the network of a namespace; the root is read-only, the user not root.

    `files` are mounted there, each a text or a folder of this machine.
    """

    def __init__(self, rootfs: Path, machine: Machine, words: list[str], files: dict[str, str | Path]) -> None:
        self.machine = machine
        number = len(machine.processes)
        self.name = f"oinetd-test-{os.getpid()}-{machine.name}-{number}"
        bundle = machine.folder / f"bundle-{number}"
        bundle.mkdir()
        run("runc", "spec", "--bundle", bundle)
        spec: dict[str, Any] = json.loads((bundle / "config.json").read_text())
        spec["root"] = {"path": str(rootfs), "readonly": True}
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": USER, "gid": USER},
            "args": ["/usr/bin/oinetd", *words],
            "env": ["XDG_RUNTIME_DIR=/run"],  # as image.sh and the Dockerfile have it
            "noNewPrivileges": True,  # what `allowPrivilegeEscalation: false` means
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
        }
        spec["process"].pop("rlimits", None)
        kept = [each for each in spec["linux"]["namespaces"] if each["type"] not in ("network", "cgroup")]
        spec["linux"]["namespaces"] = kept
        own = ["nosuid", "nodev", "mode=0700", f"uid={USER}", f"gid={USER}"]
        spec["mounts"] = [each for each in spec["mounts"] if each["destination"] != "/sys/fs/cgroup"]
        spec["mounts"].append({"destination": "/run/oinetd", "type": "tmpfs", "source": "tmpfs", "options": own})
        for name, content in files.items():
            source = content
            if isinstance(content, str):
                source = bundle / Path(name).name
                source.write_text(content)
            mount = {"destination": name, "type": "bind", "source": str(source), "options": ["rbind", "ro"]}
            spec["mounts"].append(mount)
        (bundle / "config.json").write_text(json.dumps(spec))
        self._runc = ["runc", f"--root={machine.network.run_folder}"]
        self.process = machine.start(*self._runc, "run", f"--bundle={bundle}", self.name)

    def exec(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._runc, "exec", self.name, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def well(self) -> Container:
        """Wait until its own check says so."""

        def asked() -> bool:
            return self.exec("/usr/bin/oinetd", "health").returncode == 0 or self.process.poll() is not None

        until(asked, "the container")
        assert self.process.poll() is None, self.machine.said()
        return self

    def kill(self, number: int) -> None:
        run(*self._runc, "kill", self.name, str(number))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    needs(("runc", "runc"), ("ip", "iproute2"), ("sysctl", "procps"))
    with ExitStack() as stack:
        one = stack.enter_context(Network(tmp_path)).machine("k", "192.0.2.21/24")
        # A safe sysctl of Kubernetes: port 80 without a capability.
        one.run("sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=0")
        one.server("127.0.0.1", 8000)
        yield one


def test_the_image_is_small(rootfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs(("umoci", "umoci"))
    run("sh", CONTAINER / "image.sh", rootfs, tmp_path / "layout")
    with capsys.disabled():
        print(f"\nimage: {size(rootfs) / 1e6:.1f} MB, {size(tmp_path / 'layout') / 1e6:.1f} MB compressed")
    assert size(rootfs) < IMAGE_BYTES_MAX
    assert size(tmp_path / "layout") < IMAGE_BYTES_MAX / 2
    index = json.loads((tmp_path / "layout" / "index.json").read_text())
    assert index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] == "latest"


def test_it_serves_a_low_port_without_any_right_and_ends_as_it_should(rootfs: Path, machine: Machine) -> None:
    conf = "logfile /dev/stdout\n127.0.0.1 80 127.0.0.1 8000\n"
    container = Container(rootfs, machine, ["-f"], {"/etc/oinetd.conf": conf}).well()
    assert machine.run("/usr/bin/python3", "-c", CALL, "80").stdout == "k hello\n"
    # Nothing of it may be written, nothing stays behind that nobody waits for.
    denied = container.exec("/usr/bin/python3", "-c", "open('/etc/x', 'w')")
    assert "Read-only file system" in denied.stderr
    assert container.exec("/usr/bin/python3", "-c", ORPHAN).returncode == 0
    until(lambda: "Z" not in container.exec("/usr/bin/python3", "-c", STATES).stdout, "the end of the orphan")
    container.kill(signal.SIGTERM)
    assert container.process.wait(PATIENCE_S) == 0


def test_it_starts_soon(rootfs: Path, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not asserted: the time depends on what else the machine does."""
    conf = "192.0.2.21 80 127.0.0.1 8000\n"
    took_s = []
    with Load(machine, ("192.0.2.21", 80), pace_s=0.005).running() as load:
        for _ in range(5):
            began = time.monotonic()
            container = Container(rootfs, machine, ["-f"], {"/etc/oinetd.conf": conf})
            took_s.append(load.wait_for(lambda result: result == "k", "the first bytes") - began)
            container.kill(signal.SIGTERM)
            assert container.process.wait(PATIENCE_S) == 0
            load.wait_for(lambda result: result != "k", "the end of the container")
    with capsys.disabled():
        print(f"\ncontainer: forwards bytes {min(took_s):.2f} s after `runc run` (at most {max(took_s):.2f} s)")


def test_words_are_a_configuration(rootfs: Path, machine: Machine) -> None:
    usage = subprocess.run([sys.executable, "-m", "oinetd", "--help"], capture_output=True, text=True, check=False)
    if "oinetd forward" not in usage.stdout:
        pytest.skip("this oinetd has no command `forward`")
    container = Container(rootfs, machine, ["forward", "80", "127.0.0.1:8000"], {}).well()
    assert machine.run("/usr/bin/python3", "-c", CALL, "80").stdout == "k hello\n"
    container.kill(signal.SIGTERM)
    assert container.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("name", ["base", "overlays/daemonset"])
def test_a_pod_is_what_its_manifest_says(name: str, rootfs: Path, machine: Machine, tmp_path: Path) -> None:
    """Its command line, probes and hook; its ConfigMap is replaced as kubelet does it."""
    things = {thing["kind"]: thing for thing in rendered(FOLDER / name)}
    pod = (things.get("Deployment") or things["DaemonSet"])["spec"]["template"]["spec"]
    (said,) = pod["containers"]
    text = things["ConfigMap"]["data"]["oinetd.conf"].replace("web.example.svc.cluster.local 80", "127.0.0.1 8000")
    volume = tmp_path / "configuration"
    configmap(volume, 1, text)
    os.chmod(volume, 0o755)
    (place,) = (mount["mountPath"] for mount in said["volumeMounts"] if mount["name"] == "configuration")
    container = Container(rootfs, machine, said["args"], {place: volume}).well()
    port = str(said["ports"][0]["containerPort"])
    assert machine.run("/usr/bin/python3", "-c", CALL, port).stdout == "k hello\n"
    for probe in ("readinessProbe", "livenessProbe"):
        assert container.exec(*said[probe]["exec"]["command"]).returncode == 0, probe
    configmap(volume, 2, f"{text}0.0.0.0 8081 127.0.0.1 8000\n")
    until(lambda: machine.run("/usr/bin/python3", "-c", CALL, "8081").stdout == "k hello\n", "the new rule")
    configmap(volume, 3, "nonsense\n")
    until(lambda: "reload failed" in machine.said(), "the mistake in the log")
    assert machine.run("/usr/bin/python3", "-c", CALL, "8081").stdout == "k hello\n"
    hook = [
        word.replace("time.sleep(8)", "time.sleep(0.1)") for word in said["lifecycle"]["preStop"]["exec"]["command"]
    ]
    assert hook != said["lifecycle"]["preStop"]["exec"]["command"]
    assert container.exec(*hook).returncode == 0
    container.kill(signal.SIGTERM)
    assert container.process.wait(PATIENCE_S) == 0
