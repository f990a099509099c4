"""What both processes of an upgrade have open besides sessions: a log that is renamed, listeners in systemd's store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oinetd.lanes.native.plane import available
from tests.daemon.process import Client, Oinetd, text_of, until
from tests.daemon.upgrading import upgrade
from tests.peers import free_port

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

Start = Callable[..., Oinetd]


def test_a_log_that_was_renamed_meanwhile_is_opened_anew(start: Start, tmp_path: Path, environ: dict[str, str]) -> None:
    port, log, earlier = free_port(), tmp_path / "log", tmp_path / "log.1"
    start(f"logfile {log}\n127.0.0.1 {port} UPSTREAM\n")
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
        until(lambda: text_of(log), "the line of its beginning")
        log.rename(earlier)  # the signal that follows reaches the old process
        assert upgrade(tmp_path, environ).returncode == 0
    until(lambda: text_of(log), "the line of its end")
    assert len(text_of(earlier).splitlines()) == 1


def test_a_listener_that_no_rule_needs_any_more_leaves_the_store(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    port, gone = free_port(), free_port()
    environ["FDSTORE"] = "9"
    text = f"127.0.0.1 {port} UPSTREAM\n"
    daemon = start(f"{text}127.0.0.1 {gone} UPSTREAM\n")
    until(lambda: daemon.manager.count(f"FDNAME=oinetd-tcp-127.0.0.1-{gone}"), "the second listener in the store")
    daemon.conf.write_text(daemon.conf.read_text().splitlines(keepends=True)[0])
    assert upgrade(tmp_path, environ).returncode == 0
    until(lambda: daemon.manager.count("FDSTOREREMOVE=1"), "the word to take it out")
    said = daemon.manager.read()
    assert f"FDSTOREREMOVE=1\nFDNAME=oinetd-tcp-127.0.0.1-{gone}" in said
    assert sum(each.startswith("FDSTORE=1") for each in said) == 2, "what is in the store already is not sent again"
