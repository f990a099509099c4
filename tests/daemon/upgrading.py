"""Daemons that are replaced while they run, and what is asked of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from tests.daemon.process import Oinetd, call


def successors(daemon: Oinetd) -> list[int]:
    """The processes that said they took over."""
    return [int(pid) for pid in re.findall(r"upgrade: process (\d+) serves", daemon.said)]


def upgrade(folder: Path, environ: dict[str, str], *words: str) -> Any:
    return ask(folder, environ, "upgrade", *words)


def ask(folder: Path, environ: dict[str, str], *words: str) -> Any:
    """A command to the daemon of the test, whatever else runs on the machine."""
    return call(folder, *words, "--admin", f"{environ['RUNTIME_DIRECTORY']}/oinetd.sock", **environ)


def rules_of(folder: Path, environ: dict[str, str]) -> list[dict[str, Any]]:
    asked = ask(folder, environ, "rules", "--json")
    assert asked.returncode == 0, asked.stderr
    return list(json.loads(asked.stdout)["rules"])


def pid_of(folder: Path, environ: dict[str, str]) -> int:
    return int(json.loads(ask(folder, environ, "status", "--json").stdout)["pid"])


def group_lives(group: int) -> bool:
    """Whether a process of the group lives, or was not waited for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
