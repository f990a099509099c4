"""The bench's datagram load as processes: `python -m bench.datagrams serve|round-trips|offer|verify HOST PORT …`.

Like `bench.client`, a load writes `up`, `go` and `over`, and then one line of JSON; like `bench.server`, the far end
answers each line of its standard input with what it has counted. Datagrams are numbered and keyed: see
`native/load_datagram.pxd`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence

from bench.client import say, stand_by
from bench.extension import native
from bench.key import run_key
from bench.server import thread_cpu_s

__all__ = ["main", "probe", "verify"]

TRIES, PATIENCE_S = 5, 1.0
"""How often a single datagram is sent until it is answered, and how long each answer is waited for."""
BUFFER_BYTES = 4 << 20
"""Of the bench's own sockets, so that what is lost is not lost there."""
RECEIVE_TIMEOUT_US = 50_000
"""What the native load asks of a blocking socket."""
CHECKED_SIZES = (32, 64, 1399, 1400, 1472, 4096, 8192)
"""In bytes; the last ones travel in fragments."""

_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32


def widen(sock: socket.socket) -> None:
    """Give `sock` the buffers of the bench: past the machine's limit for root, else up to it."""
    for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)


def for_native(sock: socket.socket) -> None:
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, RECEIVE_TIMEOUT_US))


def probe(sock: socket.socket, size: int) -> None:
    """Exchange one datagram, and again if it is lost. Raises `OSError` if none comes back as it should."""
    for_native(sock)
    wrong = 0
    for _ in range(TRIES):
        figures = native().datagram_round_trips(run_key(), [sock.fileno()], 1, size, new_load(), 0.0)
        if figures["operations"]:
            return
        wrong += figures["wrong"]
    if wrong:
        raise OSError(f"a datagram of {size} bytes came back as another")
    raise TimeoutError(f"no answer to {TRIES} datagrams of {size} bytes")


def new_load() -> int:
    """The number of a load, which no other has."""
    return secrets.randbits(31) | 1


@contextlib.contextmanager
def clients(host: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connected sockets, each an address of its own, through which one datagram has gone both ways."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            widen(sock)
            sock.connect((host, port))
            probe(sock, 64)
            socks.append(sock)
        yield socks


def serve(options: argparse.Namespace) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        widen(sock)
        sock.bind((options.host, options.port))
        server = native().DatagramServer(run_key())
        serving = threading.Thread(target=server.serve, args=(sock.fileno(),), daemon=True)
        serving.start()
        for _ in sys.stdin:  # until the bench ends it
            print(json.dumps({**server.counts(), "cpu_s": [thread_cpu_s(serving.native_id)]}), flush=True)


def round_trips(options: argparse.Namespace) -> None:
    with clients(options.host, options.port, options.clients) as socks:
        fds = [sock.fileno() for sock in socks]
        stand_by()
        load = new_load()
        warm = native().datagram_round_trips(run_key(), fds, options.window, options.size, load, options.warm_up)
        say("go")
        figures = native().datagram_round_trips(
            run_key(), fds, options.window, options.size, load ^ 1 << 20, options.seconds
        )
        say("over")
    figures["every"] = figures["operations"] + warm["operations"] + len(socks)
    figures["doubled"] += warm["doubled"]
    figures["wrong"] += warm["wrong"]
    print(json.dumps(figures), flush=True)


def offer(options: argparse.Namespace) -> None:
    with clients(options.host, options.port, options.clients) as socks:
        fds = [sock.fileno() for sock in socks]
        stand_by()
        load = new_load()
        warm = native().datagram_offer(run_key(), fds, options.size, load, options.rate, options.warm_up)
        say("go")
        figures = native().datagram_offer(run_key(), fds, options.size, load ^ 1 << 20, options.rate, options.seconds)
        say("over")
    print(json.dumps({**figures, "warm_up_sent": warm["sent"]}), flush=True)


def verify(host: str, port: int) -> str:
    """Empty if datagrams come back as they were sent, else what is wrong."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
            for size in CHECKED_SIZES:
                probe(sock, size)
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
