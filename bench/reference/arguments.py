"""The command line that the reference forwarders share."""

from __future__ import annotations

import socket
import sys

__all__ = ["Address", "listeners"]

Address = tuple[str, int]
BACKLOG = 4096


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


def listeners() -> tuple[int, list[tuple[socket.socket, Address]]]:
    """The buffer size in bytes, and a listening socket for each rule with where its connections go."""
    buffer_bytes, *rules = sys.argv[1:]
    pairs = []
    for rule in rules:
        listen, _, connect = rule.partition("=")
        pairs.append((socket.create_server(_address(listen), backlog=BACKLOG), _address(connect)))
    return int(buffer_bytes), pairs
