"""The kinds of values of limits, as `values` has them: rates of connections, and bandwidths."""

from __future__ import annotations

import re

from oinetd.config.mistake import Mistake, shown
from oinetd.config.values.common import Size
from oinetd.model import Rate

__all__ = ["RATE_MAX", "Bandwidth", "RateForm"]

RATE_MAX = 1_000_000
"""Connections in a second, a minute or an hour: no machine accepts more."""

_RATE = re.compile(r"([0-9]{1,12})/(s|m|h)(?::([0-9]{1,12}))?")
_PERIOD_S = {"s": 1, "m": 60, "h": 3600}


class RateForm:
    """Connections a second, minute or hour, and with a colon how many may come at once; or `off`."""

    form = "N/s[:BURST]|off"

    def parse(self, text: str) -> Rate:
        if text == "off":
            return Rate()
        match = _RATE.fullmatch(text)
        if match is None:
            hint = "a number for each s, m or h, such as 50/s or 5/m, and how many may come at once: 5/s:20; or off"
            raise Mistake(f"{shown(text)} is not a valid rate", hint)
        count, burst = int(match[1]), int(match[3]) if match[3] else 0
        if not 1 <= count <= RATE_MAX or not (match[3] is None or 1 <= burst <= RATE_MAX):
            raise Mistake(f"{shown(text)} is out of range", f"from 1 to {RATE_MAX}; off is no limit")
        return Rate(count, _PERIOD_S[match[2]], burst)

    def format(self, value: Rate) -> str:
        if not value:
            return "off"
        unit = next(unit for unit, period_s in _PERIOD_S.items() if period_s == value.period_s)
        return f"{value.number}/{unit}" + (f":{value.burst}" if value.burst else "")


class Bandwidth(Size):
    """Bytes a second, as `Size`; or `off`."""

    form = "SIZE|off"

    def parse(self, text: str) -> int:
        if text == "off":
            return 0
        try:
            return super().parse(text)
        except Mistake as mistake:
            hint = f"{mistake.hint} (bytes a second), or off"
            raise Mistake(mistake.message, hint, start=mistake.start, width=mistake.width) from None

    def format(self, value: int) -> str:
        return super().format(value) if value else "off"
