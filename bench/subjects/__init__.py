"""What is measured: oinetd in its modes, the bench's own reference forwarders, installed peers, and the floor."""

from __future__ import annotations

from collections.abc import Sequence

from bench.errors import BenchError
from bench.subjects.floor import Direct, Nftables
from bench.subjects.oinetd import oinetd_subjects
from bench.subjects.peers import Custom, Haproxy, Nginx, Redir, Rinetd, Socat
from bench.subjects.references import references
from bench.subjects.subject import Destination, Route, Setup, Subject
from bench.subjects.trixie import trixie_subjects

__all__ = ["Destination", "Route", "Setup", "Subject", "all_subjects", "choose", "choose_from", "groups"]


def all_subjects(buffers: Sequence[int], threads: Sequence[int] = ()) -> list[Subject]:
    """Every subject, in the order of tables. `buffers` in bytes: modes that copy are there once for each.

    `threads`: where there are several numbers, the native modes are there once for each.
    """
    return [
        Direct(),
        Nftables(),
        *oinetd_subjects(buffers, threads),
        Haproxy(splice=False),
        Haproxy(splice=True),
        Nginx(),
        *trixie_subjects(),
        Rinetd(),
        Socat(),
        Redir(),
        *references(),
    ]


def groups(subjects: Sequence[Subject]) -> dict[str, list[str]]:
    """The words that stand for subjects on the command line: families, and modes in all their buffer sizes."""
    words: dict[str, list[str]] = {"all": [subject.name for subject in subjects]}
    for subject in subjects:
        words.setdefault(subject.family, []).append(subject.name)
        if subject.base != subject.family:
            words.setdefault(subject.base, []).append(subject.name)
    return words


def choose(
    names: Sequence[str], buffers: Sequence[int], peers: Sequence[str], threads: Sequence[int] = ()
) -> list[Subject]:
    """The subjects called `names` (names or groups), with the `NAME=COMMAND` peers behind them; as `choose_from`."""
    return choose_from(all_subjects(buffers, threads) + [Custom.parse(text) for text in peers], names)


def choose_from(known: Sequence[Subject], names: Sequence[str]) -> list[Subject]:
    """Those of `known` that are called `names` (names or groups), and the custom ones.

    Raises `BenchError` if a name is not one, and lists those that are.
    """
    by_name = {subject.name: subject for subject in known}
    words = groups(known)
    chosen: list[str] = []
    for name in [*names, *words.get("custom", [])]:
        if name in words:
            chosen += words[name]
        elif name in by_name:
            chosen.append(name)
        else:
            raise BenchError(f"no subject is called {name}; there are: {', '.join(dict.fromkeys([*words, *by_name]))}")
    return [by_name[name] for name in dict.fromkeys(chosen)]
