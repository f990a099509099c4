"""Traffic whose sequence numbers are known: `python -m bench.capture.traffic send|receive …`.

Both ends read the sequence numbers of the data from their own kernel (TCP_REPAIR, which needs CAP_NET_ADMIN). So the
sent bytes are known without a capture: from the sender for the client leg, from the receiver for the upstream leg.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

__all__ = ["Sent", "main"]

TCP_REPAIR = 19
TCP_REPAIR_QUEUE = 20
TCP_QUEUE_SEQ = 21
RECEIVE_QUEUE, SEND_QUEUE = 1, 2
REPAIR_OFF_SILENTLY = -1
"""Without the window probe that an ordinary end of repair sends."""

PATIENCE_S = 30.0
_RECEIVE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Sent:
    """The data of one direction of one connection: `first_seq` is the sequence number of its first byte."""

    source_port: int
    target_port: int
    first_seq: int
    bytes: int


def queue_seq(connection: socket.socket, queue: int) -> int:
    """The sequence number after the last byte of the queue."""
    connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        value = connection.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, 4)
    finally:
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF_SILENTLY)
    (seq,) = struct.unpack("=I", value)
    return int(seq)


def send(host: str, port: int, connections: int, payload: int, seconds: float) -> list[Sent]:
    """Write `payload` bytes at a time to each connection in turn, then end them all and wait for the other side."""
    data = bytes(range(256)) * (payload // 256 + 1)
    message = memoryview(data)[:payload]
    peers = []
    for _ in range(connections):
        peer = socket.create_connection((host, port), timeout=PATIENCE_S)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peers.append((peer, queue_seq(peer, SEND_QUEUE)))
    counts = [0] * connections
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(16):  # asking for the time costs as much as sending
            for index, (peer, _first) in enumerate(peers):
                peer.sendall(message)
                counts[index] += payload
    records = []
    for (peer, first), count in zip(peers, counts, strict=True):
        peer.shutdown(socket.SHUT_WR)
        records.append(Sent(peer.getsockname()[1], port, first, count))
    for peer, _first in peers:
        with peer:
            if peer.recv(1):
                raise OSError("the far end sent something")
    return records


def receive_one(connection: socket.socket, records: list[Sent]) -> None:
    buffer = bytearray(_RECEIVE_BYTES)
    count = 0
    with connection:
        while got := connection.recv_into(buffer):
            count += got
        # The FIN counts for one.
        first = (queue_seq(connection, RECEIVE_QUEUE) - 1 - count) % (1 << 32)
        records.append(Sent(connection.getpeername()[1], connection.getsockname()[1], first, count))


def receive(listener: socket.socket, connections: int) -> list[Sent]:
    records: list[Sent] = []
    threads = []
    for _ in range(connections):
        connection, _address = listener.accept()
        threads.append(threading.Thread(target=receive_one, args=(connection, records)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return records


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.capture.traffic")
    parser.add_argument("what", choices=("send", "receive"))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--payload", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args(words)
    try:
        if options.what == "send":
            records = send(options.host, options.port, options.connections, options.payload, options.seconds)
            print(json.dumps([asdict(each) for each in records]), flush=True)
            return 0
        with socket.create_server((options.host, options.port), backlog=128) as listener:
            while True:  # a line for each batch of connections, until the process is ended
                records = receive(listener, options.connections)
                print(json.dumps([asdict(each) for each in records]), flush=True)
    except OSError as error:
        print(f"{options.what}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
