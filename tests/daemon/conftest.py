"""The parties of the daemon's tests; all of them end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.process import Background, EchoServer, Oinetd, subreaper


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
