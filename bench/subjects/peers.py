"""Other forwarders, each with its best settings, and any command as `--peer NAME=COMMAND`."""

from __future__ import annotations

import os
import shlex

from bench.errors import BenchError
from bench.programs import descriptor_limit
from bench.subjects.subject import Route, Setup, Subject
from bench.tools import PACKAGES, available, version
from bench.topology import Topology
from bench.ways import SERVER_NAME

__all__ = ["Custom", "Haproxy", "Nginx", "Redir", "Rinetd", "Socat"]


_SPLICE_PIPES = 400
"""One for each direction of the most connections that any experiment has busy at once, and as many again."""


class Peer(Subject):
    """A program of somebody else's, from a package."""

    family = "peer"
    program: str

    def unavailable(self, topology: Topology) -> str | None:
        if available(self.program):
            return None
        return f"{self.program} is not installed: apt install {PACKAGES[self.program]}"

    def version(self) -> str:
        return version(self.program)

    @property
    def path(self) -> str:
        return available(self.program) or self.program


class Haproxy(Peer):
    """TCP mode, one thread per core, in the foreground; it copies, or splices in both directions."""

    program = "haproxy"
    ways = True

    def __init__(self, *, splice: bool) -> None:
        self.splice = splice
        self.name = self.base = "haproxy-splice" if splice else "haproxy"
        self.buffer_bytes = None if splice else 65536

    def commands(self, setup: Setup) -> list[list[str]]:
        # Two descriptors a connection and two a pipe, and some for itself.
        pipes = _SPLICE_PIPES if self.splice else 0
        lines = ["global", f"    maxconn {(descriptor_limit() - 100) // 2 - pipes}"]
        if setup.threads:
            lines.append(f"    nbthread {setup.threads}")
        # The default buffer is 16 KiB; with 64 KiB it stands beside the other subjects.
        if self.splice:
            lines += ["    tune.pipesize 262144", f"    maxpipes {_SPLICE_PIPES}"]
        else:
            lines.append(f"    tune.bufsize {self.buffer_bytes}")
        lines += [
            "defaults",
            "    mode tcp",
            "    timeout connect 10s",
            "    timeout client 1h",
            "    timeout server 1h",
        ]
        if self.splice:
            lines += ["    option splice-request", "    option splice-response"]
        for index, route in enumerate(setup.routes):
            lines += _haproxy_route(index, route)
        path = setup.directory / "haproxy.cfg"
        path.write_text("\n".join(lines) + "\n")
        return [[self.path, "-db", "-f", str(path)]]


def _haproxy_route(index: int, route: Route) -> list[str]:
    bind = f"    bind {route.listen.replace('unix:', 'unix@')}"
    server = f"    server there {route.connect.replace('unix:', 'unix@')}"
    if route.way == "sni":
        return [
            f"frontend route{index}", bind, "    tcp-request inspect-delay 5s",
            "    tcp-request content accept if { req.ssl_hello_type 1 }",
            f"    use_backend there{index} if {{ req.ssl_sni -i {SERVER_NAME} }}",
            "    default_backend other", f"backend there{index}", server,
            "backend other", "    server other 127.0.0.1:9",
        ]  # fmt: skip
    words = {"accept-proxy": (" accept-proxy", ""), "send-proxy": ("", " send-proxy-v2")}
    listen, connect = words.get(route.way, ("", ""))
    return [f"listen route{index}", bind + listen, server + connect]


class Nginx(Peer):
    """The stream module, one worker per core, `proxy_buffer_size 64k`. The PROXY header it sends is of version 1."""

    name = base = program = "nginx"
    ways = True
    buffer_bytes: int | None = 65536
    listen_words = "backlog=4096"
    module: str | None = None
    """The line that loads the stream module; None: as this machine has it."""
    stream_words = "    proxy_timeout 1h;\n    tcp_nodelay on;\n    proxy_half_close on;\n"

    def unavailable(self, topology: Topology) -> str | None:
        missing = super().unavailable(topology)
        if missing is None and not any(map(os.path.exists, _STREAM_MODULES)):
            # Some builds have the module inside; only the program itself can say.
            return (
                None if _stream_built_in(self.path) else "nginx has no stream module: apt install libnginx-mod-stream"
            )
        return missing

    def commands(self, setup: Setup) -> list[list[str]]:
        servers = "".join(_nginx_route(index, route, self.listen_words) for index, route in enumerate(setup.routes))
        path = setup.directory / "nginx.conf"
        path.write_text(
            (stream_module() if self.module is None else self.module)
            + f"daemon off;\npid {setup.directory}/nginx.pid;\nerror_log stderr warn;\n"
            + ("user root;\n" if os.geteuid() == 0 else "")
            + f"worker_processes {setup.threads or 'auto'};\nworker_rlimit_nofile {descriptor_limit()};\n"
            + f"events {{ worker_connections {descriptor_limit() - 100}; }}\n"
            + f"stream {{\n    proxy_buffer_size {self.buffer_bytes};\n{self.stream_words}{servers}}}\n"
        )
        return [[self.path, "-p", str(setup.directory), "-e", "stderr", "-c", str(path)]]


def _nginx_route(index: int, route: Route, words: str) -> str:
    listen = f"listen {route.listen} {words}"
    if route.way == "sni":
        return (
            f"    upstream there{index} {{ server {route.connect}; }}\n    upstream other {{ server 127.0.0.1:9; }}\n"
            f"    map $ssl_preread_server_name $route{index} {{ {SERVER_NAME} there{index}; default other; }}\n"
            f"    server {{ {listen}; ssl_preread on; proxy_pass $route{index}; }}\n"
        )
    accept = " proxy_protocol" if route.way == "accept-proxy" else ""
    send = " proxy_protocol on;" if route.way == "send-proxy" else ""
    return f"    server {{ {listen}{accept};{send} proxy_pass {route.connect}; }}\n"


def stream_module() -> str:
    """The line that loads nginx's stream module; empty if the module is built in."""
    module = next(filter(os.path.exists, _STREAM_MODULES), None)
    return f"load_module {module};\n" if module else ""


_STREAM_MODULES = ("/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so")


def _stream_built_in(path: str) -> bool:
    import subprocess

    output = subprocess.run([path, "-V"], capture_output=True, text=True, check=False).stderr
    return "--with-stream " in f"{output} " and "--with-stream=dynamic" not in output


class Rinetd(Peer):
    """One thread, select(), buffers of its own choice; it has no settings for speed."""

    name = base = program = "rinetd"

    def commands(self, setup: Setup) -> list[list[str]]:
        path = setup.directory / "rinetd.conf"
        rules = (f"{r.listen_host} {r.listen_port} {r.connect_host} {r.connect_port}\n" for r in setup.routes)
        path.write_text("".join(rules))
        return [[self.path, "-f", "-c", str(path)]]


class Socat(Peer):
    """A process per connection, buffers of 128 KiB (`-b131072`)."""

    name = base = program = "socat"
    buffer_bytes = 131072

    def commands(self, setup: Setup) -> list[list[str]]:
        return [
            [
                self.path, "-b131072", "-t3600",
                f"TCP-LISTEN:{route.listen_port},bind={route.listen_host},fork,reuseaddr,nodelay,backlog=4096",
                f"TCP:{route.connect},nodelay",
            ]
            for route in setup.routes
        ]  # fmt: skip


class Redir(Peer):
    """A process per connection."""

    name = base = program = "redir"
    buffer_bytes = 65536

    def commands(self, setup: Setup) -> list[list[str]]:
        return [[self.path, "-n", "-l", "err", "-z", "65536", route.listen, route.connect] for route in setup.routes]


class Custom(Subject):
    """`NAME=COMMAND`; `{listen}` and `{connect}` stand for HOST:PORT, `{listen_host}` and its like for the parts."""

    family = "custom"

    def __init__(self, name: str, command: str) -> None:
        self.name = self.base = name
        self.command = command
        self.note = command

    @classmethod
    def parse(cls, text: str) -> Custom:
        name, equals, command = text.partition("=")
        if not name or not equals or not command.strip():
            raise BenchError(f"--peer {text}: the form is NAME=COMMAND")
        subject = cls(name, command)
        try:
            words = subject.words(Route("127.0.0.1", 1, "127.0.0.1", 2))
        except (KeyError, ValueError, IndexError) as error:
            raise BenchError(
                f"--peer {name}: {error!r}; the names are {{listen}}, {{connect}} and their parts"
            ) from None
        if words == shlex.split(command):
            raise BenchError(f"--peer {name}: the command says neither {{listen}} nor {{connect}}")
        return subject

    def words(self, route: Route) -> list[str]:
        values = {
            "listen": route.listen, "listen_host": route.listen_host, "listen_port": route.listen_port,
            "connect": route.connect, "connect_host": route.connect_host, "connect_port": route.connect_port,
        }  # fmt: skip
        return [word.format(**values) for word in shlex.split(self.command)]

    def unavailable(self, topology: Topology) -> str | None:
        program = shlex.split(self.command)[0]
        return None if available(program) else f"{program} is not installed"

    def commands(self, setup: Setup) -> list[list[str]]:
        return [self.words(route) for route in setup.routes]
