"""The limits and rates of a rule in the form of the data plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oinetd.model import Rate, RuleOptions, Settings

if TYPE_CHECKING:
    from oinetd import _fastpath

__all__ = ["set_bounds"]


def set_bounds(gate: _fastpath.Gate, options: RuleOptions, settings: Settings) -> None:
    """Put the limits of a rule in force at its gate, and its rates, for live connections as well."""
    gate.set_limits(options.max_connections or 0, options.max_connections_per_source or 0)
    gate.set_rates(
        settings.bandwidth_per_rule_bytes,
        settings.bandwidth_per_source_bytes,
        connects=_nanoseconds(settings.rate),
        source_connects=_nanoseconds(settings.rate_per_source),
    )
    gate.calm()


def _nanoseconds(rate: Rate) -> tuple[int, int]:
    """The time between two connections, and how many may come at once; zeros without a limit."""
    return (max(1, round(rate.interval_s * 1e9)), rate.at_once) if rate else (0, 0)
