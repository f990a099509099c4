"""The bench's own client as a process: `python -m bench.client round-trips|connections|downloads|idle …`.

It writes `go` when warm and connected, does its work, and writes one line of JSON. Latencies come as the histogram
of `bench.histogram`, complete and not sampled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.extension import native

CONNECT_PATIENCE_S = 30.0


def socket_address(host: str, port: int) -> bytes:
    """`struct sockaddr_in` or `sockaddr_in6`."""
    if ":" in host:
        address = socket.inet_pton(socket.AF_INET6, host)
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, address, 0)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def ready() -> None:
    print("go", flush=True)


def answer(**values: object) -> None:
    print(json.dumps(values), flush=True)


def open_connections(host: str, port: int, count: int) -> list[socket.socket]:
    """Connected, blocking sockets."""
    connections = []
    for _ in range(count):
        connection = socket.create_connection((host, port), timeout=CONNECT_PATIENCE_S)
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections.append(connection)
    return connections


def merged(histograms: Sequence[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram:
            total[bucket] = total.get(bucket, 0) + count
    return sorted(total.items())


def shares(total: int, parts: int) -> list[int]:
    """`total` split over at most `parts` threads, none of them empty."""
    return [share for i in range(parts) if (share := total // parts + (i < total % parts))]


def round_trips(options: argparse.Namespace) -> None:
    """`--source`: the request is the size of the answer in eight bytes; else the answer is the request."""
    request = struct.pack("<Q", options.size) if options.source else bytes(options.size)
    connections = open_connections(options.host, options.port, options.connections)
    parts = shares(options.connections, options.threads)
    chunks, start = [], 0
    for part in parts:
        chunks.append([connection.fileno() for connection in connections[start : start + part]])
        start += part

    def run(fds: list[int], seconds: float) -> tuple[int, int, list[tuple[int, int]]]:
        result: tuple[int, int, list[tuple[int, int]]] = native().load_round_trips(
            fds, len(request), options.size, seconds, request
        )
        return result

    with ThreadPoolExecutor(len(chunks)) as threads:
        list(threads.map(lambda fds: run(fds, options.warm_up), chunks))
        ready()
        results = list(threads.map(lambda fds: run(fds, options.seconds), chunks))
    answer(
        operations=sum(result[0] for result in results),
        elapsed_s=max(result[1] for result in results) / 1e9,
        failures=0,
        histogram=merged([result[2] for result in results]),
    )


def connections(options: argparse.Namespace) -> None:
    address = socket_address(options.host, options.port)

    def run(part: int, seconds: float) -> tuple[int, int, int, int, list[tuple[int, int]]]:
        result: tuple[int, int, int, int, list[tuple[int, int]]] = native().load_connections(
            address, part, options.size, seconds
        )
        return result

    parts = shares(options.connections, options.threads)
    with ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(lambda part: run(part, options.warm_up), parts))
        ready()
        results = list(threads.map(lambda part: run(part, options.seconds), parts))
    answer(
        operations=sum(result[0] for result in results),
        failures=sum(result[1] for result in results),
        errno=next((result[2] for result in results if result[2]), 0),
        elapsed_s=max(result[3] for result in results) / 1e9,
        histogram=merged([result[4] for result in results]),
    )


def downloads(options: argparse.Namespace) -> None:
    ready()
    elapsed_ns, times = native().load_downloads(
        socket_address(options.host, options.port), options.connections, options.size
    )
    answer(elapsed_s=elapsed_ns / 1e9, times_ns=times)


def idle(options: argparse.Namespace) -> None:
    """Open connections, prove each with one byte, hold them until standard output's reader has seen enough."""
    held: list[socket.socket] = []
    with contextlib.suppress(OSError):
        for _ in range(options.connections):
            held += open_connections(options.host, options.port, 1)
            held[-1].settimeout(CONNECT_PATIENCE_S)
            held[-1].sendall(b"x")
            if held[-1].recv(1) != b"x":
                held.pop()
                break
    answer(connections=len(held))
    held[0].settimeout(None)
    held[0].recv(1)  # nothing comes: until the process is ended


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.client")
    parser.add_argument("what", choices=("round-trips", "connections", "downloads", "idle"))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--size", type=int, default=1, help="bytes each way, or of one download")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warm-up", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--source", action="store_true", help="the server is a source, not an echo")
    options = parser.parse_args(arguments)
    work = {"round-trips": round_trips, "connections": connections, "downloads": downloads, "idle": idle}
    try:
        work[options.what](options)
    except OSError as error:
        sys.exit(f"{options.what}: {error}")


if __name__ == "__main__":
    main()
