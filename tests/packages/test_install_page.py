"""docs/install.md, line by line, in Debians that have nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packages.building import ROOT
from tests.packages.machines import Network
from tests.packages.test_debian import package
from tests.systemd.guest import CACHE, bare_folder

__all__ = ["package"]

COMMANDS_MAX = 5
PAGE = (ROOT / "docs" / "install.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = {title: re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for title, text in SECTIONS.items()}
WAYS = {title: blocks for title, blocks in BLOCKS.items() if blocks}

ENTER = """\
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount --bind "$4" "$1/root/var/cache/apt/archives"
mkdir "$1/root/srv/here"
cp -R "$3/." "$1/root/srv/here"
cp /etc/resolv.conf "$1/root/etc/resolv.conf"
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$1/root/srv/ca.crt"
chroot "$1/root" sh -euxc "cd /srv/here; apt-get update -q; $5" >&2
exec nsenter "--net=$6" chroot "$1/root" sh -euxc "cd /srv/here; $7; sleep 600"
"""
"""Run by sh in a mount namespace: everything but the last command with the machine's network, the last one without."""

UNSHARE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")

SYSTEMCTL = "#!/bin/sh\n[ \"$*\" = 'restart oinetd' ] && exec oinetd\n"
"""There is no service manager here; tests/packages/test_debian.py has one."""

CALL = """\
import socket
with socket.create_connection(("127.0.0.1", 8080), 20) as sock:
    sock.sendall(b"hello")
    print(sock.recv(100).decode())
"""


def test_each_way_is_short() -> None:
    assert set(WAYS) == {"apt", "pip in a virtual environment", "pipx"}
    for title, blocks in WAYS.items():
        (block,) = blocks
        assert len(block.splitlines()) <= COMMANDS_MAX, title


@pytest.mark.parametrize("way", WAYS)
def test_the_lines_work(way: str, wheel: Path, package: Path, tmp_path: Path) -> None:
    base = bare_folder("bookworm")
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(wheel, here)
    shutil.copy(package, here)
    (here / "systemctl").write_text(SYSTEMCTL)
    (here / "systemctl").chmod(0o755)
    archives = CACHE / "archives"
    archives.mkdir(exist_ok=True)
    (block,) = WAYS[way]
    *before, last = block.splitlines()
    # apt-get: a minimal Debian has no recommended packages, either; the machine is given back as it was.
    first = " && ".join(line.replace("apt-get install", "apt-get install --no-install-recommends") for line in before)
    environment = {
        "PATH": "/srv/here:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "DEBIAN_FRONTEND": "noninteractive",
        "PIP_FIND_LINKS": "/srv/here",
        "LC_ALL": "C.UTF-8",
    }
    if Path("/etc/ssl/certs/ca-certificates.crt").exists():
        environment |= {"PIP_CERT": "/srv/ca.crt", "SSL_CERT_FILE": "/srv/ca.crt"}
    if index := os.environ.get("PIP_INDEX_URL"):
        environment["PIP_INDEX_URL"] = index
    with Network(tmp_path) as network:
        machine = network.machine("i")
        machine.server("127.0.0.1", 8000)
        place = tmp_path / "place"
        place.mkdir()
        words = [place, base, here, archives, first, f"/run/netns/{machine.name}", last]
        log = tmp_path / "log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                [*UNSHARE, "sh", "-euc", ENTER, "sh", *map(str, words)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        machine.processes.append(process)
        served = 0
        for _ in range(600):
            done = machine.run(sys.executable, "-c", CALL)
            served = done.returncode == 0
            if served or process.poll() is not None:
                break
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        assert served, log.read_text(errors="replace")[-3000:]
        assert done.stdout == "i hello\n"
        process.kill()
        process.wait()
