"""A group whose servers are all full: said once, counted, seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from oinetd import Forwarder
from oinetd.admin.print import status_lines
from oinetd.admin.servers import group_documents
from oinetd.core import capacity
from tests.admin.rig import administered
from tests.admin.schema import faults
from tests.admin.test_api import schema_of
from tests.forwarding import bound, exchange, in_one_loop
from tests.peers import dial, until
from tests.upstream.servers import backends, forwarding_to


@pytest.mark.parametrize("engine", ["python", "native"])
@in_one_loop
async def test_a_full_group_is_said_once(
    engine: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "CALM_S", 0.1)
    monkeypatch.setattr(capacity, "LOOK_S", 0.05)
    caplog.set_level("INFO", "oinetd")

    def document(forwarder: Forwarder) -> tuple[object, object]:
        (found,) = group_documents(forwarder)
        return found["full"], found["times_full"]

    async with backends(2) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port} [max-connections=1]" for server in servers)
        async with forwarding_to(lines, engine) as forwarder:
            live = [await dial(bound(forwarder)) for _ in range(2)]
            assert [await exchange(peer) for peer in live] == [True, True]
            waiting = [await dial(bound(forwarder)) for _ in range(3)]
            await until(lambda: document(forwarder) == (True, 1))
            for peer in live:
                peer.close()
            assert await exchange(waiting[0])
            for peer in waiting:
                peer.close()
            await until(lambda: document(forwarder) == (False, 1))
    said = [message for message in caplog.messages if message.startswith("group web:")]
    assert said == [
        "group web: full (all servers, 2 of 2 sessions), clients wait in the accept queue",
        "group web: room again (0 connections live)",
    ]


@in_one_loop
async def test_sessions_of_a_drained_server_take_no_room(caplog: pytest.LogCaptureFixture) -> None:
    async with backends(2) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port} [max-connections=1]" for server in servers)
        async with forwarding_to(lines) as forwarder:
            live = [await dial(bound(forwarder)) for _ in range(2)]
            assert [await exchange(peer) for peer in live] == [True, True]
            forwarder.set_server("web", servers[0].name, state="drain")
            live.append(await dial(bound(forwarder)))
            await until(lambda: any("full" in message for message in caplog.messages))
            for peer in live:
                peer.close()
    assert "group web: full (all servers, 1 of 1 sessions), clients wait in the accept queue" in caplog.messages


@in_one_loop
async def test_the_status_has_a_line_for_each_group(tmp_path: Path) -> None:
    text = "127.0.0.1 0 @web\nupstream web 10.0.0.1 80\nupstream web 10.0.0.2 80\n"
    async with administered(tmp_path, text) as admin:
        admin.forwarder.set_server("web", "10.0.0.2:80", state="drain")
        _, value = await admin.json("/v1/status")
        assert faults(value, schema_of("/v1/status")) == []
        assert "group web: 1 of 2 servers usable, 0 sessions" in status_lines(value)
        value["groups"][0].update(full=True)
        line = next(line for line in status_lines(value) if line.startswith("group web"))
        assert line.endswith(", 0 sessions, FULL: clients wait for room in a server")
