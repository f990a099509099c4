"""Planted faults: each has to be found, or the driver finds nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Final

__all__ = ["PLANTS", "Plant"]

PLANTS: Final = ("lost-byte", "invented-fin", "leaked-descriptor", "missing-line")


class Plant:
    """No fault, or the one of this name. The first two sit between the clients and oinetd, like a bad relay."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._relays: dict[tuple[str, int], tuple[str, int]] = {}

    def way(self, address: tuple[str, int]) -> tuple[str, int]:
        """Where a client has to connect to."""
        if self.name not in ("lost-byte", "invented-fin"):
            return address
        if address not in self._relays:
            listener = socket.create_server(("127.0.0.1", 0), backlog=256)
            self._relays[address] = listener.getsockname()
            threading.Thread(target=self._accept, args=(listener, address), daemon=True).start()
        return self._relays[address]

    def log(self, lines: Iterable[str]) -> Iterable[str]:
        """The log as it is told."""
        lines = list(lines)
        if self.name == "missing-line":
            lines.remove(next(line for line in reversed(lines) if '"event":"closed"' in line))
        return lines

    def _accept(self, listener: socket.socket, address: tuple[str, int]) -> None:
        while True:
            client, _ = listener.accept()
            with contextlib.suppress(OSError):
                server = socket.create_connection(address, 10)
                for source, target, spoils in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pump, args=(source, target, spoils), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, spoils: bool) -> None:
        moved = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                moved += len(data)
                if spoils and moved > 10_000:
                    if self.name == "invented-fin":
                        target.shutdown(socket.SHUT_WR)
                        while source.recv(65536):
                            pass
                        return
                    data = data[:-2] + data[-1:]
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
            return
        with contextlib.suppress(OSError):  # a reset goes on as a reset
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            target.close()
