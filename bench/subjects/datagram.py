"""Subjects that forward UDP to UDP: oinetd's planes and installed peers."""

from __future__ import annotations

from collections.abc import Sequence

from bench.subjects.floor import Direct
from bench.subjects.oinetd import Oinetd
from bench.subjects.peers import Custom, Nginx, Rinetd, Socat
from bench.subjects.subject import Setup, Subject
from bench.subjects.trixie import RELEASE, STREAM_MODULE, Trixie

__all__ = ["datagram_subjects"]

_SESSION_S = 3600
"""How long a silent client is remembered: longer than any run."""


class _Oinetd(Oinetd):
    """`engine native` is the reactors, `engine python` the Python lane."""

    protocol = "udp"

    def __init__(self, engine: str) -> None:
        super().__init__(f"oinetd-{engine}", engine, "auto")

    def configuration(self, setup: Setup) -> str:
        rules = "".join(
            f"{route.listen_host} {route.listen_port}/udp {route.connect_host} {route.connect_port}/udp\n"
            for route in setup.routes
        )
        return f"engine {self.engine}\n{rules}"


class _Rinetd(Rinetd):
    """As in `Rinetd`."""

    protocol = "udp"

    def commands(self, setup: Setup) -> list[list[str]]:
        path = setup.directory / "rinetd.conf"
        path.write_text(
            "".join(
                f"{route.listen_host} {route.listen_port}/udp {route.connect_host} {route.connect_port}/udp "
                f"[timeout={_SESSION_S}]\n"
                for route in setup.routes
            )
        )
        return [[self.path, "-f", "-c", str(path)]]


class _Socat(Socat):
    """A process per client."""

    protocol = "udp"
    buffer_bytes = 65536

    def commands(self, setup: Setup) -> list[list[str]]:
        return [
            [
                self.path, "-b65536", f"-T{_SESSION_S}",
                f"UDP4-LISTEN:{route.listen_port},bind={route.listen_host},fork,reuseaddr",
                f"UDP4:{route.connect}",
            ]
            for route in setup.routes
        ]  # fmt: skip


class _Nginx(Nginx):
    """The stream module, one worker per core; with a socket for each worker, so that a client stays with one."""

    protocol = "udp"
    listen_words = "udp reuseport"
    stream_words = f"    proxy_timeout {_SESSION_S}s;\n"


class _TrixieNginx(Trixie, _Nginx):
    name = base = f"nginx-{RELEASE}"
    module = STREAM_MODULE


class _Direct(Direct):
    """As in `Direct`; its datagrams reach the server itself."""

    protocol = "udp"


class _Custom(Custom):
    protocol = "udp"


def datagram_subjects(peers: Sequence[str]) -> list[Subject]:
    """Every subject, in the order of tables, with the `NAME=COMMAND` peers behind them."""
    known = [_Direct(), _Oinetd("native"), _Oinetd("python"), _Rinetd(), _Socat(), _Nginx(), _TrixieNginx()]
    return [*known, *map(_Custom.parse, peers)]
