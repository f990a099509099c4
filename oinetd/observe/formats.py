"""The lines of the connection log: a record becomes bytes. No I/O.

`rinetd` and `common` are the formats of rinetd 0.73, to the byte, with its few words for how a connection ended.
In these words "local" is the upstream's side and "remote" is the client's:

    Ending                                         word
    client-closed, client-reset                    done-remote-closed
    upstream-closed, upstream-reset                done-local-closed
    connect-failed, connect-timeout,
    resolve-failed, no-server                      done-local-closed (after `opened`, as rinetd does)
    idle-timeout, half-close-timeout,
    write-stall, aborted, displaced, revoked,
    upstream-silent, max-lifetime, server-down,
    drained                                        done-local-closed: oinetd ended it, which is not the client
    not-allowed, denied                            the same words
    not-trusted, bad-proxy-header, proxy-timeout,
    no-sni-rule, bad-tls-hello, peek-timeout       not-allowed
    limit-reached                                  limit-reached (rinetd has no limits)
    (refused clients that are only counted)        left-out N, with - as client (rinetd has a line for each)
    accept-failed, local-socket-failed,
    local-bind-failed                              the same words and " -"

`json` has a word for each ending. Every line has the local time at which it was made.
"""

from __future__ import annotations

import errno
import time
from json.encoder import encode_basestring_ascii as quoted
from typing import Final, Protocol

from oinetd.core.record import Ending, SessionRecord
from oinetd.model import LogFormat, Route
from oinetd.model import Protocol as Transport

__all__ = ["STATUS", "LineFormat", "line_format"]

ROUTES_MAX: Final = 65536
"""Routes whose text is cached: every port of one address. The cache is cleared when it is full."""

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""The formats need English in every locale."""

STATUS: Final = {
    Ending.CLIENT_CLOSED: "done-remote-closed",
    Ending.UPSTREAM_CLOSED: "done-local-closed",
    Ending.CLIENT_RESET: "done-remote-closed",
    Ending.UPSTREAM_RESET: "done-local-closed",
    Ending.IDLE_TIMEOUT: "done-local-closed",
    Ending.HALF_CLOSE_TIMEOUT: "done-local-closed",
    Ending.WRITE_STALL: "done-local-closed",
    Ending.ABORTED: "done-local-closed",
    Ending.NOT_ALLOWED: "not-allowed",
    Ending.DENIED: "denied",
    Ending.LIMITED: "limit-reached",
    Ending.ACCEPT_FAILED: "accept-failed -",
    Ending.SOCKET_FAILED: "local-socket-failed -",
    Ending.BIND_FAILED: "local-bind-failed -",
    Ending.CONNECT_FAILED: "done-local-closed",
    Ending.CONNECT_TIMEOUT: "done-local-closed",
    Ending.RESOLVE_FAILED: "done-local-closed",
    Ending.DISPLACED: "done-local-closed",
    Ending.REVOKED: "done-local-closed",
    Ending.UPSTREAM_SILENT: "done-local-closed",
    Ending.MAX_LIFETIME: "done-local-closed",
    Ending.NO_SERVER: "done-local-closed",
    Ending.SERVER_DOWN: "done-local-closed",
    Ending.DRAINED: "done-local-closed",
    Ending.NOT_TRUSTED: "not-allowed",
    Ending.BAD_PROXY_HEADER: "not-allowed",
    Ending.PROXY_TIMEOUT: "not-allowed",
    Ending.NO_SNI_RULE: "not-allowed",
    Ending.BAD_TLS_HELLO: "not-allowed",
    Ending.PEEK_TIMEOUT: "not-allowed",
}


class LineFormat(Protocol):
    """One format of the log; `now` is Unix time in seconds. A line has one newline, at its end."""

    def opened(self, record: SessionRecord, now: float) -> bytes: ...

    def closed(self, record: SessionRecord, now: float) -> bytes:
        """The last line of a connection, or the only one of a refused one; `record.ending` is set."""
        ...

    def left_out(self, route: Route, count: int, now: float) -> bytes:
        """The line for `count` refused clients of the rule of `route` that were only counted."""
        ...


def line_format(choice: LogFormat) -> LineFormat:
    """A new formatter; only one thread may use it."""
    if choice is LogFormat.JSON:
        return JsonLines()
    return CommonLines() if choice is LogFormat.COMMON else RinetdLines()


class _Words:
    """Caches the parts that lines share: the text of a second, the text of a route."""

    __slots__ = ("_routes", "_second", "_stamp")

    def __init__(self) -> None:
        self._second = -1
        self._stamp = ""
        # Keyed by id, because a Route's hash reads its whole rule. The value keeps the route alive and its id unique.
        self._routes: dict[int, tuple[Route, str]] = {}

    def stamp(self, now: float) -> str:
        """The text of the second that `now` is in."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = self._written(time.localtime(second))
        return self._stamp

    def route(self, route: Route) -> str:
        """The words of `route`."""
        known = self._routes.get(id(route))
        if known is not None:
            return known[1]
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        words = self._named(route)
        self._routes[id(route)] = (route, words)
        return words

    def _written(self, local: time.struct_time) -> str:
        raise NotImplementedError

    def _named(self, route: Route) -> str:
        raise NotImplementedError


class RinetdLines(_Words):
    """rinetd's own format: fields between tabs."""

    __slots__ = ()

    def opened(self, record: SessionRecord, now: float) -> bytes:
        return f"{self.stamp(now)} \t{record.client}\t{self.route(record.route)}\t0\t0\topened\n".encode()

    def closed(self, record: SessionRecord, now: float) -> bytes:
        assert record.ending is not None
        return (
            f"{self.stamp(now)} \t{record.client}\t{self.route(record.route)}"
            f"\t{record.bytes_up}\t{record.bytes_down}\t{STATUS[record.ending]}\n"
        ).encode()

    def left_out(self, route: Route, count: int, now: float) -> bytes:
        return f"{self.stamp(now)} \t-\t{self.route(route)}\t0\t0\tleft-out {count}\n".encode()

    def _written(self, local: time.struct_time) -> str:
        return _day_and_time(local)

    def _named(self, route: Route) -> str:
        return f"{route.bind.host}\t{route.bind.port}\t{route.connect.host}\t{route.connect.port}"


class CommonLines(_Words):
    """The format of web servers' logs, as rinetd's `logcommon` writes it."""

    __slots__ = ()

    def opened(self, record: SessionRecord, now: float) -> bytes:
        return (
            f'{record.client} - - [{self.stamp(now)}] "GET /rinetd-services/{self.route(record.route)}/opened'
            ' HTTP/1.0" 200 0 - - - 0\n'
        ).encode()

    def closed(self, record: SessionRecord, now: float) -> bytes:
        assert record.ending is not None
        return (
            f'{record.client} - - [{self.stamp(now)}] "GET /rinetd-services/{self.route(record.route)}'
            f'/{STATUS[record.ending]} HTTP/1.0" 200 {record.bytes_down} - - - {record.bytes_up}\n'
        ).encode()

    def left_out(self, route: Route, count: int, now: float) -> bytes:
        return (
            f'- - - [{self.stamp(now)}] "GET /rinetd-services/{self.route(route)}/left-out-{count}'
            ' HTTP/1.0" 200 0 - - - 0\n'
        ).encode()

    def _written(self, local: time.struct_time) -> str:
        return f"{_day_and_time(local)}  {_zone(local, '')}"

    def _named(self, route: Route) -> str:
        return f"{route.bind.host}/{route.bind.port}/{route.connect.host}/{route.connect.port}"


class JsonLines(_Words):
    """One JSON object a line: `event` is `opened`, `closed`, `refused` or `left-out`; durations are seconds.

    `time` is local time with its zone, `started` the Unix time of the accept; `ending` is the value of the
    `Ending`, `error` the name of `errno`, empty at 0. Datagrams are counted if a side of the rule is UDP.
    `tries` are the addresses that did not take the connection, if there are any. A client of a unix socket has
    `peer_uid`, `peer_gid` and `peer_pid`. With a PROXY header `peer` and `peer_port` are those of the connection.
    `server_name` and `alpn` are those of a TLS hello. `name` is the option of the rule, by which commands and metrics
    call it.
    """

    __slots__ = ()

    def opened(self, record: SessionRecord, now: float) -> bytes:
        return f"{self._head(record, 'opened', now)}}}\n".encode()

    def closed(self, record: SessionRecord, now: float) -> bytes:
        ending = record.ending
        assert ending is not None
        event = "refused" if ending.refused else "closed"
        code = record.errno
        route, datagrams = record.route, ""
        if Transport.UDP in (route.bind.protocol, route.connect.protocol):
            datagrams = (
                f',"datagrams_up":{record.datagrams_up},"datagrams_down":{record.datagrams_down}'
                f',"datagrams_lost":{record.datagrams_lost}'
            )
        return (
            f'{self._head(record, event, now)},"upstream":{quoted(record.upstream)}'
            f',"upstream_port":{record.upstream_port},"engine":"{record.engine}","relay":"{record.relay}"'
            f',"connect_s":{record.connect_s:.6f},"duration_s":{record.duration_s:.6f}'
            f',"bytes_up":{record.bytes_up},"bytes_down":{record.bytes_down},"ending":"{ending.value}"'
            f',"errno":{code},"error":"{errno.errorcode.get(code, "") if code else ""}"{datagrams}{_tries(record)}}}\n'
        ).encode()

    def left_out(self, route: Route, count: int, now: float) -> bytes:
        return f'{self._begin("left-out", now)},"count":{count},{self.route(route)}}}\n'.encode()

    def _begin(self, event: str, now: float) -> str:
        date, zone = self.stamp(now).split(" ")
        return f'{{"time":"{date}.{int(now % 1 * 1000):03d}{zone}","event":"{event}"'

    def _head(self, record: SessionRecord, event: str, now: float) -> str:
        return (
            f'{self._begin(event, now)},"id":{record.id}'
            f',"started":{record.started:.6f},"client":{quoted(record.client)},"client_port":{record.client_port}'
            f",{self.route(record.route)}{_credentials(record)}{_peer(record)}"
        )

    def _written(self, local: time.struct_time) -> str:
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)} {_zone(local, ':')}"

    def _named(self, route: Route) -> str:
        return (
            f'"bind":{quoted(route.bind.host)},"bind_port":{route.bind.port}'
            f',"connect":{quoted(route.connect.host)},"connect_port":{route.connect.port}'
            f',"rule":{quoted(str(route.rule))},"origin":{quoted(str(route.rule.origin))}'
            + (f',"name":{quoted(name)}' if (name := route.rule.options.name) else "")
        )


def _credentials(record: SessionRecord) -> str:
    """The peer process of a unix socket."""
    peer = record.credentials
    return "" if peer is None else f',"peer_uid":{peer.uid},"peer_gid":{peer.gid},"peer_pid":{peer.pid}'


def _peer(record: SessionRecord) -> str:
    """The peer, if the client is from a PROXY header; the server name and the protocols that a TLS client asks for."""
    said = f',"peer":{quoted(record.peer)},"peer_port":{record.peer_port}' if record.peer else ""
    if record.server_name or record.alpn:
        said += f',"server_name":{quoted(record.server_name)},"alpn":{quoted(record.alpn)}'
    return said


def _tries(record: SessionRecord) -> str:
    """The addresses that did not take the connection, if there are any."""
    if record.route.rule.upstream is not None:
        return _server(record)
    if not record.tries:
        return ""
    tries = (
        f'{{"address":{quoted(address)},"port":{port},"error":"{errno.errorcode.get(code, str(code))}"}}'
        for address, port, code, _ in record.tries
    )
    return f',"tries":[{",".join(tries)}]'


def _server(record: SessionRecord) -> str:
    """The group, the server that was found, and every try: the one that worked is the last."""
    tries = (
        f'{{"server":{quoted(server)},"address":{quoted(address)},"port":{port},"errno":{code}'
        f',"error":"{errno.errorcode.get(code, str(code)) if code else ""}"}}'
        for address, port, code, server in record.tries
    )
    server = quoted(record.server) if record.server else "null"
    return f',"group":{quoted(record.group)},"server":{server},"tries":[{",".join(tries)}]'


def _day_and_time(local: time.struct_time) -> str:
    return (
        f"{local.tm_mday:02d}/{MONTHS[local.tm_mon - 1]}/{local.tm_year:04d}"
        f":{local.tm_hour:02d}:{local.tm_min:02d}:{local.tm_sec:02d}"
    )


def _zone(local: time.struct_time, between: str) -> str:
    """The zone as `+hhmm`, with `between` in the middle; west of Greenwich is negative, also for half hours."""
    minutes = abs(local.tm_gmtoff) // 60
    sign = "-" if local.tm_gmtoff < 0 else "+"
    return f"{sign}{minutes // 60:02d}{between}{minutes % 60:02d}"
