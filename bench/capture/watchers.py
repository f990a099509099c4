"""The two captures as processes beside a forwarder: started, ready, ended, and what they have seen at what cost."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.account import Account
from bench.capture.ring import KernelCount
from bench.capture.sniffer import SNAPLEN, sniffer_arguments
from bench.capture.streams import Stream
from bench.capture.tcpdump import LISTENING, parse_counts, read_pcap, tcpdump_command
from bench.cgroup import Group
from bench.programs import Place, Program, python_command, wait_until
from bench.stand import Stand

__all__ = ["Observation", "Watcher", "watching"]

START_PATIENCE_S = 10.0
END_PATIENCE_S = 60.0
TCPDUMP_BLOCK_S = 1.2
"""tcpdump reads with a timeout of a second."""


@dataclass
class Observation:
    """What one capture has seen. `cpu_s` is its own processor time, from ready to ended."""

    tool: str
    streams: list[Stream]
    kernel: KernelCount
    cpu_s: float
    ring_bytes: int


@dataclass
class Watcher:
    """A capture at work; `observation` is there when the block of `watching` is left."""

    tool: str
    program: Program
    account: Account
    ring_bytes: int
    pcap: Path
    cpu_begin_s: float = 0.0
    observation: Observation | None = None

    def wait_ready(self) -> None:
        if self.tool == "ring":
            self.program.read_line()
        else:
            log = self.program.log
            wait_until(lambda: LISTENING in log.read_text() or not self.program.running, START_PATIENCE_S, "tcpdump")
        self.cpu_begin_s = self.account.cpu_times().total_s

    def finish(self) -> None:
        process = self.program.process
        if self.tool == "tcpdump":
            # Told to end, it leaves what the kernel has not handed over yet; that may take as long as its timeout.
            time.sleep(TCPDUMP_BLOCK_S)
        before_s = self.account.cpu_times().total_s
        process.send_signal(signal.SIGTERM)
        said = process.stdout.read() if process.stdout is not None else ""
        process.wait(END_PATIENCE_S)
        # With a control group, what it used until its very end; without, all but that.
        cpu_s = max(before_s, self.account.cpu_times().total_s) - self.cpu_begin_s
        if self.tool == "tcpdump":
            kernel = parse_counts(self.program.log.read_text())
            self.observation = Observation(self.tool, read_pcap(self.pcap), kernel, cpu_s, self.ring_bytes)
            return
        figures = json.loads(said)
        streams = [Stream.load(stream) for stream in figures["streams"]]
        kernel = KernelCount(**figures["kernel"])
        self.observation = Observation(self.tool, streams, kernel, cpu_s, figures["ring_bytes"])


@contextlib.contextmanager
def watching(
    stand: Stand, tool: str, place: Place, ports: list[int], ring_bytes: int, *, block_bytes: int = 0
) -> Iterator[Watcher]:
    """`tool` is `ring` or `tcpdump`; both write a pcap file of the same packets, cut at the same length."""
    with contextlib.ExitStack() as stack:
        group = Group.make(stand.run, tool)
        if group is not None:
            stack.callback(group.close)
        pcap = stand.directory / f"{tool}.pcap"
        stack.callback(pcap.unlink, missing_ok=True)
        if tool == "ring":
            more = {"block_bytes": block_bytes} if block_bytes else {}
            arguments = sniffer_arguments(ports, ring_bytes, pcap=str(pcap), **more)
            command = python_command("bench.capture.sniffer", *arguments)
        else:
            command = tcpdump_command(ports, ring_bytes, SNAPLEN, pcap)
        log = stand.directory / f"{tool}.log"
        log.unlink(missing_ok=True)
        program = Program(
            command, stand.run, log, place=place, groups=group.directories if group else [], pipe=tool == "ring"
        )
        stack.callback(program.stop)
        watcher = Watcher(tool, program, Account(group, lambda: [program.pid]), ring_bytes, pcap)
        watcher.wait_ready()
        yield watcher
        watcher.finish()
