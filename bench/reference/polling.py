"""One thread and poll(): every connection is a pair of descriptors in one list."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

from bench.reference.arguments import Address, listeners


class End:
    """One socket of a connection; `pending` came from the other one and waits to be sent here."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.other: End
        self.pending = memoryview(b"")
        self.read_closed = False
        self.connected = True

    @property
    def events(self) -> int:
        read = self.connected and not self.read_closed and not self.other.pending
        return (select.POLLIN if read else 0) | (select.POLLOUT if self.pending or not self.connected else 0)


class Poller:
    def __init__(self, buffer_bytes: int, rules: list[tuple[socket.socket, Address]]) -> None:
        self.poll = select.poll()
        self.buffer_bytes = buffer_bytes
        self.rules = {listener.fileno(): (listener, address) for listener, address in rules}
        self.ends: dict[int, End] = {}
        for listener, _ in rules:
            listener.setblocking(False)
            self.poll.register(listener, select.POLLIN)

    def run(self) -> None:
        while True:  # until the process is ended
            for fd, events in self.poll.poll():
                if fd in self.rules:
                    self.accept(*self.rules[fd])
                elif end := self.ends.get(fd):
                    try:
                        self.advance(end, events)
                    except OSError:
                        self.close(end)

    def accept(self, listener: socket.socket, address: Address) -> None:
        for client_socket in accepted(listener):
            upstream_socket = socket.socket(listener.family)
            client, upstream = End(client_socket), End(upstream_socket)
            client.other, upstream.other = upstream, client
            upstream.connected = False
            for end in (client, upstream):
                end.sock.setblocking(False)
                end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.ends[end.sock.fileno()] = end
            upstream_socket.connect_ex(address)
            for end in (client, upstream):
                self.poll.register(end.sock, end.events)

    def advance(self, end: End, events: int) -> None:
        """Send what waits, read once; the FIN is passed on when everything before it has gone."""
        other = end.other
        if not end.connected:
            if error := end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "connect")
            end.connected = True
        if end.pending and events & (select.POLLOUT | select.POLLERR | select.POLLHUP):
            self.send(end)
        if not end.read_closed and not other.pending and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            data = end.sock.recv(self.buffer_bytes)
            end.read_closed = not data
            other.pending = memoryview(data)
            if other.connected:
                self.send(other)
        if end.read_closed and other.read_closed and not end.pending and not other.pending:
            self.close(end)
            return
        for each in (end, other):
            # poll() reports a hang-up whether asked or not: a descriptor that waits for nothing is taken out.
            self.poll.register(each.sock, each.events) if each.events else self.rest(each)

    def send(self, end: End) -> None:
        with contextlib.suppress(BlockingIOError):
            end.pending = end.pending[end.sock.send(end.pending) :] if end.pending else end.pending
        if end.other.read_closed and not end.pending:
            end.sock.shutdown(socket.SHUT_WR)

    def rest(self, end: End) -> None:
        with contextlib.suppress(KeyError):
            self.poll.unregister(end.sock)

    def close(self, end: End) -> None:
        for each in (end, end.other):
            self.rest(each)
            self.ends.pop(each.sock.fileno(), None)
            each.sock.close()


def accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait on a non-blocking listener."""
    with contextlib.suppress(OSError):
        while True:  # until accept says that there are no more
            yield listener.accept()[0]


def main() -> None:
    Poller(*listeners()).run()


if __name__ == "__main__":
    main()
