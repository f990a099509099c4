"""The Debian package: made, looked over by lintian, installed, upgraded and purged under a real systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon.process import until
from tests.packages.building import ROOT, copy_of_the_tree, run
from tests.packages.folders import Debian
from tests.systemd.guest import Guest, build_folder, folder_with_packages
from tests.systemd.test_unit import SERVER, call
from tests.unit.test_hardening import check_all

RULE = "127.0.0.1 80 127.0.0.1 8000\n"

LASTING = """\
import pathlib, socket, sys, time
with socket.create_connection(("127.0.0.1", 80), 20) as lasting:
    lasting.settimeout(20)
    calls = refused = 0
    pathlib.Path("/run/load-began").touch()
    while not pathlib.Path("/run/load-ends").exists() or calls < 20:
        try:
            with socket.create_connection(("127.0.0.1", 80), 20) as sock:
                sock.sendall(b"hello")
                if sock.recv(5) != b"hello":
                    refused += 1
        except ConnectionError:
            refused += 1
        calls += 1
    try:
        lasting.sendall(b"still")
        alive = lasting.recv(5) == b"still"
    except ConnectionError:
        alive = False
    pathlib.Path("/run/load-result").write_text(f"{refused} {alive}")
"""
LOAD_UNIT = "[Service]\nType=exec\nExecStart=/usr/bin/python3 /srv/load.py\n"


SUITES = ("bookworm", "trixie")


def release() -> str:
    """The release of Debian that this machine has."""
    found = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    return found[1] if found else ""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The package for a release, made by `make deb` on this machine or in a folder of that release."""
    made: dict[str, Path] = {}

    def make(suite: str) -> Path:
        if suite not in made:
            folder = tmp_path_factory.mktemp(f"deb-{suite}")
            made[suite] = make_here(folder) if suite == release() else make_in(suite, folder)
        return made[suite]

    return make


def make_here(folder: Path) -> Path:
    for program in ("dh", "pybuild", "dpkg-buildpackage"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing (Debian: apt install debhelper dh-python pybuild-plugin-pyproject)")
    run("make", "-C", ROOT, "--silent", "deb", MAKEFLAGS="", MAKELEVEL="")
    (made,) = (ROOT / "dist").glob("oinetd_*.deb")
    return Path(shutil.copy(made, folder))


def make_in(suite: str, folder: Path) -> Path:
    here = folder / "here"
    here.mkdir()
    copy_of_the_tree(here / "oinetd")
    with Debian(build_folder(suite), folder, here) as debian:
        debian.must("make -C oinetd --silent deb")
    (made,) = (here / "oinetd" / "dist").glob("oinetd_*.deb")
    return made


@pytest.fixture(scope="session")
def package(packages: Callable[[str], Path]) -> Path:
    """The package for this machine, or for Debian 12."""
    return packages(release() if release() in SUITES else SUITES[0])


def later(package: Path, version: str, place: Path) -> Path:
    """The same package with another version."""
    tree = place / version
    run("dpkg-deb", "-R", package, tree)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"^Version: .*$", f"Version: {version}", control.read_text(), flags=re.MULTILINE))
    run("dpkg-deb", "--root-owner-group", "-b", tree, place / f"oinetd_{version}.deb")
    return place / f"oinetd_{version}.deb"


@pytest.fixture(params=SUITES)
def machine(request: pytest.FixtureRequest, packages: Callable[[str], Path], tmp_path: Path) -> Iterator[Guest]:
    """A guest with three versions of the package in /srv, none of them installed."""
    base, package = folder_with_packages(request.param), packages(request.param)
    files = tmp_path / "files"
    texts = {**SERVER, "srv/load.py": LASTING, "etc/systemd/system/load.service": LOAD_UNIT}
    for name, text in texts.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(text)
    shutil.copy(package, files / "srv/1.deb")
    shutil.copy(later(package, "0.1.1", tmp_path), files / "srv/2.deb")
    shutil.copy(later(package, "0.1.2", tmp_path), files / "srv/3.deb")
    with ExitStack() as stack:
        one = Guest(tmp_path, files, f"oinetd-deb-{os.getpid()}", base)
        stack.callback(one.close)
        yield one.booted()


def test_lintian_finds_nothing(package: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is missing (Debian: apt install lintian)")
    words = ["lintian", "--allow-root", "--fail-on", "error,warning", str(package)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "PATH": "/usr/bin:/bin"}
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_package_has_manual_pages_and_completions(package: Path) -> None:
    inside = run("dpkg-deb", "--contents", package)
    for name in (
        "man/man8/oinetd.8.gz",
        "man/man5/oinetd.conf.5.gz",
        "bash-completion/completions/oinetd",
        "zsh/vendor-completions/_oinetd",
        "fish/vendor_completions.d/oinetd.fish",
    ):
        assert f"./usr/share/{name}\n" in inside


def test_the_extension_of_the_package_is_hardened(package: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "-x", package, tmp_path)
    (extension,) = tmp_path.rglob("_fastpath*.so")
    check_all(extension)


def test_the_unit_of_the_package_exposes_as_little(package: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "-x", package, tmp_path)
    (unit,) = tmp_path.rglob("oinetd.service")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)], capture_output=True, text=True
    )
    level = re.search(r"exposure level for oinetd\.service: ([\d.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) <= 1.5


def test_it_installs_upgrades_and_leaves_nothing(machine: Guest) -> None:
    machine.run("rm", "-rf", "/etc/rinetd.conf")
    before = set(machine.run("find", "/etc", "/usr", "/var", "/lib", "-xdev").splitlines())
    machine.run("dpkg", "-i", "/srv/1.deb")
    assert machine.show("oinetd", "ActiveState") == "active"
    assert machine.run("stat", "-c", "%U:%G %a", "/etc/oinetd.conf") == "root:oinetd 640"
    until(lambda: "no forwarding rule" in machine.journal(), "the line in the journal")
    machine.run("systemctl", "start", "echo")
    machine.run("sh", "-c", f'printf "logfile /var/log/oinetd.log\\n{RULE.strip()}\\n" > /etc/oinetd.conf')
    machine.run("systemctl", "restart", "oinetd")
    until(
        lambda: (
            machine.call("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 80))").returncode == 0
        ),
        "the rule",
    )
    assert call(machine) == "hello"

    # In the folder of the service logrotate works as its user.
    log = "/var/log/oinetd/oinetd.log"
    machine.run("sed", "-i", f"s|^logfile .*|logfile {log}|", "/etc/oinetd.conf")
    machine.run("systemctl", "reload", "oinetd")
    until(lambda: "reloaded" in machine.journal(), "the reload")
    assert call(machine) == "hello"
    until(lambda: "done-remote-closed" in machine.call("cat", log).stdout, "the line of the connection")
    machine.run("logrotate", "--force", "/etc/logrotate.d/oinetd")
    assert machine.run("stat", "-c", "%U:%G", log, f"{log}.1").split() == ["oinetd:oinetd"] * 2
    assert call(machine) == "hello"
    until(lambda: "done-remote-closed" in machine.read(log), "a line in the new file")

    # Under load; the file of the person stays.
    machine.run("systemctl", "start", "load")
    until(lambda: machine.call("test", "-e", "/run/load-began").returncode == 0, "the load")
    process = machine.show("oinetd", "MainPID")
    said = machine.run("dpkg", "-i", "/srv/2.deb")
    machine.run("touch", "/run/load-ends")
    until(lambda: machine.call("test", "-e", "/run/load-result").returncode == 0, "the end of the load")
    assert machine.show("oinetd", "ActiveState") == "active"
    assert machine.show("oinetd", "MainPID") != process
    assert RULE.strip() in machine.read("/etc/oinetd.conf")
    assert call(machine) == "hello"
    assert machine.read("/run/load-result") == "0 True", said

    # Stopped stays stopped.
    machine.run("systemctl", "stop", "oinetd")
    machine.run("dpkg", "-i", "/srv/3.deb")
    assert machine.show("oinetd", "ActiveState") == "inactive"

    machine.run("systemctl", "start", "oinetd")
    machine.run("dpkg", "--purge", "oinetd")
    assert machine.show("oinetd", "ActiveState") == "inactive"
    after = set(machine.run("find", "/etc", "/usr", "/var", "/lib", "-xdev").splitlines())
    left = {
        name
        for name in after - before
        if not re.match(r"/var/(log/journal|lib/(dpkg|systemd|apt|logrotate)|cache)|/etc/\.pwd", name)
    }
    # The backups that the tools for users make of their files.
    assert {name for name in left if not re.fullmatch(r"/etc/(passwd|group|shadow|gshadow)-", name)} == set()
    assert machine.call("id", "oinetd").returncode != 0
