"""A small name server on loopback, for daemons in a namespace of their own whose resolver asks it."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Final

NOERROR: Final = 0
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
_A: Final = 1


class NameServer:
    """Answers questions for IPv4 addresses from `zone`: addresses, or the code of a failure.

    What is not in the zone does not exist. As long as `speaks` is not set it is silent; the resolver asks again.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 53) -> None:
        self.zone: dict[str, list[str] | int] = {}
        self.asked: list[str] = []
        self.speaks = threading.Event()
        self.speaks.set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, port))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        place = self._socket.getsockname()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", place)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, client = self._socket.recvfrom(4096)
            if not question:
                return
            name, kind, end = _asked(question)
            self.asked.append(name)
            if self.speaks.is_set():
                self._socket.sendto(self._answer(question[:end], name, kind), client)

    def _answer(self, question: bytes, name: str, kind: int) -> bytes:
        known = self.zone.get(name, NXDOMAIN)
        code, addresses = (known, []) if isinstance(known, int) else (NOERROR, known if kind == _A else [])
        answers = b"".join(
            struct.pack("!HHHIH4s", 0xC00C, _A, 1, 0, 4, socket.inet_aton(address)) for address in addresses
        )
        return question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(addresses), 0, 0) + question[12:] + answers


def _asked(packet: bytes) -> tuple[str, int, int]:
    """The name and the type that a packet asks for, and where its question ends."""
    labels, at = [], 12
    while size := packet[at]:
        labels.append(packet[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels), int.from_bytes(packet[at + 1 : at + 3], "big"), at + 5
