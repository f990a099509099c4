"""The parties of the daemon's tests; all of them end with the test."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.process import Background, EchoServer, Oinetd, subreaper, until
from tests.daemon.upgrading import group_lives, successors


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def oinetd(tmp_path: Path, echo: EchoServer) -> Iterator[Callable[..., Oinetd]]:
    """Starts daemons: `oinetd(text, *words)`, where `text` may name the upstream as `UPSTREAM` (host and port)."""
    with ExitStack() as stack:

        def start(text: str, *words: str, **more: Any) -> Oinetd:
            process = Oinetd(tmp_path, text.replace("UPSTREAM", f"{echo.host} {echo.port}"), *words, **more)
            stack.callback(process.close)
            return process

        yield start


@pytest.fixture
def background(tmp_path: Path, echo: EchoServer) -> Iterator[Callable[..., Background]]:
    """Starts daemons without `-f`, as `oinetd` does the others; their pid file is `pid`."""
    with ExitStack() as stack:
        stack.enter_context(subreaper())

        def start(text: str, *words: str, **more: Any) -> Background:
            daemon = Background(tmp_path, text.replace("UPSTREAM", f"{echo.host} {echo.port}"), *words, **more)
            stack.callback(daemon.close)
            return daemon

        yield start


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"RUNTIME_DIRECTORY": str(tmp_path / "run")}


@pytest.fixture
def reaper() -> Iterator[None]:
    """The processes that take over become children of the test when the first one has ended."""
    with subreaper():
        yield


@pytest.fixture
def start(reaper: None, oinetd: Callable[..., Oinetd], environ: dict[str, str]) -> Iterator[Callable[..., Oinetd]]:
    """Starts daemons that can be replaced; the processes that took over end with the test."""
    started: list[Oinetd] = []

    def run(text: str, *words: str, **more: Any) -> Oinetd:
        started.append(oinetd(text, *words, environ=environ, **more).ready())
        return started[-1]

    yield run
    for daemon in started:
        later = successors(daemon)
        for pid in later:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if later:  # the first one has ended, or does so without those
            until(lambda daemon=daemon: daemon.process.poll() is not None, "the end of the first process")
            until(lambda daemon=daemon: not group_lives(daemon.pid), "the end of those that took over")
        assert "Traceback" not in daemon.said, daemon.said
