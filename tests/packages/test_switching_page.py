"""docs/switching-from-rinetd.md, line by line, in a Debian with systemd where rinetd serves."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon.process import until
from tests.packages.building import ROOT, copy_of_the_tree
from tests.packages.folders import Debian
from tests.packages.test_debian import package, packages
from tests.systemd.guest import Guest, build_folder, folder_with_packages
from tests.systemd.test_unit import SERVER, call

__all__ = ["package", "packages"]

PAGE = (ROOT / "docs" / "switching-from-rinetd.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = {title: re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for title, text in SECTIONS.items()}
APT, SOURCE, PLACE = "With the Debian package (recommended)", "From the source", "In rinetd's place, under its own unit"
COMMANDS_MAX = 5
LOG = "/var/log/rinetd.log"
COMPLETIONS = (
    "bash-completion/completions/oinetd",
    "zsh/site-functions/_oinetd",
    "fish/vendor_completions.d/oinetd.fish",
)

Boot = Callable[[Path], Guest]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Boot]:
    """Boots a Debian in which rinetd serves a rule, with these files."""
    with ExitStack() as stack:

        def boot(files: Path) -> Guest:
            rules = f"logfile {LOG}\n127.0.0.1 80 127.0.0.1 8000\n"
            for name, text in {**SERVER, "etc/rinetd.conf": rules}.items():
                (files / name).parent.mkdir(parents=True, exist_ok=True)
                (files / name).write_text(text)
            one = Guest(tmp_path, files, f"oinetd-switch-{os.getpid()}", folder_with_packages("bookworm"))
            stack.callback(one.close)
            one.booted()
            one.run("systemctl", "start", "echo")
            one.run("systemctl", "restart", "rinetd")
            until(lambda: served(one), "rinetd")
            return one

        yield boot


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make install` puts on a machine."""
    folder = tmp_path_factory.mktemp("source")
    here = folder / "here"
    here.mkdir()
    copy_of_the_tree(here / "oinetd")
    with Debian(build_folder("bookworm"), folder, here) as debian:
        debian.must("cd oinetd && make install")
        debian.must("mkdir files && tar -C / -c usr/local etc/logrotate.d/oinetd | tar -C files -x")
    return here / "files"


def served(one: Guest) -> bool:
    """Whether the rule forwards bytes now."""
    done = one.call("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 80), 5).close()")
    return done.returncode == 0 and call(one) == "hello"


def follow(one: Guest, block: str) -> None:
    """The lines of a block, one after the other."""
    assert len(block.splitlines()) <= COMMANDS_MAX
    for line in block.splitlines():
        one.run("sh", "-euc", f"PATH=/usr/local/bin:$PATH; cd /; {line}")


def serves_as(one: Guest, unit: str, log: str) -> None:
    """The rule is served by oinetd under this unit, and has its lines in the log."""
    until(lambda: served(one), f"oinetd as {unit}")
    pid = one.show(unit, "MainPID")
    assert "python" in one.run("cat", f"/proc/{pid}/cmdline")
    until(lambda: "done-remote-closed" in one.read(log), "the line of the connection")


def test_with_the_package(package: Path, guest: Boot, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    shutil.copy(package, files)
    one = guest(files)
    block, last = BLOCKS[APT]
    follow(one, block)
    serves_as(one, "oinetd", LOG)
    follow(one, last)
    assert one.call("dpkg", "-s", "rinetd").returncode != 0
    serves_as(one, "oinetd", "/var/log/oinetd.log")


def test_from_the_source(installed: Path, guest: Boot, tmp_path: Path) -> None:
    (block,) = BLOCKS[SOURCE]
    first, *others = block.splitlines()
    assert first == "make install"
    one = guest(Path(shutil.copytree(installed, tmp_path / "files", symlinks=True)))
    follow(one, "\n".join(others))
    serves_as(one, "oinetd", LOG)
    share = ("man/man8/oinetd.8", "man/man5/oinetd.conf.5", *COMPLETIONS)
    one.run("ls", *(f"/usr/local/share/{name}" for name in share))


def test_in_the_place_of_rinetd(installed: Path, guest: Boot, tmp_path: Path) -> None:
    one = guest(Path(shutil.copytree(installed, tmp_path / "files", symlinks=True)))
    (block,) = BLOCKS[PLACE]
    follow(one, block)
    serves_as(one, "rinetd", LOG)
    assert one.read("/run/rinetd.pid").strip() == one.show("rinetd", "MainPID")
