"""netperf as a second opinion on round trips (TCP_RR) and short connections (TCP_CRR), where it is installed.

netperf has a control connection and a data connection. Forwarding the control port alone measures the path beside
the forwarder; so the data port is pinned and the subject forwards both.
"""

from __future__ import annotations

from bench.errors import BenchError
from bench.tools import need

__all__ = ["client_command", "parse_keyvals", "server_command"]

_SELECTED = "THROUGHPUT,THROUGHPUT_UNITS,P50_LATENCY,P90_LATENCY,P99_LATENCY,ELAPSED_TIME"


def server_command(control_port: int) -> list[str]:
    """netserver in the foreground."""
    return [need("netserver"), "-D", "-4", "-p", str(control_port)]


def client_command(test: str, host: str, control_port: int, data_port: int, seconds: int, size: int) -> list[str]:
    """`test` is TCP_RR or TCP_CRR. The subject forwards both ports to the same numbers on the server."""
    return [
        need("netperf"), "-P", "0", "-t", test, "-H", f"{host},4", "-p", str(control_port), "-l", str(seconds),
        "--", "-r", f"{size},{size}", "-P", f",{data_port}", "-k", _SELECTED,
    ]  # fmt: skip


def parse_keyvals(text: str) -> dict[str, float]:
    """Transactions per second and latencies in µs of `netperf … -- -k …`. Raises `BenchError` if it failed."""
    values = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    try:
        if values["THROUGHPUT_UNITS"] != "Trans/s":
            raise BenchError(f"netperf counted {values['THROUGHPUT_UNITS']}, not transactions")
        return {
            "per_second": float(values["THROUGHPUT"]),
            "elapsed_s": float(values["ELAPSED_TIME"]),
            **{f"p{percent}_us": float(values[f"P{percent}_LATENCY"]) for percent in (50, 90, 99)},
        }
    except (KeyError, ValueError):
        raise BenchError(f"netperf: {text.strip() or 'it said nothing'}") from None
