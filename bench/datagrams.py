"""The bench's datagram load as processes: `python -m bench.datagrams serve|round-trips|offer|verify HOST PORT …`.

Like `bench.client`, a load writes `go` when it is warm, does its work, and writes one line of JSON. The far end counts
what is offered; the client asks it directly, past what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence

from bench.client import answer, ready
from bench.extension import native

__all__ = ["ECHO", "TELL", "ask_count", "exchange", "head", "settled", "verify"]

ECHO, COUNT, TELL = 0, 1, 2
"""What the far end does with a datagram: send it back, count it, report the count."""
HEAD = struct.Struct("=IIQ")
TRIES, PATIENCE_S = 5, 1.0
"""How often a single datagram is sent until it is answered, and how long each answer is waited for."""
BUFFER_BYTES = 4 << 20
"""Of the bench's own sockets, so that what is lost is not lost there."""
RECEIVE_TIMEOUT_US = 50_000
"""What the native load asks of a blocking socket."""
QUIET_S, SETTLE_S = 0.1, 2.0
"""How long a count must not change until it is the last, and after how long it is taken as it is."""
CHECKED_SIZES = (16, 64, 1399, 1400, 1472, 4096, 8192)
"""In bytes; the last ones travel in fragments."""

_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32


def head(kind: int) -> bytes:
    return HEAD.pack(kind, 0, 0)


def widen(sock: socket.socket) -> None:
    """Give `sock` the buffers of the bench: past the machine's limit for root, else up to it."""
    for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send `data` until it is answered, with a head that is not of an earlier try; raises `TimeoutError`."""
    kind, _, _ = HEAD.unpack_from(data)
    sock.settimeout(PATIENCE_S)
    for number in range(1, TRIES + 1):
        sent = HEAD.pack(kind, number, 0) + data[HEAD.size :]
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            sock.send(sent)
            while True:  # ends with the answer, or when nothing comes
                got = sock.recv(1 << 16)
                if got[:8] == sent[:8]:
                    return HEAD.pack(kind, 0, HEAD.unpack_from(got)[2]) + got[HEAD.size :]
    raise TimeoutError(f"no answer to {TRIES} datagrams of {len(data)} bytes")


def ask_count(sock: socket.socket) -> int:
    """How many datagrams the far end has counted since it began."""
    count: int = HEAD.unpack(exchange(sock, head(TELL)))[2]
    return count


def settled(counts: Iterator[tuple[float, int]]) -> int:
    """The count that has not changed for QUIET_S. `counts` gives pairs of a time in seconds and a count."""
    begin, last = next(counts)
    changed = begin
    for now, count in counts:
        if count != last:
            last, changed = count, now
        if now - changed >= QUIET_S or now - begin >= SETTLE_S:
            break
    return last


@contextlib.contextmanager
def clients(host: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connected sockets, each an address of its own, through which one datagram has gone both ways."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            widen(sock)
            sock.connect((host, port))
            exchange(sock, head(ECHO))
            sock.settimeout(None)
            timeout = struct.pack("@ll", 0, RECEIVE_TIMEOUT_US)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            socks.append(sock)
        yield socks


def serve(options: argparse.Namespace) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        widen(sock)
        sock.bind((options.host, options.port))
        native().datagram_serve(sock.fileno())


def round_trips(options: argparse.Namespace) -> None:
    with clients(options.host, options.port, options.clients) as socks:
        fds = [sock.fileno() for sock in socks]
        native().datagram_round_trips(fds, options.window, options.size, options.warm_up)
        ready()
        operations, lost, strays, elapsed_ns, histogram = native().datagram_round_trips(
            fds, options.window, options.size, options.seconds
        )
    answer(operations=operations, lost=lost, strays=strays, elapsed_s=elapsed_ns / 1e9, histogram=histogram)


def offer(options: argparse.Namespace) -> None:
    there, _, port = options.sink.rpartition(":")
    with (
        clients(options.host, options.port, options.clients) as socks,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
    ):
        sink.connect((there, int(port)))
        fds = [sock.fileno() for sock in socks]
        native().datagram_offer(fds, options.size, options.rate, options.warm_up)

        def polled() -> Iterator[tuple[float, int]]:
            while True:  # until `settled` has enough
                yield time.monotonic(), ask_count(sink)
                time.sleep(QUIET_S / 5)

        before = settled(polled())
        ready()
        sent, refused, elapsed_ns = native().datagram_offer(fds, options.size, options.rate, options.seconds)
        delivered = settled(polled()) - before
    answer(sent=sent, refused=refused, delivered=delivered, elapsed_s=elapsed_ns / 1e9)


def verify(host: str, port: int) -> str:
    """Empty where datagrams come back as they were sent, else what is wrong."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
            for size in CHECKED_SIZES:
                data = head(ECHO) + random.Random(size).randbytes(size - HEAD.size)
                if (got := exchange(sock, data)) != data:
                    return f"a datagram of {size} bytes came back as {len(got)} others"
    except OSError as error:
        return str(error)
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.datagrams")
    parser.add_argument("what", choices=("serve", "round-trips", "offer", "verify"))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, default=1, help="addresses that datagrams come from")
    parser.add_argument("--size", type=int, default=64, help="bytes of a datagram")
    parser.add_argument("--window", type=int, default=1, help="datagrams under way from each client")
    parser.add_argument("--rate", type=int, default=10000, help="datagrams offered a second, by all clients")
    parser.add_argument("--sink", default="", help="HOST:PORT of the far end itself")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warm-up", type=float, default=0.1)
    options = parser.parse_args(arguments)
    try:
        if options.what == "verify":
            print(json.dumps({"integrity": verify(options.host, options.port)}))
        else:
            {"serve": serve, "round-trips": round_trips, "offer": offer}[options.what](options)
    except OSError as error:
        sys.exit(f"{options.what}: {error}")


if __name__ == "__main__":
    main()
