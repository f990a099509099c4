"""Which of the rules that share a listener serves a client, by the server name and the protocols of its TLS hello.

An exact name comes before a wildcard, which stands for one label, and that before no name; with the same name, a rule
whose protocol the client speaks comes before one without. It costs some looks in dictionaries, however many names
there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

__all__ = ["NameTable"]

_T = TypeVar("_T")

WILDCARD = "*."


class NameTable(Generic[_T]):
    """`entries` are the names of each rule, its protocols, and what to choose. No two have a name and a protocol in
    common."""

    __slots__ = ("_exact", "_unnamed", "_wildcard", "entries")

    def __init__(self, entries: Iterable[tuple[tuple[str, ...], tuple[str, ...], _T]]) -> None:
        self._exact: dict[str, dict[bytes, _T]] = {}
        self._wildcard: dict[str, dict[bytes, _T]] = {}
        self._unnamed: dict[bytes, _T] = {}
        self.entries = tuple(entries)
        for names, protocols, choice in self.entries:
            for name in names or ("",):
                if name.startswith(WILDCARD):
                    found = self._wildcard.setdefault(name.removeprefix(WILDCARD), {})
                else:
                    found = self._exact.setdefault(name, {}) if name else self._unnamed
                for protocol in protocols or ("",):
                    found[protocol.encode()] = choice

    def choose(self, name: str, protocols: Iterable[bytes]) -> _T | None:
        """The choice for a client; `name` is in lower case, empty for a client that wants no server by name."""
        _, dot, parent = name.partition(".")
        for found in (
            self._exact.get(name) if name else None,
            self._wildcard.get(parent) if dot else None,
            self._unnamed,
        ):
            if not found:
                continue
            for protocol in protocols:
                if protocol and protocol in found:
                    return found[protocol]
            if b"" in found:
                return found[b""]
        return None
