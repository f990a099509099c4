"""`oinetd forward LISTEN DESTINATION …`: pairs of words as lines of the configuration's language."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["forward_lines"]

EVERY_ADDRESS: Final = "0.0.0.0"
UNIX: Final = "unix:"
_DESTINATION: Final = re.compile(r"([^\[]*|\[[^\]]*\][^\[]*)(\[.*\])?")
_PORT: Final = re.compile(r"[A-Za-z0-9-]+(/(tcp|udp))?")


def forward_lines(words: Sequence[str]) -> list[str]:
    """The rules of `words`: each listening place is followed by its destination. Raises `ValueError` with a reason."""
    if not words or len(words) % 2:
        raise ValueError("write pairs: where to listen, and where to forward to, such as 8080 db.example.org:80")
    return [" ".join(_rule(words[at], words[at + 1])) for at in range(0, len(words), 2)]


def _rule(listen: str, destination: str) -> Iterator[str]:
    """The words of one rule. A port alone listens on all IPv4 addresses."""
    yield from (EVERY_ADDRESS, listen) if _PORT.fullmatch(listen) else _place(listen)
    match = _DESTINATION.fullmatch(destination)
    if match is None:
        raise ValueError(f"{destination!r} is not a destination, such as db.example.org:80")
    servers = [list(_place(server)) for server in match[1].split(",")]
    if len({tuple(server[1:]) for server in servers}) > 1:
        raise ValueError(f"{destination}: the servers have different ports; use -e 'upstream …' lines for them")
    yield ",".join(server[0] for server in servers)
    yield from servers[0][1:]
    if match[2]:
        yield match[2]


def _place(word: str) -> Iterator[str]:
    """`address:port` as two words; a unix socket is one."""
    if word.startswith(UNIX):
        yield word
        return
    host, colon, port = word.rpartition(":")
    if not (colon and host and _PORT.fullmatch(port)):
        raise ValueError(f"{word!r} is not an address with a port, such as 127.0.0.1:8443")
    yield host
    yield port
