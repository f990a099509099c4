"""One thread per connection and direction, blocking sockets: the forwarder of every tutorial."""

from __future__ import annotations

import contextlib
import socket
import threading

from bench.reference.arguments import Address, listeners


def pump(source: socket.socket, target: socket.socket, buffer_bytes: int) -> None:
    """Copy until the source's FIN, and pass that on; an error ends both directions."""
    buffer = bytearray(buffer_bytes)
    view = memoryview(buffer)
    try:
        while count := source.recv_into(buffer):
            target.sendall(view[:count])
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def serve(client: socket.socket, upstream_address: Address, buffer_bytes: int) -> None:
    with client:
        try:
            upstream = socket.create_connection(upstream_address)
        except OSError:
            return
        with upstream:
            for end in (client, upstream):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            up = threading.Thread(target=pump, args=(client, upstream, buffer_bytes))
            up.start()
            pump(upstream, client, buffer_bytes)
            up.join()


def accept(listener: socket.socket, upstream_address: Address, buffer_bytes: int) -> None:
    while True:  # until the process is ended
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client, upstream_address, buffer_bytes), daemon=True).start()


def main() -> None:
    buffer_bytes, rules = listeners()
    for listener, upstream_address in rules[1:]:
        threading.Thread(target=accept, args=(listener, upstream_address, buffer_bytes), daemon=True).start()
    accept(*rules[0], buffer_bytes)


if __name__ == "__main__":
    main()
