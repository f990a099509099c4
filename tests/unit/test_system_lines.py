"""The connection log in the system log and the journal."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from pathlib import Path

import pytest

from oinetd import ConfigError, LogFormat, LogSettings, SessionRecord, parse_rule
from oinetd.observe import system_lines
from oinetd.observe.connection_log import ConnectionLog
from oinetd.observe.process_log import ProcessLog

RULE = parse_rule("127.0.0.1 80 192.0.2.1 8080")
RECORD = SessionRecord(7, next(RULE.routes()), "198.51.100.9", 4711, time.time())


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """What the system log and the journal get."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "log"))
    sock.settimeout(30)
    monkeypatch.setattr(system_lines, "SYSLOG_ADDRESS", str(tmp_path / "log"))
    monkeypatch.setattr(system_lines, "JOURNAL_ADDRESS", str(tmp_path / "log"))
    return sock


@pytest.mark.parametrize(("file", "priority"), [("syslog", 30), ("syslog:local3", 158), ("syslog:user", 14)])
def test_lines_go_to_the_system_log_with_their_facility(file: str, priority: int, system: socket.socket) -> None:
    log = ConnectionLog(LogSettings(file))
    log.opened(RECORD)
    got = system.recv(4096)
    log.close()
    system.close()
    assert got.startswith(f"<{priority}>oinetd[{os.getpid()}]: ".encode())
    assert got.endswith(b"opened")


def test_lines_go_to_the_journal_as_fields(system: socket.socket) -> None:
    log = ConnectionLog(LogSettings("journal", LogFormat.JSON))
    log.opened(RECORD)
    identifier, priority, message, end = system.recv(65536).split(b"\n")
    log.close()
    system.close()
    assert (identifier, priority, end) == (b"SYSLOG_IDENTIFIER=oinetd", b"PRIORITY=6", b"")
    assert json.loads(message.removeprefix(b"MESSAGE="))["id"] == 7


def test_a_reload_goes_from_a_file_to_the_system_log_and_back(tmp_path: Path, system: socket.socket) -> None:
    file = tmp_path / "file"
    log = ConnectionLog(LogSettings(str(file)))
    log.opened(RECORD)
    log.reconfigure(LogSettings("syslog"))
    log.opened(RECORD)
    log.reopen()
    assert b"opened" in system.recv(4096)
    log.reconfigure(LogSettings(str(file)))
    log.opened(RECORD)
    log.close()
    system.close()
    assert file.read_text().count("opened") == 2


def test_an_unknown_facility_is_an_error() -> None:
    with pytest.raises(ConfigError, match="there is no facility 'lokal'"):
        ConnectionLog.check(LogSettings("syslog:lokal"))
    for file in ("syslog", "syslog:local0", "journal", "stdout", "-"):
        ConnectionLog.check(LogSettings(file))
        assert not ConnectionLog.is_file(LogSettings(file))
    assert ConnectionLog.is_file(LogSettings("./syslog"))


def test_messages_of_the_process_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("oinetd")
    level = logger.level
    sink = ProcessLog("info", {}, as_json=True)
    logger.warning("two\nlines \x1b[31m")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("failed")
    sink.close()
    logger.setLevel(level)
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert (first["level"], first["message"], first["logger"]) == ("warning", "two\nlines \x1b[31m", "oinetd")
    assert "ValueError: wrong" in second["traceback"]
    assert "traceback" not in first
