"""The live sessions of a selection: found, streamed and killed in steps between which the loop does other work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from oinetd.admin.documents import session_document
from oinetd.admin.message import as_json
from oinetd.admin.selection import Selection
from oinetd.core.record import SessionRecord
from oinetd.forwarder import Forwarder
from oinetd.observe.rules import RuleNames

__all__ = ["kill_sessions", "stream_sessions"]

BATCH: Final = 128
"""One to two milliseconds of work."""


async def find_sessions(
    forwarder: Forwarder, selection: Selection, names: RuleNames
) -> tuple[list[SessionRecord], int]:
    """The page of a selection, in its order, and the number of all that match."""
    found: list[SessionRecord] = []
    total, keep = 0, selection.limit
    for batch in forwarder.session_batches(BATCH):
        taken = [record for record in batch if selection.takes(record, names)]
        total += len(taken)
        found += taken
        if keep and len(found) > 2 * keep + BATCH:
            found = selection.ordered(found)[:keep]
        await asyncio.sleep(0)
    return selection.ordered(found)[: keep or None], total


async def stream_sessions(forwarder: Forwarder, selection: Selection) -> AsyncIterator[bytes]:
    """A JSON object: `sessions`, the number `total` of those that match, and `next`, the `after` of the next page."""
    names = RuleNames(forwarder.stats().rules)
    page, total = await find_sessions(forwarder, selection, names)
    between = b'{"sessions":['
    for at in range(0, len(page), BATCH):
        documents = [session_document(record, names.of(record.route.rule)) for record in page[at : at + BATCH]]
        yield between + as_json(documents)[1:-2]
        between = b",\n"
        await asyncio.sleep(0)
    following = page[-1].id if page and len(page) < total and selection.sort == "id" else None
    tail: dict[str, Any] = {"total": total, "next": following}
    yield (b"" if page else between) + b"]," + as_json(tail)[1:]


async def kill_sessions(forwarder: Forwarder, selection: Selection) -> int:
    """End all sessions of a selection; their number."""
    names = RuleNames(forwarder.stats().rules)
    page, _ = await find_sessions(forwarder, selection, names)
    killed = 0
    for at in range(0, len(page), BATCH):
        killed += sum(forwarder.kill(record.id, known=True) for record in page[at : at + BATCH])
        await asyncio.sleep(0)
    return killed
