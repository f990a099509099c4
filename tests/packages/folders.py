"""A Debian without a service manager: a folder of debootstrap with a layer above it, in namespaces of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final, Self

from tests.daemon.process import until
from tests.systemd.guest import CACHE

__all__ = ["Debian"]

ENTER: Final = """\
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /sys "$1/root/sys"
mount --rbind /dev "$1/root/dev"
mount --bind "$4" "$1/root/var/cache/apt/archives"
mkdir "$1/root/srv/here" "$1/root/old"
mount --bind "$3" "$1/root/srv/here"
cp /etc/resolv.conf "$1/root/etc/resolv.conf"
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$1/root/srv/ca.crt"
cd "$1/root"
pivot_root . old
exec chroot . sh -euc 'umount --lazy /old; rmdir /old; touch /srv/ready; exec sleep 3600'
"""
"""Run by sh in a mount namespace: the place of the layer, the folder below it, the shared folder, apt's archives."""

UNSHARE: Final = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")


class Debian:
    """One such Debian; `here` is its /srv/here, where commands run. With the machine's network, or in a namespace's."""

    def __init__(self, base: Path, folder: Path, here: Path) -> None:
        place = folder / "debian"
        place.mkdir()
        archives = CACHE / "archives"
        archives.mkdir(exist_ok=True)
        self._log = folder / "debian.log"
        with self._log.open("wb") as said:
            self._process = subprocess.Popen(
                [*UNSHARE, "sh", "-euc", ENTER, "sh", *map(str, (place, base, here, archives))],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "DEBIAN_FRONTEND": "noninteractive",
            "PIP_FIND_LINKS": "/srv/here",
            "LC_ALL": "C.UTF-8",
        }
        if Path("/etc/ssl/certs/ca-certificates.crt").exists():
            self.environment |= {"PIP_CERT": "/srv/ca.crt", "SSL_CERT_FILE": "/srv/ca.crt"}
        if index := os.environ.get("PIP_INDEX_URL"):
            self.environment["PIP_INDEX_URL"] = index
        until(lambda: self._process.poll() is not None or self._pid(), "the folder")
        assert self._process.poll() is None, self._log.read_text()
        until(lambda: self.run("test -e /srv/ready").returncode == 0, "the folder's mounts")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End everything in it, and its mounts."""
        self._process.kill()
        self._process.wait()

    def _pid(self) -> int:
        """The process that holds the namespaces."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def words(self, script: str, network: str = "") -> list[str]:
        """The command that runs the script in it; in the network namespace of this name."""
        where = [f"--net=/run/netns/{network}"] if network else []
        enter = ["nsenter", f"--target={self._pid()}", "--mount", "--pid", *where]
        return [*enter, "sh", "-euxc", f"cd /srv/here; {script}"]

    def run(self, script: str, network: str = "", patience_s: float = 900.0) -> subprocess.CompletedProcess[str]:
        """Run the script to its end."""
        return subprocess.run(
            self.words(script, network),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience_s,
            check=False,
        )

    def must(self, script: str, network: str = "") -> str:
        """What the script prints; it has to succeed."""
        done = self.run(script, network)
        assert done.returncode == 0, f"{script}: {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout
