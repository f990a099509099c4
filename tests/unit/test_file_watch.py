"""What changes a file is noticed, once; what does not is not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oinetd.file_state import FileSource, look
from oinetd.net import file_watch
from oinetd.net.file_watch import FileWatch, folders_of

PATIENCE_S = 30.0


class Seen:
    """Counts what is told."""

    def __init__(self) -> None:
        self.told = 0
        self._more = asyncio.Event()

    def __call__(self) -> None:
        self.told += 1
        self._more.set()

    async def another(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._more.wait()
        self._more.clear()


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Seen]]:
    """Watches paths: `follow(path, …)`. Only events tell of a change, not the look every few seconds."""
    monkeypatch.setattr(file_watch, "POLL_S", 3600.0)
    watches: list[FileWatch] = []

    def start(*paths: Path | str) -> Seen:
        seen = Seen()
        watches.append(FileWatch(asyncio.get_running_loop(), seen))
        watches[-1].watch(FileSource(str(path), look(str(path))) for path in paths)
        return seen

    yield start
    for watch in watches:
        watch.close()


@pytest.fixture
async def closing(follow: Callable[..., Seen]) -> Callable[..., Seen]:
    return follow


def configmap(mount: Path, number: int, text: str) -> None:
    """As kubelet does it: a new folder, a new link to it, renamed over the old one; the old folder goes."""
    old = os.path.realpath(mount / "..data") if (mount / "..data").exists() else ""
    (mount / f"..{number}").mkdir(parents=True)
    (mount / f"..{number}" / "oinetd.conf").write_text(text)
    (mount / "..data_tmp").symlink_to(f"..{number}")
    (mount / "..data_tmp").rename(mount / "..data")
    if not (mount / "oinetd.conf").is_symlink():
        (mount / "oinetd.conf").symlink_to("..data/oinetd.conf")
    if old:
        Path(old, "oinetd.conf").unlink()
        Path(old).rmdir()


async def test_writing_and_replacing(tmp_path: Path, closing: Callable[..., Seen]) -> None:
    path = tmp_path / "a.conf"
    path.write_text("one")
    seen = closing(path)
    path.write_text("two and more")
    await seen.another()
    (tmp_path / "new").write_text("three")
    (tmp_path / "new").rename(path)
    await seen.another()
    assert seen.told == 2


async def test_a_configmap_is_replaced_again_and_again(tmp_path: Path, closing: Callable[..., Seen]) -> None:
    mount = tmp_path / "mount"
    configmap(mount, 1, "one")
    seen = closing(mount / "oinetd.conf")
    for number in range(2, 6):
        configmap(mount, number, "same length")
        await seen.another()
    assert seen.told == 4


async def test_several_files_that_change_together_are_one_change(tmp_path: Path, closing: Callable[..., Seen]) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text("one")
    seen = closing(*paths)
    for path in paths:
        path.write_text("another")
    await seen.another()
    paths[0].write_text("a third")
    await seen.another()
    assert seen.told == 2


async def test_a_name_of_a_pattern_comes_and_goes(tmp_path: Path, closing: Callable[..., Seen]) -> None:
    seen = closing(f"{tmp_path}/*.conf")
    (tmp_path / "x.conf").write_text("")
    await seen.another()
    (tmp_path / "x.conf").unlink()
    await seen.another()
    # Another name is no change: the next thing that is told is one of ours.
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "y.conf").write_text("")
    await seen.another()
    assert seen.told == 3


async def test_a_file_and_its_folder_may_go_and_come_back(tmp_path: Path, closing: Callable[..., Seen]) -> None:
    folder = tmp_path / "etc" / "deep"
    folder.mkdir(parents=True)
    (folder / "a").write_text("one")
    seen = closing(folder / "a")
    folder.rename(tmp_path / "old")
    await seen.another()
    folder.mkdir()
    (folder / "a").write_text("one")
    await seen.another()
    (folder / "a").write_text("two, after the folder was replaced")
    await seen.another()


async def test_what_changed_before_it_was_watched_is_told(tmp_path: Path, closing: Callable[..., Seen]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    before = FileSource(str(path), look(str(path)))
    path.write_text("longer")
    seen = Seen()
    watch = FileWatch(asyncio.get_running_loop(), seen)
    watch.watch([before])
    await seen.another()
    watch.close()


async def test_without_inotify_it_looks_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class NoInotify:
        @staticmethod
        def inotify_init1(_: int) -> int:
            return -1

    monkeypatch.setattr(file_watch, "POLL_S", 0.05)
    monkeypatch.setattr(file_watch, "_libc", NoInotify)
    path = tmp_path / "a"
    path.write_text("one")
    seen = Seen()
    watch = FileWatch(asyncio.get_running_loop(), seen)
    watch.watch([FileSource(str(path), look(str(path)))])
    path.write_text("longer")
    await seen.another()
    assert [record.message.partition(" (")[0] for record in caplog.records] == ["watch: no events for changed files"]
    watch.close()


def test_folders_on_the_way(tmp_path: Path) -> None:
    root = Path(os.path.realpath(tmp_path))
    configmap(root / "mount", 1, "one")
    (root / "link").symlink_to("mount/oinetd.conf")
    assert folders_of(str(root / "link")) == {str(root), str(root / "mount"), str(root / "mount" / "..1")}
    assert folders_of(str(root / "none" / "a")) == {str(root)}
    assert folders_of(str(root / "mount" / "*.conf")) == {str(root / "mount")}
    (root / "circle").symlink_to("circle")
    assert folders_of(str(root / "circle")) == {str(root)}
