"""What it costs to move a connection from one reactor to another: `python -m bench.moving`, one line of JSON.

Two reactors without a daemon, and the processor time of their threads by their own clocks. `together`: silent
connections, all at one word from the one to the other and back. `alone`: one connection at a time, between two of its
round trips, while the other reactor sleeps; what the same round trips take without moves is taken off. Blocks with and
without moves follow each other.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
from typing import Any

from oinetd import _fastpath

__all__ = ["main"]

WHOLE = 1000
"""Thousandths: all the work of a reactor."""
TURNS = 2
"""A round trip has two turns, so that a connection moves once in each."""
MESSAGE = bytes(64)
PATIENCE_S = 10.0


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), PATIENCE_S)
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setblocking(False)
    return near, far


class Relays:
    """Connections through a hub with two reactors."""

    def __init__(self) -> None:
        gate = _fastpath.Gate(0, 0, _fastpath.Budget(), 2)
        self.hub: Any = _fastpath.Hub(gate, 2, 0, 0)
        self.hub.set_threads(1)
        self._count = 0

    def add(self, move_turns: int) -> tuple[socket.socket, socket.socket]:
        """The two far ends of another connection."""
        self._count += 1
        client, near_client = pair()
        upstream, near_upstream = pair()
        policy = _fastpath.Policy(self._count, None, move_turns=move_turns)
        self.hub.relay(near_client.detach(), near_upstream.detach(), policy, self._count)
        return client, upstream

    def moved(self) -> int:
        return int(self.hub.stats()["moved"])

    def cpu_s(self) -> float:
        return float(sum(self.hub.cpu_seconds()))

    def settle(self, source: int, count: int) -> None:
        """Wait until this reactor has none of so many connections any more."""
        deadline = time.monotonic() + PATIENCE_S
        while self.hub.stats()["live"][source] or self.hub.stats()["live"][1 - source] != count:
            if time.monotonic() > deadline:
                raise TimeoutError("connections do not move")
            time.sleep(0.0005)


def together(count: int, rounds: int) -> tuple[float, int]:
    """Seconds for each move of silent connections, and the number of moves."""
    relays = Relays()
    ends = [relays.add(0) for _ in range(count)]
    for client, upstream in ends:
        round_trip(client, upstream)
    moved, cpu_s = relays.moved(), relays.cpu_s()
    for number in range(rounds):
        source = number % 2
        relays.hub.shed(source, 1 - source, WHOLE)
        relays.settle(source, count)
    moves, spent_s = relays.moved() - moved, relays.cpu_s() - cpu_s
    relays.hub.stop()
    return spent_s / moves, moves


def alone(blocks: int, round_trips: int) -> tuple[float, int]:
    """Seconds for each move between two round trips: the median of the blocks, and the number of moves."""
    relays = Relays()
    still, moving = relays.add(0), relays.add(TURNS)
    costs = []
    begun = relays.moved()
    for _ in range(blocks):
        spent = []
        before = relays.moved()
        for ends in (still, moving):
            cpu_s = relays.cpu_s()
            for _ in range(round_trips):
                round_trip(*ends)
            spent.append(relays.cpu_s() - cpu_s)
        costs.append((spent[1] - spent[0]) / max(1, relays.moved() - before))
    moves = relays.moved() - begun
    relays.hub.stop()
    return statistics.median(costs), moves


def round_trip(client: socket.socket, upstream: socket.socket) -> None:
    client.sendall(MESSAGE)
    upstream.recv(len(MESSAGE))
    upstream.sendall(MESSAGE)
    client.recv(len(MESSAGE))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.moving")
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--round-trips", type=int, default=500)
    options = parser.parse_args()
    together_s, moves = together(options.connections, options.rounds)
    alone_s, more = alone(options.blocks, options.round_trips)
    print(json.dumps({"together_s": together_s, "alone_s": alone_s, "moves": moves + more}))


if __name__ == "__main__":
    main()
