"""The contract of an engine, held against every engine in every mode: real sockets, every byte compared."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

import pytest

from oinetd.core.record import Ending
from tests.engine.rig import Rig
from tests.peers import Peer, pattern, until

MIB = 1 << 20
SMALL_WINDOW = 16 * 1024
"""A receive buffer that holds so little that senders block at once."""


def volume(rig: Rig, count: int) -> int:
    """As many bytes as this engine moves in the time that a test may take: a 7-byte buffer moves less."""
    return count if rig.settings.buffer_bytes >= 4096 else count // 64


async def both(rig_client: Peer, rig_upstream: Peer, up: bytes, down: bytes) -> tuple[bytes, bytes]:
    """Send and read on both sides at once, FIN after each; what arrived up and down."""

    async def send(peer: Peer, data: bytes) -> None:
        await peer.send(data)
        peer.half_close()

    _, _, got_up, got_down = await asyncio.gather(
        send(rig_client, up), send(rig_upstream, down), rig_upstream.read_all(), rig_client.read_all()
    )
    return got_up, got_down


# Bytes


async def test_moves_both_directions_at_once(rig: Rig) -> None:
    up, down = pattern(volume(rig, 8 * MIB), 1), pattern(volume(rig, 5 * MIB), 2)
    async with rig.relay() as relay:
        assert await both(relay.client, relay.upstream, up, down) == (up, down)
        result = await relay.task
    assert (result.bytes_up, result.bytes_down, result.errno) == (len(up), len(down), 0)
    assert result.ending in (Ending.CLIENT_CLOSED, Ending.UPSTREAM_CLOSED)
    assert relay.meter.result == result


async def test_one_byte_segments(rig: Rig) -> None:
    data = pattern(100_000 if rig.settings.buffer_bytes > 7 else 20_000)

    async def send(peer: Peer) -> None:
        for position in range(len(data)):
            await peer.send(data[position : position + 1])
        peer.half_close()

    async with rig.relay() as relay:
        _, got = await asyncio.gather(send(relay.client), relay.upstream.read_all())
        assert got == data


async def test_one_large_flow_at_equal_speeds(rig: Rig) -> None:
    piece = pattern(MIB)
    turns = volume(rig, 256 * MIB) // MIB

    async def send(peer: Peer) -> None:
        for _ in range(turns):
            await peer.send(piece)
        peer.half_close()

    async def check(peer: Peer) -> None:
        for _ in range(turns):
            assert await peer.read(MIB) == piece
        assert await peer.read_all() == b""

    async with rig.relay() as relay:
        await asyncio.gather(send(relay.client), check(relay.upstream))
        relay.upstream.half_close()
        assert (await relay.task).bytes_up == turns * MIB


async def test_slow_reader_gets_the_tail(rig: Rig) -> None:
    data = pattern(volume(rig, 2 * MIB))
    async with rig.relay(receive_bytes=SMALL_WINDOW) as relay:

        async def send() -> None:
            for start in range(0, len(data), 1460):
                await relay.client.send(data[start : start + 1460])
            relay.client.half_close()

        sending = asyncio.create_task(send())
        got = bytearray()
        while piece := await relay.upstream.read(997):
            got += piece
            await asyncio.sleep(0)
        await sending
        assert bytes(got) == data


async def test_fin_right_behind_the_data_while_the_destination_is_blocked(rig: Rig) -> None:
    async with rig.relay(receive_bytes=SMALL_WINDOW) as relay:
        data = pattern(volume(rig, 4 * MIB))
        sending = asyncio.create_task(relay.client.send(data))
        await until(lambda: relay.meter.bytes_up, "the first bytes")
        moved = -1
        while moved != relay.meter.bytes_up:  # until the destination takes no more
            moved = relay.meter.bytes_up
            await asyncio.sleep(0.05)
        reading = asyncio.create_task(relay.upstream.read_all())
        await sending
        relay.client.half_close()
        assert await reading == data


async def test_server_speaks_first_and_the_client_speaks_once(rig: Rig) -> None:
    async with rig.relay() as relay:
        await relay.upstream.send(b"220 ready\r\n")
        assert await relay.client.read(11) == b"220 ready\r\n"
        await relay.client.send(b"QUIT\r\n")
        assert await relay.upstream.read(6) == b"QUIT\r\n"


async def test_what_waits_before_the_relay_begins_is_moved(rig: Rig) -> None:
    async with rig.relay() as relay:
        # Sent before the engine had a turn of the loop.
        relay.client.sock.send(b"early")
        relay.upstream.sock.send(b"bird")
        relay.client.half_close()
        relay.upstream.half_close()
        assert await relay.upstream.read_all() == b"early"
        assert await relay.client.read_all() == b"bird"
        await relay.task


async def test_many_round_trips(rig: Rig) -> None:
    async with rig.relay() as relay:
        for turn in range(500):
            message = turn.to_bytes(64, "big")
            await relay.client.send(message)
            assert await relay.upstream.read(64) == message
            await relay.upstream.send(message)
            assert await relay.client.read(64) == message


async def test_urgent_byte_does_not_stop_the_stream(rig: Rig) -> None:
    async with rig.relay() as relay:
        await relay.client.send(b"before")
        relay.client.urgent(b"!")
        await relay.client.send(b"after")
        relay.client.half_close()
        assert await relay.upstream.read_all() == b"before!after"


# FIN


async def test_client_half_closes_and_gets_a_large_answer(rig: Rig) -> None:
    answer = pattern(volume(rig, 8 * MIB))
    async with rig.relay() as relay:
        await relay.client.send(b"give me everything")
        relay.client.half_close()
        assert await relay.upstream.read_all() == b"give me everything"
        _, got = await asyncio.gather(relay.upstream.send(answer), relay.client.read(len(answer)))
        assert got == answer
        relay.upstream.half_close()
        assert await relay.client.read_all() == b""
        assert (await relay.task).ending is Ending.CLIENT_CLOSED


async def test_upstream_half_closes_and_takes_a_large_upload(rig: Rig) -> None:
    upload = pattern(volume(rig, 8 * MIB))
    async with rig.relay() as relay:
        relay.upstream.half_close()
        assert await relay.client.read_all() == b""
        _, got = await asyncio.gather(relay.client.send(upload), relay.upstream.read(len(upload)))
        assert got == upload
        relay.client.half_close()
        assert await relay.upstream.read_all() == b""
        assert (await relay.task).ending is Ending.UPSTREAM_CLOSED


async def test_both_close_at_once_with_last_bytes(rig: Rig) -> None:
    for _ in range(20):
        async with rig.relay() as relay:
            for peer in (relay.client, relay.upstream):
                peer.sock.send(b"last words")
                peer.half_close()
            got = await asyncio.gather(relay.client.read_all(), relay.upstream.read_all())
            assert got == [b"last words", b"last words"]
            result = await relay.task
            assert (result.bytes_up, result.bytes_down) == (10, 10)


# Resets


@pytest.mark.parametrize("by_client", [True, False])
async def test_data_then_reset_is_delivered_then_reset(rig: Rig, by_client: bool) -> None:
    async with rig.relay() as relay:
        source, sink = (relay.client, relay.upstream) if by_client else (relay.upstream, relay.client)
        data = pattern(100_000)
        reading = asyncio.create_task(sink.read_to_reset())
        await source.send(data)
        # What the kernel of the source has not handed over is lost by the reset itself: wait until it is through.
        await until(lambda: relay.meter.bytes_up + relay.meter.bytes_down == len(data), "all bytes")
        source.reset()
        assert await reading == data
        result = await relay.task
    assert result.ending is (Ending.CLIENT_RESET if by_client else Ending.UPSTREAM_RESET)
    assert result.errno == errno.ECONNRESET


@pytest.mark.parametrize("by_client", [True, False])
async def test_reset_of_an_idle_relay(rig: Rig, by_client: bool) -> None:
    async with rig.relay() as relay:
        source, sink = (relay.client, relay.upstream) if by_client else (relay.upstream, relay.client)
        source.reset()
        assert await sink.read_to_reset() == b""
        result = await relay.task
    assert result.ending is (Ending.CLIENT_RESET if by_client else Ending.UPSTREAM_RESET)


async def test_reset_first_noticed_on_a_write(rig: Rig) -> None:
    async with rig.relay(receive_bytes=SMALL_WINDOW) as relay:
        # The upstream sends, never reads, and resets; the flow towards it is full and finds out by writing.
        sending = asyncio.create_task(relay.client.send(pattern(16 * MIB)))
        await until(lambda: relay.meter.bytes_up, "the first bytes")
        await relay.upstream.send(b"goodbye")
        assert await relay.client.read(7) == b"goodbye"
        relay.upstream.reset()
        assert await relay.client.read_to_reset() == b""
        with pytest.raises(ConnectionError):
            await sending
        assert (await relay.task).ending is Ending.UPSTREAM_RESET


@pytest.mark.parametrize("by_client", [True, False])
async def test_reset_after_its_own_fin(rig: Rig, by_client: bool) -> None:
    """Nobody reads a side that has sent its FIN; that it then fails must be noticed all the same."""
    async with rig.relay() as relay:
        source, sink = (relay.client, relay.upstream) if by_client else (relay.upstream, relay.client)
        source.half_close()
        assert await sink.read_all() == b""
        source.reset()
        result = await relay.task
        assert result.ending is (Ending.CLIENT_RESET if by_client else Ending.UPSTREAM_RESET)
        # The FIN came first and was read; the reset shows on the next write, or the one after it.
        await until(lambda: _refuses(sink), "the reset")


def _refuses(peer: Peer) -> bool:
    try:
        peer.sock.send(b"anybody there?", socket.MSG_NOSIGNAL)
    except ConnectionError:
        return True
    return False


async def test_reset_while_bytes_are_held(rig: Rig) -> None:
    for _ in range(10):
        async with rig.relay(receive_bytes=SMALL_WINDOW) as relay:
            sending = asyncio.create_task(relay.client.send(pattern(16 * MIB)))
            await until(lambda: relay.meter.bytes_up, "the first bytes")
            relay.upstream.reset()
            with pytest.raises(ConnectionError):
                await sending
            assert (await relay.task).ending is Ending.UPSTREAM_RESET


# What oinetd ends itself


async def test_cancelling_resets_both_and_leaves_the_result(rig: Rig) -> None:
    async with rig.relay() as relay:
        await relay.client.send(b"0123456789")
        assert await relay.upstream.read(10) == b"0123456789"
        relay.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await relay.task
        assert relay.meter.result is not None
        assert (relay.meter.result.ending, relay.meter.result.bytes_up) == (Ending.ABORTED, 10)
        assert await relay.client.read_to_reset() == b""
        assert await relay.upstream.read_to_reset() == b""


async def test_closing_the_engine_aborts_its_relays(rig: Rig) -> None:
    async with rig.relay() as relay:
        await relay.client.send(b"x")
        await relay.upstream.read(1)
        await rig.engine.close()
        assert (await relay.task).ending is Ending.ABORTED
        assert await relay.client.read_to_reset() == b""


async def test_idle_timeout(rig: Rig) -> None:
    async with rig.relay(idle_timeout_s=0.2) as relay:
        for _ in range(5):
            await relay.client.send(b"x")
            await relay.upstream.read(1)
        assert (await relay.task).ending is Ending.IDLE_TIMEOUT
        assert await relay.client.read_to_reset() == b""
        assert await relay.upstream.read_to_reset() == b""


async def test_max_lifetime(rig: Rig) -> None:
    """It comes while bytes flow; what was passed on before it is there."""
    async with rig.relay(max_lifetime_s=0.2) as relay:
        passed = 0
        with contextlib.suppress(ConnectionError):
            while True:
                await relay.client.send(b"x")
                assert await relay.upstream.read(1) == b"x"
                passed += 1
        result = await relay.task
        assert (result.ending, result.errno) == (Ending.MAX_LIFETIME, 0)
        assert passed <= result.bytes_up <= passed + 1


async def test_max_lifetime_of_a_silent_connection(rig: Rig) -> None:
    async with rig.relay(max_lifetime_s=0.2) as relay:
        await relay.client.send(b"x")
        assert await relay.upstream.read(1) == b"x"
        assert (await relay.task).ending is Ending.MAX_LIFETIME
        assert await relay.client.read_to_reset() == b""
        assert await relay.upstream.read_to_reset() == b""


async def test_half_close_timeout(rig: Rig) -> None:
    async with rig.relay(half_close_timeout_s=0.2) as relay:
        await relay.client.send(b"x")
        await relay.upstream.read(1)
        relay.client.half_close()
        assert await relay.upstream.read_all() == b""
        assert (await relay.task).ending is Ending.HALF_CLOSE_TIMEOUT
        assert await relay.client.read_to_reset() == b""


async def test_write_stall_timeout(rig: Rig) -> None:
    async with rig.relay(receive_bytes=SMALL_WINDOW, write_stall_timeout_s=0.2) as relay:
        sending = asyncio.create_task(relay.client.send(pattern(16 * MIB)))
        assert (await relay.task).ending is Ending.WRITE_STALL
        with pytest.raises(ConnectionError):
            await sending


async def test_a_timeout_that_is_off_never_comes(rig: Rig) -> None:
    off = {"idle_timeout_s": 0.0, "half_close_timeout_s": 0.0, "write_stall_timeout_s": 0.0, "max_lifetime_s": 0.0}
    async with rig.relay(receive_bytes=SMALL_WINDOW, **off) as relay:
        data = pattern(volume(rig, MIB))
        sending = asyncio.create_task(relay.client.send(data))
        await until(lambda: relay.meter.bytes_up, "the first bytes")
        assert await relay.upstream.read(len(data)) == data
        await sending
        relay.client.half_close()
        relay.upstream.half_close()
        await relay.task


# Many at once


async def test_a_destination_that_never_reads_stops_its_source(rig: Rig) -> None:
    async with rig.relay(receive_bytes=SMALL_WINDOW) as relay:
        offered = pattern(16 * MIB)
        sending = asyncio.create_task(relay.client.send(offered))
        await until(lambda: relay.meter.bytes_up, "the first bytes")
        moved = -1
        while moved != relay.meter.bytes_up:
            moved = relay.meter.bytes_up
            await asyncio.sleep(0.1)
        # What is under way sits in kernel buffers; the rest is still with the sender.
        assert not sending.done()
        assert moved < len(offered) // 2
        relay.task.cancel()
        with pytest.raises(ConnectionError):
            await sending


async def test_small_messages_get_through_beside_bulk(rig: Rig) -> None:
    stop = False

    async def bulk(client: Peer, upstream: Peer) -> int:
        piece = pattern(256 * 1024)

        async def send() -> None:
            while not stop:
                await client.send(piece)
            client.half_close()

        _, got = await asyncio.gather(send(), upstream.read_all())
        return len(got)

    # Small kernel buffers: what is under way at the end has to get through, seven bytes at a time if need be.
    few = {"receive_bytes": SMALL_WINDOW}
    async with rig.relay() as small, rig.relay(**few) as one, rig.relay(**few) as two, rig.relay(**few) as three:
        bulks = [asyncio.create_task(bulk(each.client, each.upstream)) for each in (one, two, three)]
        await until(lambda: one.meter.bytes_up and two.meter.bytes_up and three.meter.bytes_up, "three bulk flows")
        for turn in range(100):
            message = turn.to_bytes(64, "big")
            await small.client.send(message)
            assert await small.upstream.read(64) == message
            await small.upstream.send(message)
            assert await small.client.read(64) == message
        assert not any(task.done() for task in bulks)
        stop = True
        assert all(await asyncio.gather(*bulks))


async def test_descriptors_closed_and_used_again_at_once(rig: Rig) -> None:
    """Numbers of closed descriptors come back within the same batch of events; no event may reach the wrong relay."""

    async def life(seed: int) -> None:
        for turn in range(15):
            data = pattern(1000 + seed, seed * 100 + turn)
            async with rig.relay() as relay:
                relay.client.sock.send(data)
                if (seed + turn) % 3 == 0:
                    assert await relay.upstream.read(len(data)) == data
                    relay.client.reset()
                    await relay.upstream.read_to_reset()
                else:
                    relay.client.half_close()
                    assert await relay.upstream.read_all() == data
                    relay.upstream.half_close()
                await relay.task

    await asyncio.gather(*(life(seed) for seed in range(20)))
