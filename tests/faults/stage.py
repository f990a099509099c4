"""Where a run takes place: the daemon, its servers, its name server and its log, all in a namespace of their own."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from oinetd.admin.client import Client, NoInstance
from tests.daemon.name_server import NameServer
from tests.daemon.process import ROOT
from tests.faults.adopted import Adopted
from tests.faults.control import Control
from tests.faults.daemon import LEAK, MOVES
from tests.faults.memory import Memory
from tests.faults.ways import FAR, MARK, PLAIN, configuration

__all__ = ["Stage"]

PATIENCE_S = 300.0
"""Of one step; a run may have the least of a busy machine."""
EX_CONFIG = 78
SERVERS = (sys.executable, "-m", "tests.faults.upstream")
SETTINGS = """\
logfile {log}
logformat json
admin unix:{admin}
connect-timeout 3s
write-stall-timeout 20s
keepalive 2:1:8
threads 2
"""
"""Keep-alive is quick: a client's reset that is lost with `packets_are_lost` is not sent again."""
NAME = "flip.test"

COMMAND = """\
#!/bin/sh
{enter}
cd {root} && exec env {settings} {python} -m tests.faults.daemon "$@"
"""

FAR_COMMANDS = f"""\
ip netns add far
ip link add near type veth peer name there netns far
ip address add 10.99.0.1/24 dev near
ip address add 10.99.0.3/24 dev near
ip link set near up
ip -n far address add {FAR[0]}/24 dev there
ip -n far link set there up
ip -n far link set lo up
"""
"""Another machine with a server."""
REDIRECT = f"""\
table ip way {{
    chain output {{
        type nat hook output priority -100
        ip daddr {FAR[0]} tcp dport {FAR[1]} meta mark != {MARK} redirect to :7015
    }}
}}
"""
"""Clients of the other machine come to oinetd; oinetd's own connections, which have the mark, go there. They have an
address of their own, so that none has the addresses and ports of a client before, which conntrack still knows."""
MOVE_TURNS = (0, 2, 20, 200)
"""After so many turns a connection changes its reactor; each process of oinetd has one of these."""


class Stage:
    """The processes of a run; `folder` is on a file system of its own, which can be full, `folder/apart` on another."""

    def __init__(self, folder: Path, seed: int = 0, *, leak: str = "") -> None:
        self.folder = folder
        self.control = Control(folder, seed) if Control.possible() else None
        self.memory = Memory(folder.name) if Memory.possible() else None
        self.command = folder / "oinetd"
        self.moves = folder / "apart" / "moves"
        self._turns = random.Random(seed)
        self._write_command(leak)
        self.conf, self.log, self.admin = folder / "faults.conf", folder / "log", folder / "faults.sock"
        self.found, self.said = folder / "apart" / "found", folder / "said"
        self.names = NameServer()
        self.names.zone[NAME] = ["127.0.0.2"]
        self.variant = 0
        self.kills = 0
        """The kernel ends the connections of a killed process with a FIN, in the middle of everything."""
        self._killing = 0
        self.upstream: subprocess.Popen[bytes]
        self.far: subprocess.Popen[bytes]
        self.daemon: subprocess.Popen[bytes] | Adopted
        self.old: list[subprocess.Popen[bytes] | Adopted] = []
        """Processes that were replaced and may still have sessions."""
        self.stayed = 0
        """Sessions that were left to them."""
        self.left = 0
        """The same, ever: they are reset when the time to drain is over."""
        self.killed = 0
        """How often an operator has ended sessions."""
        self.upgrades = 0
        self._changes = threading.Lock()

    def open(self) -> None:
        """Start the servers, then oinetd."""
        self.upstream = self._start_upstream()
        run("sh", "-ec", FAR_COMMANDS)
        words = [*SERVERS, str(self.found)]
        self.far = subprocess.Popen(
            ["nsenter", "--net=/run/netns/far", *words], cwd=ROOT, stdin=subprocess.DEVNULL, env=with_sbin()
        )
        until(lambda: f":{FAR[1]} " in run("ip", "netns", "exec", "far", "ss", "-Hltn"), "the server of the other one")
        run("sh", "-c", f"echo '{REDIRECT}' | nft -f -")
        self.write_servers(("127.0.0.3",))
        self.write()
        self.daemon = self._start_daemon()

    def write(self, extra: str = "") -> None:
        """Write a configuration; each is a little different from the last one."""
        self.variant += 1
        text = SETTINGS.format(log=self.log, admin=self.admin) + configuration(self.variant, self.folder) + extra
        part = self.conf.with_suffix(".new")
        part.write_text(text)
        part.rename(self.conf)

    def write_servers(self, hosts: Sequence[str], extra: str = "") -> None:
        """Write the file of servers that oinetd watches."""
        part = self.folder / "web.part"
        part.write_text("".join(f"{host} {PLAIN} [max-connections=2]\n" for host in hosts) + extra)
        part.chmod(0o644)
        part.rename(self.folder / "web.servers")

    def _start_upstream(self) -> subprocess.Popen[bytes]:
        words = [*SERVERS, str(self.found), str(self.folder / "apart")]
        process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL)
        until(lambda: "/back.sock " in run("ss", "-Hlx"), "the servers")
        return process

    def _write_command(self, leak: str) -> None:
        """What starts the daemon, also in an upgrade, which keeps nothing of an environment that changes programs."""
        settings = f"PYTHONPATH='{ROOT}' {MOVES}='{self.moves}' {LEAK}='{leak}'"
        text = COMMAND.format(
            enter=self.memory.words if self.memory is not None else ":",
            root=ROOT,
            settings=f"{settings} {self.control.words if self.control is not None else ''}",
            python=sys.executable,
        )
        self.command.write_text(text)
        self.command.chmod(0o755)

    def _choose_moves(self) -> None:
        self.moves.write_text(str(self._turns.choice(MOVE_TURNS)))

    def _start_daemon(self) -> subprocess.Popen[bytes]:
        with self.memory.plenty() if self.memory is not None else contextlib.nullcontext():
            return self._started_daemon()

    def _started_daemon(self) -> subprocess.Popen[bytes]:
        self._choose_moves()
        with self.said.open("ab") as said:
            process = subprocess.Popen(
                [self.command, "-f", "-c", self.conf], stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        until(lambda: process.poll() is not None or self._ready(), "oinetd")
        if process.returncode == EX_CONFIG:  # a bad one, or a bad file of servers, was written a moment ago
            with contextlib.suppress(OSError):  # the disk may be full
                self.write()
                self.write_servers(("127.0.0.3",))
            time.sleep(0.1)
            return self._started_daemon()
        assert process.poll() is None, self.said.read_text()[-2000:]
        return process

    def _ready(self) -> bool:
        with contextlib.suppress(NoInstance):
            return Client(str(self.admin)).get("/v1/health").status == 200
        return False

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command that asks the daemon."""
        return subprocess.run(
            [sys.executable, "-m", "oinetd", *words, "--admin", str(self.admin)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """The overview that the daemon gives."""
        return self._told("status")

    def rules(self) -> list[dict[str, Any]]:
        """What the daemon says of each rule."""
        found: list[dict[str, Any]] = self._told("rules")["rules"]
        return found

    def servers(self) -> list[dict[str, Any]]:
        """What the daemon says of each server of each group."""
        return [server for group in self._told("servers")["groups"] for server in group["servers"]]

    def _told(self, what: str) -> dict[str, Any]:
        answer = Client(str(self.admin)).get(f"/v1/{what}")
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.value
        return found

    @property
    def troubles(self) -> int:
        """How often oinetd has had a reason of its own to reset connections that its clients have done with."""
        failed = self.control.failed if self.control is not None else 0
        return self.left + self.killed + failed + (self.memory.refused if self.memory is not None else 0)

    def begin_log(self) -> None:
        """Have the daemon begin another log; no session lives."""
        self.log.unlink()
        self.daemon.send_signal(signal.SIGUSR1)
        until(self.log.exists, "another log")

    def kill_sessions(self, older: str) -> None:
        """End all sessions that are older than that, as an operator."""
        self.killed += 1
        self.ask("kill", "--older", older)

    def restart_upstream(self) -> None:
        """Kill the servers, and start them again."""
        with self._death():
            self.upstream.kill()
            self.upstream.wait()
            self.upstream = self._start_upstream()

    @contextlib.contextmanager
    def _death(self) -> Iterator[None]:
        self._killing += 1
        self.kills += 1
        try:
            yield
        finally:
            self.kills += 1
            self._killing -= 1

    def deaths(self) -> int:
        """A number that is another one if a process has died since it was asked for, or was dying then."""
        self.kills += bool(self._killing)
        return self.kills

    def restart_daemon(self, number: int) -> None:
        """End the daemon with this signal, also in the middle of an upgrade, and start it again with a new log."""
        with self._death():
            self.daemon.send_signal(number)
            with self._changes:
                self.daemon.wait(PATIENCE_S)
                self._end_others()
                with contextlib.suppress(FileNotFoundError):
                    self.admin.unlink()
                self.log.unlink(missing_ok=True)
                self.daemon = self._start_daemon()
                self.stayed = 0

    def upgrade(self) -> None:
        """Let another process take over, if it can: not while the daemon starts or is short of something."""
        if not self._changes.acquire(blocking=False):
            return
        try:
            self._choose_moves()
            answer = self.ask("upgrade", "--to", str(self.command))
            done = re.search(r"process (\d+) serves; \d+ sessions? moved, (\d+) stay", answer.stdout)
            if answer.returncode == 0 and done is not None:
                self.old.append(self.daemon)
                self.stayed += int(done[2])
                self.left += int(done[2])
                self.upgrades += 1
                with contextlib.suppress(ProcessLookupError):  # it was killed
                    self.daemon = Adopted(int(done[1]))
        finally:
            self._changes.release()

    def _end_others(self) -> None:
        """End what upgrades have left: old processes, and new ones that had not told yet."""
        for process in self.old:
            process.kill()
            process.wait()
        self.old.clear()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.conf) in (entry / "cmdline").read_text():
                    found = Adopted(int(entry.name))
                    found.kill()
                    found.wait()

    def _started(self) -> list[subprocess.Popen[bytes] | Adopted]:
        """What has been started so far."""
        return [getattr(self, name) for name in ("daemon", "upstream", "far") if hasattr(self, name)]

    def close(self) -> None:
        """End everything."""
        run("nft", "flush", "ruleset")
        for process in (*self._started(), *self.old):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.names.close()


def run(*words: str) -> str:
    """What a command prints."""
    done = subprocess.run(words, capture_output=True, text=True, env=with_sbin(), timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def with_sbin() -> dict[str, str]:
    """The environment, in which the programs of root are found."""
    return {**os.environ, "PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ['PATH']}"}


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for `condition()` to be true."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)
