"""One word in place of address and port: unix sockets, with the options that only they have, and `original`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oinetd.config.syntax import Line, Option, Word
from oinetd.config.vocabulary import GROUP_OPTIONS, OPTIONS
from oinetd.errors import Problem
from oinetd.model import ORIGINAL, UNIX_PREFIX

__all__ = ["is_original", "is_unix", "unfit_options", "with_ports"]

_OF_THE_FILE = ("mode", "owner")
_OF_A_NETWORK = {
    "freebind": (0,), "interface": (0,), "defer-accept": (0,), "transparent": (0,),
    "out-interface": (1,), "mark": (1,), "dscp": (1,),
    "fastopen": (0, 1), "mptcp": (0, 1), "congestion": (0, 1),
}  # fmt: skip
"""Options of sockets of a network: of the side that listens (0), of the side that connects (1), or of both."""


def is_unix(word: Word) -> bool:
    """Whether a word is the address of a unix socket."""
    return word.text.startswith(UNIX_PREFIX)


def is_original(words: Sequence[Word]) -> bool:
    """Whether the destination in the words of a rule is `original`; with a port behind it, that is a host's name."""
    return words[2].text == ORIGINAL and [word.text for word in words[3:]] == ["0"]


def with_ports(words: Sequence[Word]) -> tuple[Word, ...]:
    """The words of a rule with port 0 behind each unix socket and `original`, so that every rule has four words."""
    found: list[Word] = []
    for word in words:
        found.append(word)
        original = word.text == ORIGINAL and len(found) == 3 and word is words[-1]
        if original or (is_unix(word) and len(found) % 2):
            found.append(Word("0", word.column, word.width))
    return tuple(found)


def unfit_options(line: Line, options: Sequence[Option], words: Sequence[Word]) -> Iterator[Problem]:
    """The problems of options that are for unix sockets, or not for them, or not for `original`."""
    bind, connect = words[0].text, words[2].text
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
        elif name.text in GROUP_OPTIONS and name.text not in OPTIONS and is_original(words):
            yield line.problem(f"{name.text} has no effect on original", name.column, name.width, "remove it")
