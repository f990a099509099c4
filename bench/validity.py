"""Whether a sample is what it says: pure judgements over what client and server have counted."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "bulk_faults",
    "drift_fault",
    "exchange_faults",
    "idle_operations_fault",
    "idle_work_fault",
    "short_faults",
    "stream_fault",
]

STREAM_SHARE, BUSY_STREAM_SHARE = 0.1, 0.01
"""A stream that moves less than this share of the mean is as good as not forwarded."""
DRIFT, BUSY_DRIFT = 2.0, 6.0
_DRIFT_SLICES = 4
"""The fewest slices of the warm-up that say something of its rate."""
BULK_LEAST_S_PER_GB = 0.01
"""Processor time that a program cannot do with less of, to move 10⁹ bytes: a tenth of what splice takes."""
OPERATION_LEAST_S = 0.5e-6
"""The same for a request and its answer: a twentieth of what the best take."""
_OPERATIONS_LEAST = 100


def _faults(faults: Sequence[str], what: str, total: int) -> list[str]:
    """Each reason once, with the number of connections it befell."""
    counts = {reason: faults.count(reason) for reason in dict.fromkeys(faults)}
    return [f"{what} {reason}: {count} of {total}" for reason, count in counts.items()]


def _served(server: Mapping[str, int]) -> list[str]:
    """What the server alone can know of how it was reached."""
    words = {
        "reused": "connections to the server were used for more than one client",
        "early": "connections to the server were made before the client's",
        "repeated": "connections to the server said what another had said: doubled",
        "foreign": "connections to the server did not carry what the client had sent",
    }
    return [f"{server[name]} {text}" for name, text in words.items() if server.get(name)]


def _half_close(figures: Mapping[str, Any]) -> list[str]:
    reason = figures.get("half_close")
    return [f"half-close not passed on: {reason}"] if reason else []


def exchange_faults(figures: Mapping[str, Any], server: Mapping[str, int]) -> list[str]:
    """Of requests and answers on connections that stay. `server` is what it has counted meanwhile."""
    found = _faults(figures["faults"], "connections", len(figures["streams"]))
    answered, asked = figures["every"], figures["begun"]
    if answered > server["requests"]:
        found.append(f"{answered - server['requests']} requests were answered that the server never saw")
    if figures["wrong"]:
        found.append(f"{figures['wrong']} of {answered} answers were not what the server had sent: bytes were changed")
    if server["wrong"]:
        found.append(f"{server['wrong']} requests reached the server changed, swapped or doubled")
    if server["requests"] > asked:
        found.append(f"{server['requests'] - asked} requests reached the server that no client had sent: doubled")
    elif not found and answered < asked:
        found.append(f"{asked - answered} of {asked} requests were not answered: lost")
    return found + _served(server) + _half_close(figures)


def short_faults(figures: Mapping[str, Any], server: Mapping[str, int]) -> list[str]:
    """Of connections that ask once."""
    found = []
    answered, asked = figures["every"], figures["begun"]
    if figures["failures"]:
        reason = f" ({figures['faults'][0]})" if figures["faults"] else ""
        found.append(f"{figures['failures']} of {asked} connections failed{reason}")
    if answered > server["requests"]:
        found.append(f"{answered - server['requests']} requests were answered that the server never saw")
    if figures["wrong"]:
        found.append(f"{figures['wrong']} of {answered} answers were not what the server had sent: bytes were changed")
    found += _served(server)
    if server["accepted"] > asked:
        found.append(f"{server['accepted'] - asked} connections to the server that no client had asked for")
    return found


def bulk_faults(figures: Mapping[str, Any], server: Mapping[str, int], *, up: bool) -> list[str]:
    """Of streams whose end that gets them has checked every byte."""
    flows = figures["flows"]
    found = _faults(figures["faults"], "streams", len(figures["streams"]))
    if up:
        sent = sum(flow["moved"] for flow in flows)
        if server["bytes_in"] != sent:
            lost = sent - server["bytes_in"]
            found.append(f"{abs(lost)} of {sent} bytes were {'lost' if lost > 0 else 'doubled'}")
        if server["wrong"]:
            found.append(f"{server['wrong']} of {len(flows)} streams arrived changed, swapped, doubled or with a gap")
    else:
        got = sum(flow["moved"] for flow in flows)
        wrong = [flow for flow in flows if flow["wrong_at"] is not None]
        if server["bytes_out"] != got and not wrong:  # a wrong one was not read to its end
            lost = server["bytes_out"] - got
            found.append(f"{abs(lost)} of {server['bytes_out']} bytes were {'lost' if lost > 0 else 'doubled'}")
        if wrong:
            first = min(flow["wrong_at"] for flow in wrong)
            found.append(
                f"{len(wrong)} of {len(flows)} streams arrived changed, swapped, doubled or with a gap, the first one "
                f"about byte {first}"
            )
    return found + _served(server) + _half_close(figures)


def stream_fault(amounts: Sequence[float], *, busy: bool = False) -> list[str]:
    """Whether one of several streams was left out.

    On a `busy` machine a stream may get no processor for a while: only one that hardly began is the subject's doing.
    """
    if len(amounts) < 2 or not any(amounts):
        return []
    mean = statistics.fmean(amounts)
    share, words = (BUSY_STREAM_SHARE, "a hundredth") if busy else (STREAM_SHARE, "a tenth")
    starved = [amount for amount in amounts if amount < share * mean]
    if not starved:
        return []
    return [f"{len(starved)} of {len(amounts)} streams got less than {words} of the mean"]


def drift_fault(
    slices: Sequence[float], slice_s: float, warm_up_s: float, seconds: float, *, busy: bool = False
) -> list[str]:
    """Whether the rate in the warm-up is another than at the end, by more than a factor of two.

    `slices` are amounts in equal parts of warm-up and timed load together. The first quarter of the warm-up is left
    out, and what is compared is the best of one side with the middle of the other. On a `busy` machine only a much
    larger difference is taken for the subject's own.
    """
    if not slice_s or not warm_up_s:
        return []
    warm = list(slices[max(1, round(warm_up_s / slice_s / 4)) : int(warm_up_s / slice_s)])
    whole = int((warm_up_s + seconds) / slice_s)
    end = list(slices[(int(warm_up_s / slice_s) + whole) // 2 : whole])
    if len(warm) < _DRIFT_SLICES or len(end) < _DRIFT_SLICES:
        return []
    factor = BUSY_DRIFT if busy else DRIFT
    if factor * max(warm) < statistics.median(end):
        ratio = statistics.median(end) / max(max(warm), 1e-9)
        return [f"drift: at the end {min(ratio, 999):.0f} times as fast as in the warm-up"]
    if factor * max(end) < statistics.median(warm):
        ratio = statistics.median(warm) / max(max(end), 1e-9)
        return [f"drift: in the warm-up {min(ratio, 999):.0f} times as fast as at the end"]
    return []


def idle_work_fault(cpu_s: float | None, gigabytes: float) -> list[str]:
    """Whether a program was at work at all: `cpu_s` is its processor time, None for what is no program."""
    if cpu_s is None or gigabytes < 0.1 or cpu_s >= BULK_LEAST_S_PER_GB * gigabytes:
        return []
    return [
        f"work outside the subject's processes: {gigabytes:.1f} GB passed, and theirs was {cpu_s:.3f} s of CPU time"
    ]


def idle_operations_fault(cpu_s: float | None, operations: int) -> list[str]:
    """As `idle_work_fault`, of round trips or connections."""
    if cpu_s is None or operations < _OPERATIONS_LEAST or cpu_s >= OPERATION_LEAST_S * operations:
        return []
    spent = f"{cpu_s * 1e3:.2f} ms of CPU time"
    return [f"work outside the subject's processes: {operations} requests were answered, and theirs was {spent}"]
