"""A group of which no server is usable: said once, counted, seen; and a line when one is again."""

from __future__ import annotations

import gc
import json
import re
import weakref
from pathlib import Path

import pytest

from oinetd import Forwarder
from oinetd.admin.print import server_lines, status_lines
from oinetd.admin.servers import group_documents
from oinetd.config import parse_config
from oinetd.lanes import outages
from tests.admin.rig import administered
from tests.admin.schema import faults
from tests.admin.test_api import schema_of
from tests.forwarding import in_one_loop
from tests.peers import until
from tests.upstream.servers import backends, configured, forwarding_to


def document(forwarder: Forwarder) -> tuple[object, object]:
    (found,) = group_documents(forwarder)
    return found["down"], found["times_down"]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [re.sub(r"\d+ s later", "N s later", text) for text in caplog.messages if " usable" in text]


@pytest.mark.parametrize("engine", ["python", "native"])
@in_one_loop
async def test_an_outage_found_by_checks(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "oinetd")
    async with backends(2) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port}" for server in servers)
        checks = "[check=tcp, check-interval=50ms, check-fast=20ms, check-down=20ms, check-fall=1]"
        async with forwarding_to(f"{lines}\n{checks}", engine) as forwarder:
            await until(lambda: all(each["checks_passed"] for each in group_documents(forwarder)[0]["servers"]))
            await servers[0].stop()
            await until(lambda: group_documents(forwarder)[0]["usable"] == 1)
            assert document(forwarder) == (False, 0)
            await servers[1].stop()
            await until(lambda: document(forwarder) == (True, 1))
            await servers[0].start()
            await until(lambda: document(forwarder) == (False, 1))
            await until(lambda: len(said(caplog)) == 2, "the line of the end, a second later")
    assert said(caplog) == [
        "group web: no server is usable (2 down), new clients are tried on those that are down (all-down=try)",
        "group web: usable again (1 of 2 servers), N s later",
    ]
    (warning,) = (each for each in caplog.records if "no server is usable" in each.getMessage())
    assert warning.levelname == "WARNING"


@in_one_loop
async def test_changes_that_follow_each_other_are_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an operator, and by a reload after which the only server is in maintenance."""
    monkeypatch.setattr(outages, "PAUSE_S", 0.1)
    caplog.set_level("INFO", "oinetd")
    lines = "127.0.0.1 9\n127.0.0.2 9"
    async with forwarding_to(lines) as forwarder:
        for state in ("maint", "ready", "drain"):
            for host in ("127.0.0.1", "127.0.0.2"):
                forwarder.set_server("web", f"{host}:9", state=state)
        assert document(forwarder) == (True, 2)
        forwarder.set_server("web", "127.0.0.1:9", state="ready")
        await until(lambda: len(said(caplog)) == 2)
        await forwarder.reload(configured("127.0.0.2 9"))
        assert document(forwarder) == (True, 3)
        await until(lambda: len(said(caplog)) == 3)
    assert said(caplog) == [
        "group web: no server is usable (2 maint), new clients are reset",
        "group web: usable again (1 of 2 servers), N s later",
        "group web: no server is usable (1 drain), new clients are reset",
    ]


@in_one_loop
async def test_a_group_that_leaves_the_configuration_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    async with forwarding_to("127.0.0.1 9") as forwarder:
        await forwarder.reload(parse_config("127.0.0.1 0 127.0.0.1 9"))
    assert said(caplog) == []


@in_one_loop
async def test_nothing_is_kept_of_a_group_that_was_down_as_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "PAUSE_S", 0.0)
    async with forwarding_to("127.0.0.1 9") as forwarder:
        forwarder.set_server("web", "127.0.0.1:9", state="maint")
        assert forwarder._reload.groups is not None
        (group,) = map(weakref.ref, forwarder._reload.groups)
        await until(lambda: not outages_pending(forwarder))
        await forwarder.reload(parse_config("127.0.0.1 0 127.0.0.1 9"))
        await until(lambda: (gc.collect(), group() is None)[1])


@in_one_loop
async def test_a_group_without_servers_and_its_first_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, and when its file is empty."""
    monkeypatch.setattr(outages, "PAUSE_S", 0.0)
    caplog.set_level("INFO", "oinetd")
    file = tmp_path / "servers"
    lines = f"file:{file} /udp\n[allow-special]"
    file.touch()
    async with forwarding_to(lines, rule="127.0.0.1 0/udp @web") as forwarder:
        assert document(forwarder) == (True, 1)
        for text, expected in (("127.0.0.1 9/udp", (False, 1)), ("", (True, 2)), ("127.0.0.1 9/udp", (False, 2))):
            await until(lambda: not outages_pending(forwarder))
            file.write_text(text)
            await forwarder.reload(configured(lines, rule="127.0.0.1 0/udp @web"))
            assert document(forwarder) == expected
    assert (
        said(caplog)
        == [
            "group web: no server is usable (it has none), clients get no session",
            "group web: usable again (1 of 1 servers), N s later",
        ]
        * 2
    )


def outages_pending(forwarder: Forwarder) -> bool:
    """Whether a line is held back because there was one before."""
    assert forwarder._reload.groups is not None
    (group,) = forwarder._reload.groups
    return bool(group._listener._outages._said)  # type: ignore[attr-defined]


@in_one_loop
async def test_another_process_counts_on(caplog: pytest.LogCaptureFixture) -> None:
    """Also a server that an operator took out of service is counted once."""
    caplog.set_level("INFO", "oinetd")
    lines = "127.0.0.1 9"
    async with forwarding_to(lines) as old, forwarding_to(lines) as new:
        old.set_server("web", "127.0.0.1:9", state="maint")
        old._reload.groups.restore({"group": "web", "name": "", "times": [3, 0]}, counters=True)  # type: ignore[union-attr]
        told = json.loads(json.dumps(old.server_documents()))
        new.restore_servers(told, counters=False)
        new.restore_servers(told, counters=True)
        (found,) = group_documents(new)
        assert (found["times_down"], found["times_full"], found["servers"][0]["changes"]) == (1, 3, 1)
        new.restore_servers([{**told[-1], "times": [float("inf"), 0]}], counters=True)
    assert "a server keeps nothing of its state" in caplog.text


@in_one_loop
async def test_an_outage_that_lasts_over_an_upgrade_is_one(tmp_path: Path) -> None:
    """A group that has no server then is found so at the start of the new process, too."""
    file = tmp_path / "servers"
    file.touch()
    async with forwarding_to(f"file:{file}") as old, forwarding_to(f"file:{file}") as new:
        assert document(old) == document(new) == (True, 1)
        told = json.loads(json.dumps(old.server_documents()))
        new.restore_servers(told, counters=False)
        new.restore_servers(told, counters=True)
        assert document(new) == (True, 1)


@in_one_loop
async def test_the_commands_and_metrics_have_it(tmp_path: Path) -> None:
    async with administered(tmp_path, "127.0.0.1 0 @web\nupstream web 10.0.0.1 80\n") as admin:
        admin.forwarder.set_server("web", "10.0.0.1:80", state="maint")
        _, value = await admin.json("/v1/status")
        assert faults(value, schema_of("/v1/status")) == []
        assert "group web: 0 of 1 servers usable, 0 sessions, DOWN (1 time)" in status_lines(value)
        _, servers = await admin.json("/v1/servers")
        assert faults(servers, schema_of("/v1/servers")) == []
        assert server_lines(servers)[-1] == "web: DOWN: no server is usable (1 time)"
        _, _, metrics = await admin.ask("GET", "/metrics")
        assert b'oinetd_group_down{group="web"} 1.0' in metrics
        admin.forwarder.set_server("web", "10.0.0.1:80", state="ready")
        _, value = await admin.json("/v1/status")
        assert "group web: 1 of 1 servers usable, 0 sessions, was down 1 time" in status_lines(value)
