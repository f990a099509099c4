"""What forwards datagrams: oinetd's planes and installed peers, each told to forward UDP to UDP."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bench.programs import descriptor_limit
from bench.subjects.floor import Direct
from bench.subjects.oinetd import Oinetd
from bench.subjects.peers import Custom, Nginx, Rinetd, Socat, stream_module
from bench.subjects.subject import Setup, Subject

__all__ = ["datagram_subjects"]

_SESSION_S = 3600
"""How long a silent client is remembered: longer than any run."""


class _Oinetd(Oinetd):
    """`engine auto` moves datagrams in the extension's batches, `engine python` with Python's own calls."""

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

    def commands(self, setup: Setup) -> list[list[str]]:
        servers = "".join(
            f"    server {{ listen {route.listen} udp reuseport; proxy_pass {route.connect}; }}\n"
            for route in setup.routes
        )
        path = setup.directory / "nginx.conf"
        path.write_text(
            stream_module()
            + f"daemon off;\npid {setup.directory}/nginx.pid;\nerror_log stderr warn;\n"
            + ("user root;\n" if os.geteuid() == 0 else "")
            + f"worker_processes {setup.threads or 'auto'};\nworker_rlimit_nofile {descriptor_limit()};\n"
            + f"events {{ worker_connections {descriptor_limit() - 100}; }}\n"
            + f"stream {{\n    proxy_buffer_size 64k;\n    proxy_timeout {_SESSION_S}s;\n{servers}}}\n"
        )
        return [[self.path, "-p", str(setup.directory), "-e", "stderr", "-c", str(path)]]


class _Direct(Direct):
    """As in `Direct`; its datagrams reach the server itself."""

    protocol = "udp"


class _Custom(Custom):
    protocol = "udp"


def datagram_subjects(peers: Sequence[str]) -> list[Subject]:
    """Every subject, in the order of tables, with the `NAME=COMMAND` peers behind them."""
    known = [_Direct(), _Oinetd("auto"), _Oinetd("python"), _Rinetd(), _Socat(), _Nginx()]
    return [*known, *map(_Custom.parse, peers)]
