"""The byte hook of a program: it sees, delays and changes what TCP connections carry; a fault harms one session."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oinetd import (
    BlockingForwarder,
    Config,
    Direction,
    Ending,
    EngineUnavailable,
    Forwarder,
    SessionRecord,
    parse_rule,
)
from tests.admin.echo import echo_server
from tests.forwarding import Seen, bound, echoes, exchange, rule
from tests.peers import dial, pattern, until

NOWHERE = ("127.0.0.1", 1)


def tapping(place: tuple[str, int], tap: Any, options: str = "", seen: Seen | None = None) -> Forwarder:
    hooks: dict[str, Any] = {"on_close": seen.closed.append} if seen else {}
    return Forwarder(Config(rules=(rule(place, options=options),)), tap=tap, **hooks)


async def test_it_sees_all_bytes_and_may_change_them() -> None:
    seen: dict[Direction, bytes] = {Direction.UP: b"", Direction.DOWN: b""}
    closed = Seen()

    def tap(session: SessionRecord, direction: Direction, data: bytes) -> bytes | None:
        assert session.client == "127.0.0.1"
        assert type(data) is bytes
        seen[direction] += data
        return data.replace(b"l", b"LL") if direction is Direction.UP else None

    async with echo_server() as place, tapping(place, tap, seen=closed) as forwarder:
        client = await dial(bound(forwarder))
        await client.send(b"hello")
        assert await client.read(7) == b"heLLLLo"
        client.close()
        await until(lambda: closed.closed)
    assert seen == {Direction.UP: b"hello", Direction.DOWN: b"heLLLLo"}
    (record,) = closed.closed
    assert (record.bytes_up, record.bytes_down, record.ending) == (7, 7, Ending.CLIENT_CLOSED)
    assert record.engine == "python"


async def test_what_is_awaited_holds_one_direction_and_keeps_the_order() -> None:
    gate = asyncio.Event()

    async def tap(session: SessionRecord, direction: Direction, data: bytes) -> None:
        if direction is Direction.UP:
            await gate.wait()

    async with echo_server() as place, tapping(place, tap) as forwarder:
        client = await dial(bound(forwarder))
        await client.send(b"first")
        await client.send(b"second")
        client.half_close()
        await until(lambda: forwarder.sessions())
        assert forwarder.sessions()[0].bytes_up == 0
        gate.set()
        assert await client.read_all() == b"firstsecond"
        client.close()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(st.sampled_from(["pass", "later", "double", "drop", "soon"]), min_size=1, max_size=8))
async def test_any_mixture_of_answers_is_what_arrives(answers: list[str]) -> None:
    turns, expected = 0, b""

    def tap(session: SessionRecord, direction: Direction, data: bytes) -> Any:
        nonlocal turns, expected
        if direction is Direction.DOWN:
            return None
        answer, turns = answers[turns % len(answers)], turns + 1
        passed = {"double": data * 2, "drop": b""}.get(answer, data)
        expected += passed
        if answer == "soon":
            return asyncio.sleep(0)
        return asyncio.sleep(0.001, passed) if answer == "later" else passed

    async with echo_server() as place, tapping(place, tap, "buffersize=4096") as forwarder:
        client = await dial(bound(forwarder))
        sending = asyncio.ensure_future(client.send(pattern(30_000)))
        sending.add_done_callback(lambda _: client.half_close())
        assert await client.read_all() == expected
        await sending
        client.close()


@pytest.mark.parametrize("fault", ["raises", "raises later", "answers nonsense", "answers nonsense later"])
async def test_a_fault_of_the_hook_resets_its_session_alone(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()

    async def later(data: bytes) -> Any:
        await asyncio.sleep(0)
        if fault == "raises later":
            raise asyncio.CancelledError
        return "text"

    def tap(session: SessionRecord, direction: Direction, data: bytes) -> Any:
        if data != b"bad":
            return None
        if fault == "raises":
            raise ValueError("no")
        return "text" if fault == "answers nonsense" else later(data)

    async with echo_server() as place, tapping(place, tap, seen=seen) as forwarder:
        good, bad = await dial(bound(forwarder)), await dial(bound(forwarder))
        assert await exchange(good)
        assert not await exchange(bad, b"bad")
        await until(lambda: seen.closed)
        assert seen.closed[0].ending is Ending.ABORTED
        assert await exchange(good)
        good.close()
        bad.close()
    assert [each.levelno for each in caplog.records if "tap hook failed" in each.getMessage()] == [logging.ERROR]


@pytest.mark.parametrize("how", ["kill", "idle-timeout", "stop"])
async def test_the_end_of_a_session_cancels_the_hook(how: str) -> None:
    cancelled, asked = asyncio.Event(), asyncio.Event()
    seen = Seen()

    async def tap(session: SessionRecord, direction: Direction, data: bytes) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    options = "idle-timeout=0.1s" if how == "idle-timeout" else ""
    async with echo_server() as place, tapping(place, tap, options, seen) as forwarder:
        client = await dial(bound(forwarder))
        await client.send(b"hello")
        async with asyncio.timeout(30):
            await asked.wait()
            if how == "kill":
                assert forwarder.kill(forwarder.sessions()[0].id)
            elif how == "stop":
                await forwarder.stop()
            await cancelled.wait()
        await until(lambda: seen.closed)
        client.close()
    assert seen.closed[0].ending is (Ending.IDLE_TIMEOUT if how == "idle-timeout" else Ending.ABORTED)


async def test_the_start_says_who_serves_and_what_has_no_tap(caplog: pytest.LogCaptureFixture) -> None:
    datagrams = parse_rule("127.0.0.1 0/udp 127.0.0.1 1/udp")
    with caplog.at_level(logging.INFO, "oinetd"):
        async with Forwarder(Config(rules=(rule(NOWHERE), datagrams)), tap=lambda *said: None):
            pass
    lines = [line for line in caplog.messages if line.startswith("listening on")]
    assert "(Python lane, python engine: the program has a tap)" in lines[0]
    assert lines[1].endswith("; tap sees only TCP)")
    with pytest.raises(EngineUnavailable, match="a tap needs the Python lane: write engine=auto"):
        await tapping(NOWHERE, lambda *said: None, "engine=native").start()


def test_a_program_without_asyncio_has_it_too() -> None:
    import socket
    import threading

    told = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = Config(rules=(rule(server.getsockname()[:2]),))
        with BlockingForwarder(config, tap=lambda session, direction, data: told.set()) as forwarder:
            address = forwarder.addresses[0]
            with socket.create_connection((address.host, address.port)) as client:
                client.sendall(b"hello")
                upstream, _ = server.accept()
                with upstream:
                    assert upstream.recv(5) == b"hello"
                assert told.is_set()


async def test_without_it_nothing_changes() -> None:
    async with echo_server() as place, Forwarder(Config(rules=(rule(place),))) as forwarder:
        assert await echoes(bound(forwarder))
        assert forwarder.rules()[0].lane == "native"
