"""`failover`: four servers, one of which fails under load: what clients see before, while it happens, and after.

Two loads: short connections, 64 at a time, and requests on 64 connections that stay. The server is killed (its port
refuses), frozen (its kernel accepts until the queue is full, and the process says nothing), gone (every packet to and
from it is lost), refused (a firewall resets new connections, those that stand go on), or slowed (it runs for a tenth of
the time). Errors are figures here, and no fault of the sample: a connection that stands when its server is killed
cannot be saved. Short connections and requests that were answered, but late, are counted, too.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.extension import native
from bench.histogram import count_above, percentiles_us
from bench.meter import run_client
from bench.results import Sample, SubjectInfo
from bench.stand import FarEnd, Running, Stand
from bench.subjects import Subject, choose_from
from bench.subjects.failover import failover_subjects
from bench.tools import need

__all__ = ["FAULTS", "PHASES", "SLOW_S", "Failover"]

SERVERS = 4
AT_ONCE = 64
FAULTS = ("killed", "frozen", "gone", "refused", "slowed")
PHASES = ("before", "during", "after")
LOADS = {"connect/close": "short", "round trips": "exchange"}
_FAULT_AFTER_S = 0.2
"""Of the beginning of the load in which it happens."""
_RUN_S, _REST_S = 0.01, 0.09
"""Of a server that is slowed."""
SLOW_S = 0.25
"""An answer that takes longer is a slow one: a client has waited for a server that says nothing."""
_WARM_UP_S = 0.1
_OVERHEAD_S = 4.5
"""The client's start and end, and its patience with a server that is silent."""


class Failover(Experiment):
    name = "failover"
    subjects = quick_subjects = ("oinetd", "peer")
    rounds, quick_rounds = 6, 1
    seconds, quick_seconds = 10.0, 1.0
    warm_up_s = 0.0

    def prepare(self) -> None:
        native()
        need("nft")

    def chosen(self) -> list[Subject]:
        names = self.options.subjects or list(self.subjects)
        return choose_from(failover_subjects(), names)

    def cases(self) -> list[Case]:
        return [
            Case(f"{fault}, {load}", 3 * (self.seconds_each + _WARM_UP_S) + _OVERHEAD_S, {"fault": fault, "what": what})
            for fault in FAULTS
            for load, what in LOADS.items()
        ]

    def check(self, stand: Stand, subject: Subject, figures: SubjectInfo) -> None:
        """Each server of a group would have to be one that checks: the other experiments do that."""

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        if stand.topology.name == "loopback":
            raise BenchError("a server that a firewall refuses needs a namespace: --topology netns")
        self._port = stand.free_port()
        yield (self._port,)  # of no server: each case has servers of its own

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        """Servers and forwarder are made for this case alone, so that it begins with all of them well."""
        what = case.parameters["what"]
        values: dict[str, float | None] = {}
        detail: dict[str, object] = {}
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(stand.far_end()) for _ in range(SERVERS)]
            fresh = stack.enter_context(stand.subject(running.subject, *(server.port for server in servers)))
            fault = stack.enter_context(Fault(case.parameters["fault"], stand, servers[0]))
            detail["configuration"] = fresh.configuration
            for phase in PHASES:
                figures, _ = run_client(
                    stand, fresh, what, connections=AT_ONCE, threads=stand.cores.loads, seconds=self.seconds_each,
                    warm_up=_WARM_UP_S, on_go=fault.begin if phase == "during" else lambda: None,
                )  # fmt: skip
                errors = figures["failures"] if what == "short" else len(figures["faults"])
                values[f"{phase}_errors"] = float(errors)
                values[f"{phase}_per_second"] = figures["operations"] / figures["elapsed_s"]
                values[f"{phase}_slow"] = float(count_above(figures["histogram"], SLOW_S))
                for name, value in percentiles_us(figures["histogram"]).items():
                    values[f"{phase}_{name}"] = value
                detail[f"{phase}_faults"] = figures["faults"]
        return Sample("", case.name, 0, values, detail=detail)


class Fault(contextlib.AbstractContextManager["Fault"]):
    """What happens to one server; undone at the end."""

    def __init__(self, kind: str, stand: Stand, server: FarEnd) -> None:
        self.kind, self.stand, self.server = kind, stand, server
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Soon, in a thread of its own, while the load runs."""
        act: dict[str, Callable[[], None]] = {
            "killed": self._kill, "frozen": self._freeze, "gone": self._lose, "refused": self._refuse,
            "slowed": self._slow,
        }  # fmt: skip

        def run() -> None:
            self._over.wait(_FAULT_AFTER_S)
            act[self.kind]()

        self._thread = threading.Thread(target=run, name="bench-fault")
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self.kind in ("frozen", "slowed"):
            self._signal("CONT")

    def _signal(self, name: str) -> None:
        subprocess.run(["kill", f"-{name}", str(self.server.program.pid)], check=False, capture_output=True)

    def _kill(self) -> None:
        self._signal("KILL")

    def _freeze(self) -> None:
        self._signal("STOP")

    def _lose(self) -> None:
        port = self.server.port
        self._firewall(f"tcp dport {port} drop;", f"tcp sport {port} drop;")

    def _refuse(self) -> None:
        self._firewall(f"tcp dport {self.server.port} tcp flags & (syn | ack) == syn reject with tcp reset;")

    def _firewall(self, comes_in: str, goes_out: str = "") -> None:
        """Rules of the server's namespace, which has no later case with this port."""
        rules = (
            f"table ip bench_fault {{ chain in {{ type filter hook input priority 0; {comes_in} }}; "
            f"chain out {{ type filter hook output priority 0; {goes_out} }}; }}"
        )
        words = self.stand.topology.server.enter([need("nft"), "-f", "-"])
        subprocess.run(words, input=rules, text=True, check=True, capture_output=True)

    def _slow(self) -> None:
        while not self._over.is_set():
            self._signal("STOP")
            time.sleep(_REST_S)
            self._signal("CONT")
            time.sleep(_RUN_S)
