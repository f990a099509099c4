"""oinetd as a commit of this repository has it, built for the purpose; or with settings from a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.errors import BenchError
from bench.programs import ROOT
from bench.subjects.oinetd import Oinetd
from bench.subjects.subject import Setup

__all__ = ["Configured", "Revision", "build", "commit_of"]

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "oinetd-bench"
_BUILD_PATIENCE_S = 600


class Revision(Oinetd):
    """The program of a commit: `library` is the folder that it was installed to."""

    def __init__(self, name: str, library: Path) -> None:
        super().__init__("native-auto", "native", "auto")
        self.name = self.base = name
        self.library = library

    def commands(self, setup: Setup) -> list[list[str]]:
        (command,) = super().commands(setup)
        # -P: not what lies in the current directory, which is another commit.
        return [[command[0], "-P", *command[1:]]]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.library)}


class Configured(Oinetd):
    """This tree's program with the settings of a file before the rules of the bench."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.stem, "native", "auto")
        self.settings = path.read_text()

    def configuration(self, setup: Setup) -> str:
        rules = [
            f"{route.listen_host} {route.listen_port} {route.connect_host} {route.connect_port}"
            for route in setup.routes
        ]
        return self.settings.rstrip("\n") + "\n" + "\n".join(rules) + "\n"


def commit_of(word: str) -> str | None:
    """The full name of the commit that `word` stands for in this repository; None if it stands for none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{word}^{{commit}}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def build(commit: str) -> Path:
    """The folder with the package of `commit`, built now or earlier. Raises `BenchError` if it does not build."""
    target = _CACHE / commit[:12]
    if (target / "oinetd").is_dir():
        return target
    source = _CACHE / f"{commit[:12]}.{os.getpid()}.source"
    source.mkdir(parents=True)
    try:
        with subprocess.Popen(["git", "-C", str(ROOT), "archive", commit], stdout=subprocess.PIPE) as archive:
            subprocess.run(["tar", "-x", "-C", str(source)], stdin=archive.stdout, check=True)
        partial = source / "installed"
        words = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial), str(source),
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_BUILD_PATIENCE_S)
        if done.returncode != 0:
            raise BenchError(f"commit {commit[:12]} does not build: {done.stderr.strip()[-400:]}")
        partial.rename(target)
    finally:
        shutil.rmtree(source, ignore_errors=True)
    return target
