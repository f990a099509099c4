"""C sources of the bench, compiled when they are needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.errors import BenchError
from bench.tools import need

__all__ = ["compile_c"]

_SOURCES = Path(__file__).resolve().parent / "reference"


def compile_c(name: str, directory: Path, *flags: str) -> Path:
    """Compile `bench/reference/NAME.c` into `directory`; the path of the program. Raises `BenchError`."""
    target = directory / name
    command = [need("cc"), "-O2", "-Wall", *flags, "-o", str(target), str(_SOURCES / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{name}.c does not compile: {done.stderr.strip()[:500]}")
    return target
