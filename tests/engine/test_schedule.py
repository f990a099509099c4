"""Schedules that nobody thought of: what two peers may do in any order, against an oracle of two byte strings."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from oinetd.core.record import Ending
from tests.engine.rig import ENGINES, Relaying
from tests.peers import PIECE, Peer, pattern

Step = tuple[str, bool, int]

steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send", "read", "read", "urgent", "half-close", "pause"]),
        st.booleans(),
        st.one_of(st.integers(1, 100), st.sampled_from([1460, 8192, 65536, 200_000])),
    ),
    max_size=25,
)


PATIENCE_S = 100
"""Bounds one that hangs: seven bytes at a time, and a move with each, take their time on a busy machine."""


@dataclass
class Party:
    """One peer, and the oracle for what the other one is to get."""

    peer: Peer
    said: bytearray = field(default_factory=bytearray)
    heard: bytearray = field(default_factory=bytearray)
    silent: bool = False

    def send(self, count: int, seed: int, flags: int = 0) -> None:
        """As much as the kernel takes at once."""
        if not self.silent:
            data = pattern(count, seed)
            with contextlib.suppress(BlockingIOError):
                self.said += data[: self.peer.sock.send(data, flags)]

    def read(self, count: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self.heard += self.peer.sock.recv(count)

    async def listen(self) -> None:
        """Hear everything up to the end, whichever it is."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while piece := await loop.sock_recv(self.peer.sock, PIECE):
                self.heard += piece

    def half_close(self) -> None:
        if not self.silent:
            self.silent = True
            self.peer.half_close()


async def play(relay: Relaying, schedule: list[Step]) -> tuple[Party, Party]:
    """Do what `schedule` says."""
    client, upstream = Party(relay.client), Party(relay.upstream)
    for turn, (action, by_client, count) in enumerate(schedule):
        party = client if by_client else upstream
        if action == "send":
            party.send(count, turn)
        elif action == "urgent":
            party.send(1, turn, socket.MSG_OOB)
        elif action == "read":
            party.read(count)
        elif action == "half-close":
            party.half_close()
        await asyncio.sleep(0.001 if action == "pause" else 0)
    return client, upstream


async def run(engine: str, schedule: list[Step], receive_bytes: int, reset_by: str) -> None:
    async with ENGINES[engine]() as rig, rig.relay(receive_bytes=receive_bytes) as relay:
        client, upstream = await play(relay, schedule)
        if reset_by:
            by, other = (client, upstream) if reset_by == "client" else (upstream, client)
            by.peer.reset()
            await other.listen()
            result = await relay.task
            # Never a byte that was not sent, never one out of its place.
            assert by.said.startswith(other.heard)
            ends = {Ending.CLIENT_RESET, Ending.UPSTREAM_RESET}
            if client.silent and upstream.silent:  # both FINs may have been first
                ends |= {Ending.CLIENT_CLOSED, Ending.UPSTREAM_CLOSED}
            assert result.ending in ends
            return
        client.half_close()
        upstream.half_close()
        down, up = await asyncio.gather(client.peer.read_all(), upstream.peer.read_all())
        client.heard += down
        upstream.heard += up
        result = await relay.task
        assert upstream.heard == client.said
        assert client.heard == upstream.said
        assert (result.bytes_up, result.bytes_down, result.errno) == (len(client.said), len(upstream.said), 0)
        assert result.ending in (Ending.CLIENT_CLOSED, Ending.UPSTREAM_CLOSED)


@pytest.mark.parametrize("engine", sorted(ENGINES))
@given(steps, st.sampled_from([0, 4096, 16384]), st.sampled_from(["", "", "client", "upstream"]))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@example([("half-close", True, 1), ("send", False, 200_000), ("read", True, 1)], 4096, "")
@example([("send", True, 65536), ("urgent", True, 1), ("send", True, 1), ("half-close", True, 1)], 4096, "")
@example([("send", True, 200_000), ("pause", True, 1), ("half-close", False, 1)], 0, "upstream")
@example([("send", False, 8192), ("half-close", False, 1)], 4096, "upstream")
def test_any_order_of_things(engine: str, schedule: list[Step], receive_bytes: int, reset_by: str) -> None:
    asyncio.run(asyncio.wait_for(run(engine, schedule, receive_bytes, reset_by), PATIENCE_S))
