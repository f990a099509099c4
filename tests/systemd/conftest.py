"""The guest of the tests: booted for each of them, gone with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.systemd.guest import Guest, folder_of_the_guest, install


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    """Boots a guest with oinetd and the given files in it: `guest({"etc/oinetd.conf": text})`."""
    folder_of_the_guest()
    with ExitStack() as stack:

        def boot(files: dict[str, str]) -> Guest:
            root = tmp_path / "files"
            install(root)
            for name, text in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            one = Guest(tmp_path, root, f"oinetd-test-{os.getpid()}")
            stack.callback(one.close)
            return one.booted()

        yield boot
