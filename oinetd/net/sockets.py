"""All bind, listen and setsockopt calls of the control plane.

Options that accepted sockets inherit (TCP_NODELAY, keep-alive, SO_OOBINLINE) are set on the listening socket, so that
accepting costs one system call. SO_SNDBUF and SO_RCVBUF are never set on TCP sockets: this would disable the kernel's
autotuning, which UDP does not have.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator

from oinetd.errors import BindError
from oinetd.model import UNIX_PREFIX, KeepAlive
from oinetd.net.address import (
    UNIX_CLIENT,
    Address,
    SocketAddress,
    client_address,
    host_and_port,
    is_numeric,
)
from oinetd.net.options import (
    IPPROTO_MPTCP,
    NO_CONNECT_OPTIONS,
    NO_LISTEN_OPTIONS,
    ConnectOptions,
    ListenOptions,
    RefusedOption,
)

__all__ = [
    "IP_PKTINFO",
    "SHORTAGE",
    "UNIX_CLIENT",
    "Address",
    "SocketAddress",
    "bind_datagrams",
    "bind_error",
    "bind_listener",
    "bind_source",
    "bound_address",
    "client_address",
    "close_with_reset",
    "connect_datagrams",
    "host_and_port",
    "is_connected",
    "is_connected_to_itself",
    "is_numeric",
    "keepalive_of",
    "lookup",
    "open_datagrams",
    "open_upstream",
    "share",
    "start_listening",
    "tune",
    "tune_datagrams",
    "tune_listener",
    "unsent_bytes",
]

IP_PKTINFO = 8
"""From linux/in.h; the standard library has only the IPv6 option."""

LISTENER_QUEUE_BYTES = 4 * 1024 * 1024
"""The receive queue of a UDP listener, shared by all its clients: 5,000 small datagrams, enough for one or two wake-ups
of a busy loop. The kernel allows at most net.core.rmem_max."""
UPSTREAM_QUEUE_BYTES = 1024 * 1024
"""The receive queue of one UDP session. An empty queue takes no memory."""

_IP_BIND_ADDRESS_NO_PORT = 24
_IPV6_FREEBIND = 78
SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""No descriptor or memory left: a temporary state of the machine, not a fault of the connection."""

_RESET = struct.pack("ii", 1, 0)


def lookup(host: str, port: int = 0) -> tuple[Address, ...]:
    """All addresses of `host`, in the resolver's order. Blocks if it is a name.

    Raises `socket.gaierror` if the name has none, `OSError` for a scope that is no interface.
    """
    if host == "0":
        host = "0.0.0.0"
    if host.startswith(UNIX_PREFIX):
        return (Address.of_unix(host),)
    flags = socket.AI_NUMERICHOST if is_numeric(host) else 0
    if host.lower().rstrip(".").endswith(".invalid"):  # RFC 6761, 6.4: never exists, so no server is asked
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags)
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, f"not a host name: {error}") from None
    return tuple(dict.fromkeys(Address(int(family), sockaddr) for family, _, _, _, sockaddr in found))  # type: ignore[arg-type]


@contextlib.contextmanager
def _unbound(
    address: Address, kind: int, *, v6only: bool, options: ListenOptions = NO_LISTEN_OPTIONS
) -> Iterator[socket.socket]:
    """A non-blocking socket, to be bound to `address`. If the body fails, it is closed and `BindError` is raised."""
    sock = None
    try:
        protocol = IPPROTO_MPTCP if options.mptcp and kind == socket.SOCK_STREAM else 0
        sock = socket.socket(address.family, kind | socket.SOCK_NONBLOCK, protocol)
        options.apply(sock)
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        yield sock
    except OSError as error:
        if sock is not None:
            sock.close()
        raise bind_error(address, error) from error


def bind_listener(
    address: Address,
    keepalive: KeepAlive,
    *,
    v6only: bool,
    shared: bool = False,
    options: ListenOptions = NO_LISTEN_OPTIONS,
) -> socket.socket:
    """A socket bound to `address`, not yet listening. Raises `BindError`.

    `shared` allows overlapping listeners of this process, which must be `share`d too.
    """
    with _unbound(address, socket.SOCK_STREAM, v6only=v6only, options=options) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        share(sock, shared)
        tune(sock, keepalive)
        sock.bind(address.sockaddr)
    return sock


def bind_datagrams(
    address: Address, *, v6only: bool, shared: bool = False, options: ListenOptions = NO_LISTEN_OPTIONS
) -> socket.socket:
    """A UDP socket bound to `address`; on a wildcard it reports destination addresses. Raises `BindError`.

    `shared` is as in `bind_listener`. SO_REUSEADDR is not set: for UDP it would let any process take over the port.
    """
    with _unbound(address, socket.SOCK_DGRAM, v6only=v6only, options=options) as sock:
        tune_datagrams(sock, address)
        share(sock, shared)
        sock.bind(address.sockaddr)
    return sock


def tune_datagrams(sock: socket.socket, address: Address) -> None:
    """Set the options of a UDP listener on `address`: a long queue, and destination addresses on a wildcard."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LISTENER_QUEUE_BYTES)
    if address.family == socket.AF_INET6:
        # On any IPv6 socket: it proves that a datagram with an IPv4 source arrived over IPv4.
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        if address.is_wildcard:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            # Answers may also leave from addresses that are local only by a route (`ip -6 route add local`).
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    elif address.is_wildcard:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def share(sock: socket.socket, shared: bool) -> None:
    """Set whether another socket of the same user may bind the same port.

    On only while a reload replaces a listener by an overlapping one, so that no connection is lost between them. At any
    other time a port in use must be an error.
    """
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))


def start_listening(sock: socket.socket, address: Address, backlog: int) -> None:
    """Listen with this backlog. Raises `BindError`.

    May be called again to change the backlog: the accept queue is kept.
    """
    try:
        sock.listen(backlog)
    except OSError as error:
        raise bind_error(address, error) from error


def bind_error(address: Address, error: OSError) -> BindError:
    """The error for an `address` that cannot be listened on, with the remedy."""
    if isinstance(error, RefusedOption):
        return BindError(f"cannot listen on {address}: {error.strerror}", error.errno or 0)
    remedy = {
        errno.EADDRINUSE: "the port is in use (`ss -lntup` shows by which process)",
        errno.EACCES: "not permitted: ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine does not have this address; if it is added later, set "
        f"net.ipv{6 if address.family == socket.AF_INET6 else 4}.ip_nonlocal_bind=1 "
        "or start after network-online.target",
        errno.EAFNOSUPPORT: "this machine does not support this address family",
        errno.EMFILE: "no descriptor left: raise the limit (`ulimit -n`)",
    }.get(error.errno or 0, error.strerror or str(error))
    return BindError(f"cannot listen on {address}: {remedy}", error.errno or 0)


def tune(sock: socket.socket, keepalive: KeepAlive) -> None:
    """Set the options of every relayed socket: no Nagle, urgent bytes inline, keep-alive as configured.

    A unix socket has none of them.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Out of line, an urgent byte makes splice return EAGAIN for ever; inline, it is a normal byte.
    if sock.proto != IPPROTO_MPTCP:  # which has no urgent bytes
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(bool(keepalive)))
    if keepalive:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive.idle_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.count)


def tune_listener(sock: socket.socket, address: Address, keepalive: KeepAlive) -> None:
    """`tune` a listening socket, whose connections inherit it. Raises `BindError`."""
    try:
        tune(sock, keepalive)
    except OSError as error:
        raise bind_error(address, error) from error


def keepalive_of(sock: socket.socket) -> KeepAlive:
    """The keep-alive settings of `sock`."""
    if sock.family == socket.AF_UNIX or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return KeepAlive(idle_s=0)
    numbers = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    return KeepAlive(*(sock.getsockopt(socket.IPPROTO_TCP, number) for number in numbers))


def open_upstream(family: int, keepalive: KeepAlive, options: ConnectOptions = NO_CONNECT_OPTIONS) -> socket.socket:
    """A non-blocking TCP socket for the upstream. Raises `OSError`."""
    if family == socket.AF_UNIX:
        options = NO_CONNECT_OPTIONS
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, options.protocol)
    try:
        options.apply(sock)
        tune(sock, keepalive)
    except OSError:
        sock.close()
        raise
    return sock


def open_datagrams(family: int, options: ConnectOptions = NO_CONNECT_OPTIONS) -> socket.socket:
    """A non-blocking UDP socket for the upstream. Raises `OSError`."""
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UPSTREAM_QUEUE_BYTES)
        options.apply(sock)
    except OSError:
        sock.close()
        raise
    return sock


def connect_datagrams(sock: socket.socket, address: Address, *, may_broadcast: bool) -> None:
    """Connect a UDP socket. Raises `OSError`.

    A broadcast address needs `may_broadcast`, which is set only for an address in the configuration: a DNS answer must
    not make clients write to a whole network.
    """
    try:
        sock.connect(address.sockaddr)
    except PermissionError:
        if not may_broadcast:
            raise
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.connect(address.sockaddr)


def bind_source(sock: socket.socket, source: Address) -> None:
    """Set the source address of `sock`. Raises `OSError`."""
    # The kernel chooses the port at the connect, so that one port can be used for several destinations.
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind(source.sockaddr)


def is_connected_to_itself(sock: socket.socket, address: Address) -> bool:
    """Whether the connect to `address` reached its own socket.

    This happens if no process listens on a port of this machine and the kernel chooses this port as the source port:
    once in 28,000 tries, so certainly with clients that retry. The port would then be in use when its server starts.
    """
    if address.is_unix:
        return False
    return bool(sock.getsockname()[1] == address.port and sock.getsockname() == sock.getpeername())


def close_with_reset(sock: socket.socket) -> None:
    """Close with a reset; unsent data is discarded."""
    if sock.fileno() >= 0:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        finally:
            sock.close()


def unsent_bytes(sock: socket.socket) -> int:
    """The number of bytes that the peer has not acknowledged; those of a unix socket are with the peer already."""
    if sock.family == socket.AF_UNIX:
        return 0
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])


def is_connected(fd: int, kind: int) -> bool:
    """Whether a descriptor is a connected socket of this kind, stream or datagram, of the internet or local."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        return (
            sock.family in families
            and sock.type == kind
            and not (kind == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        )
    finally:
        sock.detach()


def bound_address(sock: socket.socket) -> Address:
    """The bound address of `sock`, with the port that the kernel chose."""
    if sock.family == socket.AF_UNIX:
        place = sock.getsockname()
        return Address(socket.AF_UNIX, os.fsdecode(place) if isinstance(place, bytes) else place)
    return Address(sock.family, sock.getsockname())
