"""The clients of a selection: the live sessions of each address, added up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from oinetd.admin.message import Refusal, as_json
from oinetd.admin.selection import Selection
from oinetd.admin.sessions import BATCH
from oinetd.core.record import SessionRecord
from oinetd.forwarder import Forwarder
from oinetd.observe.rules import RuleNames

__all__ = ["CLIENT_ORDERS", "stream_clients"]


@dataclass(slots=True)
class _Client:
    """The live sessions of one address together; `idle_s` is that of the session that moved something last."""

    client: str
    sessions: int = 0
    oldest_s: float = 0.0
    idle_s: float = float("inf")
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, record: SessionRecord) -> None:
        self.sessions += 1
        self.oldest_s = max(self.oldest_s, record.duration_s)
        self.idle_s = min(self.idle_s, record.idle_s)
        self.bytes_up += record.bytes_up
        self.bytes_down += record.bytes_down

    def document(self) -> dict[str, Any]:
        return {
            "client": self.client,
            "sessions": self.sessions,
            "oldest_s": round(self.oldest_s, 6),
            "idle_s": round(self.idle_s, 6),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


CLIENT_ORDERS: Final[Mapping[str, Callable[[_Client], float]]] = {
    "sessions": lambda each: -each.sessions,
    "bytes": lambda each: -(each.bytes_up + each.bytes_down),
    "age": lambda each: -each.oldest_s,
    "idle": lambda each: -each.idle_s,
}


def stream_clients(forwarder: Forwarder, query: Mapping[str, str]) -> AsyncIterator[bytes]:
    """A JSON object: `clients`, and the number `total` of those there are. Raises `Refusal` at once."""
    sort = query.get("sort", "sessions")
    if sort not in CLIENT_ORDERS:
        raise Refusal(400, f"sort: {sort[:40]!r} is not one of {', '.join(CLIENT_ORDERS)}")
    selection = Selection.of({name: text for name, text in query.items() if name != "sort"})
    return _stream(forwarder, selection, CLIENT_ORDERS[sort])


async def _stream(
    forwarder: Forwarder, selection: Selection, order: Callable[[_Client], float]
) -> AsyncIterator[bytes]:
    names = RuleNames(forwarder.stats().rules)
    found: dict[str, _Client] = {}
    for batch in forwarder.session_batches(BATCH):
        for record in batch:
            if selection.takes(record, names):
                client = found.get(record.client)
                if client is None:
                    client = found[record.client] = _Client(record.client)
                client.add(record)
        await asyncio.sleep(0)
    page = sorted(found.values(), key=order)[: selection.limit or None]
    between = b'{"clients":['
    for at in range(0, len(page), BATCH):
        yield between + as_json([each.document() for each in page[at : at + BATCH]])[1:-2]
        between = b",\n"
        await asyncio.sleep(0)
    yield (b"" if page else between) + b"]," + as_json({"total": len(found)})[1:]
