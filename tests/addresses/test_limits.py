"""Rates and bandwidths of rules, in both lanes: what may pass, what waits, what is lost; the buckets themselves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import replace

import pytest

from oinetd import RelayMode, Settings
from oinetd.config import parse_config, parse_rule
from oinetd.core.record import Ending
from oinetd.core.throttle import IDLE_S, Bucket, Meters, RuleBuckets
from oinetd.errors import ConfigError
from oinetd.model import Rate
from tests.forwarding import Seen, bound, exchange, forwarding, in_one_loop
from tests.peers import Peer, dial, echo, free_port, pattern, server, until

MIB = 1 << 20


async def sink(peer: Peer) -> None:
    with contextlib.suppress(ConnectionError):
        await peer.read_all()


def moved_by(rate: int, seconds: float) -> float:
    """The most that a bound lets pass in this time, with what it lends."""
    return rate * (seconds + 0.2) + 65536


@pytest.mark.parametrize("relay", [RelayMode.COPY, RelayMode.SPLICE, RelayMode.AUTO], ids=lambda mode: mode.value)
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_bandwidth_bounds_each_direction_of_a_connection(
    settings: Settings, relay: RelayMode, direction: str
) -> None:
    rate, data = 2 * MIB, pattern(MIB)

    async def give(peer: Peer) -> None:
        await peer.send(data)
        peer.half_close()
        await sink(peer)

    async with server(sink if direction == "up" else give) as upstream:
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [bandwidth=2M]")
        async with forwarding(rule, settings=replace(settings, relay=relay)) as forwarder:
            began = time.monotonic()
            peer = await dial(bound(forwarder))
            if direction == "up":
                await peer.send(data)
                peer.half_close()
                assert await peer.read_all() == b""
            else:
                assert await peer.read_all() == data
            took = time.monotonic() - began
            peer.close()
    assert len(data) <= moved_by(rate, took)


@pytest.mark.parametrize("option", ["bandwidth-per-rule", "bandwidth-per-source"])
async def test_connections_share_a_bandwidth_and_all_get_on(settings: Settings, option: str) -> None:
    data = pattern(200_000)
    async with server(echo) as upstream:
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [{option}=1M]")
        async with forwarding(rule, settings=settings) as forwarder:
            peers = [await dial(bound(forwarder)) for _ in range(4)]
            began = time.monotonic()

            async def talk(peer: Peer) -> bytes:
                sending = asyncio.create_task(peer.send(data))
                got = await peer.read(len(data))
                await sending
                return got

            assert set(await asyncio.gather(*map(talk, peers))) == {data}
            took = time.monotonic() - began
            for peer in peers:
                peer.close()
    assert 4 * len(data) <= moved_by(MIB, took)


async def test_sources_have_a_bandwidth_each(settings: Settings) -> None:
    """One source that waits does not keep another one waiting."""
    async with server(echo) as upstream:
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [bandwidth-per-source=64K]")
        async with forwarding(rule, settings=settings) as forwarder:
            greedy = await dial(bound(forwarder))
            sending = asyncio.create_task(greedy.send(pattern(16 * MIB)))
            await until(lambda: forwarder.sessions()[0].bytes_up)
            other = await dial(bound(forwarder), source="127.0.0.2")
            assert await exchange(other)
            sending.cancel()
            greedy.close()
            other.close()


async def test_small_messages_do_not_wait(settings: Settings) -> None:
    async with server(echo) as upstream:
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [bandwidth=10M]")
        async with forwarding(rule, settings=settings) as forwarder:
            peer = await dial(bound(forwarder))
            for _ in range(50):
                assert await exchange(peer, b"x" * 100)
            peer.close()


async def test_what_waits_for_its_bandwidth_is_not_idle(settings: Settings) -> None:
    seen = Seen()
    data = pattern(3000)
    async with server(echo) as upstream:
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [bandwidth-per-rule=2K, idle-timeout=0.4s]")
        async with forwarding(rule, settings=settings, seen=seen) as forwarder:
            peer = await dial(bound(forwarder))
            await peer.send(data)
            peer.half_close()
            assert await peer.read_all() == data
            peer.close()
            await until(lambda: seen.closed)
    assert seen.closed[0].ending is Ending.CLIENT_CLOSED


async def test_connection_that_waits_can_be_killed_and_reset(settings: Settings) -> None:
    seen = Seen()
    async with server(sink) as upstream:
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [bandwidth=1K]")
        async with forwarding(rule, settings=settings, seen=seen) as forwarder:
            peers = [await dial(bound(forwarder)) for _ in range(2)]
            sending = [asyncio.create_task(peer.send(pattern(16 * MIB))) for peer in peers]
            await until(lambda: all(record.bytes_up for record in forwarder.sessions()) and forwarder.sessions()[1:])
            first, second = forwarder.sessions()
            assert forwarder.kill(first.id)
            await until(lambda: len(seen.closed) == 1)
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
            for peer in peers:
                peer.reset()
            await until(lambda: not forwarder.sessions() or forwarder.kill(second.id))
    assert len(seen.closed) == 2


async def test_reload_changes_the_bandwidth_of_a_rule_for_live_connections(settings: Settings) -> None:
    data = pattern(4 * MIB)
    async with server(echo) as upstream:
        text = f"127.0.0.1 {free_port()} {upstream[0]} {upstream[1]}"
        rule = parse_rule(f"{text} [bandwidth-per-rule=16K]")
        async with forwarding(rule, settings=settings) as forwarder:
            peer = await dial(bound(forwarder))
            sending = asyncio.create_task(peer.send(data))
            await until(lambda: forwarder.sessions()[0].bytes_up)
            changed = parse_rule(f"{text} [bandwidth-per-rule=1G]")
            await forwarder.reload(replace(forwarder.config, rules=(changed,)))
            assert await peer.read(len(data)) == data
            await sending
            peer.close()


@pytest.mark.parametrize("option", ["bandwidth-per-rule", "bandwidth-per-source"])
@in_one_loop
async def test_a_reload_that_raises_a_bandwidth_is_felt_by_all_who_wait(settings: Settings, option: str) -> None:
    """Each of 200 connections has reserved a share at the old rate: together that is a minute and more."""
    data = pattern(1000)
    async with server(echo) as upstream:
        text = f"127.0.0.1 {free_port()} {upstream[0]} {upstream[1]}"
        async with forwarding(parse_rule(f"{text} [{option}=1K]"), settings=settings) as forwarder:
            peers = [await dial(bound(forwarder)) for _ in range(200)]
            for peer in peers:
                await peer.send(data)
            await until(lambda: len(forwarder.sessions()) == len(peers))
            await forwarder.reload(replace(forwarder.config, rules=(parse_rule(f"{text} [{option}=1G]"),)))
            peers.append(await dial(bound(forwarder)))
            await peers[-1].send(data)
            async with asyncio.timeout(30):  # bounds a test that has failed
                assert {await peer.read(len(data)) for peer in peers} == {data}
            for peer in peers:
                peer.close()


def received(sock: socket.socket) -> tuple[bytes, tuple[str, int]] | None:
    """What has come, and from where; None if nothing has."""
    try:
        return sock.recvfrom(100)
    except BlockingIOError:
        return None


@pytest.mark.parametrize("way", ["up", "down"])
async def test_datagrams_above_the_bandwidth_are_lost_and_counted(settings: Settings, way: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.setblocking(False)
        rule = parse_rule(f"127.0.0.1 0/udp 127.0.0.1 {upstream.getsockname()[1]}/udp [bandwidth=10K]")
        async with forwarding(rule, settings=settings) as forwarder:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.setblocking(False)
                client.connect(bound(forwarder))
                client.send(b"hello")
                _, session = await until(lambda: received(upstream), "the first datagram")
                for _ in range(200):  # 200,000 bytes at once; a full bucket has 65,536
                    if way == "up":
                        client.send(bytes(1000))
                    else:
                        upstream.sendto(bytes(1000), session)
                    await asyncio.sleep(0)
                await until(lambda: forwarder.stats().rules[rule].datagrams_lost > 100)
                counts = forwarder.stats().rules[rule]
                assert 40_000 < counts.bytes_up + counts.bytes_down < 140_000


@pytest.mark.parametrize("suffix", ["", "/udp"])
async def test_rate_of_a_source_refuses_what_is_above_it(settings: Settings, suffix: str) -> None:
    seen = Seen()
    async with server(echo) as upstream:
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [rate-per-source=1/h:3]")
        if suffix:
            rule = parse_rule(f"127.0.0.1 0/udp 127.0.0.1 {upstream[1]}/udp [rate-per-source=1/h:3]")
        async with forwarding(rule, settings=settings, seen=seen) as forwarder:
            for number in range(4):
                if suffix:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                        client.connect(bound(forwarder))
                        client.send(b"hello")
                        await until(lambda n=number: len(seen.opened) + len(seen.closed) > n)
                else:
                    peer = await dial(bound(forwarder))
                    assert await exchange(peer) is (number < 3)
                    peer.close()
            await until(lambda: any(record.ending is Ending.LIMITED for record in seen.closed))
            if not suffix:
                peer = await dial(bound(forwarder), source="127.0.0.2")
                assert await exchange(peer)
                peer.close()
    assert sum(record.ending is Ending.LIMITED for record in seen.closed) == 1


async def test_rate_of_a_rule_lets_the_others_wait_in_the_queue(settings: Settings) -> None:
    seen = Seen()
    async with server(echo) as upstream:
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [rate=20/s:2]")
        async with forwarding(rule, settings=settings, seen=seen) as forwarder:
            began = time.monotonic()
            peers = [await dial(bound(forwarder)) for _ in range(8)]
            for peer in peers:
                assert await exchange(peer)
            took = time.monotonic() - began
            for peer in peers:
                peer.close()
            await until(lambda: len(seen.closed) == 8)
    assert took >= 0.25  # six of them after the first two, 50 ms apart
    assert not any(record.ending.refused for record in seen.closed if record.ending)
    starts = sorted(record.started for record in seen.closed)
    assert starts[-1] - starts[1] >= 0.25


# The buckets


def test_a_full_bucket_gives_its_depth_and_then_evenly() -> None:
    take = Bucket().take
    now = 1000.0
    assert [take(1.0, 3.0, now) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert take(1.0, 3.0, now) == pytest.approx(now + 1)
    assert take(1.0, 3.0, now + 1) == 0.0
    assert take(1.0, 3.0, now + 1.5) == pytest.approx(now + 2)


def test_reservations_follow_each_other_and_idle_time_counts_a_little() -> None:
    bucket = Bucket(1000.0)
    assert bucket.reserve(0.1, IDLE_S, 4.0, 1000.0) == 1000.0
    assert bucket.reserve(0.1, IDLE_S, 4.0, 1000.0) == pytest.approx(1000.1)
    assert bucket.reserve(0.1, IDLE_S, 4.0, 1005.0) == pytest.approx(1005.0 - IDLE_S)


def test_what_was_taken_at_a_lower_rate_is_forgotten() -> None:
    bucket = Bucket(1000.0)
    bucket.reserve(60.0, IDLE_S, 4.0, 1000.0)
    assert bucket.reserve(0.1, IDLE_S, 4.0, 1000.0) == pytest.approx(1004.0)
    bucket = Bucket(1060.0)
    assert bucket.take(1.0, 3.0, 1000.0) == pytest.approx(1001.0)
    assert bucket.take(1.0, 3.0, 1001.0) == 0.0


def test_sources_are_forgotten_when_their_buckets_are_full_again() -> None:
    meters, now = Meters(), 1000.0
    for number in range(100):
        meter = meters.enter(number, now)
        meter.connects.take(1.0, 1.0, now)
        meters.leave(meter, now)
    assert len(meters) == 100
    again = meters.enter(5, now + 0.5)
    assert again.connects.take(1.0, 1.0, now + 0.5)
    meters.leave(again, now + 0.5)
    meters.leave(meters.enter("new", now + 2), now + 2)
    assert len(meters) <= 1


def test_long_run_of_a_throttle_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of a clock of its own: within 3 %, for one connection and for a hundred that share."""
    now = [1000.0]
    monkeypatch.setattr("oinetd.core.throttle.time.monotonic", lambda: now[0])
    for count, own in ((1, 0), (100, 0), (1, 1 << 20)):
        buckets = RuleBuckets()
        buckets.bandwidth, buckets.rule_rate = own, 0 if own else 1 << 20
        for bucket in buckets.bytes:
            bucket.paid_until = now[0]
        throttles = [buckets.throttle(None) for _ in range(count)]
        moved, end = 0, now[0] + 10
        while now[0] < end:
            for throttle in throttles:
                assert throttle is not None
                while credit := throttle.credit(0):
                    throttle.used(0, credit)
                    moved += credit
            now[0] += 0.005
        assert moved == pytest.approx(10 << 20, rel=0.03)


# The language


def test_rates_and_bandwidths_are_read() -> None:
    config = parse_config(
        "rate 50/s\nbandwidth 10M\n0 80 ::1 80 [rate=5/m:20, bandwidth=off, bandwidth-per-source=1K]\n"
    )
    settings = config.settings_of(config.rules[0])
    assert (config.settings.rate, settings.rate) == (Rate(50, 1), Rate(5, 60, 20))
    assert (config.settings.bandwidth_bytes, settings.bandwidth_bytes) == (10 << 20, 0)
    assert settings.bandwidth_per_source_bytes == 1024
    assert (Rate(50, 1).at_once, Rate(5, 60).at_once, Rate(5, 60, 20).at_once) == (50, 1, 20)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rate=50", "'50' is not a valid rate"),
        ("rate=50/d", "'50/d' is not a valid rate"),
        ("rate=0/s", "'0/s' is out of range"),
        ("rate=5/s:0", "'5/s:0' is out of range"),
        ("bandwidth=10MB", "'10MB' is not a valid size"),
        ("bandwidth=0", "'0' is out of range"),
    ],
)
def test_mistakes(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rule(f"0 80 ::1 80 [{value}]")
    assert caught.value.problems[0].message == message
