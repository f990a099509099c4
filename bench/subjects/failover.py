"""Forwarders with a group of servers behind them, each told to notice soon that one of them fails."""

from __future__ import annotations

import os

from bench.programs import descriptor_limit
from bench.subjects.oinetd import Oinetd
from bench.subjects.peers import Haproxy, Nginx, stream_module
from bench.subjects.subject import Setup, Subject
from bench.subjects.trixie import RELEASE, STREAM_MODULE, Trixie

__all__ = ["failover_subjects"]

CONNECT_S = 1
CHECK_MS = 500
"""The same for all that check by themselves."""


class _Oinetd(Oinetd):
    grouped = True

    def __init__(self, engine: str) -> None:
        super().__init__(f"oinetd-{engine}", engine, "auto")

    def configuration(self, setup: Setup) -> str:
        servers = "".join(f"upstream group {route.connect_host} {route.connect_port}\n" for route in setup.routes)
        return (
            f"engine {self.engine}\nconnect-timeout {CONNECT_S}s\n{servers}"
            f"upstream group [check=http, check-interval={CHECK_MS}ms, check-timeout={CONNECT_S}s]\n"
            f"{setup.routes[0].listen_host} {setup.routes[0].listen_port} @group\n"
        )


class _Haproxy(Haproxy):
    """With redispatch: a connect that fails goes on to another server."""

    grouped = True

    def __init__(self) -> None:
        super().__init__(splice=False)

    def commands(self, setup: Setup) -> list[list[str]]:
        lines = [
            "global", f"    maxconn {(descriptor_limit() - 100) // 2}", "defaults", "    mode tcp",
            f"    timeout connect {CONNECT_S}s", "    timeout client 1h", "    timeout server 1h",
            f"    timeout check {CONNECT_S}s", "    option httpchk GET /",
            "    retries 3", "    option redispatch 1",
            f"    default-server check inter {CHECK_MS}ms fall 3 rise 2",
            "    default-server observe layer4 error-limit 3 on-error mark-down",
            "listen group", f"    bind {setup.routes[0].listen}", "    balance leastconn",
            *(f"    server s{number} {route.connect}" for number, route in enumerate(setup.routes)),
        ]  # fmt: skip
        path = setup.directory / "haproxy.cfg"
        path.write_text("\n".join(lines) + "\n")
        return [[self.path, "-db", "-f", str(path)]]


class _Nginx(Nginx):
    """It has passive checks only."""

    grouped = True

    def commands(self, setup: Setup) -> list[list[str]]:
        servers = "".join(f"        server {route.connect} max_fails=3 fail_timeout=10s;\n" for route in setup.routes)
        path = setup.directory / "nginx.conf"
        module = stream_module() if self.module is None else self.module
        path.write_text(
            f"{module}daemon off;\npid {setup.directory}/nginx.pid;\nerror_log stderr crit;\n"
            + ("user root;\n" if os.geteuid() == 0 else "")
            + f"worker_processes auto;\nworker_rlimit_nofile {descriptor_limit()};\n"
            f"events {{ worker_connections {descriptor_limit() - 100}; }}\n"
            f"stream {{\n    upstream group {{\n        zone group 64k;\n        least_conn;\n{servers}    }}\n"
            f"    proxy_connect_timeout {CONNECT_S}s;\n{self.stream_words}"
            f"    server {{ listen {setup.routes[0].listen} {self.listen_words}; proxy_pass group; }}\n}}\n"
        )
        return [[self.path, "-p", str(setup.directory), "-e", "stderr", "-c", str(path)]]


class _TrixieHaproxy(Trixie, _Haproxy):
    def __init__(self) -> None:
        super().__init__()
        self.name = self.base = f"haproxy-{RELEASE}"


class _TrixieNginx(Trixie, _Nginx):
    name = base = f"nginx-{RELEASE}"
    module = STREAM_MODULE


def failover_subjects() -> list[Subject]:
    return [_Oinetd("native"), _Oinetd("python"), _Haproxy(), _Nginx(), _TrixieHaproxy(), _TrixieNginx()]
