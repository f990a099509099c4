"""A scrape: the metrics as text, in steps between which the loop does other work."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Final

from prometheus_client import exposition
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from oinetd.admin.message import Response

__all__ = ["scrape"]

STEP_S: Final = 0.0003
"""Text is made for this long at a time."""

SAMPLES: Final = 40
"""Of one family at a time: some 0.1 ms."""

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_HEAD: Final = re.compile(rb"^# [^\n]*\n", re.MULTILINE)
_END: Final = b"# EOF\n"


class _Part:
    """A registry with a part of one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


async def scrape(collector: Collector, accept: str) -> Response:
    """The answer to a scrape, in the format that `accept` asks for."""
    modern = "application/openmetrics-text" in accept
    parts: list[bytes] = []
    began = time.monotonic()
    for family in collector.collect():
        samples = family.samples
        for at in range(0, max(len(samples), 1), SAMPLES):
            family.samples = samples[at : at + SAMPLES]
            part = _text(family, modern)
            parts.append(_HEAD.sub(b"", part) if at else part)
            if time.monotonic() - began > STEP_S:
                await asyncio.sleep(0)
                began = time.monotonic()
    if modern:
        parts.append(_END)
    return Response(b"".join(parts), content_type=OPENMETRICS if modern else TEXT)


def _text(family: Metric, modern: bool) -> bytes:
    if modern:
        return openmetrics.generate_latest(_Part(family)).removesuffix(_END)  # type: ignore[no-untyped-call, no-any-return]
    return exposition.generate_latest(_Part(family))
