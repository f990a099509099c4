"""A scrape: the metrics as text, in steps between which the loop does other work.

The heads of families are prometheus-client's. Lines of samples, which both formats have alike, are made here in a third
of the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import exposition
from prometheus_client.core import Metric, Sample
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from oinetd.admin.message import Response

__all__ = ["scrape"]

STEP_S: Final = 0.0003
"""Text is made for this long at a time."""

SAMPLES: Final = 100
"""Of one family at a time: some 0.1 ms."""

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_END: Final = b"# EOF\n"
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class _Head:
    """A registry with one family, and none of its samples."""

    def __init__(self, family: Metric) -> None:
        self._family = type(family).__new__(type(family))
        self._family.__dict__.update(family.__dict__, samples=[])

    def collect(self) -> Iterator[Metric]:
        yield self._family


async def scrape(collector: Collector, accept: str) -> Response:
    """The answer to a scrape, in the format that `accept` asks for."""
    modern = "application/openmetrics-text" in accept
    parts: list[bytes] = []
    began = time.monotonic()
    for family in collector.collect():
        parts.append(_head(family, modern))
        samples = family.samples
        for at in range(0, len(samples), SAMPLES):
            parts.append(_lines(samples[at : at + SAMPLES]))
            began = await _turn(began)
        began = await _turn(began)
    if modern:
        parts.append(_END)
    return Response(b"".join(parts), content_type=OPENMETRICS if modern else TEXT)


async def _turn(began: float) -> float:
    """Let others have their turn if it is time; when this one began."""
    if time.monotonic() - began <= STEP_S:
        return began
    await asyncio.sleep(0)
    return time.monotonic()


def _head(family: Metric, modern: bool) -> bytes:
    if modern:
        return openmetrics.generate_latest(_Head(family)).removesuffix(_END)  # type: ignore[no-untyped-call, no-any-return]
    return exposition.generate_latest(_Head(family))


def _lines(samples: Iterable[Sample]) -> bytes:
    """The lines of samples without exemplars and times."""
    lines = []
    for name, labels, value, *_ in samples:
        number = floatToGoString(value) if value else "0.0"  # type: ignore[no-untyped-call]
        if labels:
            words = ",".join([f'{key}="{labels[key].translate(_ESCAPES)}"' for key in sorted(labels)])
            lines.append(f"{name}{{{words}}} {number}\n")
        else:
            lines.append(f"{name} {number}\n")
    return "".join(lines).encode()
