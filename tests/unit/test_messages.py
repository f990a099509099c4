"""Where the operator's messages go, and what they look like."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from oinetd import messages
from oinetd.messages import Messages

LOGGER = logging.getLogger("oinetd")


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in ("oinetd", "asyncio")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
        assert not any(isinstance(one, messages.StderrHandler) for one in logging.getLogger(name).handlers)


def test_on_a_terminal_with_the_time(capfd: pytest.CaptureFixture[str]) -> None:
    sink = Messages("info", {})
    LOGGER.info("hello %s", "world")
    LOGGER.warning("mind")
    LOGGER.debug("not this")
    sink.close()
    lines = capfd.readouterr().err.splitlines()
    assert [line[20:] for line in lines] == ["hello world", "warning: mind"]
    assert lines[0][4::3].startswith("-- ::")


def test_under_a_service_manager_without(capfd: pytest.CaptureFixture[str]) -> None:
    for environ in ({"INVOCATION_ID": "x"}, {"NOTIFY_SOCKET": "@x"}):
        sink = Messages("info", environ)
        LOGGER.error("bad\nand more")
        sink.close()
        assert capfd.readouterr().err == "error: bad\nand more\n"


def test_in_the_journal_with_the_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "journal"
    fd = os.open(out, os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(messages, "STDERR_FD", fd)
    status = os.fstat(fd)
    sink = Messages("debug", {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    LOGGER.debug("a")
    LOGGER.info("b")
    LOGGER.warning("c\nd")
    LOGGER.error("e")
    LOGGER.critical("f")
    sink.close()
    os.close(fd)
    assert out.read_text() == "<7>a\n<6>b\n<4>warning: c\n<4>d\n<3>error: e\n<2>critical: f\n"


def test_the_loop_speaks_here_too(capfd: pytest.CaptureFixture[str]) -> None:
    sink = Messages("info", {"INVOCATION_ID": "x"})
    logging.getLogger("asyncio").error("in the loop")
    sink.close()
    assert capfd.readouterr().err == "error: in the loop\n"


def test_a_name_that_is_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    sink = Messages("info", {"INVOCATION_ID": "x"})
    LOGGER.info("file \udcff")
    sink.close()
    assert capfd.readouterr().err == "file \\udcff\n"


def test_the_system_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    address = tmp_path / "log"
    monkeypatch.setattr(messages, "SYSLOG_ADDRESS", str(address))
    sink = Messages("info", {"INVOCATION_ID": "x"})
    LOGGER.info("before")
    sink.to_syslog()
    LOGGER.info("lost: nobody is there")
    for _ in range(2):  # a system log that is restarted is found again
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
            syslog.bind(str(address))
            LOGGER.warning("one\ntwo")
            LOGGER.info("x" * 10_000)
            head = f"oinetd[{os.getpid()}]: "
            assert syslog.recv(10_000).decode() == f"<28>{head}warning: one"
            assert syslog.recv(10_000).decode() == f"<28>{head}two"
            assert syslog.recv(10_000).decode().startswith(f"<30>{head}xxx")
        address.unlink()
    sink.close()
    assert capfd.readouterr().err == "before\n"


def test_a_system_log_that_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "log"
    monkeypatch.setattr(messages, "SYSLOG_ADDRESS", str(address))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(address))
        sink = Messages("info", {})
        sink.to_syslog()
        for number in range(5000):
            LOGGER.info("line %d", number)  # never waits
        sink.close()
