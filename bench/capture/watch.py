"""`capture --live`: which ports a running forwarder has, a capture in its network namespace, and the verdict."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.capture.live import Session, pair
from bench.capture.sniffer import sniffer_arguments
from bench.capture.streams import Stream
from bench.errors import BenchError, Interrupted
from bench.identity import RunName
from bench.programs import Program, python_command
from bench.tools import need

__all__ = ["Watched", "routes_of_config", "routes_of_rules", "watch"]

END_PATIENCE_S = 60.0
ROWS_MAX = 40
"""Sessions shown; all of them are in the file."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The forwarder: the upstream port of each port it listens on, and its process; 0 is this namespace."""

    routes: dict[int, int]
    pid: int = 0

    @classmethod
    def of_pid(cls, pid: int) -> Watched:
        """An oinetd that runs: the configuration is read again from where its command line says."""
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            directory = Path(f"/proc/{pid}/cwd").resolve()
        except OSError as error:
            raise BenchError(f"process {pid}: {error.strerror}") from None
        return cls(routes_of_config(_configuration(words, directory)), pid)


def _configuration(words: list[str], directory: Path) -> Path:
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option in ("-c", "--conf-file"):
            return directory / value
        if option.startswith("--conf-file="):
            return directory / option.partition("=")[2]
    from oinetd.process.cli import CONF_FILES

    for name in CONF_FILES:
        if Path(name).exists():
            return Path(name)
    raise BenchError(f"`{shlex.join(filter(None, words))}` names no configuration: use --config or --rule")


def routes_of_config(path: Path) -> dict[int, int]:
    from oinetd.config import load_config
    from oinetd.errors import ConfigError

    try:
        return _routes(load_config(path).rules)
    except ConfigError as error:
        raise BenchError(str(error)) from None


def routes_of_rules(lines: Iterable[str]) -> dict[int, int]:
    """From rules as a configuration has them: `127.0.0.1 8080 example.org 80`."""
    from oinetd.config import parse_rule
    from oinetd.errors import ConfigError

    try:
        return _routes(map(parse_rule, lines))
    except ConfigError as error:
        raise BenchError(str(error)) from None


def _routes(rules: Iterable[object]) -> dict[int, int]:
    from oinetd.model import Protocol, Rule

    routes: dict[int, int] = {}
    for rule in rules:
        assert isinstance(rule, Rule)
        if rule.bind.protocol is Protocol.TCP and rule.connect.protocol is Protocol.TCP:
            routes |= dict(zip(rule.bind.ports, rule.connect.ports, strict=True))
    both = sorted(set(routes) & set(routes.values()))
    if both:
        raise BenchError(f"port {both[0]} is both listened on and connected to: the legs cannot be distinguished")
    if not routes:
        raise BenchError("there is no TCP rule to watch")
    return routes


@contextlib.contextmanager
def _sniffer(watched: Watched, ring_bytes: int, pcap: str) -> Iterator[Program]:
    ports = sorted({*watched.routes, *watched.routes.values()})
    command = python_command("bench.capture.sniffer", *sniffer_arguments(ports, ring_bytes, pcap=pcap))
    if watched.pid:
        command = [need("nsenter"), f"--net=/proc/{watched.pid}/ns/net", "--", *command]
    run = RunName.new()
    with tempfile.TemporaryDirectory(prefix=f"{run}-") as directory:
        program = Program(command, run, Path(directory) / "sniffer.log", pipe=True)
        try:
            program.read_line()
            yield program
        finally:
            program.stop()


def watch(
    watched: Watched, seconds: float, ring_bytes: int, pcap: Path | None, out: Path | None, console: Console
) -> int:
    """Watch for `seconds`, 0 until interrupted; 1 if the legs of a session differ."""
    with _sniffer(watched, ring_bytes, str(pcap.resolve()) if pcap else "") as program:
        shown = ", ".join(f"{port} → {to}" for port, to in sorted(watched.routes.items()))
        console.print(f"watching {shown}" + ("" if seconds else "; Ctrl-C ends it"), highlight=False)
        end = time.monotonic() + seconds
        try:
            while program.running and (not seconds or time.monotonic() < end):
                time.sleep(0.05)
        except Interrupted:
            pass
        program.process.send_signal(signal.SIGTERM)
        figures = json.loads(program.read_rest())
    sessions = pair([Stream.load(stream) for stream in figures["streams"]], watched.routes)
    if out is not None:
        kept = {"kernel": figures["kernel"], "sessions": list(map(_record, sessions))}
        out.write_text(json.dumps(kept, indent=1) + "\n")
    _show(sessions, figures["kernel"]["drops"], console)
    return 1 if any(session.verdict == "differ" and not session.missed for session in sessions) else 0


def _place(stream: Stream, *, target: bool = False) -> str:
    host, port = (stream.target, stream.target_port) if target else (stream.source, stream.source_port)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _record(session: Session) -> dict[str, object]:
    upstream = session.upstream
    return {
        "client": _place(session.client.forth),
        "upstream": _place(upstream.forth, target=True) if upstream else None,
        "upstream_from": _place(upstream.forth) if upstream else None,
        "client_leg": dict(zip(("up", "down"), session.client.sizes, strict=True)),
        "upstream_leg": dict(zip(("up", "down"), upstream.sizes, strict=True)) if upstream else None,
        "missed": session.missed,
        "verdict": session.verdict,
    }


def _show(sessions: list[Session], drops: int, console: Console) -> None:
    table = Table(title="sessions", title_justify="left", header_style="bold")
    table.add_column("client", no_wrap=True)
    table.add_column("upstream", no_wrap=True)
    for title in ("up: client leg", "upstream leg", "down: client leg", "upstream leg", "unseen"):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    # What does not agree comes first.
    for session in sorted(sessions, key=lambda each: each.verdict == "agree")[:ROWS_MAX]:
        (up, down), upstream = session.client.sizes, session.upstream
        far_up, far_down = upstream.sizes if upstream else ("n/a", "n/a")
        to = _place(upstream.forth, target=True) if upstream else "n/a"
        cells = (up, far_up, down, far_down, session.missed)
        table.add_row(_place(session.client.forth), to, *map(str, cells), session.verdict)
    if sessions:
        console.print(table)
    counts = dict.fromkeys(("agree", "differ", "open", "reset", "no upstream"), 0)
    for session in sessions:
        counts[session.verdict] += 1
    figures = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    figures = figures or "none began while watched"
    console.print(f"{len(sessions)} sessions: {figures}; {drops} packets dropped by the kernel", highlight=False)
    if drops:
        console.print("What was dropped is missing above: --ring takes a larger ring.")
