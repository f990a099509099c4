"""Every bind, listen, accept and setsockopt of the control plane, and nothing else.

Options are set on the listening socket where the kernel lets accepted sockets inherit them (TCP_NODELAY, keep-alive,
SO_OOBINLINE), so that accepting costs one system call. SO_SNDBUF and SO_RCVBUF are never set: that would end the
kernel's own tuning. UDP has no such tuning.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass

from oinetd.errors import BindError
from oinetd.model import KeepAlive

__all__ = [
    "IP_PKTINFO",
    "SHORTAGE",
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
    "is_connected_to_itself",
    "is_numeric",
    "keepalive_of",
    "lookup",
    "open_datagrams",
    "open_upstream",
    "queue_length",
    "share",
    "start_listening",
    "stop_queueing",
    "tune",
    "tune_datagrams",
    "tune_listener",
    "unsent_bytes",
]

SocketAddress = tuple[str, int] | tuple[str, int, int, int]

IP_PKTINFO = 8
"""Of linux/in.h; the standard library has only its IPv6 counterpart."""

LISTENER_QUEUE_BYTES = 4 * 1024 * 1024
"""What waits for a UDP listener, which serves all its clients: 5,000 small datagrams, a wake or two of a busy loop. The
kernel allows at most net.core.rmem_max."""
UPSTREAM_QUEUE_BYTES = 1024 * 1024
"""The same for one session. Nothing is allocated for it as long as the queue is empty."""

_IP_BIND_ADDRESS_NO_PORT = 24
_IPV6_FREEBIND = 78
_SO_BINDTOIFINDEX = 62
_NO_INTERFACE = 0x7FFFFFFF
_TCPI_UNACKED = 24
"""Where struct tcp_info of linux/tcp.h says it; of a listening socket it is the length of the queue."""
SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The machine has no descriptor or memory left: a state that passes, not a fault of the connection."""

_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Address:
    """One resolved socket address; `sockaddr` is what connect and bind take."""

    family: int
    sockaddr: SocketAddress

    @property
    def host(self) -> str:
        return self.sockaddr[0]

    @property
    def port(self) -> int:
        return self.sockaddr[1]

    def at(self, port: int) -> Address:
        """The same address with another port."""
        return Address(self.family, (self.sockaddr[0], port, *self.sockaddr[2:]))

    @property
    def is_wildcard(self) -> bool:
        return self.host in ("0.0.0.0", "::")

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


def is_numeric(host: str) -> bool:
    """Whether `host` is an address, so that looking it up asks nobody."""
    if host == "0":
        return True
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


def lookup(host: str, port: int = 0) -> tuple[Address, ...]:
    """All addresses of `host`, in the resolver's order. Blocks where it is a name.

    Raises `socket.gaierror` where the name has none, `OSError` for a scope that is no interface.
    """
    if host == "0":
        host = "0.0.0.0"
    flags = socket.AI_NUMERICHOST if is_numeric(host) else 0
    if host.lower().rstrip(".").endswith(".invalid"):  # RFC 6761, 6.4: such a name never exists, no server need say so
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags)
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, f"not a host name: {error}") from None
    return tuple(dict.fromkeys(Address(int(family), sockaddr) for family, _, _, _, sockaddr in found))  # type: ignore[arg-type]


@contextlib.contextmanager
def _unbound(address: Address, kind: int, *, v6only: bool) -> Iterator[socket.socket]:
    """A non-blocking socket, to be bound to `address`. Where that fails it is closed, and `BindError` raised."""
    sock = None
    try:
        sock = socket.socket(address.family, kind | socket.SOCK_NONBLOCK)
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        yield sock
    except OSError as error:
        if sock is not None:
            sock.close()
        raise bind_error(address, error) from error


def bind_listener(address: Address, keepalive: KeepAlive, *, v6only: bool, shared: bool = False) -> socket.socket:
    """A socket bound to `address`, not yet listening. Raises `BindError`.

    `shared` lets it stand beside own listeners that overlap with it and are `share`d too.
    """
    with _unbound(address, socket.SOCK_STREAM, v6only=v6only) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        share(sock, shared)
        tune(sock, keepalive)
        sock.bind(address.sockaddr)
    return sock


def bind_datagrams(address: Address, *, v6only: bool, shared: bool = False) -> socket.socket:
    """A UDP socket bound to `address`; on a wildcard it tells which address was written to. Raises `BindError`.

    `shared` is as in `bind_listener`. There is no SO_REUSEADDR: over UDP it would let anybody take the port away.
    """
    with _unbound(address, socket.SOCK_DGRAM, v6only=v6only) as sock:
        tune_datagrams(sock, address)
        share(sock, shared)
        sock.bind(address.sockaddr)
    return sock


def tune_datagrams(sock: socket.socket, address: Address) -> None:
    """Set what a UDP listener on `address` has: a long queue, and on a wildcard the address that was written to."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LISTENER_QUEUE_BYTES)
    if address.family == socket.AF_INET6:
        # On any IPv6 socket: it is the proof that a datagram with an IPv4 source did arrive over IPv4.
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        if address.is_wildcard:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            # Answers leave from addresses that are ours by a route alone (`ip -6 route add local`), too.
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    elif address.is_wildcard:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def share(sock: socket.socket, shared: bool) -> None:
    """Whether another socket of the same user may take the same port.

    On only for the moment in which a reload replaces one listener by another that overlaps with it, so that no
    connection falls between them; at any other time a taken port has to be an error.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))


def start_listening(sock: socket.socket, address: Address, backlog: int) -> None:
    """Let the kernel queue connections, at most `backlog` of them. Raises `BindError`.

    May be called again to change the backlog: the queue is kept.
    """
    try:
        sock.listen(backlog)
    except OSError as error:
        raise bind_error(address, error) from error


def stop_queueing(sock: socket.socket) -> bool:
    """Let no more connections come to a listening socket; its queue, and handshakes under way, stay. Whether it could.

    They go to another one on the same port where there is one. Were the socket closed when its queue is found empty,
    who comes between the two would be reset. The socket is bound to an interface that no machine has, for which it
    need not exist (Linux 5.0, without privilege 5.7); an older kernel leaves the gap.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)
    except OSError:
        return False
    return True


def queue_length(sock: socket.socket) -> int:
    """Connections that wait in a listening socket to be accepted."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED + 4)[-4:], sys.byteorder)


def bind_error(address: Address, error: OSError) -> BindError:
    """What kept `address` from being listened on, and the remedy."""
    remedy = {
        errno.EADDRINUSE: "the port is taken (`ss -lntup` tells by whom)",
        errno.EACCES: "not permitted: ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine has no such address; if it comes later, set "
        f"net.ipv{6 if address.family == socket.AF_INET6 else 4}.ip_nonlocal_bind=1 "
        "or start after network-online.target",
        errno.EAFNOSUPPORT: "this machine does not speak this family of addresses",
        errno.EMFILE: "no descriptor is left: raise the limit (`ulimit -n`)",
    }.get(error.errno or 0, error.strerror or str(error))
    return BindError(f"cannot listen on {address}: {remedy}", error.errno or 0)


def tune(sock: socket.socket, keepalive: KeepAlive) -> None:
    """Set what every socket of a relay has: no Nagle, urgent bytes in line, keep-alive as configured."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Out of line, an urgent byte makes splice answer EAGAIN for ever; in line it is a byte like others.
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
    """The keep-alive that `sock` has."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return KeepAlive(idle_s=0)
    numbers = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    return KeepAlive(*(sock.getsockopt(socket.IPPROTO_TCP, number) for number in numbers))


def open_upstream(family: int, keepalive: KeepAlive) -> socket.socket:
    """A non-blocking socket for the upstream leg. Raises `OSError`."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        tune(sock, keepalive)
    except OSError:
        sock.close()
        raise
    return sock


def open_datagrams(family: int) -> socket.socket:
    """A non-blocking UDP socket for the upstream leg. Raises `OSError`."""
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UPSTREAM_QUEUE_BYTES)
    except OSError:
        sock.close()
        raise
    return sock


def connect_datagrams(sock: socket.socket, address: Address, *, may_broadcast: bool) -> None:
    """Connect a UDP socket. Raises `OSError`.

    A broadcast address has to be asked for. `may_broadcast` is for one that the configuration names: an answer of the
    name system must not make clients write to a whole network.
    """
    try:
        sock.connect(address.sockaddr)
    except PermissionError:
        if not may_broadcast:
            raise
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.connect(address.sockaddr)


def bind_source(sock: socket.socket, source: Address) -> None:
    """Let `sock` connect from the address `source`. Raises `OSError`."""
    # The port is chosen when it connects, when both ends are known: a port for each destination, not one for all.
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind(source.sockaddr)


def is_connected_to_itself(sock: socket.socket, address: Address) -> bool:
    """Whether the connect to `address` came back to its own socket.

    That happens where nobody listens on a port of this machine and the kernel chooses that port for the outgoing end:
    once in 28,000 tries, so surely with clients that try again. The port would then be taken for whom it belongs to.
    """
    return bool(sock.getsockname()[1] == address.port and sock.getsockname() == sock.getpeername())


def close_with_reset(sock: socket.socket) -> None:
    """Close so that the peer sees a reset; what the kernel has not sent yet is thrown away."""
    if sock.fileno() >= 0:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        finally:
            sock.close()


def unsent_bytes(sock: socket.socket) -> int:
    """Bytes in the send queue that the peer has not acknowledged yet."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])


def client_address(sockaddr: SocketAddress) -> tuple[str, int]:
    """The client as the log names it: an IPv4 client of an IPv6 listener is an IPv4 client."""
    host, port = sockaddr[0], sockaddr[1]
    return (host[7:], port) if host.startswith("::ffff:") and "." in host else (host, port)


def host_and_port(host: str, port: int) -> str:
    """Both in one word, as `ss` and URLs write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_address(sock: socket.socket) -> Address:
    """The address that `sock` is bound to, with the port that the kernel chose."""
    return Address(sock.family, sock.getsockname())
