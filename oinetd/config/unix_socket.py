"""Unix sockets in a rule: one word in place of address and port, and the options that only they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oinetd.config.syntax import Line, Option, Word
from oinetd.errors import Problem
from oinetd.model import UNIX_PREFIX

__all__ = ["is_unix", "unfit_options", "with_unix_ports"]

_OF_THE_FILE = ("mode", "owner")
_OF_A_NETWORK = {
    "freebind": (0,), "interface": (0,), "defer-accept": (0,),
    "out-interface": (1,), "mark": (1,), "dscp": (1,),
    "fastopen": (0, 1), "mptcp": (0, 1), "congestion": (0, 1),
}  # fmt: skip
"""Options of sockets of a network: of the side that listens (0), of the side that connects (1), or of both."""


def is_unix(word: Word) -> bool:
    """Whether a word is the address of a unix socket."""
    return word.text.startswith(UNIX_PREFIX)


def with_unix_ports(words: Sequence[Word]) -> tuple[Word, ...]:
    """The words of a rule with port 0 behind each unix socket, so that every rule has four words."""
    found: list[Word] = []
    for word in words:
        found.append(word)
        if is_unix(word) and len(found) % 2:
            found.append(Word("0", word.column, word.width))
    return tuple(found)


def unfit_options(line: Line, options: Sequence[Option], bind: str, connect: str) -> Iterator[Problem]:
    """The problems of options that are for unix sockets."""
    networks = [side for side, host in enumerate((bind, connect)) if not host.startswith(UNIX_PREFIX)]
    for option in options:
        name = option.name
        if name.text in _OF_THE_FILE and not bind.startswith(UNIX_PREFIX + "/"):
            why = "an abstract name has no file: every user of the machine may connect to it"
            if not bind.startswith(UNIX_PREFIX):
                why = "it belongs to a rule that listens on unix:/path"
            message = f"{name.text} is for the file of a unix socket to listen on"
            yield line.problem(message, name.column, name.width, why)
        elif name.text == "peer-uid" and not connect.startswith(UNIX_PREFIX):
            hint = "it belongs to a rule whose destination is unix:/path or unix:@name"
            yield line.problem("peer-uid is for a unix socket as destination", name.column, name.width, hint)
        elif name.text in _OF_A_NETWORK and not any(side in networks for side in _OF_A_NETWORK[name.text]):
            yield line.problem(f"{name.text} has no effect on a unix socket", name.column, name.width, "remove it")
