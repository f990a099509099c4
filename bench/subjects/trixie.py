"""Peers as the next Debian has them, from a folder that debootstrap fills: run by that folder's own loader.

The programs see this machine's kernel and this machine's files; only their own libraries and modules are the folder's.
"""

from __future__ import annotations

import functools
import platform
import re
import shutil
import subprocess
from pathlib import Path

from bench.errors import BenchError
from bench.subjects.peers import Haproxy, Nginx
from bench.subjects.subject import Setup, Subject
from bench.tools import need
from bench.topology import Topology

__all__ = ["FOLDER", "RELEASE", "STREAM_MODULE", "Trixie", "make_folder", "trixie_subjects"]

RELEASE = "trixie"
FOLDER = Path("/var/cache/oinetd-bench") / RELEASE
STREAM_MODULE = f"load_module {FOLDER}/usr/lib/nginx/modules/ngx_stream_module.so;\n"
_PACKAGES = ("haproxy", "nginx-core", "libnginx-mod-stream", "ca-certificates")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PATIENCE_S = 1200


def make_folder() -> None:
    """Fill the folder: as root, with a network, in a few minutes. Raises `BenchError` if that fails."""
    partial = FOLDER.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    # A mirror over https is verified by the certificates of this machine, in the folder as outside.
    if _CERTIFICATES.exists():
        (partial / _CERTIFICATES.parent.relative_to("/")).mkdir(parents=True)
        shutil.copy(_CERTIFICATES, partial / _CERTIFICATES.relative_to("/"))
    command = [need("debootstrap"), "--variant=minbase", f"--include={','.join(_PACKAGES)}", RELEASE, str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    if done.returncode != 0:
        raise BenchError(f"debootstrap: {(done.stdout + done.stderr).strip()[-300:]}")
    shutil.rmtree(FOLDER, ignore_errors=True)
    partial.rename(FOLDER)


@functools.cache
def _loader() -> list[str] | None:
    """The words before a program of the folder; None where the folder is not there."""
    libraries = FOLDER / "usr" / "lib" / f"{platform.machine()}-linux-gnu"
    found = sorted([*libraries.glob("ld-linux*.so.*"), *(FOLDER / "lib64").glob("ld-linux*.so.*")])
    return [str(found[0]), "--library-path", str(libraries)] if found else None


@functools.cache
def _version(program: str) -> str:
    done = subprocess.run(
        [*(_loader() or []), str(FOLDER / "usr/sbin" / program), "-v"], capture_output=True, text=True, check=False
    )
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout + done.stderr)
    return found.group() if found else ""


class Trixie(Subject):
    """What is the same of all: where the program is, and by whom it is run. To stand before the class of a peer."""

    program: str

    def unavailable(self, topology: Topology) -> str | None:
        if _loader() and (FOLDER / "usr/sbin" / self.program).exists():
            return None
        return f"{FOLDER} is not there: python -m bench peers"

    def version(self) -> str:
        return _version(self.program) if _loader() else ""

    @property
    def path(self) -> str:
        return str(FOLDER / "usr/sbin" / self.program)

    def commands(self, setup: Setup) -> list[list[str]]:
        return [[*(_loader() or []), *command] for command in super().commands(setup)]


class TrixieHaproxy(Trixie, Haproxy):
    def __init__(self, *, splice: bool) -> None:
        super().__init__(splice=splice)
        self.name = self.base = f"{self.name}-{RELEASE}"


class TrixieNginx(Trixie, Nginx):
    name = base = f"nginx-{RELEASE}"
    module = STREAM_MODULE


def trixie_subjects() -> list[Subject]:
    return [TrixieHaproxy(splice=False), TrixieHaproxy(splice=True), TrixieNginx()]
