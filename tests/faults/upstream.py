"""The servers of a run: keyed streams over TCP, an echo over UDP. A process of its own, to be frozen and killed.

`python -m tests.faults.upstream PORT FILE`: what it finds wrong is appended to FILE, a line each.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from pathlib import Path

from tests.peers import Peer
from tests.soak.keyed import Load


class _Faults(list[str]):
    """A list whose items are in the file as soon as they are found."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def append(self, item: str) -> None:
        super().append(item)
        with self._path.open("a") as file:
            file.write(f"{item}\n")


async def main(port: int, path: Path) -> None:
    loop = asyncio.get_running_loop()
    load = Load(random.Random(0), faults=_Faults(path))
    with socket.create_server(("", port), backlog=1024) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        listener.setblocking(False)
        datagrams.bind(("", port))
        datagrams.setblocking(False)

        def answer() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, client = datagrams.recvfrom(65536)
                    datagrams.sendto(data, client)

        loop.add_reader(datagrams.fileno(), answer)
        tasks: set[asyncio.Task[None]] = set()
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setblocking(False)
            task = loop.create_task(serve(load, Peer(sock)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def serve(load: Load, peer: Peer) -> None:
    try:
        await load.serve(peer)
    except AssertionError:
        pass  # it is in `load.faults`
    finally:
        peer.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
