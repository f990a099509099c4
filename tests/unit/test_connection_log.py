"""The connection log on real files, and on files that are none."""

import errno
import fcntl
import gc
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oinetd.core.record import Ending, SessionRecord
from oinetd.errors import ConfigError
from oinetd.model import Endpoint, LogFormat, LogSettings, Rule
from oinetd.observe import writer as linewriter
from oinetd.observe.connection_log import ConnectionLog
from oinetd.observe.logfile import LogFile
from oinetd.observe.writer import BATCH_BYTES_MAX, LineWriter

ROUTE = next(Rule(Endpoint("0.0.0.0", 8080), Endpoint("example.org", 80)).routes())
WAIT_S = 30.0


def session(number: int) -> SessionRecord:
    return SessionRecord(number, ROUTE, "192.0.2.7", 51234, 0.0, ending=Ending.CLIENT_CLOSED, bytes_up=number)


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def numbered(first: int, last: int) -> list[bytes]:
    return [b"line %06d\n" % number for number in range(first, last)]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    def held() -> tuple[int, list[str]]:
        return len(os.listdir("/proc/self/fd")), [thread.name for thread in threading.enumerate()]

    before = held()
    yield
    assert held() == before


@pytest.fixture
def troubles() -> list[str]:
    return []


def test_lines_reach_the_file_while_it_is_open(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "log"
    connection_log = ConnectionLog(LogSettings(str(path)), troubles.append)
    connection_log.opened(session(1))
    eventually(lambda: path.read_bytes().endswith(b"\t0\t0\topened\n"), "the first line")
    connection_log.closed(session(1))
    eventually(lambda: path.read_bytes().endswith(b"\t1\t0\tdone-remote-closed\n"), "the second line")
    connection_log.close()
    assert path.read_bytes().count(b"\n") == 2
    assert path.stat().st_mode & 0o007 == 0
    assert troubles == []


def test_close_writes_what_is_left_and_is_the_end(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "log"
    connection_log = ConnectionLog(LogSettings(str(path)), troubles.append)
    for number in range(5000):
        connection_log.closed(session(number))
    connection_log.close()
    connection_log.close()
    connection_log.closed(session(0))
    connection_log.reopen()
    assert [int(line.split(b"\t")[6]) for line in path.read_bytes().splitlines()] == list(range(5000))
    assert troubles == []


def test_without_a_file_there_is_nothing(troubles: list[str]) -> None:
    connection_log = ConnectionLog(LogSettings(), troubles.append)
    connection_log.opened(session(1))
    connection_log.closed(session(1))
    connection_log.reopen()
    assert "oinetd-log" not in [thread.name for thread in threading.enumerate()]
    connection_log.close()


def test_no_thread_before_the_first_line(tmp_path: Path, troubles: list[str]) -> None:
    connection_log = ConnectionLog(LogSettings(str(tmp_path / "log")), troubles.append)
    assert "oinetd-log" not in [thread.name for thread in threading.enumerate()]
    connection_log.close()
    assert (tmp_path / "log").read_bytes() == b""


def test_append_keeps_what_is_there(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"older\n")
    writer = LineWriter(str(path), troubles.append)
    writer.write(b"newer\n")
    writer.close()
    assert path.read_bytes() == b"older\nnewer\n"


def test_dash_is_standard_output(capfd: pytest.CaptureFixture[str], troubles: list[str]) -> None:
    connection_log = ConnectionLog(LogSettings("-", LogFormat.JSON), troubles.append)
    connection_log.closed(session(3))
    connection_log.reopen()
    connection_log.closed(session(4))
    connection_log.close()
    assert [json.loads(line)["id"] for line in capfd.readouterr().out.splitlines()] == [3, 4]
    assert troubles == []


def test_a_broken_pipe_does_not_end_a_program_with_sigpipe_at_its_default() -> None:
    program = """
import os, signal
from oinetd.observe.writer import LineWriter
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
read_end, write_end = os.pipe()
os.close(read_end)
writer = LineWriter(write_end, print)
writer.write(b"line\\n")
writer.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Broken pipe" in done.stdout


def test_reconfigure_file_and_format(tmp_path: Path, troubles: list[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    connection_log = ConnectionLog(LogSettings(), troubles.append)
    connection_log.reconfigure(LogSettings(str(first)))
    connection_log.closed(session(1))
    connection_log.reconfigure(LogSettings(str(second), LogFormat.JSON))
    connection_log.closed(session(2))
    connection_log.reconfigure(LogSettings(str(second), LogFormat.COMMON))
    connection_log.closed(session(3))
    connection_log.reconfigure(LogSettings())
    connection_log.closed(session(4))
    connection_log.close()
    assert first.read_bytes().count(b"\n") == 1
    assert b"\tdone-remote-closed\n" in first.read_bytes()
    in_json, in_common = second.read_bytes().splitlines()
    assert json.loads(in_json)["id"] == 2
    assert in_common.endswith(b"200 0 - - - 3")
    assert troubles == []


def test_reopen_loses_nothing_and_keeps_the_order(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "log"
    writer = LineWriter(str(path), troubles.append)
    lines = numbered(0, 5_000)
    for rotation in range(5):
        for line in lines[rotation * 1000 : (rotation + 1) * 1000]:
            writer.write(line)
        path.rename(tmp_path / f"log.{rotation:02d}")
        writer.reopen()
        # As logrotate does, which waits for nothing; here for the new file, so that it can be renamed in turn.
        eventually(path.exists, "the new file")
    writer.close()
    assert path.read_bytes() == b""
    for rotation in range(5):
        rotated = (tmp_path / f"log.{rotation:02d}").read_bytes()
        assert rotated == b"".join(lines[rotation * 1000 : (rotation + 1) * 1000])
    assert troubles == []


def test_a_disk_full_in_the_middle_of_a_line(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "log"
    lines = numbered(0, 100)
    whole = b"".join(lines)
    room = 3 * len(lines[0]) + 5
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        writer = LineWriter(str(path), troubles.append)
        for line in lines:
            writer.write(line)
        eventually(lambda: len(troubles) == 1, "the trouble is reported")
        assert path.read_bytes() == whole[:room]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    eventually(lambda: path.read_bytes() == whole, "the file is completed")
    eventually(lambda: len(troubles) == 2, "the end of the trouble is reported")
    writer.close()
    assert path.read_bytes() == whole
    assert "queueing lines" in troubles[0]
    assert troubles[1].endswith("writing again, lines lost: 0")


def test_rotation_away_from_a_full_disk(tmp_path: Path, troubles: list[str]) -> None:
    full, new = tmp_path / "full", tmp_path / "new"
    lines = numbered(0, 100)
    room = 3 * len(lines[0]) + 5
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        writer = LineWriter(str(full), troubles.append)
        for line in lines[:50]:
            writer.write(line)
        eventually(lambda: len(troubles) == 1, "the trouble is reported")
        # A pipe has no limit of this kind, so the disk is "full" for the old file alone.
        os.mkfifo(new)
        reader = os.open(new, os.O_RDONLY | os.O_NONBLOCK)
        writer.retarget(str(new))
        for line in lines[50:]:
            writer.write(line)
        eventually(lambda: len(troubles) == 2, "the end of the trouble is reported")
        writer.close()
        rest = os.read(reader, 1 << 16)
        os.close(reader)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # The line that broke off is whole in the new file, and its beginning was cut off in the old one.
    assert full.read_bytes() == b"".join(lines[:3])
    assert rest == b"".join(lines[3:])


def test_two_processes_with_one_file_leave_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As during an upgrade: the disk of the log is full for a while."""
    path, lines, write = tmp_path / "log", numbered(0, 4), os.write
    room = 2 * len(lines[0]) + 5

    def fill(fd: int, data: memoryview) -> int:
        left = room - os.fstat(fd).st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:left])

    monkeypatch.setattr(os, "write", fill)
    old = LogFile(str(path))
    old.open()
    new = LogFile(str(path), old.duplicate())
    held = lines[:3]
    assert old.append(held) is not None
    room += 10 * len(lines[0])
    assert new.append([lines[3]]) is None
    assert old.append(held) is None
    assert path.read_bytes() == b"".join([*lines[:2], lines[3], lines[2]])
    assert (old.give_up(), new.give_up()) == (None, None)


@pytest.mark.parametrize("same_disk", [True, False])
def test_lines_from_before_a_rotation_wait_for_room_in_the_old_file(
    tmp_path: Path, troubles: list[str], monkeypatch: pytest.MonkeyPatch, same_disk: bool
) -> None:
    """On a full disk, that is; the next file is full as well then. On another disk it is not, and gets them."""
    path, moved = tmp_path / "log", tmp_path / "moved"
    lines = numbered(0, 20)
    room = 3 * len(lines[0]) + 5
    full = True
    write = os.write

    def fill(fd: int, data: memoryview) -> int:
        left = room - os.fstat(fd).st_size
        if full and os.readlink(f"/proc/self/fd/{fd}") in (str(path), str(moved)):
            if left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(fd, data[:left])
        return write(fd, data)

    monkeypatch.setattr(os, "write", fill)
    writer = LineWriter(str(path), troubles.append)
    for line in lines[:10]:
        writer.write(line)
    eventually(lambda: len(troubles) == 1, "the trouble is reported")
    assert path.read_bytes() == b"".join(lines)[:room]
    path.rename(moved)
    other = Path("/dev/shm") / f"oinetd-test-{os.getpid()}"
    if same_disk:
        writer.reopen()
    else:
        assert tmp_path.stat().st_dev != other.parent.stat().st_dev
        writer.retarget(str(other))
    for line in lines[10:]:
        writer.write(line)
    if same_disk:
        eventually(lambda: writer._retry_s > linewriter.RETRY_MIN_S * 4, "it was tried again")
        assert not path.exists()
        full = False
    eventually(lambda: len(troubles) == 2, "the end of the trouble is reported")
    writer.close()
    if same_disk:
        assert moved.read_bytes() == b"".join(lines[:10])
        assert path.read_bytes() == b"".join(lines[10:])
    else:
        assert moved.read_bytes() == b"".join(lines[:3])
        assert other.read_bytes() == b"".join(lines[3:])
        other.unlink()


OVERLAY = """\
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mkdir "$1/root/logs"
exec "$3" -c "$4" "$1/root/logs" "$2"
"""
BESIDE = """\
import sys
from oinetd.observe.logfile import LogFile
folder, elsewhere = sys.argv[1:]
log = LogFile(f"{folder}/log")
log.open()
print(log.is_beside(f"{folder}/next"), log.is_beside(f"{elsewhere}/next"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_a_file_in_an_overlay_is_beside_the_next_one(tmp_path: Path) -> None:
    """The root of a container: a file there has another device number than its folder."""
    place, lower = tmp_path / "place", tmp_path / "lower"
    place.mkdir()
    lower.mkdir()
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", OVERLAY, "sh"]
    words = [*unshare, str(place), str(lower), sys.executable, BESIDE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, env={**os.environ, "PYTHONPATH": "."})
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no overlay can be mounted here: {done.stderr}")
    assert (done.stdout, done.stderr) == ("True False\n", "")


def test_the_end_leaves_no_half_line(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "log"
    lines = numbered(0, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * len(lines[0]) + 5, hard))
    try:
        writer = LineWriter(str(path), troubles.append)
        for line in lines:
            writer.write(line)
        eventually(lambda: len(troubles) == 1, "the trouble is reported")
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"".join(lines[:3])
    assert troubles[1].endswith("closed, lines lost: 7")


def test_a_pipe_takes_whole_lines(tmp_path: Path, troubles: list[str]) -> None:
    """What is in a pipe cannot be cut off, so that no line may be begun that is not ended."""
    fifo, new = tmp_path / "fifo", tmp_path / "new"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    lines = numbered(0, 1000)
    writer = LineWriter(str(fifo), troubles.append)
    for line in lines:
        writer.write(line)
    eventually(lambda: writer._failing, "the pipe is full")
    writer.retarget(str(new))
    eventually(lambda: new.exists() and new.read_bytes().endswith(lines[-1]), "the new file")
    writer.close()
    in_pipe = os.read(reader, 1 << 16)
    os.close(reader)
    assert in_pipe.endswith(b"\n")
    assert in_pipe + new.read_bytes() == b"".join(lines)


def test_reopen_leaves_a_file_alone_that_has_its_name(
    tmp_path: Path, troubles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a log which cannot be opened a second time (privileges given up) goes on."""
    path = tmp_path / "log"
    writer = LineWriter(str(path), troubles.append)

    def refuse(*_words: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        writer.write(b"one\n")
        writer.reopen()
        writer.write(b"two\n")
        writer.close()
    assert path.read_bytes() == b"one\ntwo\n"
    assert troubles == []


def test_dev_full_drops_the_oldest_and_counts(troubles: list[str]) -> None:
    lines = numbered(0, 1_000_000 // 12)
    writer = LineWriter("/dev/full", troubles.append, held_bytes_max=BATCH_BYTES_MAX // 8)
    writer.write(lines[0])
    eventually(lambda: bool(troubles), "the trouble is reported")
    for line in lines[1:]:
        writer.write(line)
    writer.write(b"last\n")
    assert len(writer._lines) < len(lines)
    writer.close()
    assert len(troubles) == 2
    assert troubles[0] == "/dev/full: cannot write: No space left on device; queueing lines, retrying"
    assert troubles[1] == f"/dev/full: closed, lines lost: {len(lines) + 1}"


def test_failures_do_not_hold_on_to_memory(troubles: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linewriter, "RETRY_MIN_S", 0.001)
    monkeypatch.setattr(linewriter, "RETRY_MAX_S", 0.001)
    tries = 0

    def fail(fd: int, data: memoryview) -> int:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = LineWriter("/dev/full", troubles.append)
    line = bytes(99_999) + b"\n"
    monkeypatch.setattr(os, "write", fail)
    gc.disable()  # what only a collection gives back may stay for hours in a process with little to do
    tracemalloc.start()
    try:
        for _ in range(30):
            writer.write(line)
        eventually(lambda: tries > 20, "twenty tries")
        assert tracemalloc.get_traced_memory()[0] < 3 * 30 * len(line)
    finally:
        tracemalloc.stop()
        gc.enable()
        monkeypatch.undo()
        writer.close()


def test_a_missing_directory_comes_back(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "gone" / "log"
    connection_log = ConnectionLog(LogSettings(str(path)), troubles.append)
    assert troubles == []
    connection_log.closed(session(1))
    eventually(lambda: len(troubles) == 1, "the trouble is reported")
    path.parent.mkdir()
    eventually(path.exists, "the file")
    eventually(lambda: len(troubles) == 2, "the end of the trouble is reported")
    connection_log.close()
    assert path.read_bytes().count(b"\n") == 1
    assert "No such file or directory" in troubles[0]


def test_reopen_with_the_directory_gone(tmp_path: Path, troubles: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is open is better than none; the other one is used as soon as it can be opened."""
    monkeypatch.setattr(linewriter, "RETRY_MAX_S", 0.01)
    path, moved = tmp_path / "logs" / "log", tmp_path / "moved" / "log"
    path.parent.mkdir()
    writer = LineWriter(str(path), troubles.append)
    writer.write(b"one\n")
    eventually(lambda: path.read_bytes() == b"one\n", "the first line")
    path.parent.rename(tmp_path / "moved")
    writer.reopen()
    eventually(lambda: len(troubles) == 1, "the trouble is reported")
    writer.write(b"two\n")
    eventually(lambda: moved.read_bytes() == b"one\ntwo\n", "the second line")
    path.parent.mkdir()
    writer.write(b"three\n")
    eventually(lambda: path.exists() and path.read_bytes() == b"three\n", "the third line")
    writer.close()
    assert troubles == [
        f"{path}: cannot reopen: No such file or directory; still writing to the old file, retrying",
        f"{path}: reopened",
    ]


def test_reopen_of_a_file_that_nobody_can_find_any_more(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "logs" / "log"
    path.parent.mkdir()
    writer = LineWriter(str(path), troubles.append)
    writer.write(b"one\n")
    eventually(lambda: path.read_bytes() == b"one\n", "the first line")
    path.unlink()
    path.parent.rmdir()
    writer.reopen()
    eventually(lambda: len(troubles) == 1, "the trouble is reported")
    writer.write(b"two\n")
    path.parent.mkdir()
    eventually(lambda: path.exists() and path.read_bytes() == b"two\n", "the second line")
    writer.close()
    assert "queueing lines, retrying" in troubles[0]


def test_a_fifo_nobody_reads_and_then_somebody_does(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = LineWriter(str(path), troubles.append)
    writer.write(b"one\n")
    eventually(lambda: len(troubles) == 1, "the trouble is reported")
    assert "this FIFO has no reader" in troubles[0]
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    eventually(lambda: len(troubles) == 2, "the end of the trouble is reported")
    assert os.read(reader, 100) == b"one\n"
    os.close(reader)
    writer.write(b"two\n")
    eventually(lambda: len(troubles) == 3, "the reader's end is reported")
    writer.close()
    assert troubles[3].endswith("closed, lines lost: 1")


def test_a_fifo_whose_reader_is_slow_gets_every_byte(tmp_path: Path, troubles: list[str]) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    pipe_bytes = fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    lines = numbered(0, 5 * pipe_bytes // 12)
    writer = LineWriter(str(path), troubles.append)
    for line in lines:
        writer.write(line)
    received = b""
    deadline = time.monotonic() + WAIT_S
    while len(received) < 12 * len(lines):
        assert time.monotonic() < deadline
        try:
            received += os.read(reader, pipe_bytes)
        except BlockingIOError:
            time.sleep(0.001)
    writer.close()
    os.close(reader)
    assert received == b"".join(lines)
    assert troubles == []


def test_a_write_that_hangs_stops_neither_the_loop_nor_the_end(troubles: list[str]) -> None:
    reader, filled = os.pipe()
    fcntl.fcntl(filled, fcntl.F_SETPIPE_SZ, 4096)
    os.write(filled, bytes(4096))
    writer = LineWriter(filled, troubles.append, held_bytes_max=BATCH_BYTES_MAX + 1000)
    writer.write(b"hangs\n")
    eventually(lambda: not writer._lines, "the thread has the line")
    line = bytes(999) + b"\n"
    for _ in range(BATCH_BYTES_MAX // 1000 + 3):
        writer.write(line)
    assert len(troubles) == 1
    assert "writing is too slow, dropping the oldest lines" in troubles[0]
    thread = writer._thread
    assert thread is not None
    writer.close(wait_s=0.01)
    assert "closed, lines lost: " in troubles[1]
    os.close(reader)  # The write fails with EPIPE, and the thread ends.
    thread.join(WAIT_S)
    os.close(filled)


def test_a_callback_that_raises_does_not_end_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gone" / "log"
    called = threading.Event()

    def fails(text: str) -> None:
        called.set()
        raise RuntimeError("a fault in the program")

    writer = LineWriter(str(path), fails)
    writer.write(b"one\n")
    assert called.wait(WAIT_S)
    path.parent.mkdir()
    eventually(lambda: path.exists() and path.read_bytes() == b"one\n", "the line")
    writer.close()
    assert "on_trouble failed" in caplog.text


def test_trouble_without_a_callback_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    connection_log = ConnectionLog(LogSettings("/dev/full"))
    connection_log.closed(session(1))
    connection_log.close()
    assert [record.levelname for record in caplog.records if record.name == "oinetd"] == ["WARNING"] * 2


class TestCheck:
    """What is an operator's mistake, and what is not."""

    @pytest.mark.parametrize("file", ["", "-", "/dev/full", "/dev/null"])
    def test_good(self, file: str) -> None:
        ConnectionLog.check(LogSettings(file))

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes the privileges away from itself")
    def test_no_file_is_good_wherever_the_process_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        os.seteuid(65534)
        try:
            ConnectionLog.check(LogSettings())
        finally:
            os.seteuid(0)

    def test_a_new_file_is_good_and_not_made(self, tmp_path: Path) -> None:
        ConnectionLog.check(LogSettings(str(tmp_path / "new")))
        assert not (tmp_path / "new").exists()

    def test_a_fifo_is_good(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        ConnectionLog.check(LogSettings(str(tmp_path / "fifo")))

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is a directory"):
            ConnectionLog.check(LogSettings(str(tmp_path)))

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"there is no directory .*/gone"):
            ConnectionLog.check(LogSettings(str(tmp_path / "gone" / "log")))

    def test_a_file_where_a_directory_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="Not a directory"):
            ConnectionLog.check(LogSettings(str(tmp_path / "file" / "log")))

    def test_a_socket(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            with pytest.raises(ConfigError, match="is a socket"):
                ConnectionLog.check(LogSettings(str(tmp_path / "socket")))

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes the privileges away from itself")
    def test_no_permission(self, tmp_path: Path) -> None:
        (tmp_path / "log").touch(mode=0o600)
        tmp_path.chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(ConfigError, match=r"[Pp]ermission"):
                ConnectionLog.check(LogSettings(str(tmp_path / "log")))
            with pytest.raises(ConfigError, match=r"[Pp]ermission"):
                ConnectionLog.check(LogSettings(str(tmp_path / "new")))
        finally:
            os.seteuid(0)
