"""Where the operator's messages go, and what they look like."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from oinetd.observe import process_log, systemlog
from oinetd.observe.process_log import ProcessLog

LOGGER = logging.getLogger("oinetd")


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in ("oinetd", "asyncio")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
        assert not any(isinstance(one, process_log.StderrHandler) for one in logging.getLogger(name).handlers)


def test_on_a_terminal_with_the_time(capfd: pytest.CaptureFixture[str]) -> None:
    sink = ProcessLog("info", {})
    LOGGER.info("hello %s", "world")
    LOGGER.warning("mind")
    LOGGER.debug("not this")
    sink.close()
    lines = capfd.readouterr().err.splitlines()
    assert [line[20:] for line in lines] == ["hello world", "warning: mind"]
    assert lines[0][4::3].startswith("-- ::")


def test_under_a_service_manager_without(capfd: pytest.CaptureFixture[str]) -> None:
    for environ in ({"INVOCATION_ID": "x"}, {"NOTIFY_SOCKET": "@x"}):
        sink = ProcessLog("info", environ)
        LOGGER.error("bad\nand more")
        sink.close()
        assert capfd.readouterr().err == "error: bad\nand more\n"


def test_in_the_journal_with_the_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "journal"
    fd = os.open(out, os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(process_log, "STDERR_FD", fd)
    status = os.fstat(fd)
    sink = ProcessLog("debug", {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    LOGGER.debug("a")
    LOGGER.info("b")
    LOGGER.warning("c\nd")
    LOGGER.error("e")
    LOGGER.critical("f")
    sink.close()
    os.close(fd)
    assert out.read_text() == "<7>a\n<6>b\n<4>warning: c\n<4>d\n<3>error: e\n<2>critical: f\n"


def test_the_loop_speaks_here_too(capfd: pytest.CaptureFixture[str]) -> None:
    sink = ProcessLog("info", {"INVOCATION_ID": "x"})
    logging.getLogger("asyncio").error("in the loop")
    sink.close()
    assert capfd.readouterr().err == "error: in the loop\n"


def test_a_name_that_is_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    sink = ProcessLog("info", {"INVOCATION_ID": "x"})
    LOGGER.info("file \udcff")
    sink.close()
    assert capfd.readouterr().err == "file \\udcff\n"


def test_the_system_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    address = tmp_path / "log"
    monkeypatch.setattr(process_log, "SYSLOG_ADDRESS", str(address))
    sink = ProcessLog("info", {"INVOCATION_ID": "x"})
    LOGGER.info("before")
    sink.to_syslog()
    head = f"oinetd[{os.getpid()}]: "
    for turn in range(2):  # a system log that is restarted is found again, and gets what it missed
        LOGGER.info("missed %d", turn)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
            syslog.bind(str(address))
            LOGGER.warning("one\ntwo")
            LOGGER.info("x" * 10_000)
            assert syslog.recv(10_000).decode() == f"<30>{head}missed {turn}"
            assert syslog.recv(10_000).decode() == f"<28>{head}warning: one"
            assert syslog.recv(10_000).decode() == f"<28>{head}two"
            assert syslog.recv(10_000).decode().startswith(f"<30>{head}xxx")
        address.unlink()
    sink.close()
    assert capfd.readouterr().err == "before\n"


def test_a_system_log_that_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "log"
    monkeypatch.setattr(process_log, "SYSLOG_ADDRESS", str(address))
    monkeypatch.setattr(systemlog, "CLOSE_WAIT_S", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(address))
        sink = ProcessLog("info", {})
        sink.to_syslog()
        for number in range(5000):
            LOGGER.info("line %d", number)  # never waits
        sink.close()


def test_nothing_waits_for_a_system_log_that_never_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemlog, "CLOSE_WAIT_S", 1000.0)
    log = systemlog.SystemLog(str(tmp_path / "none"), b"gap: ")
    log.send(b"nobody reads this")
    log.close()


def test_a_system_log_that_is_slow_gets_everything_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "log"
    monkeypatch.setattr(process_log, "SYSLOG_ADDRESS", str(address))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(address))
        sink = ProcessLog("info", {})
        sink.to_syslog()
        for number in range(3000):  # more than the queue of the socket, fewer than are held
            LOGGER.info("line %d", number)
        got = [int(syslog.recv(10_000).split()[-1]) for _ in range(3000)]
        sink.close()
    assert got == list(range(3000))


def test_what_the_system_log_does_not_get_is_counted_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = tmp_path / "log"
    monkeypatch.setattr(process_log, "SYSLOG_ADDRESS", str(address))
    monkeypatch.setattr(systemlog, "HELD_MESSAGES_MAX", 100)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(address))
        sink = ProcessLog("info", {})
        sink.to_syslog()
        for number in range(5000):
            LOGGER.info("line %d", number)
        lines: list[str] = []
        while "dropped" not in (lines or [""])[-1]:
            lines.append(syslog.recv(10_000).decode())
        LOGGER.info("after")
        after = syslog.recv(10_000).decode()
        sink.close()
    numbers = [int(line.split()[-1]) for line in lines[:-1]]
    assert numbers == list(range(len(numbers)))
    assert lines[-1] == (
        f"<28>oinetd[{os.getpid()}]: warning: system log too slow: {5000 - len(numbers)} messages dropped"
    )
    assert after.endswith("]: after")


def test_what_is_held_at_the_end_is_counted(tmp_path: Path) -> None:
    address = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(address))
        log = systemlog.SystemLog(str(address), b"gap: ")
        count = 0
        while not log._held:
            log.send(b"%d" % count)
            count += 1
        taken = [syslog.recv(100) for _ in range(count - 1)]
        log.close()
        last = syslog.recv(100)
    assert taken == [b"%d" % number for number in range(count - 1)]
    assert last == b"%d" % (count - 1)


def test_standard_error_that_was_behind_says_what_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    size = fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    monkeypatch.setattr(process_log, "STDERR_FD", writer)
    sink = ProcessLog("info", {"INVOCATION_ID": "x"})
    handler = sink._handler
    assert isinstance(handler, process_log.StderrHandler)
    sink.write_in_background()
    assert handler._writer is not None
    handler._writer._held_bytes_max = handler._writer._crowded_bytes = 1000
    os.write(writer, b"x" * (size - 1) + b"\n")
    for number in range(size):
        LOGGER.info("line %d", number)
    os.set_blocking(reader, True)
    said = b""
    while not re.search(rb"lines lost: \d+\n", said):
        said += os.read(reader, 4096)
    sink.close()
    os.close(reader)
    os.close(writer)
    (lost,) = re.findall(rb"warning: descriptor \d+: writing again, lines lost: (\d+)", said)
    in_all = size + 1  # with the word that the oldest are dropped, itself one of the oldest
    assert int(lost) + said.count(b"\nline ") == in_all
