"""Both captures on the same traffic, together and each alone, at payloads from 64 B to 64 KiB, and under full load."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.capture.judgement import acknowledged, judge, missed_by_both
from bench.capture.traffic import Sent
from bench.capture.watchers import Observation, watching
from bench.errors import BenchError
from bench.iperf import client_command, parse_transfer, server_command
from bench.programs import Program, python_command
from bench.stand import Running, Stand
from bench.subjects import Subject
from bench.subjects.subject import size_text

__all__ = ["MODES", "PAYLOADS", "Load", "Row", "Trial", "TrialSettings"]

PAYLOADS = (64, 256, 1024, 4096, 16384, 65536)
MODES = {"nothing": (), "ring": ("ring",), "tcpdump": ("tcpdump",), "together": ("ring", "tcpdump")}
LEGS = ("client", "upstream")
TINY_BLOCK_BYTES = 4096
TINY_RING_BYTES = 2 * TINY_BLOCK_BYTES
"""A ring that holds some forty packets: a reader that sleeps for a millisecond loses some."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent; `payload` 0 is iperf3."""

    name: str
    payload: int

    @classmethod
    def of_payload(cls, payload: int) -> Load:
        return cls(f"{size_text(payload)}B", payload)


IPERF = Load("iperf3", 0)


@dataclass(frozen=True, slots=True)
class TrialSettings:
    seconds: float
    connections: int
    ring_bytes: int


@dataclass
class Row:
    """One line of the table and of the CSV: one leg in one run, as one capture saw it.

    Bytes are of payload, each counted once however often it was sent. `packets`, `drops` and `cpu_s` are the
    capture's for both legs together; None if nothing captured. `missed_by_both` is there when both looked on.
    """

    load: str
    mode: str
    tool: str
    leg: str
    round: int
    seconds: float
    sent_bytes: int
    captured_bytes: int | None = None
    missed_bytes: int | None = None
    missed_by_both_bytes: int | None = None
    gaps: int | None = None
    streams: int | None = None
    packets: int | None = None
    drops: int | None = None
    cpu_s: float | None = None
    ring_bytes: int | None = None

    @property
    def gbit_s(self) -> float:
        return self.sent_bytes * 8 / self.seconds / 1e9


@dataclass
class _Run:
    """The truth of one run: what was sent on each leg, in how many seconds."""

    sent: dict[str, list[Sent]]
    seconds: float


@dataclass
class Trial:
    """A stand with a forwarder in its middle, for as many runs as wanted."""

    stand: Stand
    subject: Subject
    settings: TrialSettings
    sequences: dict[str, dict[str, list[tuple[int, int]]]] = field(default_factory=dict)
    """Of the run with the tiny ring: what was sent and what was captured of the first stream, for the plot."""

    def run(self, load: Load, mode: str, number: int, *, tiny: bool = False) -> list[Row]:
        """One load, watched as `mode` says."""
        with contextlib.ExitStack() as stack:
            perform, running, ports = stack.enter_context(self._loaded(load))
            size = {"block_bytes": TINY_BLOCK_BYTES} if tiny else {}
            ring_bytes = TINY_RING_BYTES if tiny else self.settings.ring_bytes
            place = self.stand.topology.forwarder
            watchers = []
            inner = stack.enter_context(contextlib.ExitStack())
            for tool in MODES[mode]:
                watchers.append(inner.enter_context(watching(self.stand, tool, place, ports, ring_bytes, **size)))
            run = perform(running)
            inner.close()
            seen = [watcher.observation for watcher in watchers if watcher.observation is not None]
        if load.payload == 0:
            run.sent = {
                leg: acknowledged([each.streams for each in seen], port) if seen else run.sent[leg]
                for leg, port in zip(LEGS, ports, strict=True)
            }
        if tiny:
            self._keep_sequences(run, seen)
        return list(_rows(load, "tiny ring" if tiny else mode, number, run, seen))

    @contextlib.contextmanager
    def _loaded(self, load: Load) -> Iterator[tuple[Callable[[Running], _Run], Running, list[int]]]:
        """Server and forwarder up; gives what performs the load, and the ports of both legs."""
        port = self.stand.free_port()
        host = self.stand.topology.server_address
        count = self.settings.connections
        if load.payload:
            words = ("receive", host, str(port), "--connections", str(count))
            command = python_command("bench.capture.traffic", *words)
        else:
            command = server_command(port)
        receiver = Program(
            command, self.stand.run, self.stand.directory / "receiver.log",
            place=self.stand.topology.server, pipe=bool(load.payload),
        )  # fmt: skip
        try:
            receiver.wait_listening(port)
            with self.stand.subject(self.subject, port) as running:

                def perform(running: Running) -> _Run:
                    return self._send(load, running, receiver) if load.payload else self._iperf(running)

                yield perform, running, [running.port, port]
        finally:
            receiver.stop()

    def _send(self, load: Load, running: Running, receiver: Program) -> _Run:
        settings = self.settings
        command = python_command(
            "bench.capture.traffic", "send", running.host, str(running.port), "--payload", str(load.payload),
            "--connections", str(settings.connections), "--seconds", str(settings.seconds),
        )  # fmt: skip
        with self.stand.client(command) as sender:
            sent = [Sent(**each) for each in json.loads(sender.read_rest())]
        received = [Sent(**each) for each in json.loads(receiver.read_line())]
        if sum(each.bytes for each in sent) != sum(each.bytes for each in received):
            raise BenchError(f"{self.subject.name} did not deliver what it was given")
        return _Run({"client": sent, "upstream": received}, settings.seconds)

    def _iperf(self, running: Running) -> _Run:
        seconds = max(1, round(self.settings.seconds))
        command = client_command(running.host, running.port, seconds, self.settings.connections, False)
        with self.stand.client(command) as program:
            assert program.process.stdout is not None
            transfer = parse_transfer(program.process.stdout.read())
        records = [Sent(0, running.port, 0, transfer.received_bytes)]
        return _Run({"client": records, "upstream": records}, transfer.seconds)

    def _keep_sequences(self, run: _Run, seen: Sequence[Observation]) -> None:
        from bench.capture.judgement import ranges

        for leg in LEGS:
            first = run.sent[leg][0]
            tools = {each.tool: ranges(first, each.streams) for each in seen}
            self.sequences[leg] = {"sent": [(0, first.bytes)], **tools}


def _rows(load: Load, mode: str, number: int, run: _Run, seen: Sequence[Observation]) -> Iterator[Row]:
    for leg in LEGS:
        sent = run.sent[leg]
        total = sum(each.bytes for each in sent)
        if not seen:
            yield Row(load.name, mode, "", leg, number, run.seconds, total)
        both = missed_by_both(sent, seen[0].streams, seen[1].streams) if len(seen) == 2 else None
        for each in seen:
            found = judge(sent, each.streams)
            yield Row(
                load.name, mode, each.tool, leg, number, run.seconds, found.sent, found.captured, found.missed, both,
                found.gaps, found.streams, each.kernel.packets, each.kernel.drops, each.cpu_s, each.ring_bytes,
            )  # fmt: skip
