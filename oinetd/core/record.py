"""What is known of a connection: how it ended, what it moved, who it was.

Both lanes and every engine end in these values, and the log and the counters are made from nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from oinetd.model import Route
from oinetd.net.unix_sockets import Credentials

__all__ = ["Ending", "RelayResult", "SessionRecord", "Totals", "Try"]


class Ending(enum.Enum):
    """How a connection ended. The values are the words of the JSON log."""

    CLIENT_CLOSED = "client-closed"
    """Both sides sent their FIN, the client first."""
    UPSTREAM_CLOSED = "upstream-closed"
    """Both sides sent their FIN, the upstream first."""
    CLIENT_RESET = "client-reset"
    """The client's connection failed (reset, keep-alive, host gone); `errno` says how."""
    UPSTREAM_RESET = "upstream-reset"
    """The upstream's connection failed; `errno` says how."""
    IDLE_TIMEOUT = "idle-timeout"
    HALF_CLOSE_TIMEOUT = "half-close-timeout"
    WRITE_STALL = "write-stall"
    """Bytes waited for `write_stall_timeout_s` without the receiver taking one."""
    ABORTED = "aborted"
    """oinetd ended it: killed, cancelled, or at the end of a drain."""

    NOT_ALLOWED = "not-allowed"
    """Allow rules exist and none matched, or the program's `admit` refused."""
    DENIED = "denied"
    """A deny rule matched."""
    LIMITED = "limit-reached"
    """The source address had all the connections it may have."""

    ACCEPT_FAILED = "accept-failed"
    """There was no memory for the connection."""
    SOCKET_FAILED = "local-socket-failed"
    """No socket could be made for the upstream leg (descriptors, memory)."""
    BIND_FAILED = "local-bind-failed"
    """The rule's `src=` address could not be bound."""
    CONNECT_FAILED = "connect-failed"
    """No address of the destination took the connection; `errno` is that of the last one tried."""
    CONNECT_TIMEOUT = "connect-timeout"
    """The last address tried said nothing for `connect_timeout_s`."""
    RESOLVE_FAILED = "resolve-failed"
    """The destination's name has no address now."""

    DISPLACED = "displaced"
    """A UDP session that had been silent for longest when another one needed its place."""
    REVOKED = "revoked"
    """The access rules of a reload refuse its client: a UDP session, or a connection with `on-deny=reset`."""
    UPSTREAM_SILENT = "upstream-silent"
    """The questions of a UDP client had no answer for too long; a session with another address took its place."""

    MAX_LIFETIME = "max-lifetime"
    """It was as old as `max_lifetime_s` allows."""

    NO_SERVER = "no-server"
    """No server of the group was usable, and `all-down` is `refuse`."""
    SERVER_DOWN = "server-down"
    """Its server went down: with `on-down=reset`, and every UDP session then gets another server."""
    DRAINED = "drained"
    """Its server is drained, and `drain-spread` was over for this session."""
    NOT_TRUSTED = "not-trusted"
    """A header of the PROXY protocol is expected, and this peer may not send one."""
    BAD_PROXY_HEADER = "bad-proxy-header"
    """What a trusted peer sent first is no valid header of the PROXY protocol."""
    PROXY_TIMEOUT = "proxy-timeout"
    """The header was not complete within `proxy_timeout_s`."""
    NO_SNI_RULE = "no-sni-rule"
    """No rule that shares the listener is for the server name that the client wants."""
    BAD_TLS_HELLO = "bad-tls-hello"
    """The client's TLS hello is broken."""
    PEEK_TIMEOUT = "peek-timeout"
    """The hello was not complete within `peek_timeout_s`."""

    # By identity: `Enum` hashes the name, in Python, several times for each session.
    __hash__ = object.__hash__

    @property
    def connected(self) -> bool:
        """Whether the upstream leg had been established."""
        return self in _CONNECTED

    @property
    def refused(self) -> bool:
        """Whether the client was never let in: nothing was counted or logged as opened before."""
        return self in _REFUSED


_CONNECTED = frozenset({
    Ending.CLIENT_CLOSED, Ending.UPSTREAM_CLOSED, Ending.CLIENT_RESET, Ending.UPSTREAM_RESET,
    Ending.IDLE_TIMEOUT, Ending.HALF_CLOSE_TIMEOUT, Ending.WRITE_STALL, Ending.ABORTED, Ending.DISPLACED,
    Ending.REVOKED, Ending.UPSTREAM_SILENT, Ending.MAX_LIFETIME, Ending.SERVER_DOWN, Ending.DRAINED,
})  # fmt: skip
_REFUSED = frozenset({
    Ending.NOT_ALLOWED, Ending.DENIED, Ending.LIMITED, Ending.ACCEPT_FAILED, Ending.NOT_TRUSTED,
    Ending.BAD_PROXY_HEADER, Ending.PROXY_TIMEOUT, Ending.NO_SNI_RULE, Ending.BAD_TLS_HELLO, Ending.PEEK_TIMEOUT,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class RelayResult:
    """What an engine answers: the ending, the bytes it delivered each way, and the first errno seen (0 for none).

    `bytes_up` went from client to upstream, `bytes_down` from upstream to client; both count what the kernel of the
    receiving side accepted.
    """

    ending: Ending
    bytes_up: int = 0
    bytes_down: int = 0
    errno: int = 0


class Totals(NamedTuple):
    """What the sessions of a rule in the native lane have moved together, those that ended and those that live."""

    admitted: int
    live: int
    bytes_up: int
    bytes_down: int
    datagrams_up: int
    datagrams_down: int
    datagrams_lost: int
    rate_waits: int = 0

    def plus(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(*map(sum, zip(self, other, strict=True)))


ALPN_CHARS_MAX: Final = 255
"""Of the protocols that a record has."""


def alpn_text(protocols: Iterable[bytes]) -> str:
    """The protocols of a TLS hello as a record has them."""
    return b",".join(protocols).decode("ascii", "backslashreplace")[:ALPN_CHARS_MAX]


class Try(NamedTuple):
    """An address of the destination that was tried and did not take the connection, and the errno of that.

    EINPROGRESS was under way when another one took it, or when the session ended. `server` is that of a group; its
    tries also have the address that took the connection, with errno 0.
    """

    address: str
    port: int
    errno: int
    server: str = ""


@dataclass(slots=True)
class SessionRecord:
    """One client's connection, from accept to end. Live sessions have `ending` None.

    `started` is Unix time in seconds, durations are seconds of a monotonic clock. `upstream` is the address that
    took the connection, empty before that. `engine` is `python`, `native`, or empty if nothing was relayed, and
    `relay` what moved the bytes: `copy`, `splice`, or `auto` if both did.

    `tries` are the addresses that were tried over TCP and did not take the connection, in the order in which they were;
    empty if the first one did. Live sessions have them once they are connected.

    The datagrams are those of sides that are UDP: up is from the client, down to it; if both are, what the kernel
    took for the other side. Lost are those that oinetd had and could not deliver.

    `credentials` are those of a client of a unix socket, whose `client` is `unix:`.

    `peer` is who connected, if a header of the PROXY protocol came first: `client` is the one that the header names.

    `server_name` and `alpn` are what a TLS client wants, if its hello was read: the protocols are joined by commas.

    `group` is the name of the rule's group, and `server` that of the server that was found; empty if there is none.

    `idle_s` is of live sessions: how long ago something moved; its age if nothing did. It is 0 in other records.
    """

    id: int
    route: Route
    client: str
    client_port: int
    started: float
    upstream: str = ""
    upstream_port: int = 0
    engine: str = ""
    relay: str = ""
    connect_s: float = 0.0
    duration_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    ending: Ending | None = None
    errno: int = 0
    datagrams_up: int = 0
    datagrams_down: int = 0
    datagrams_lost: int = 0
    idle_s: float = 0.0
    tries: tuple[Try, ...] = ()
    credentials: Credentials | None = None
    peer: str = ""
    peer_port: int = 0
    server_name: str = ""
    alpn: str = ""
    group: str = ""
    server: str = ""

    @property
    def source(self) -> str:
        """What limits per source count it for: the client's address, or the user at a unix socket."""
        return self.client if self.credentials is None else f"{self.client}{self.credentials.uid}"
