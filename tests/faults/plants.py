"""Planted faults: each has to be found, or the driver finds nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["LEAKS", "PLANTS", "Plant"]

_RELAYED: Final = ("lost-byte", "doubled-byte", "invented-fin")
LEAKS: Final = {"leaked-descriptor": "descriptor", "leaked-memory": "memory"}
"""What the daemon leaks; see `daemon.py`."""
PLANTS: Final = (
    *_RELAYED,
    *LEAKS,
    "missing-line",
    "second-line",
    "wrong-counter",
    "wrong-counter-of-a-rule",
    "lasting-session",
    "live-count",
    "traceback",
    "foreign-datagram",
    "uncounted-datagram",
    "wrong-client",
)


class Plant:
    """No fault, or the one of this name. The first three sit between the clients and oinetd, like a bad relay."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._relays: dict[tuple[str, int], tuple[str, int]] = {}

    @property
    def relays(self) -> bool:
        """Whether clients go through a relay, which only plain ways have."""
        return self.name in _RELAYED

    def way(self, address: tuple[str, int]) -> tuple[str, int]:
        """Where a client has to connect to."""
        if not self.relays:
            return address
        if address not in self._relays:
            listener = socket.create_server(("127.0.0.1", 0), backlog=256)
            self._relays[address] = listener.getsockname()
            threading.Thread(target=self._accept, args=(listener, address), daemon=True).start()
        return self._relays[address]

    def source(self, key: int) -> int:
        """The key that a client's address says."""
        return key + (self.name == "wrong-client")

    def log(self, lines: Iterable[str]) -> Iterable[str]:
        """The log as it is told."""
        lines = list(lines)
        if self.name in ("missing-line", "second-line"):
            last = next(line for line in reversed(lines) if '"event":"closed"' in line)
            if self.name == "missing-line":
                lines.remove(last)
            else:
                lines.append(last)
        return lines

    def status(self, found: dict[str, Any]) -> dict[str, Any]:
        """The status as it is told."""
        if self.name == "wrong-counter":
            found["bytes_up"] += 1
        if self.name == "lasting-session":
            found["live"] += 1
        return found

    def rules(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rules as they are told."""
        if self.name == "wrong-counter-of-a-rule":
            found[0]["bytes_down"] += 1
            found[1]["bytes_down"] -= 1
        if self.name == "live-count":
            found[0]["live"] += 1
        return found

    def said(self, text: str) -> str:
        """The messages as they are told."""
        return text + 'Traceback (most recent call last):\n  File "x.py"\nKeyError: 1\n' * (self.name == "traceback")

    def answers(self, data: bytes) -> list[bytes]:
        """The datagrams that come where this one does."""
        if self.name == "foreign-datagram":
            return [b"of another client"]
        return [data] * (1000 if self.name == "uncounted-datagram" else 1)

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
                    data = data[:-2] + data[-1:] if self.name == "lost-byte" else data + data[-1:]
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
            return
        with contextlib.suppress(OSError):  # a reset goes on as a reset
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            target.close()
