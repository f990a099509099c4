"""The lock and the life of the pid file; see also tests/daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oinetd.errors import ConfigError
from oinetd.process.pidfile import PidFile, PidFileHeld


def test_one_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "pid")
    first, second = PidFile(path), PidFile(path)
    first.acquire()
    with pytest.raises(PidFileHeld, match=r"locked by another oinetd \(starting\)"):
        second.acquire()
    first.write()
    with pytest.raises(PidFileHeld, match=rf"locked by another oinetd \(pid {os.getpid()}\)"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.write()
    assert Path(path).read_text() == f"{os.getpid()}\n"
    second.release()
    assert not Path(path).exists()


def test_a_longer_number_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("4194303999999\n")
    file = PidFile(str(path))
    file.acquire()
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    file.release()


def test_a_file_that_its_holder_removes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pid"
    file = PidFile(str(path))
    real, turns = os.open, 0

    def open_and_lose(name: str, flags: int, mode: int = 0o777, **more: int | None) -> int:
        nonlocal turns
        fd = real(name, flags, mode, **more)
        if flags & os.O_RDWR:
            turns += 1
            if turns <= 3:
                path.unlink()
        return fd

    monkeypatch.setattr(os, "open", open_and_lose)
    file.acquire()
    monkeypatch.undo()
    assert turns == 4
    assert path.exists()
    file.release()


def test_no_symbolic_link_is_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / "pid").symlink_to(victim)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        PidFile(str(tmp_path / "pid")).acquire()
    assert victim.read_text() == "precious\n"
