"""A Debian that boots in a container with a network of its own, and oinetd installed in it.

The folder of the guest is made once by debootstrap, outside of the repository, and never changed: each guest writes to
a tmpfs above it, in a mount namespace of its own, so that nothing of it is left when it has ended.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.daemon.process import PATIENCE_S, ROOT, until
from tests.offline import OFFLINE, reachable

CACHE: Final = Path(os.environ.get("OINETD_GUEST_CACHE", "/var/cache/oinetd-tests"))
SUITE: Final = "bookworm"
PACKAGES: Final = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3-minimal",
    "libpython3-stdlib",
    "logrotate",
    "iproute2",
    "rinetd",
)
DEBIAN_PACKAGES: Final = ("python3", "python3-uvloop", "python3-h11", "python3-prometheus-client", "adduser")
"""What the package oinetd depends on. It is installed beforehand: guests have no network."""

BUILD_PACKAGES: Final = (
    *("make", "gcc", "libc6-dev", "python3-dev", "python3-venv", "dpkg-dev", "debhelper", "dh-python"),
    *("pybuild-plugin-pyproject", "python3-setuptools", "fakeroot", "iproute2", "procps", "openssl"),
)

MIRROR: Final = "deb.debian.org"
DEBOOTSTRAP_PATIENCE_S: Final = 1200.0

BOOT: Final = """\
mount -t tmpfs tmpfs /run/systemd/nspawn 2>/dev/null || { mkdir -p /run/systemd; mount -t tmpfs tmpfs /run/systemd; }
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
cp -a "$2/." "$1/upper"
mount -t overlay overlay -o "lowerdir=$3,upperdir=$1/upper,workdir=$1/work" "$1/root"
exec systemd-nspawn --quiet --directory="$1/root" --machine="$4" --register=no --keep-unit --private-network \
    --kill-signal=SIGRTMIN+4 --boot systemd.unit=multi-user.target systemd.show_status=no
"""
"""Run by sh in a new mount namespace: the place of the guest, the files it gets, the folder below them, its name."""


def folder_of_the_guest(suite: str = SUITE) -> Path:
    """The folder that guests boot from; skips the test where there is none and none can be made."""
    if os.geteuid() != 0:
        pytest.skip("booting a guest needs root")
    for program, package in (("systemd-nspawn", "systemd-container"), ("debootstrap", "debootstrap")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing (Debian: apt install {package})")
    ready = CACHE / suite
    if not ready.exists():
        if not os.environ.get("OINETD_MAKE_GUEST"):
            pytest.skip(f"there is no guest system in {ready}; `make package-test` makes one")
        # rinetd is not in every release.
        _make(ready, debootstrap(suite, tuple(name for name in PACKAGES if suite == SUITE or name != "rinetd")))
    return ready


def bare_folder(suite: str) -> Path:
    """A folder of Debian's release `suite` with nothing that is not in every Debian."""
    ready = CACHE / f"minbase-{suite}"
    if not ready.exists() and not os.environ.get("OINETD_MAKE_GUEST"):
        pytest.skip(f"there is no guest system in {ready}; `make package-test` makes one")
    _make(ready, debootstrap(suite, ()))
    return ready


def build_folder(suite: str) -> Path:
    """As `bare_folder`, with what wheels, the Debian package and the environment of the tests are built with."""
    bare_folder(suite)
    return _with(f"minbase-{suite}", f"{suite}-build", BUILD_PACKAGES)


def folder_with_packages(suite: str) -> Path:
    """As `folder_of_the_guest`, of Debian's release `suite`, with what the package oinetd depends on."""
    folder_of_the_guest(suite)
    return _with(suite, f"{suite}-deb", DEBIAN_PACKAGES)


def _with(base: str, name: str, packages: tuple[str, ...]) -> Path:
    """The folder `name`: that of `base` with more packages."""
    # A mirror of a release to come may be some weeks old.
    update = "apt-get update -q -o Acquire::Check-Valid-Until=false"
    script = f'{update} && apt-get install -qy --no-install-recommends "$@" && apt-get clean'
    return folder_above(base, name, script, *packages)


def folder_above(base: str, name: str, script: str, *words: str) -> Path:
    """The folder `name`: a copy of the folder `base` in which this script has run, with these words."""
    ready = CACHE / name
    if not ready.exists() and not os.environ.get("OINETD_MAKE_GUEST"):
        pytest.skip(f"there is no guest system in {ready}; `make package-test` makes one")
    copy = (
        'cp -a "$1" "$2"; cp /etc/resolv.conf "$2/etc/"; root=$2 script=$3; shift 3; '
        'exec chroot "$root" sh -euc "$script" sh "$@"'
    )
    _make(ready, lambda part: ["sh", "-euc", copy, "sh", str(CACHE / base), str(part), script, *words])
    return ready


def debootstrap(suite: str, packages: tuple[str, ...]) -> Callable[[Path], list[str]]:
    """The command that makes a folder of the release with these packages."""
    words = ["debootstrap", "--variant=minbase"]
    if packages:
        words.append(f"--include={','.join(packages)}")
    # A debootstrap that is older than the release has no script for it.
    scripts = Path("/usr/share/debootstrap/scripts")
    script = [] if (scripts / suite).exists() else [f"http://{MIRROR}/debian", str(scripts / "sid")]
    return lambda part: [*words, suite, str(part), *script]


def _make(ready: Path, command: Callable[[Path], list[str]]) -> None:
    """Make the folder `ready` by the command for its unfinished self, once for all processes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready.exists():
            return
        part = ready.with_name(f"{ready.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        made = subprocess.run(
            command(part), capture_output=True, text=True, timeout=DEBOOTSTRAP_PATIENCE_S, env=environment
        )
        if made.returncode:
            shutil.rmtree(part, ignore_errors=True)
            said = f"{ready.name} cannot be made: {made.stdout[-1000:]}{made.stderr[-1000:]}"
            if OFFLINE.search(said) or not reachable(MIRROR, 80):
                pytest.skip(said)
            pytest.fail(said)
        part.rename(ready)


class Guest:
    """A running guest: `run` runs a command in it, `write` and `read` reach its files."""

    def __init__(self, folder: Path, files: Path, name: str, base: Path | None = None) -> None:
        place = folder / "guest"
        place.mkdir()
        places = (place, files, base or folder_of_the_guest())
        self._console = folder / "console"
        with self._console.open("wb") as console:
            self.process = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "unshare",
                    "--mount",
                    "--propagation",
                    "private",
                    "sh",
                    "-euc",
                    BOOT,
                    "sh",
                    *map(str, places),
                    name,
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        self._init = 0

    def booted(self) -> Guest:
        """Wait until it has started everything that starts by itself."""
        self._init = until(self._find_init, "the guest's process 1")
        states = ("running", "degraded")
        until(lambda: self.call("systemctl", "is-system-running").stdout.strip() in states, "its boot")
        return self

    def _find_init(self) -> int:
        """The process that is number 1 inside: a descendant of ours, in a PID namespace of its own."""
        if self.process.poll() is not None:
            # A machine that forbids namespaces or mounts is no fault of ours.
            pytest.skip(f"the guest does not boot here: {self._console.read_text(errors='replace')[-300:]}")
        waiting = [self.process.pid]
        while waiting:
            pid = waiting.pop()
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                inside = Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"
            except (FileNotFoundError, ProcessLookupError):
                continue
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
            if inside and len(numbers) > 1 and numbers[-1] == "1":
                return pid
        return 0

    def run(self, *words: str) -> str:
        """What the command prints, errors included; an exit code other than 0 fails the test."""
        done = self.call(*words)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{self.journal()[-3000:]}"
        return done.stdout.strip()

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        return subprocess.run(
            ["nsenter", f"--target={self._init}", *spaces, "--root", "--wd=/", "--", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S * 2,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )

    def python(self, code: str) -> str:
        """What the Python program prints."""
        return self.run("python3", "-c", code)

    def write(self, path: str, text: str) -> None:
        """Write a file, owned by root and readable for everybody."""
        self.run("sh", "-c", 'umask 022; printf %s "$1" > "$2"', "sh", text, path)

    def read(self, path: str) -> str:
        """What is in the file."""
        return self.run("cat", path)

    def journal(self, unit: str = "oinetd") -> str:
        """What the unit and the service manager said about it."""
        return self.call("journalctl", "--no-pager", "--output=cat", "--unit", unit).stdout

    def show(self, unit: str, name: str) -> str:
        """A property of the unit."""
        return self.run("systemctl", "show", unit, "--property", name, "--value")

    def close(self) -> None:
        """End the guest, everything in it, and its mounts."""
        if self._init and self.process.poll() is None:
            # The end of process 1 ends every process of its namespace, and nspawn takes down what it made.
            os.kill(self._init, 9)
        elif self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE_S)


def install(files: Path) -> None:
    """Put oinetd into `files`, a root folder, as `make install` does, without building it anew."""
    packages = files / "usr/lib/python3/dist-packages"
    packages.mkdir(parents=True)
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "oinetd", packages / "oinetd", ignore=left_out)
    for name in ("uvloop", "h11", "prometheus_client"):
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            shutil.copytree(Path(found.origin).parent, packages / name, ignore=left_out)
    subprocess.run(
        ["make", "--silent", "install-files", f"DESTDIR={files}", "PREFIX=/usr", "INSTALLED_PYTHON=/usr/bin/python3"],
        cwd=ROOT,
        check=True,
        env={**os.environ, "MAKEFLAGS": ""},
        stdout=sys.stderr,
    )
