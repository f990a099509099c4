"""Which files a path may lead to, and what a name says of standard output."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from oinetd.safe_open import Location, UnsafePath, give_empty_file, open_to_append, own_descriptor

NOBODY = 65534

root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user")


def append(path: Path | str, data: bytes = b"line\n") -> None:
    fd = open_to_append(str(path), 0o640)
    os.write(fd, data)
    os.close(fd)


def belongs_to_nobody(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def test_a_file_and_links_of_our_own(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "absolute").symlink_to(tmp_path / "folder")
    (tmp_path / "real" / "link").symlink_to("../real/./log")
    for name in ("real/log", "folder/log", "absolute/log", "absolute/link", "real/../real/log", "./folder//log"):
        append(tmp_path / name)
    assert (tmp_path / "real" / "log").read_bytes() == b"line\n" * 6
    assert (tmp_path / "real" / "log").stat().st_mode & 0o777 == 0o640


def test_relative_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    append("log")
    append("./log")
    assert (tmp_path / "log").read_bytes() == b"line\n" * 2


def test_a_link_to_what_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "new")
    append(tmp_path / "log")
    assert (tmp_path / "new").read_bytes() == b"line\n"


def test_links_that_never_end(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="symbolic links"):
        open_to_append(str(tmp_path / "one"), 0o640)


@pytest.mark.parametrize("path", ["gone/log", "file/log", ""])
def test_what_is_missing(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        open_to_append(path, 0o640)


@root
def test_a_link_of_another_user_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious\n")
    for name, target in (("log", "victim"), ("folder", ".")):
        (tmp_path / name).symlink_to(target)
        belongs_to_nobody(tmp_path / name)
    for name in ("log", "folder/victim"):
        with pytest.raises(UnsafePath, match="a symbolic link that another user made"):
            open_to_append(str(tmp_path / name), 0o640)
    assert (tmp_path / "victim").read_text() == "precious\n"


@root
def test_a_hard_link_in_the_folder_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    os.link(tmp_path / "victim", folder / "log")
    append(folder / "log", b"")  # nobody else can have made it
    belongs_to_nobody(folder)
    with pytest.raises(UnsafePath, match="hard link"):
        open_to_append(str(folder / "log"), 0o640)


def test_links_of_proc_are_followed(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    append(f"/proc/self/fd/{writer}")
    append(f"/dev/fd/{writer}")
    (tmp_path / "log").symlink_to(f"/proc/self/fd/{writer}")
    append(tmp_path / "log")
    assert os.read(reader, 100) == b"line\n" * 3
    os.close(reader)
    os.close(writer)


def test_a_fifo_without_a_reader_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        open_to_append(str(tmp_path / "fifo"), 0o640)


def test_what_is_there_is_told(tmp_path: Path) -> None:
    with Location.of(str(tmp_path / "new")) as place:
        assert (place.found, place.name) == (None, "new")
    with Location.of(str(tmp_path)) as place:
        assert place.found is not None
    (tmp_path / "link").symlink_to("new")
    with Location.of(str(tmp_path / "link"), follow=False) as place:
        assert place.name == "link"


@root
def test_only_an_empty_file_is_given_away(tmp_path: Path) -> None:
    for name, content in (("empty", ""), ("full", "x"), ("linked", "")):
        (tmp_path / name).write_text(content)
    os.link(tmp_path / "linked", tmp_path / "again")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("empty")
    for name in ("full", "linked", "fifo", "none", "link"):
        give_empty_file(str(tmp_path / name), NOBODY, NOBODY)
    owners = {name: (tmp_path / name).lstat().st_uid for name in ("empty", "full", "linked", "fifo", "link")}
    assert owners == {"empty": NOBODY, "full": 0, "linked": 0, "fifo": 0, "link": 0}


def test_names_of_the_standard_streams(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/stdout")
    (tmp_path / "again").symlink_to("log")
    pid = os.getpid()
    names = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", f"/proc/{pid}/fd/1", "/dev/../dev/stdout")
    for name in (*names, str(tmp_path / "log"), str(tmp_path / "again")):
        assert own_descriptor(name) == 1, name
    assert own_descriptor("/dev/stderr") == own_descriptor("/proc/thread-self/fd/2") == 2
    (tmp_path / "loop").symlink_to("loop")
    for name in ("/dev/null", "/dev/fd/3", "/dev/stdin", "/proc/1/fd/1", "stdout", str(tmp_path / "loop"), "/dev"):
        assert own_descriptor(name) is None, name


def test_a_socket_is_no_file(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            open_to_append(str(tmp_path / "socket"), 0o640)
