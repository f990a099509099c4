"""A group whose servers are all full: said once, counted, seen."""

from __future__ import annotations

import pytest

from oinetd import Forwarder
from oinetd.admin.servers import group_documents
from oinetd.core import capacity
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
