"""The steps of an upgrade, one process at a time: what goes wrong in one of them costs no more than that."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oinetd import Ending, Forwarder, SessionRecord, parse_config
from oinetd.lanes.moves import Moves
from oinetd.lanes.native.plane import available
from oinetd.lanes.server_events import python_sessions
from oinetd.process import replacement
from oinetd.process.invocation import Options
from oinetd.process.replacement import connect_wait_s, settling
from oinetd.process.service_manager import ServiceManager
from oinetd.upgrade.channel import Channel, ChannelClosed
from oinetd.upgrade.frames import Frame, Header
from oinetd.upgrade.give import UpgradeFailed
from oinetd.upgrade.take import PATIENCE_S, Taker
from oinetd.upgrade.thread import UpgradeThread
from tests.forwarding import bound, in_one_loop
from tests.peers import dial, free_port, server, until
from tests.peers import echo as echo_bytes
from tests.preamble.samples import real_hello
from tests.udp.rig import Party, echo


async def served_by_python(rules: str, closed: list[SessionRecord]) -> Forwarder:
    forwarder = Forwarder(parse_config(f"engine python\n{rules}"), on_close=closed.append)
    await forwarder.start()
    return forwarder


@in_one_loop
async def test_a_udp_session_on_its_way_ends_with_its_server() -> None:
    closed: list[SessionRecord] = []
    with echo() as upstream, Party() as client:
        port = upstream.address[1]
        forwarder = await served_by_python(f"127.0.0.1 0/udp @dns\nupstream dns 127.0.0.1 {port}/udp\n", closed)
        try:
            await client.ask(b"hello", bound(forwarder))
            groups = forwarder._reload.groups
            assert groups is not None
            (member,) = next(iter(groups)).members
            (departing,) = forwarder.moves.take_out_datagrams(10)
            (cut,) = python_sessions(member)
            cut(Ending.SERVER_DOWN)
            assert not closed
            forwarder.moves.put_back(departing)
            forwarder.moves.resume()
            await until(lambda: len(closed) == 1)
            assert member.load.live == 0
            assert await client.ask(b"again", bound(forwarder)) == b"again"
        finally:
            await forwarder.stop()


@in_one_loop
async def test_connections_on_their_way_are_not_waited_for() -> None:
    closed: list[SessionRecord] = []
    async with server(echo_bytes) as address:
        forwarder = await served_by_python(f"127.0.0.1 0 127.0.0.1 {address[1]}\n", closed)
        try:
            client = await dial(bound(forwarder))
            await until(lambda: bool(relaying(forwarder)))
            (departing,), left = forwarder.moves.take_out(10)
            again = forwarder.moves.take_out(10)
            forwarder.moves.put_back(departing)
            assert (left, again) == (0, ([], 0))
            client.close()
            await until(lambda: len(closed) == 1)
        finally:
            await forwarder.stop()


def relaying(forwarder: Forwarder) -> list[Any]:
    return [live for live in forwarder.moves.registry.live.values() if live.relaying is not None]


@pytest.mark.skipif(bool(available()), reason=available())
@in_one_loop
async def test_rules_that_share_a_listener_serve_again_after_an_upgrade_that_failed() -> None:
    opened: list[SessionRecord] = []
    async with server(echo_bytes) as (host, port):
        rules = "".join(f"127.0.0.1 {{}} {host} {port} [sni={name}.example]\n" for name in "ab")
        text = rules.format(*[free_port()] * 2)
        async with Forwarder(parse_config(text), on_open=opened.append) as forwarder:
            forwarder.moves.pause()
            native = forwarder.moves.lanes.native
            for _ in range(3):  # the lane forgets what is not in force in two steps
                native.hub.collect()
                native._sweep()
            forwarder.moves.resume()
            client = await dial(bound(forwarder))
            hello = real_hello("b.example")
            await client.send(hello)
            assert await client.read(len(hello)) == hello
            await until(lambda: len(opened) == 1)
            assert opened[0].server_name == "b.example"
            client.close()


class Story:
    """The new process with faults: what it was told to do."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def start_streams(self) -> None:
        self.did.append("streams")

    def start_datagrams(self) -> None:
        self.did.append("datagrams")

    def number_from(self, least: int) -> None:
        self.did.append(f"from {least}")

    def settle(self) -> None:
        self.did.append("settled")

    def restore(self, counters: Any) -> None:
        raise ValueError("other buckets")


@in_one_loop
async def test_counters_that_are_not_understood_do_not_undo_an_upgrade() -> None:
    ours, theirs = socket.socketpair()
    moves: Any = Story()
    with Channel(theirs, 10.0) as old:
        taking = asyncio.ensure_future(Taker(Channel(ours, 10.0)).take(moves))
        assert (await asyncio.to_thread(old.receive)).kind == "ready"
        for frame in (Frame("go", {"next_id": 7}), Frame("finish", {"counters": {"rules": [1]}, "stop": True})):
            await asyncio.to_thread(old.send, frame)
        assert (await asyncio.to_thread(old.receive)).kind == "done"
        old.close()
        assert (await taking)["stop"] is True
    assert moves.did == ["from 7", "streams", "datagrams", "settled"]


def test_a_session_that_cannot_go_on_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        def come_back(self, number: int) -> bool:
            return False

    class Listener:
        def adopt(self, state: Any, *_: object) -> Callable[[], object]:
            return lambda: fail(state["id"])

    def fail(number: int) -> None:
        raise OSError(errno.ENOSPC, "no watch is left")

    moves: Any = Moves.__new__(Moves)
    limits: Any = type("Limits", (), {"registry": type("Registry", (), {"away": Away()})})
    moves.limits = limits
    moves._go_on(5, Listener().adopt({"id": 5}))
    assert "session 5 ends: no watch is left" in caplog.text


def test_the_counters_of_many_rules_fit_into_a_frame() -> None:
    frame = Frame("finish", {"rules": ["x" * 1000] * 20_000})
    head, rest = frame.encode()
    assert Frame.decode(Header.read(head), rest, ()) == Frame("finish", {**frame.document, "kind": "finish"})


def test_the_new_process_does_not_give_up_before_the_old_one() -> None:
    config = parse_config("connect-timeout 1h\n127.0.0.1 1 127.0.0.1 2\n")
    assert connect_wait_s(config) <= PATIENCE_S / 2
    assert connect_wait_s(parse_config("connect-timeout 3s\n127.0.0.1 1 127.0.0.1 2\n")) == 4.0


def test_a_log_that_cannot_be_written_is_waited_for_once() -> None:
    calls: list[int] = []

    def flush() -> bool:
        calls.append(1)
        return len(calls) < 3

    settle = settling(flush)
    for _ in range(10):
        settle()
    assert len(calls) == 3


def test_descriptors_that_nobody_takes_are_waited_for_no_longer_than_an_answer() -> None:
    class Crowded:
        def settimeout(self, timeout_s: float | None) -> None:
            self.timeout_s = timeout_s

        def gettimeout(self) -> float | None:
            return self.timeout_s

        def sendmsg(self, *_: object) -> int:
            raise OSError(errno.ETOOMANYREFS, "Too many references")

    sock: Any = Crowded()
    with pytest.raises(ChannelClosed, match="Too many references"):
        Channel(sock, 0.02).send(Frame("go", {}))


@in_one_loop
async def test_what_comes_while_the_new_process_counts_is_passed_on() -> None:
    ours, theirs = socket.socketpair()
    ended: list[int] = []
    moves: Any = Story()
    moves.end = ended.extend
    with Channel(theirs, 10.0) as old:
        taking = asyncio.ensure_future(Taker(Channel(ours, 10.0)).take(moves))
        assert (await asyncio.to_thread(old.receive)).kind == "ready"
        await asyncio.to_thread(
            old.send, Frame("finish", {"counters": {"rules": [1]}, "reopen": False, "reload": True})
        )
        assert (await asyncio.to_thread(old.receive)).kind == "done"
        old.send(Frame("late", {"killed": [3, 5], "reopen": True, "reload": False}))
        said = await taking
    assert (ended, said["reopen"], said["reload"]) == ([3, 5], True, True)


@in_one_loop
async def test_a_session_that_is_killed_after_the_counters_is_told_late_and_then_unknown() -> None:
    async with server(echo_bytes) as address:
        closed: list[SessionRecord] = []
        forwarder = await served_by_python(f"127.0.0.1 0 127.0.0.1 {address[1]}\n", closed)
        try:
            client = await dial(bound(forwarder))
            await until(lambda: bool(relaying(forwarder)))
            (departing,), _ = forwarder.moves.take_out(10)
            departing.release()
            await until(lambda: not forwarder.moves.registry.live)
            told = forwarder.moves.counters()["killed"]
            assert forwarder.kill(departing.id)
            assert (told, forwarder.moves.killed_late(told)) == ([], [departing.id])
            assert not forwarder.kill(departing.id)
            client.close()
        finally:
            await forwarder.stop()


@pytest.mark.parametrize("engine", ["native", "python"])
@in_one_loop
async def test_a_listener_that_changes_its_lane_lets_nobody_in_while_an_upgrade_moves_sessions(engine: str) -> None:
    """As when a name is resolved then: what begins here after the counters were taken would be counted nowhere."""
    if engine == "native" and available():
        pytest.skip(available())
    seen: list[SessionRecord] = []
    async with server(echo_bytes) as (host, port):
        config = parse_config(f"engine {engine}\n127.0.0.1 0 {host} {port}\n")
        async with Forwarder(config, on_open=seen.append) as forwarder:
            place, moves = bound(forwarder), forwarder.moves
            ((key, listener),) = moves.listeners.items()
            moves.pause()
            choice = moves.lanes.choose(config, config.rules[0])
            moves.listeners[key] = moves.lanes.change_lane(listener, choice, listener.service)
            client = await dial(place)
            await client.send(b"x")
            waits = asyncio.ensure_future(client.read(1))
            await asyncio.wait({waits}, timeout=0.1)
            assert not seen
            moves.resume()
            assert await waits == b"x"
            client.close()


@pytest.mark.parametrize("engine", ["native", "python"])
@in_one_loop
async def test_a_listener_for_which_there_is_no_memory_is_tried_again(
    engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever ended for it would end the sessions that have moved to it: their peers would read a FIN too early."""
    if engine == "native" and available():
        pytest.skip(available())
    monkeypatch.setattr("oinetd.lanes.moves.START_AGAIN_S", 0.01, raising=False)
    caplog.set_level("INFO", "oinetd")
    failures = [OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError(), OSError(errno.ENOSPC, "no room")]
    with echo() as upstream, Party() as client:
        far = upstream.address[1]
        async with server(echo_bytes) as (host, port):
            config = parse_config(f"engine {engine}\n127.0.0.1 0 {host} {port}\n127.0.0.1 0/udp 127.0.0.1 {far}/udp\n")
            async with Forwarder(config) as forwarder:
                stream, datagrams = bound(forwarder), bound(forwarder, 1)
                forwarder.moves.pause()
                assert not forwarder.moves.take_out_datagrams(1)
                for listener in forwarder.moves.listeners.values():
                    fail_at_first(monkeypatch, listener, list(failures))
                forwarder.moves.resume()
                peer = await dial(stream)
                await peer.send(b"x")
                assert await peer.read(1) == b"x"
                peer.close()
                assert await client.ask(b"hello", datagrams) == b"hello"
    assert (caplog.text.count("not served yet"), caplog.text.count("served now")) == (2, 2)


def fail_at_first(monkeypatch: pytest.MonkeyPatch, listener: Any, failures: list[Exception]) -> None:
    """Let `start` of this listener raise these first."""
    start = listener.start

    def started() -> None:
        if failures:
            raise failures.pop(0)
        start()

    monkeypatch.setattr(listener, "start", started, raising=False)


@in_one_loop
async def test_an_upgrade_without_a_descriptor_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot even find out which rights this process has, and gives back what it had opened for the new one."""

    def has_ambient() -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(replacement, "has_ambient", has_ambient)
    forwarder = Forwarder(parse_config(f"logfile {tmp_path / 'log'}\n127.0.0.1 0 127.0.0.1 7\n"))
    await forwarder.start()
    try:
        options, manager = Options(conf_file=""), ServiceManager.of({}, os.getpid())
        administration: Any = SimpleNamespace(shared=dict)
        one = replacement.Replacement(options, "/", [], manager, administration)
        for _ in range(2):  # the first may start a thread
            before = os.listdir("/proc/self/fd")
            with pytest.raises(UpgradeFailed, match="Too many open files"):
                await one.run(forwarder, None)
        assert os.listdir("/proc/self/fd") == before
    finally:
        await forwarder.stop()


@in_one_loop
async def test_an_upgrade_starts_no_thread_in_its_course(monkeypatch: pytest.MonkeyPatch) -> None:
    """There might be none for it; what is handed over then would be lost between the processes."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    thread = await UpgradeThread.start()
    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(100):  # also at once after the one before, while the thread is not idle yet
        assert await thread.call(int, "7") == 7
    with pytest.raises(OSError, match="no thread can be started"):
        await UpgradeThread.start()
    thread.close()
