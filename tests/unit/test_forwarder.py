"""The library in a program's own loop: what it does, and what of the program it leaves alone. In both lanes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import oinetd.net.resolver
import oinetd.upstream.destination
from oinetd import Config, Ending, Forwarder, KeepAlive, Settings
from oinetd.net.sockets import Address, lookup
from oinetd.observe.connection_log import ConnectionLog
from tests.forwarding import Seen, bound, echoes, exchange, forwarding, rule
from tests.peers import Peer, dial, pattern, server, until

MIB = 1 << 20


async def test_it_forwards(upstream: tuple[str, int], settings: Settings) -> None:
    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, settings=settings) as forwarder:
        (address,) = forwarder.addresses
        assert (address.host, address.route.rule) == ("127.0.0.1", forwarder.config.rules[0])
        data = pattern(3 * MIB)
        client = await dial(bound(forwarder))
        sending = asyncio.create_task(client.send(data))
        assert await client.read(len(data)) == data
        await sending
        (live,) = forwarder.sessions()
        assert live.ending is None
        assert (live.client, live.client_port) == client.sock.getsockname()
        client.half_close()
        assert await client.read_all() == b""
        client.close()
        await until(lambda: seen.closed)
        stats = forwarder.stats()
        assert (stats.live, stats.accepted, stats.bytes_up, stats.bytes_down) == (0, 1, len(data), len(data))
        assert stats.rules[forwarder.config.rules[0]].endings == {Ending.CLIENT_CLOSED: 1}
    assert [record.id for record in seen.opened] == [record.id for record in seen.closed] == [live.id]
    assert forwarder.addresses == ()


async def test_it_touches_nothing_else_of_the_program(upstream: tuple[str, int], settings: Settings) -> None:
    def belongings() -> list[object]:
        root, own = logging.getLogger(), logging.getLogger("oinetd")
        return [
            {number: signal.getsignal(number) for number in signal.Signals},
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            [root.level, root.handlers[:], own.level, own.handlers[:], own.propagate],
            type(policy()),
            [resource.getrlimit(limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)],
            socket.getdefaulttimeout(),
            [os.getcwd(), dict(os.environ), sys.excepthook, threading.excepthook, gc.isenabled(), warnings.filters[:]],
            asyncio.get_running_loop().get_exception_handler(),
        ]

    def policy() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return asyncio.get_event_loop_policy()

    before = belongings()
    async with forwarding(rule(upstream), settings=settings) as forwarder:
        assert await echoes(bound(forwarder))
        assert belongings() == before
        await forwarder.reload(forwarder.config)
        assert belongings() == before
    assert belongings() == before


async def test_two_in_one_loop(upstream: tuple[str, int], settings: Settings) -> None:
    async with forwarding(rule(upstream), settings=settings) as inner:
        async with forwarding(rule(bound(inner)), settings=settings) as outer:
            clients = [await dial(bound(outer)) for _ in range(5)]
            for client in clients:
                assert await exchange(client)
            assert len(inner.sessions()) == len(outer.sessions()) == 5
        for client in clients:
            await client.read_to_reset()
            client.close()
        await until(lambda: not inner.sessions())
        assert await echoes(bound(inner))


async def test_kill(upstream: tuple[str, int], settings: Settings) -> None:
    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, settings=settings) as forwarder:
        clients = [await dial(bound(forwarder)) for _ in range(3)]
        for client in clients:
            assert await exchange(client)
        victim = next(
            record for record in forwarder.sessions() if record.client_port == clients[1].sock.getsockname()[1]
        )
        assert forwarder.kill(victim.id)
        await clients[1].read_to_reset()
        await until(lambda: seen.closed)
        assert [(record.id, record.ending) for record in seen.closed] == [(victim.id, Ending.ABORTED)]
        assert not forwarder.kill(victim.id)
        assert not forwarder.kill(10**9)
        for client in (clients[0], clients[2]):
            assert await exchange(client)
        for client in clients:
            client.close()
    assert len(seen.closed) == 3


async def tell_source(peer: Peer) -> None:
    """A server that says where its client comes from."""
    await peer.send(peer.sock.getpeername()[0].encode())


async def test_a_name_as_source_address(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same lane as a number, and looked up again: because time went by, and because it cannot be bound."""
    hosts = ["::1", "127.0.0.5"]

    def resolve(host: str, port: int = 0) -> tuple[Address, ...]:
        return tuple(address for each in hosts for address in lookup(each)) if host == "out.example" else lookup(host)

    async def source() -> bytes:
        with contextlib.suppress(ConnectionResetError):  # it may come as early as the connect
            peer = await dial(bound(forwarder))
            with contextlib.closing(peer):
                return await peer.read_all()
        return b""

    async def until_source(host: bytes) -> None:
        async with asyncio.timeout(30):
            while await source() != host:
                pass

    monkeypatch.setattr(oinetd.net.resolver, "lookup", resolve)
    monkeypatch.setattr(oinetd.upstream.destination, "LOOKUP_PAUSE_S", 0.0)
    async with server(tell_source) as upstream:
        by_time = rule(upstream, options="src=out.example, dns-refresh=0.01")
        async with forwarding(by_time, settings=settings) as forwarder:
            assert await source() == b"127.0.0.5"
            hosts[:] = ["127.0.0.6"]
            await until_source(b"127.0.0.6")
        hosts[:] = ["192.0.2.1"]
        by_failure = rule(upstream, options="src=out.example, dns-refresh=0")
        async with forwarding(by_failure, settings=settings) as forwarder:
            assert await source() == b""
            hosts[:] = ["127.0.0.7"]
            await until_source(b"127.0.0.7")
            assert forwarder.stats().rules[by_failure].endings[Ending.BIND_FAILED] >= 3
            await forwarder.reload(replace(forwarder.config, rules=(rule(upstream, options="src=localhost"),)))
            assert await source() == b"127.0.0.1"


async def test_a_log_that_takes_its_time_to_close_does_not_hold_up_the_loop(
    upstream: tuple[str, int], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, turned = threading.Event(), threading.Event()
    told: list[bool] = []

    def close(journal: ConnectionLog) -> None:
        began.set()
        told.append(turned.wait(5))

    async def turn() -> None:
        await until(began.is_set)
        turned.set()

    monkeypatch.setattr(ConnectionLog, "close", close)
    async with forwarding(rule(upstream), settings=settings):
        turning = asyncio.create_task(turn())
    await turning
    assert told == [True]


async def test_a_destination_that_refuses(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    seen = Seen()
    async with forwarding(rule(address), seen=seen, settings=settings) as forwarder:
        with contextlib.suppress(ConnectionResetError):  # sooner than the client knows that it is connected
            client = await dial(bound(forwarder))
            await client.read_to_reset()
            client.close()
        await until(lambda: seen.closed)
        assert forwarder.stats().failed == 1
    (record,) = seen.closed
    assert record.ending is Ending.CONNECT_FAILED
    assert not record.bytes_up


async def test_the_log_has_every_line_when_it_stops(
    upstream: tuple[str, int], settings: Settings, tmp_path: Path
) -> None:
    config = Config(rules=(rule(upstream),), settings=settings)
    async with Forwarder(replace(config, log=replace(config.log, file=str(tmp_path / "log")))) as forwarder:
        for _ in range(20):
            assert await echoes(bound(forwarder))
        (tmp_path / "log").rename(tmp_path / "log.1")
        forwarder.reopen_log()
        assert await echoes(bound(forwarder))
        await forwarder.reload(replace(config, log=replace(config.log, file=str(tmp_path / "other"))))
        assert await echoes(bound(forwarder))
        await until(lambda: not forwarder.sessions())
    lines = "".join((tmp_path / name).read_text() for name in os.listdir(tmp_path)).splitlines()
    assert sum("opened" in line for line in lines) == 22
    assert sum("done-" in line for line in lines) == 22


# Many


async def churn(address: tuple[str, int], count: int, at_once: int = 64) -> None:
    """`count` short connections, each with its bytes compared."""
    left = iter(range(count))

    async def one_after_another() -> None:
        for turn in left:
            message = turn.to_bytes(16, "big")
            client = await dial(address)
            try:
                await client.send(message)
                assert await client.read(16) == message
            finally:
                client.close()

    await asyncio.gather(*(one_after_another() for _ in range(at_once)))


async def test_memory_and_descriptors_stay_flat(upstream: tuple[str, int], settings: Settings) -> None:
    """`OINETD_SOAK` is how many connections; the default takes a few seconds."""
    count = int(os.environ.get("OINETD_SOAK", "2000"))
    me = psutil.Process()
    async with forwarding(rule(upstream), settings=settings) as forwarder:
        await churn(bound(forwarder), 500)
        await until(lambda: not forwarder.sessions())
        gc.collect()
        descriptors, memory = me.num_fds(), me.memory_info().rss
        await churn(bound(forwarder), count)
        await until(lambda: not forwarder.sessions())
        gc.collect()
        grown = me.memory_info().rss - memory
        # The test's own server may still hold the other ends of the last ones.
        await until(lambda: me.num_fds() <= descriptors)
        assert forwarder.stats().accepted == count + 500
        assert grown < 4 * MIB
        if "OINETD_SOAK" in os.environ:
            print(f"\n{settings.engine.value}: {count} connections, {grown / 1024:.0f} KiB more")


async def test_destinations_that_never_read_cost_little(settings: Settings) -> None:
    async def never_read(peer: Peer) -> None:
        await asyncio.Event().wait()

    me = psutil.Process()
    piece = pattern(MIB)
    async with server(never_read) as address, forwarding(rule(address), settings=settings) as forwarder:
        clients = [await dial(bound(forwarder)) for _ in range(100)]
        await until(lambda: len(forwarder.sessions()) == 100)
        gc.collect()
        memory = me.memory_info().rss

        async def send(client: Peer) -> None:
            while True:
                await client.send(piece)

        sending = [asyncio.create_task(send(client)) for client in clients]
        moved = -1
        while moved != forwarder.stats().bytes_up or not moved:  # until nobody takes any more
            moved = forwarder.stats().bytes_up
            await asyncio.sleep(0.2)
        assert me.memory_info().rss - memory < 64 * MIB
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        for client in clients:
            client.reset()


async def test_a_hundred_reloads_under_load(upstream: tuple[str, int], settings: Settings) -> None:
    one = rule(upstream)
    config = Config(rules=(one,), settings=settings)
    variants = [
        config,
        replace(config, rules=(one, rule(upstream))),
        replace(config, settings=replace(settings, keepalive=KeepAlive(33), listen_backlog=100)),
        replace(config, rules=(replace(one, options=replace(one.options, connect_timeout_s=3.0)),)),
    ]
    async with Forwarder(config) as forwarder:
        address = bound(forwarder)
        done = False
        data = pattern(256 * 1024)

        async def bulk() -> int:
            rounds = 0
            client = await dial(address)
            while not done:
                sending = asyncio.create_task(client.send(data))
                assert await client.read(len(data)) == data
                await sending
                rounds += 1
            client.close()
            return rounds

        async def short() -> int:
            rounds = 0
            while not done:
                await churn(address, 5, at_once=1)
                rounds += 1
            return rounds

        load = [asyncio.create_task(work()) for work in (bulk, bulk, short, short, short, short)]
        for turn in range(100):
            await forwarder.reload(variants[turn % len(variants)])
            before = forwarder.stats().accepted
            await until(lambda before=before: forwarder.stats().accepted > before or any(t.done() for t in load))
        done = True
        assert all(await asyncio.gather(*load))
        await until(lambda: not forwarder.sessions())
        stats = forwarder.stats()
        assert stats.failed == stats.refused == 0
        assert stats.bytes_up == stats.bytes_down


# In a process of its own


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LIFE = """
import asyncio, signal, sys, uvloop
from oinetd import Config, EngineChoice, Settings
from tests.forwarding import bound, echoes, exchange, forwarding, rule
from tests.peers import dial, echo, pattern, server

BEFORE

async def main():
    data = pattern(1 << 20)
    async with server(echo) as upstream:
        async with forwarding(rule(upstream), settings=Settings(engine=EngineChoice(sys.argv[1]))) as forwarder:
            for _ in range(20):
                client = await dial(bound(forwarder))
                sending = asyncio.create_task(client.send(data))
                assert await client.read(len(data)) == data
                await sending
                RUDE
                client.close()
            assert await echoes(bound(forwarder))

with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[2] == "uvloop" else None) as runner:
    runner.run(main())
signal.setitimer(signal.ITIMER_REAL, 0)
print("alive")
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sigpipe_at_its_default_is_survived(settings: Settings, loop: str) -> None:
    program = LIFE.replace("BEFORE", "signal.signal(signal.SIGPIPE, signal.SIG_DFL)")
    # The client goes while the answers to what it sent are on their way.
    rude = "[client.sock.send(b'x' * 4000) for _ in range(10)]; client.reset()"
    assert run(program.replace("RUDE", rude), settings.engine.value, loop) == "alive\n"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_storm_of_signals_is_survived(settings: Settings, loop: str) -> None:
    before = "signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)"
    assert run(LIFE.replace("BEFORE", before).replace("RUDE", "pass"), settings.engine.value, loop) == "alive\n"


PROGRAM = """
import asyncio

from oinetd import BindError, Config, ConfigError, Forwarder, SessionRecord, Stats, parse_rule


async def admit(record: SessionRecord) -> bool:
    return record.client != "192.0.2.1"


def closed(record: SessionRecord) -> None:
    if record.ending is not None:
        print(record.ending.value, record.bytes_up + record.bytes_down, record.route.rule.bind.port)


async def main() -> int:
    config = Config(rules=(parse_rule("127.0.0.1 0 example.org 80"),), max_connections=10)
    try:
        async with Forwarder(config, admit=admit, on_close=closed) as forwarder:
            for address in forwarder.addresses:
                print(address.host + ":", address.port)
            await forwarder.reload(config)
            stats: Stats = forwarder.stats()
            for record in forwarder.sessions():
                found: bool = forwarder.kill(record.id)
            left: int = await forwarder.drain(1.5)
            return stats.live + left
    except (ConfigError, BindError):
        return 1


asyncio.run(main())
"""


def test_a_users_program_passes_the_strict_type_check(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    check = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(program)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    program.write_text(PROGRAM.replace("record.id", "record.nonsense"))
    assert subprocess.run(check, capture_output=True, timeout=110).returncode == 1
