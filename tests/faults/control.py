"""What the daemon's preloaded libraries are told while it runs: which share of calls fails, how far off its clock is.

`clock.c` and `tests/soak/faults.c` map the file that is written here, four numbers of 64 bits.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

from tests.daemon.process import ROOT

__all__ = ["Control"]

SOURCES: Final = ("tests/soak/faults.c", "tests/faults/clock.c")
NUMBERS: Final = "=QqQQ"
"""The rate in calls of a million, the seconds that the clock is ahead, the calls that have failed, the seed."""
RATE, CLOCK, FAILED, SEED = range(0, struct.calcsize(NUMBERS), 8)


class Control:
    """The libraries, compiled into `folder`, and the file that they share with this process."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.path = folder / "control"
        self.path.write_bytes(struct.pack(NUMBERS, 0, 0, 0, seed))
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self._shared = mmap.mmap(fd, struct.calcsize(NUMBERS))
        os.close(fd)
        self.libraries: list[Path] = []
        for source in SOURCES:
            library = folder / f"{Path(source).stem}.so"
            subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, ROOT / source], check=True, timeout=60)
            self.libraries.append(library)

    @staticmethod
    def possible() -> bool:
        """Whether there is a C compiler."""
        return shutil.which("cc") is not None

    @property
    def words(self) -> str:
        """The settings of a shell command that runs a program under control."""
        return f"LD_PRELOAD='{' '.join(map(str, self.libraries))}' FAULTS_CONTROL='{self.path}'"

    @property
    def failed(self) -> int:
        """How many calls have failed on purpose."""
        count: int = struct.unpack_from("=Q", self._shared, FAILED)[0]
        return count

    def let_fail(self, of_a_million: int) -> None:
        """This share of the calls of reactors fails from now on."""
        struct.pack_into("=Q", self._shared, RATE, of_a_million)

    def set_clock(self, ahead_s: int) -> None:
        """The daemon's clock is this much ahead from now on."""
        struct.pack_into("=q", self._shared, CLOCK, ahead_s)
