"""The three loads: a small file on many connections, 1 MiB, 8 MiB; nginx behind the forwarder, wrk before it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lab.snapshot import STATUS_PATH
from bench.programs import descriptor_limit
from bench.stand import Stand
from bench.tools import need

__all__ = ["SCENARIOS", "Scenario", "nginx", "parse_wrk", "wrk_command"]

REFERENCE_CORES = 40
"""The connections of the scenarios are for a server of this many cores."""
SMALLEST_SHARE = 1 / 8
SMALL_FILE = b"<!doctype html><title>lab</title>" + b"x" * 579
"""About as long as the page that nginx is installed with."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`connections` and `threads` of wrk on a machine of REFERENCE_CORES."""

    name: str
    title: str
    path: str
    size: int
    connections: int
    threads: int = 16

    def scaled(self, cores: int) -> tuple[int, int]:
        """Threads and connections for a machine with `cores`; wrk wants a connection for each thread."""
        share = min(1.0, max(SMALLEST_SHARE, cores / REFERENCE_CORES))
        threads = min(self.threads, max(1, cores // 2))
        return threads, max(threads, round(self.connections * share))


SCENARIOS = (
    Scenario("S1", "small file, many connections", "/index.html", len(SMALL_FILE), 1024),
    Scenario("S2", "1 MiB", "/1m.bin", 1 << 20, 256),
    Scenario("S3", "8 MiB", "/8m.bin", 8 << 20, 64),
)

# wrk's own summary has no p99.9, and rounds.
_SCRIPT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('lab {"requests":%d,"bytes":%d,"duration_us":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,' ..
    '"p99_9_us":%d,"max_us":%d,"errors":%d}\\n', summary.requests, summary.bytes, summary.duration,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def wrk_command(stand: Stand, scenario: Scenario, host: str, port: int, seconds: float) -> list[str]:
    script = stand.directory / "lab.lua"
    script.write_text(_SCRIPT)
    threads, connections = scenario.scaled(os.cpu_count() or 1)
    return [
        need("wrk"), f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency",
        "--timeout", "10s", "-s", str(script), f"http://{host}:{port}{scenario.path}",
    ]  # fmt: skip


def parse_wrk(text: str) -> dict[str, Any]:
    """Raises ValueError where wrk's own last line is not there."""
    for line in text.splitlines():
        if line.startswith("lab {"):
            figures: dict[str, Any] = json.loads(line.removeprefix("lab "))
            return figures
    raise ValueError("wrk did not come to its end")


def _configuration(directory: Path, host: str, port: int, status_socket: Path) -> str:
    user = "user root;\n" if os.geteuid() == 0 else ""
    return (
        f"{user}daemon off;\npid {directory}/nginx.pid;\nerror_log stderr crit;\nworker_processes auto;\n"
        f"worker_rlimit_nofile {descriptor_limit()};\nevents {{ worker_connections {descriptor_limit() - 100}; }}\n"
        "http {\n    access_log off;\n    sendfile on;\n    tcp_nopush on;\n    keepalive_requests 1000000000;\n"
        f"    client_body_temp_path {directory}/body;\n    proxy_temp_path {directory}/proxy;\n"
        f"    fastcgi_temp_path {directory}/fastcgi;\n    uwsgi_temp_path {directory}/uwsgi;\n"
        f"    scgi_temp_path {directory}/scgi;\n"
        f"    server {{ listen {host}:{port} backlog=4096; root {directory}/files; }}\n"
        f"    server {{ listen unix:{status_socket}; location {STATUS_PATH} {{ stub_status; }} }}\n"
        "}\n"
    )


@contextlib.contextmanager
def nginx(stand: Stand, port: int) -> Iterator[Path]:
    """The server with the scenarios' files; gives the socket on which it tells how many requests it has served."""
    directory = stand.directory / "nginx"
    (directory / "files").mkdir(parents=True)
    for scenario in SCENARIOS:
        content = SMALL_FILE if scenario.size == len(SMALL_FILE) else os.urandom(scenario.size)
        (directory / "files" / scenario.path.lstrip("/")).write_bytes(content)
    status_socket = directory / "status.sock"
    path = directory / "nginx.conf"
    path.write_text(_configuration(directory, stand.topology.server_address, port, status_socket))
    with stand.server([need("nginx"), "-p", str(directory), "-e", "stderr", "-c", str(path)], port):
        yield status_socket
