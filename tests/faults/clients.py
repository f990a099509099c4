"""The clients of a run: keyed streams by every way, and datagrams; what ended well is kept for the check of the log."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.addresses.unix_peers import UnixPeer
from tests.faults.invariants import Broken, Done
from tests.faults.plants import Plant
from tests.faults.ways import DatagramWay, Way, claimed
from tests.peers import Peer, dial
from tests.preamble.samples import binary
from tests.soak.keyed import SIZES, Load, Mixture, talk
from tests.udp.rig import Party

__all__ = ["Clients", "Datagrams"]

CLIENT_S: Final = 15.0
UDP_PROXY: Final = 0x12
RESETS: Final = 0.15
"""As `talk` has it: the share of those that end with a reset."""


@dataclass
class Clients(Load):
    """Clients that remember what went well."""

    done: list[Done] = field(default_factory=list)
    plant: Plant = field(default_factory=Plant)
    kills: Callable[[], int] = lambda: 0
    ways: dict[int, Way] = field(default_factory=dict)
    """The way of each connection."""
    why: Counter[str] = field(default_factory=Counter)
    """For which reasons connections broke: `ConnectionAbortedError` is a reset by the client itself."""

    async def come(self, way: Way, address: tuple[str, int] | str) -> None:
        """One connection; what its closing line has to say is kept if it ended well."""
        key, kills = next(self._keys), self.kills()
        while way.unix and _resets(key):
            key = next(self._keys)
        self.ways[key] = way
        opening = way.opening(key)
        try:
            peer = await self._dial(way, address, key)
        except OSError as error:
            self._broke(error)
            if isinstance(error, ConnectionRefusedError) and kills == self.kills():
                self.faults.append(f"connection {key} was refused")
            await asyncio.sleep(0.01)  # a process that is dead stays dead for a while
            return
        port = opening.port or _port_of(peer)
        try:
            await asyncio.wait_for(self._talk(peer, key, opening.data), CLIENT_S)
            up, down = (random.Random(4 * key + side).choice(SIZES) for side in (True, False))
            if kills != self.kills() or self._was_cut(key):
                self._broke(None)
            else:
                # A server at a unix socket that resets has ended, for its client, and the rest of the bytes is lost.
                self.done.append(Done(port, opening.counted + up + 8, down, not way.unix, way.name))
                self.ended += 1
        except TimeoutError as error:
            self._broke(error)
            # A FIN in the middle would be this client's.
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError as error:
            self._broke(error)
        except Mixture:
            pass  # it is in `faults`
        finally:
            peer.close()
            if way.unix or kills != self.kills():  # the kernel ends the connections of a dead process
                self.faults[:] = [each for each in self.faults if not each.startswith(f"connection {key}, down: a FIN")]

    def is_no_fault(self, line: str) -> bool:
        """Whether this is the end of a connection over a unix socket, which may be a reset of the other side."""
        key = line.removeprefix("connection ").partition(",")[0]
        return "a FIN after" in line and key.isdecimal() and (way := self.ways.get(int(key))) is not None and way.unix

    async def _dial(self, way: Way, address: tuple[str, int] | str, key: int) -> Peer | UnixPeer:
        if isinstance(address, str):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                sock.connect(address)  # it is connected at once, or not at all
            except OSError:
                sock.close()
                raise
            return UnixPeer(sock)
        source = claimed(self.plant.source(key), 127) if way.by_source else ""
        return await asyncio.wait_for(dial(self.plant.way(address), source=source), CLIENT_S)

    def _was_cut(self, key: int) -> bool:
        return any(each.startswith(f"connection {key}, down: a FIN") for each in self.faults)

    def _broke(self, error: OSError | None) -> None:
        self.broken += 1
        self.why["a process died" if error is None else type(error).__name__] += 1

    async def _talk(self, peer: Peer | UnixPeer, key: int, opening: bytes) -> None:
        if opening:
            at = random.Random(key).randint(0, len(opening))
            await peer.send(opening[:at])
            await asyncio.sleep(random.Random(key).choice((0, 0, 0.01)))
            opening = opening[at:]
        await peer.send(opening + key.to_bytes(8, "big"))
        await talk(self, peer, key, up=True)  # type: ignore[arg-type]  # with the calls of a `Peer`


def _resets(key: int) -> bool:
    """Whether the client of this key ends with a reset, which a unix socket has not; see `talk`."""
    choice = random.Random(4 * key + 1)
    choice.choice(SIZES)
    return choice.random() < RESETS


def _port_of(peer: Peer | UnixPeer) -> int:
    name = peer.sock.getsockname()
    return name[1] if isinstance(name, tuple) else 0


class Datagrams:
    """Clients over UDP, and what they sent and got by way of each rule."""

    def __init__(self, choice: random.Random, plant: Plant) -> None:
        self._choice = choice
        self._plant = plant
        self._asked: dict[tuple[int, int], set[bytes]] = defaultdict(set)
        """What was sent from each port by way of each rule."""
        self.sent: Counter[int] = Counter()
        self.got: Counter[int] = Counter()
        """Bytes of payload by the port of the rule."""

    async def come(self, way: DatagramWay, end: float) -> None:
        """Datagrams may be lost; one of another client must not come. Raises `Broken`.

        A client is an address and a port. The kernel gives a port of a socket that was closed to the next one at once
        (net/ipv4/udp.c, udp_lib_get_port, looks for sockets that are open, and UDP has no TIME_WAIT): an answer that is
        late comes to the new owner. So what comes must have been sent from this port, and come from oinetd.
        """
        oinetd = ("127.0.0.1", way.port)
        while time.monotonic() < end:
            with Party() as party:
                port = party.address[1]
                data = port.to_bytes(2, "big") + self._choice.randbytes(self._choice.randint(0, 1400))
                self._asked[way.port, port].add(data)
                with contextlib.suppress(OSError):
                    party.send(self._header(way) + data, oinetd)
                    self.sent[way.port] += len(data)
                    await asyncio.sleep(0.02)
                    while True:  # until nothing is left
                        said, sender = party.sock.recvfrom(65536)
                        if sender == oinetd:
                            for answer in self._plant.answers(said):
                                self._check(way.port, port, answer)

    def check(self, ups: Counter[int], downs: Counter[int], forged: int) -> None:
        """What the log says of these rules is not more than was sent and not less than came. Raises `Broken`.

        Datagrams to the port `forged` are also others'.
        """
        for port, count in self.got.items():
            if count > downs[port] or (ups[port] > self.sent[port] and port != forged):
                said = f"the log has {ups[port]} bytes up and {downs[port]} down"
                raise Broken(f"datagrams by {port}: {self.sent[port]} bytes were sent, {count} came, {said}")

    def forget(self) -> None:
        """The log begins anew."""
        self.sent.clear()
        self.got.clear()

    def _header(self, way: DatagramWay) -> bytes:
        if not way.headed:
            return b""
        if self._choice.random() < 0.1:
            return binary(b"", command=0x20, family=0)
        host, port = claimed(self._choice.randint(1, 50), 10), self._choice.randint(1024, 1050)
        body = socket.inet_aton(host) + socket.inet_aton("198.51.100.9") + struct.pack("!HH", port, 53)
        return binary(body, family=UDP_PROXY)

    def _check(self, rule: int, port: int, answer: bytes) -> None:
        self.got[rule] += len(answer)
        if answer not in self._asked[rule, port]:
            owners = [each for each, sent in self._asked.items() if answer in sent]
            raise Broken(f"a datagram of another client: {len(answer)} bytes to {port} by {rule}, of {owners}")
