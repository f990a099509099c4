"""The bench's own client as a process: `python -m bench.client exchange|upload|download|short|idle HOST PORT …`.

It writes `up` when its connections stand, and waits for a line on its standard input. It writes `go` when the warm-up
is over, `over` when the load has come to its end, and then one line of JSON: what it counted, and what went wrong with
each connection. Latencies come as the histogram of `bench.histogram`, complete and not sampled. The key of the run is
in the environment (`bench.key`).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from bench.extension import native
from bench.key import KINDS, run_key

__all__ = ["main", "shares", "socket_address"]

PATIENCE_S = 3.0
"""How long all connections together may take to be greeted by the server."""
OPENING_PATIENCE_S = 15.0
"""How long connections that are opened one by one may take in all: some forwarders get slower with each."""
CLOSE_PATIENCE_MS = 1000
_START_S = 0.02
"""Until all threads run."""


def socket_address(host: str, port: int) -> bytes:
    """`struct sockaddr_in` or `sockaddr_in6`; `sockaddr_un` where the host is `unix:PATH`."""
    if host.startswith("unix:"):
        return struct.pack("=H", socket.AF_UNIX) + os.fsencode(host.removeprefix("unix:")) + b"\0"
    if ":" in host:
        address = socket.inet_pton(socket.AF_INET6, host)
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, address, 0)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def say(word: str) -> None:
    print(word, flush=True)


def stand_by() -> None:
    """Say `up`, and wait for a line on standard input, or its end: the bench looks at the connections meanwhile."""
    say("up")
    sys.stdin.readline()


def merged(histograms: Sequence[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram:
            total[bucket] = total.get(bucket, 0) + count
    return sorted(total.items())


def shares(total: int, parts: int) -> list[int]:
    """`total` split over at most `parts` threads, none of them empty."""
    return [share for i in range(parts) if (share := total // parts + (i < total % parts))]


def fault_text(status: int) -> str:
    """What -errno of a connection means to a reader; empty for 0."""
    words = {
        errno.ECONNRESET: "closed early", errno.EPIPE: "closed early", errno.ETIMEDOUT: "silent",
        errno.ECONNREFUSED: "refused", errno.EPROTO: "not the server's word", errno.EBADMSG: "wrong",
    }  # fmt: skip
    return words.get(-status, os.strerror(-status)) if status < 0 else ""


@dataclass
class Connections:
    """The connections of a load: numbers of those that stand, and what became of the others."""

    fds: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    connect_ns: list[int] = field(default_factory=list)
    setup_ns: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls, options: argparse.Namespace, kind: str, up: int, down: int, *, each_alone: bool = False
    ) -> Connections:
        """`each_alone`: one is greeted before the next is opened, so that its set-up time is its own."""
        made = cls()
        key, address = run_key(), socket_address(options.host, options.port)
        first = secrets.randbits(30) << 32
        opened: list[tuple[int, int, int]] = []
        deadline = time.monotonic() + PATIENCE_S
        latest = time.monotonic() + OPENING_PATIENCE_S
        for number in range(first, first + options.connections):
            begin = time.monotonic_ns()
            fd, connect_ns = native().load_open(key, address, KINDS[kind], number, up, down, options.preamble)
            if fd < 0:
                made.faults.append(fault_text(fd))
                if time.monotonic() > deadline:
                    break
            elif each_alone:
                deadline = time.monotonic() + PATIENCE_S
                if not made._greeted(fd, number, deadline, begin, connect_ns):
                    break
                if time.monotonic() > latest:
                    made.faults.append(f"the others took more than {OPENING_PATIENCE_S:g} s")
                    break
            else:
                opened.append((fd, number, connect_ns))
        for fd, number, connect_ns in opened:
            made._greeted(fd, number, deadline, time.monotonic_ns(), connect_ns)
        return made

    def _greeted(self, fd: int, number: int, deadline: float, begin_ns: int, connect_ns: int) -> bool:
        left_ms = max(1, int((deadline - time.monotonic()) * 1000))
        status = native().load_greeting(run_key(), fd, number, left_ms)
        if status < 0:
            self.faults.append(fault_text(status))
            os.close(fd)
            return False
        self.fds.append(fd)
        self.numbers.append(number)
        self.connect_ns.append(connect_ns)
        self.setup_ns.append(time.monotonic_ns() - begin_ns - connect_ns)
        return True

    def split(self, parts: int) -> list[tuple[list[int], list[int]]]:
        """Descriptors and numbers for each thread."""
        chunks, start = [], 0
        for share in shares(len(self.fds), parts):
            chunks.append((self.fds[start : start + share], self.numbers[start : start + share]))
            start += share
        return chunks

    def close(self, sound: Sequence[bool]) -> str:
        """End those that are sound with a FIN; the first reason why one of them got no answer to it, else empty."""
        reason = ""
        for fd, number, right in zip(self.fds, self.numbers, sound, strict=True):
            if right and not reason:
                reason = fault_text(native().load_close(run_key(), fd, number, CLOSE_PATIENCE_MS))
            os.close(fd)
        return reason


def run_threads(count: int, warm_up_s: float, work: Callable[[int, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """`work(index, begin_ns)` in `count` threads that begin at one time; says `up`, `go` and `over`."""
    stand_by()
    begin_ns = time.monotonic_ns() + round(_START_S * 1e9)
    with ThreadPoolExecutor(max(1, count)) as threads:
        running = [threads.submit(work, index, begin_ns) for index in range(count)]
        time.sleep(max(0.0, begin_ns / 1e9 + warm_up_s - time.monotonic()))
        say("go")
        results = [each.result() for each in running]
    say("over")
    return results


def counted(results: Sequence[dict[str, Any]], connections: Connections) -> dict[str, Any]:
    """The counts of all threads together."""
    names = ("operations", "every", "begun", "wrong", "late", "failures")
    first = min((each["first_ns"] for each in results), default=0)
    last = max((each["last_ns"] for each in results), default=0)
    return {
        **{name: sum(each[name] for each in results) for name in names},
        "errno": next((each["errno"] for each in results if each["errno"]), 0),
        "elapsed_s": max(last - first, 1) / 1e9,
        "busy": max(
            (each["cpu_ns"] / max(each["last_ns"] - each["first_ns"], 1) for each in results), default=0.0
        ),
        "threads": len(results),
        "slices": [sum(values) for values in zip(*(each["slices"] for each in results), strict=True)],
        "slice_s": results[0]["slice_ns"] / 1e9 if results else 0.0,
        "faults": list(connections.faults),
    }  # fmt: skip


def exchange(options: argparse.Namespace) -> dict[str, Any]:
    """Requests of `--up` bytes, answers of `--down`, in a closed loop or `--rate` of them a second."""
    connections = Connections.open(options, "exchange", options.up, options.down)
    chunks = connections.split(options.threads)

    def work(index: int, begin_ns: int) -> dict[str, Any]:
        fds, numbers = chunks[index]
        result: dict[str, Any] = native().load_exchange(
            run_key(), fds, numbers, options.up, options.down, options.rate * len(fds) / len(connections.fds), begin_ns,
            options.warm_up, options.seconds,
        )  # fmt: skip
        return result

    results = run_threads(len(chunks), options.warm_up, work)
    each = [pair for result in results for pair in result["each"]]
    figures = counted(results, connections)
    figures["faults"] += [text for _, status in each if (text := fault_text(status))]
    figures["streams"] = [operations for operations, _ in each] + [0] * len(connections.faults)
    figures["histogram"] = merged([result["histogram"] for result in results])
    figures["half_close"] = connections.close([status == 0 for _, status in each])
    return figures


def bulk(options: argparse.Namespace) -> dict[str, Any]:
    """Blocks up or down, for `--seconds`, or `--blocks` of them on each connection."""
    up = options.what == "upload"
    connections = Connections.open(options, options.what, 0, options.blocks, each_alone=bool(options.blocks))
    chunks = connections.split(options.threads)

    def work(index: int, begin_ns: int) -> dict[str, Any]:
        fds, numbers = chunks[index]
        result: dict[str, Any] = native().load_bulk(
            run_key(), fds, numbers, up, options.blocks, begin_ns, options.warm_up, options.seconds
        )
        return result

    begin_ns = time.monotonic_ns()
    results = run_threads(len(chunks), options.warm_up, work)
    each = [flow for result in results for flow in result["each"]]
    figures = counted(results, connections)
    silent = "got no receipt" if up else ""
    figures["faults"] += [
        silent if silent and flow["fault"] == -errno.ETIMEDOUT else fault_text(flow["fault"])
        for flow in each
        if flow["fault"]
    ]
    figures["flows"] = each
    figures["streams"] = [flow["moved"] - flow["at_go"] for flow in each] + [0] * len(connections.faults)
    figures["connect_ns"], figures["setup_ns"] = connections.connect_ns, connections.setup_ns
    figures["run_s"] = (time.monotonic_ns() - begin_ns + sum(connections.connect_ns) + sum(connections.setup_ns)) / 1e9
    figures["half_close"] = connections.close([flow["fault"] == 0 for flow in each])
    return figures


def short(options: argparse.Namespace) -> dict[str, Any]:
    """Connections that are opened, ask once and are closed; `--connections` at a time."""
    address = socket_address(options.host, options.port)
    parts = shares(options.connections, options.threads)
    first = secrets.randbits(29) << 33

    def work(index: int, begin_ns: int) -> dict[str, Any]:
        result: dict[str, Any] = native().load_short(
            run_key(), address, parts[index], first + (index << 48), begin_ns, options.warm_up, options.seconds,
            options.preamble,
        )  # fmt: skip
        return result

    results = run_threads(len(parts), options.warm_up, work)
    figures = counted(results, Connections())
    figures["histogram"] = merged([result["histogram"] for result in results])
    figures["faults"] = [fault_text(-figures["errno"])] * min(1, figures["failures"]) if figures["errno"] else []
    return figures


def idle(options: argparse.Namespace) -> dict[str, Any]:
    """Connections that are greeted by the server and then held, until this process is ended."""
    connections = Connections.open(options, "exchange", 1, 1, each_alone=True)
    stand_by()
    say("go")
    say("over")
    print(json.dumps({"connections": len(connections.fds), "faults": connections.faults}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    return {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.client")
    parser.add_argument("what", choices=("exchange", "upload", "download", "short", "idle"))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--up", type=int, default=64, help="bytes of a request")
    parser.add_argument("--down", type=int, default=64, help="bytes of an answer")
    parser.add_argument(
        "--blocks", type=int, default=0, help="of 64 KiB, on each connection; default: until time is over"
    )
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; default: a closed loop")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warm-up", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--preamble", type=bytes.fromhex, default=b"", help="sent before the hello, in hexadecimal")
    options = parser.parse_args(arguments)
    work = {"exchange": exchange, "upload": bulk, "download": bulk, "short": short, "idle": idle}
    try:
        figures = work[options.what](options)
    except OSError as error:
        sys.exit(f"{options.what}: {error}")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
