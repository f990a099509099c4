"""The servers of a run: keyed streams over TCP and a unix socket, echoes over UDP. A process to be frozen and killed.

`python -m tests.faults.upstream FILE [FOLDER]`: what it finds wrong is appended to FILE, a line each. With FOLDER it
has all servers, also one at FOLDER/back.sock; without, that of plain streams only. What stands before a stream is what
the port says: a PROXY header that has to name the stream's client, or a TLS hello with the name of this server.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.addresses.unix_peers import UnixPeer
from tests.faults.ways import HEADED, HELLO_HERE, HELLO_THERE, PLAIN, SECOND, is_of_key
from tests.peers import Peer
from tests.preamble.samples import SIGNATURE
from tests.soak.keyed import Load, talk

__all__: list[str] = []

LINE_BYTES_MAX = 107
"""A header of version 1."""
NOT_PROXIED = 0x20
"""The byte of a LOCAL header, as checks send it."""
PORT_BYTES = 2
"""A datagram begins with the port that its client has."""

Streams = Callable[[Load, Peer], Awaitable[None]]


class _Faults(list[str]):
    """A list whose items are in the file as soon as they are found; `but` is what is none here."""

    def __init__(self, path: Path, but: str = "") -> None:
        super().__init__()
        self._path = path
        self._but = but

    def append(self, item: str) -> None:
        if self._but and self._but in item:
            return
        super().append(item)
        with self._path.open("a") as file:
            file.write(f"{item}\n")


async def plain(load: Load, peer: Peer) -> None:
    await load.serve(peer)


async def behind_a_header(load: Load, peer: Peer) -> None:
    """The header names the client of the stream that follows."""
    first = await peer.read(len(SIGNATURE))
    if not first:
        return
    if first == SIGNATURE:
        rest = await peer.read(4)
        if len(rest) < 4:
            return
        body = await peer.read(struct.unpack("!H", rest[2:])[0])
        client = socket.inet_ntoa(body[:4]) if rest[0] != NOT_PROXIED and len(body) >= 4 else ""
    else:
        while not first.endswith(b"\r\n") and len(first) < LINE_BYTES_MAX and (byte := await peer.read(1)):
            first += byte
        words = first.decode("latin-1").split(" ")
        client = words[2] if words[0] == "PROXY" and len(words) == 6 else ""
    key = await peer.read(8)
    if len(key) < 8:
        return
    number = int.from_bytes(key, "big")
    if not is_of_key(client, number):
        load.faults.append(f"connection {number}, up: its header names {client!r}: {first!r}")
        return
    await talk(load, peer, number, up=False)


def behind_a_hello(name: bytes) -> Streams:
    """The hello has this server name."""

    async def streams(load: Load, peer: Peer) -> None:
        said = bytearray()
        while True:
            head = await peer.read(5)
            if len(head) < 5:
                return
            said += await peer.read(struct.unpack("!H", head[3:])[0])
            if len(said) >= 4 and len(said) >= 4 + int.from_bytes(said[1:4], "big"):
                break
        key = await peer.read(8)
        if len(key) < 8:
            return
        number = int.from_bytes(key, "big")
        if name not in said:
            load.faults.append(f"connection {number}, up: its hello is not for {name!r}")
            return
        await talk(load, peer, number, up=False)

    return streams


STREAMS: dict[int, Streams] = {
    PLAIN: plain,
    HEADED: behind_a_header,
    HELLO_HERE: behind_a_hello(b"here.test"),
    HELLO_THERE: behind_a_hello(b"there.test"),
}


async def main(path: Path, folder: Path | None) -> None:
    """Serve until the end of the process."""
    load = Load(random.Random(0), faults=_Faults(path))
    with contextlib.ExitStack() as stack:
        work = []
        for port, streams in STREAMS.items() if folder is not None else ((PLAIN, plain),):
            listener = stack.enter_context(socket.create_server(("", port), backlog=1024))
            work.append(accept(listener, load, streams, Peer))
        if folder is not None:
            place = folder / "back.sock"
            place.unlink(missing_ok=True)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(place))
            listener.listen(1024)
            # A connection of a unix socket cannot be reset.
            cut = Load(random.Random(0), faults=_Faults(path, "a FIN after"))
            work.append(accept(listener, cut, plain, UnixPeer))
            for port in (PLAIN, SECOND, HEADED):
                echo(stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)), port, load.faults)
        await asyncio.gather(*work)


async def accept(
    listener: socket.socket, load: Load, streams: Streams, kind: Callable[[socket.socket], Peer | UnixPeer]
) -> None:
    """Serve each connection in a task of its own."""
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    while True:
        sock, _ = await loop.sock_accept(listener)
        sock.setblocking(False)
        task = loop.create_task(serve(load, streams, kind(sock)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def serve(load: Load, streams: Streams, peer: Peer | UnixPeer) -> None:
    """One connection; a reset is an end like others."""
    try:
        with contextlib.suppress(OSError):
            await streams(load, peer)  # type: ignore[arg-type]  # with the calls of a `Peer`
    except AssertionError:
        pass  # it is in `load.faults`
    finally:
        peer.close()


def echo(datagrams: socket.socket, port: int, faults: list[str]) -> None:
    """Give each datagram back, without its header, which has to name the client that the payload names."""
    datagrams.bind(("", port))
    datagrams.setblocking(False)

    def answer() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, client = datagrams.recvfrom(65536)
                if port == HEADED:
                    data = payload(data, faults)
                with contextlib.suppress(ConnectionError):
                    datagrams.sendto(data, client)

    asyncio.get_running_loop().add_reader(datagrams.fileno(), answer)


def payload(data: bytes, faults: list[str]) -> bytes:
    """What stands behind the header."""
    if not data.startswith(SIGNATURE) or len(data) < 28:
        faults.append(f"a datagram of {len(data)} bytes without a header")
        return data
    (size,) = struct.unpack_from("!H", data, 14)
    (port,) = struct.unpack_from("!H", data, 24)
    said = data[16 + size :]
    if said[:PORT_BYTES] != port.to_bytes(2, "big"):
        faults.append(f"a datagram of {said[:PORT_BYTES]!r} whose header names port {port}")
    return said


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
