"""Batches of datagrams: received from one socket, grouped by sender, sent to another socket.

A batch belongs to one event loop, and its content is valid until the next `receive`. With the extension this is one
recvmmsg, one sendmmsg and no copy; without it, one call for each datagram.
"""

from __future__ import annotations

import errno
import mmap
import socket
import struct
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from oinetd.net.forged import MAPPED, is_forged
from oinetd.net.offload import native_batch
from oinetd.net.sockets import IP_PKTINFO, SocketAddress

if TYPE_CHECKING:
    from oinetd._fastpath import DatagramBatch

__all__ = [
    "DATAGRAM_BYTES_MAX",
    "HEADED_BYTES_MAX",
    "MESSAGES_MAX",
    "Batch",
    "Group",
    "Sender",
    "Sent",
    "name_of",
    "new_batch",
    "sender_of",
]

MESSAGES_MAX = 64
"""The same as in `_fastpath/state/datagram.pxd`."""
DATAGRAM_BYTES_MAX = 65536
"""More than any datagram: 65,507 bytes over IPv4, 65,527 over IPv6."""

HEADED_BYTES_MAX = 65507
"""Of a datagram with something before it: what IPv4 can carry. The same as in `_fastpath/state/datagram_send.pxd`."""

_CONTROL_BYTES = 128
_UDP_GRO = 104
"""From linux/udp.h."""
_NO_RETRY = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ECONNREFUSED})
"""After these errors the next datagram would fail, too."""

_Control = tuple[tuple[int, int, bytes], ...]


class Sender(NamedTuple):
    """The source of datagrams, and on a wildcard socket also their destination address.

    `control` is the ancillary data that makes this destination address the source of the answer.
    """

    address: SocketAddress
    control: _Control = ()


class Group(NamedTuple):
    """The datagrams of one sender in a batch. `key` identifies the `Sender`."""

    key: Hashable
    first: int
    length: int


class Sent(NamedTuple):
    """The result of a send: accepted datagrams and bytes, and the last errno of the others, or 0."""

    datagrams: int
    size: int
    errno: int


class Batch(Protocol):
    """The contract of both kinds of batch."""

    late_errno: int
    """A network error that followed the datagrams of the last `receive`, or 0; the kernel does not report it again."""

    @property
    def forged(self) -> int:
        """The number of datagrams that the last `receive` dropped because of an impossible source address."""
        ...

    def prepare(self, sock: socket.socket) -> None:
        """Prepare a socket for `receive`; call it once for each."""
        ...

    def receive(self, sock: socket.socket, at_most: int = MESSAGES_MAX, *, named: bool = True) -> Sequence[Group]:
        """Receive at most `at_most` queued datagrams. Without `named`, for a connected socket, they are one group.

        Raises `OSError` for a network error; the kernel does not report it again.
        """
        ...

    def take(self, group: Group) -> list[bytes]:
        """Copies of the datagrams."""
        ...

    def send(self, sock: socket.socket, group: Group, to: Hashable = None) -> Sent:
        """Send them to the sender whose key is `to`, or to the peer of a connected socket."""
        ...

    def send_headed(self, sock: socket.socket, group: Group, head: bytes, *, once: bool = False) -> Sent:
        """Send them to the peer of a connected socket, each behind `head`, whose bytes are not counted.

        `once`: only the first one that the kernel takes is behind it. Longer ones than `HEADED_BYTES_MAX` are lost.
        """
        ...

    def explain(self, key: Hashable) -> Sender:
        """The sender with this key."""
        ...

    def name(self, sender: Sender) -> Hashable:
        """The key of a sender."""
        ...


def new_batch(*, native: bool) -> Batch:
    """A batch: the extension's if `native` is set and it is built."""
    batch = native_batch() if native else None
    return NativeBatch(batch) if batch is not None else PortableBatch()


class NativeBatch:
    """The extension's batch, see `_fastpath/state/datagram.pxd`; a key is the bytes of a return address."""

    late_errno = 0  # recvmmsg reports it at the next call

    def __init__(self, batch: DatagramBatch) -> None:
        self._batch = batch

    @property
    def forged(self) -> int:
        return self._batch.forged

    def prepare(self, sock: socket.socket) -> None:
        self._batch.take_trains(sock.fileno())

    def receive(self, sock: socket.socket, at_most: int = MESSAGES_MAX, *, named: bool = True) -> Sequence[Group]:
        return [Group(*group) for group in self._batch.receive(sock.fileno(), at_most, named)]

    def take(self, group: Group) -> list[bytes]:
        return self._batch.take(group.first, group.length)

    def send(self, sock: socket.socket, group: Group, to: Hashable = None) -> Sent:
        assert to is None or isinstance(to, bytes)
        return Sent(*self._batch.send(sock.fileno(), group.first, group.length, to))

    def send_headed(self, sock: socket.socket, group: Group, head: bytes, *, once: bool = False) -> Sent:
        return Sent(*self._batch.send_headed(sock.fileno(), group.first, group.length, head, once))

    def explain(self, key: Hashable) -> Sender:
        assert isinstance(key, bytes)
        return sender_of(key)

    def name(self, sender: Sender) -> Hashable:
        return name_of(sender)


_RETURN_ADDRESS: Final = struct.Struct("=28sII20s")
"""`_fastpath/state/return_address.pxd`: an address and its size, the size of ancillary data, and these."""


def sender_of(key: bytes) -> Sender:
    """The sender with this name. Raises `ValueError` if it is none."""
    if len(key) != _RETURN_ADDRESS.size:
        raise ValueError("not a sender")
    place, _, size, local = _RETURN_ADDRESS.unpack(key)
    local = local[:size]
    (family,) = struct.unpack_from("=H", place)
    (port,) = struct.unpack_from("!H", place, 2)
    if family == socket.AF_INET:
        address: SocketAddress = (socket.inet_ntop(socket.AF_INET, place[4:8]), port)
    elif family == socket.AF_INET6:
        (scope,) = struct.unpack_from("=I", place, 24)
        address = (socket.inet_ntop(socket.AF_INET6, place[8:24]), port, 0, scope)
    else:
        raise ValueError("not a sender")
    if not local:
        return Sender(address)
    kind = (socket.IPPROTO_IP, IP_PKTINFO) if len(local) == 12 else (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
    return Sender(address, ((*kind, local),))


def name_of(sender: Sender) -> bytes:
    """The name of a sender, the same in both lanes."""
    host, port = sender.address[:2]
    if len(sender.address) == 2:
        place = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    else:
        packed = socket.inet_pton(socket.AF_INET6, host)
        place = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, sender.address[2]) + packed
        place += struct.pack("=I", sender.address[3])
    local = b"".join(data for _, _, data in sender.control)
    return _RETURN_ADDRESS.pack(place, len(place), len(local), local)


class PortableBatch:
    """The batch in Python; a key is the `Sender` itself.

    A socket that was prepared for a `NativeBatch` may deliver several datagrams at once (UDP GRO): they are split here.
    """

    def __init__(self) -> None:
        # Mapped, not allocated: pages that are never written take no memory.
        memory = memoryview(mmap.mmap(-1, MESSAGES_MAX * DATAGRAM_BYTES_MAX))
        self._places = [
            memory[index * DATAGRAM_BYTES_MAX : (index + 1) * DATAGRAM_BYTES_MAX] for index in range(MESSAGES_MAX)
        ]
        self._datagrams: list[memoryview] = []
        self.late_errno = 0
        self.forged = 0

    def prepare(self, sock: socket.socket) -> None:
        pass

    def receive(self, sock: socket.socket, at_most: int = MESSAGES_MAX, *, named: bool = True) -> Sequence[Group]:
        found: dict[Sender | None, list[memoryview]] = {}
        self.late_errno = self.forged = 0
        for place in self._places[: min(at_most, MESSAGES_MAX)]:
            try:
                size, control, _, address = sock.recvmsg_into([place], _CONTROL_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if not found:
                    raise
                self.late_errno = error.errno or 0
                break
            each = _segment_of(control) or size or 1
            sender = None
            if named:
                over_four, way_back = _way_back(control, six=len(address) == 4)
                if is_forged(address, over_four):
                    self.forged += -(-size // each) or 1
                    continue
                sender = Sender(address, way_back)
            found.setdefault(sender, []).extend(place[at : min(at + each, size)] for at in range(0, size or 1, each))
        self._datagrams = []
        groups = []
        for sender, datagrams in found.items():
            groups.append(Group(sender, len(self._datagrams), len(datagrams)))
            self._datagrams += datagrams
        return groups

    def take(self, group: Group) -> list[bytes]:
        return [bytes(datagram) for datagram in self._datagrams[group.first : group.first + group.length]]

    def send(self, sock: socket.socket, group: Group, to: Hashable = None) -> Sent:
        assert to is None or isinstance(to, Sender)
        return self._send(sock, group, to)

    def send_headed(self, sock: socket.socket, group: Group, head: bytes, *, once: bool = False) -> Sent:
        return self._send(sock, group, None, head, once=once)

    def _send(
        self, sock: socket.socket, group: Group, to: Sender | None, head: bytes = b"", *, once: bool = False
    ) -> Sent:
        count = size = code = 0
        for datagram in self._datagrams[group.first : group.first + group.length]:
            if head and len(head) + len(datagram) > HEADED_BYTES_MAX:
                code = errno.EMSGSIZE
                continue
            failed = _send_one(sock, datagram, to, head)
            if failed == errno.EMSGSIZE:
                # The error may belong to an earlier datagram (a router's ICMP message), so it is tried once more.
                failed = _send_one(sock, datagram, to, head)
            if not failed:
                count += 1
                head = b"" if once else head
                size += len(datagram)
                continue
            code = failed
            if failed in _NO_RETRY:
                break
        return Sent(count, size, code)

    def explain(self, key: Hashable) -> Sender:
        assert isinstance(key, Sender)
        return key

    def name(self, sender: Sender) -> Hashable:
        return sender


def _send_one(sock: socket.socket, datagram: memoryview, to: Sender | None, head: bytes) -> int:
    """The errno, 0 if the kernel accepted it."""
    try:
        if head:
            sock.sendmsg([head, datagram])
        elif to is None:
            sock.send(datagram)
        else:
            sock.sendmsg([datagram], to.control, 0, to.address)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _segment_of(control: list[tuple[int, int, bytes]]) -> int:
    """The size of each datagram of several that UDP GRO has joined; 0 if it is a single one."""
    for level, kind, data in control:
        if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
            (size,) = struct.unpack_from("=i", data)
            return int(size)
    return 0


def _way_back(control: list[tuple[int, int, bytes]], *, six: bool) -> tuple[bool, _Control]:
    """Whether the ancillary data proves that the datagram came over IPv4; and the ancillary data for an answer.

    `_read_control` in `_fastpath/state/datagram.pxd` has the reasons. `six` is whether this is an IPv6 socket.
    """
    over_four = False
    found: _Control = ()
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            over_four = True
            if six:
                local = socket.inet_pton(socket.AF_INET6, MAPPED + socket.inet_ntoa(data[4:8]))
                found = ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local + bytes(4)),)
            else:
                found = ((level, kind, bytes(4) + data[4:8] + bytes(4)),)
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and not over_four and data[0] != 0xFF:
            link_local = data[0] == 0xFE and data[1] & 0xC0 == 0x80
            found = ((level, kind, data if link_local else data[:16] + bytes(4)),)
    return over_four, found
