"""Building the distributions with the tools of this environment (`make package-test` installs them)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import pytest

from tests.offline import OFFLINE

__all__ = ["EPOCH", "PATIENCE_S", "ROOT", "build", "copy_of_the_tree", "run", "run_online", "unpack"]

ROOT: Final = Path(__file__).parents[2]
EPOCH: Final = "1700000000"
PATIENCE_S: Final = 600.0


def run(*words: str | Path, patience_s: float = PATIENCE_S, **environment: str) -> str:
    """What the command prints; it has to succeed. `environment` is added to that of this process."""
    tools = Path(sys.executable).parent
    done = subprocess.run(
        [str(word) for word in words],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SOURCE_DATE_EPOCH": EPOCH, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience_s,
        cwd="/",
    )
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def run_online(*words: str | Path, **environment: str) -> str:
    """As `run`, for a command that downloads; the test is skipped if nothing can be downloaded."""
    try:
        return run(*words, **environment)
    except AssertionError as error:
        if found := OFFLINE.search(str(error)):
            pytest.skip(f"{words[0]} cannot download: {found[0]}")
        raise


def copy_of_the_tree(place: Path) -> Path:
    """The sources, without what is built, at `place`."""
    left_out = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache")
    return Path(shutil.copytree(ROOT, place, ignore=left_out))


def build(tree: Path, kind: str, place: Path, **environment: str) -> Path:
    """The distribution of `kind` (`--sdist`, `--wheel`), built from `tree` into `place`."""
    run(sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", place, tree, **environment)
    (made,) = place.iterdir()
    return made


def unpack(sdist: Path, place: Path) -> Path:
    """The tree in the source distribution, below `place`."""
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    (tree,) = place.iterdir()
    return tree
