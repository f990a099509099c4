"""docs/install.md, line by line, in Debians that have nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.daemon.process import until
from tests.packages.building import ROOT, run, run_online
from tests.packages.folders import Debian
from tests.packages.machines import Network
from tests.packages.test_debian import package, packages
from tests.systemd.guest import bare_folder

__all__ = ["package", "packages"]

COMMANDS_MAX = 5
PAGE = (ROOT / "docs" / "install.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = {title: re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for title, text in SECTIONS.items()}
WAYS = {title: blocks for title, blocks in BLOCKS.items() if blocks}

SYSTEMCTL = "#!/bin/sh\n[ \"$*\" = 'restart oinetd' ] && exec oinetd\n"
"""There is no service manager here; tests/packages/test_debian.py has one."""

CALL = """\
import socket
with socket.create_connection(("127.0.0.1", 8080), 20) as sock:
    sock.sendall(b"hello")
    print(sock.recv(100).decode())
"""


def test_each_way_is_short() -> None:
    assert set(WAYS) == {"apt", "pip in a virtual environment", "pipx", "A container"}
    for title, blocks in WAYS.items():
        (block,) = blocks
        assert len(block.splitlines()) <= COMMANDS_MAX, title


@pytest.mark.parametrize("way", WAYS)
def test_the_lines_work(
    way: str, wheel: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = bare_folder("bookworm")
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(wheel, here)
    shutil.copy(package, here)
    shutil.copytree(ROOT / "deploy" / "container", here / "deploy" / "container")
    (here / "systemctl").write_text(SYSTEMCTL)
    (here / "systemctl").chmod(0o755)
    (block,) = WAYS[way]
    # apt-get: a minimal Debian has no recommended packages, either.
    *before, last = block.replace("apt-get install", "apt-get install --no-install-recommends").splitlines()
    with Network(tmp_path) as network, Debian(base, tmp_path, here) as debian:
        debian.environment["PATH"] = f"/srv/here:{debian.environment['PATH']}"
        machine = network.machine("i")
        machine.server("127.0.0.1", 8000)
        debian.must("apt-get update -q")
        began = time.monotonic()
        for line in before:
            debian.must(line)
        log = tmp_path / "log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                debian.words(last, machine.name),
                env=debian.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        answer = subprocess.CompletedProcess[str]([], 1)

        def served() -> bool:
            nonlocal answer
            answer = machine.run(sys.executable, "-c", CALL)
            return answer.returncode == 0 or process.poll() is not None

        try:
            until(served, "the first bytes")
            took = time.monotonic() - began
            assert answer.stdout == "i hello\n", log.read_text(errors="replace")[-3000:]
        finally:
            process.kill()
            process.wait()
    with capsys.disabled():
        print(f"\n{way}: forwarded bytes after {took:.1f} s and {len(before) + 1} commands")


def test_uv_installs_it_as_a_tool(wheel: Path, environment: Path, tmp_path: Path) -> None:
    run_online(environment / "bin" / "python", "-m", "pip", "install", "--quiet", "uv")
    folders = {f"UV_TOOL_{name}": str(tmp_path / name) for name in ("DIR", "BIN_DIR")}
    words = ("tool", "install", "--python", sys.executable, f"--find-links={wheel.parent}", "oinetd")
    run_online(environment / "bin" / "uv", *words, **folders)
    assert run(tmp_path / "BIN_DIR" / "oinetd", "--version").startswith("oinetd ")
