"""The listeners in systemd's store, over an upgrade."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oinetd.lanes.native.plane import available
from tests.daemon.process import Oinetd, until
from tests.daemon.upgrading import upgrade
from tests.peers import free_port

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

Start = Callable[..., Oinetd]


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
