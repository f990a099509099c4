"""Allocations of a subject, counted exactly by a small library that is preloaded into it.

Python's own allocator is switched off for that (`PYTHONMALLOC=malloc`), so that each object is one call; it is
therefore done in runs apart. Programs that do not use the C library's malloc show none.
"""

from __future__ import annotations

import struct
from pathlib import Path

from bench.compiler import compile_c
from bench.tools import available

__all__ = ["AllocationCounter"]

_COUNTERS = struct.Struct("=QQ")


class AllocationCounter:
    """The counters of one directory; every subject started with `environment` adds to them."""

    def __init__(self, directory: Path) -> None:
        """Raises `BenchError` if the library does not compile."""
        self._file = directory / "allocation-counters"
        self._file.write_bytes(bytes(_COUNTERS.size))
        # A forwarder that has given up root counts too.
        self._file.chmod(0o666)
        library = compile_c("allocations", directory, "-shared", "-fPIC")
        self.environment = {
            "LD_PRELOAD": str(library),
            "PYTHONMALLOC": "malloc",
            "OINETD_BENCH_ALLOCATIONS": str(self._file),
        }

    @staticmethod
    def possible() -> bool:
        """Whether there is a C compiler."""
        return available("cc") is not None

    def read(self) -> tuple[int, int]:
        """Calls and bytes so far."""
        calls, size = _COUNTERS.unpack(self._file.read_bytes())
        return int(calls), int(size)
