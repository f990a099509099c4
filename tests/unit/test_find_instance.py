"""Which of several running instances a command asks."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from oinetd.admin.client import NoInstance, SeveralInstances, find_instance


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        paths = [str(tmp_path / f"{name}.sock") for name in ("mine", "system")]
        for path in paths:
            stack.enter_context(contextlib.closing(listener := socket.socket(socket.AF_UNIX)))
            listener.bind(path)
            listener.listen()
        yield paths


def test_one_that_may_not_be_asked_does_not_hide_the_only_one_that_may(
    sockets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"RUNTIME_DIRECTORY": str(tmp_path)}
    with pytest.raises(SeveralInstances, match="choose one with -n NAME: mine, system"):
        find_instance("", "", environ)
    monkeypatch.setattr(os, "access", lambda path, mode: path == sockets[0])
    assert find_instance("", "", environ) == sockets[0]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(NoInstance, match=r"mine\.sock, \S+system\.sock: no permission; run it as root"):
        find_instance("", "", environ)
