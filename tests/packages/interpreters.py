"""The Pythons that oinetd is tested with: those of Debian's releases, one without a GIL, one of this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.systemd.guest import build_folder, folder_above

__all__ = ["folder_with_python", "python_of_the_machine"]

DEBIAN: Final = {"3.11": "bookworm", "3.13": "trixie", "3.14": "forky"}
"""The release of Debian whose `python3` is of this version."""

FREE_THREADED: Final = """\
sed 's/^deb /deb-src /' /etc/apt/sources.list > /etc/apt/sources.list.d/sources.list
apt-get update -q
apt-get install -qy --no-install-recommends libssl-dev libffi-dev zlib1g-dev xz-utils
cd /tmp
apt-get source -q --download-only python3.13
mkdir python
tar -xf python3.13_*.orig.tar.xz -C python --strip-components=1
cd python
./configure -q --disable-gil --disable-test-modules ac_cv_posix_semaphores_enabled=yes
make -s -j2
make -s altinstall
rm -r /tmp/python*
apt-get clean
"""
"""No package of Debian has one: it is compiled from the source of Debian's python3.13."""


def folder_with_python(version: str) -> tuple[Path, str]:
    """The folder of a Debian in which oinetd can be built with this Python (`3.13t` has no GIL), and its command."""
    if not version.endswith("t"):
        return build_folder(DEBIAN[version]), "python3"
    build_folder(DEBIAN[version[:-1]])
    suite = DEBIAN[version[:-1]]
    return folder_above(f"{suite}-build", f"{suite}-python{version}", FREE_THREADED), f"python{version}"


def python_of_the_machine(version: str) -> str:
    """A Python of this version, on the PATH or of pyenv; skips the test if this machine has none."""
    command = f"python{version}"
    homes = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin"))
    for found in (shutil.which(place) for place in (command, *(str(home / command) for home in homes))):
        # pyenv has a command on the PATH that only says that no such version was chosen.
        if found and not subprocess.run([found, "-c", "import ensurepip, venv"], capture_output=True).returncode:
            return found
    pytest.skip(f"{command} is missing")
