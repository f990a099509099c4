"""The daemon as a real process, and the parties around it: an upstream, a client, a service manager."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

ROOT: Final = Path(__file__).parents[2]

PATIENCE_S: Final = 30.0
"""Bounds a test that has failed; nothing waits this long otherwise."""

PR_SET_CHILD_SUBREAPER: Final = 36

COMMAND: Final = (sys.executable, "-m", "oinetd")

T = TypeVar("T")

_numbers = itertools.count(1)

_places = tempfile.TemporaryDirectory(prefix="oinetd-")


def until(condition: Callable[[], T], what: str) -> T:
    """Wait for `condition()` to be true, and answer it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.003)
    return value


def text_of(path: Path) -> str:
    """What is in the file, nothing where there is none yet."""
    return path.read_text() if path.exists() else ""


def own_address() -> str:
    """A loopback address that no other test of this machine uses, so that any port of it is free."""
    number, pid = next(_numbers), os.getpid()
    return f"127.{1 + pid // 250 % 250}.{1 + pid % 250}.{1 + number % 250}"


class Manager:
    """The service manager's end of the notify protocol."""

    def __init__(self, address: str = "") -> None:
        self.address = address or f"@oinetd-test-{os.getpid()}-{next(_numbers)}"
        self.notices: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1))
        self._socket.setblocking(False)

    def read(self) -> list[str]:
        """All that came so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.notices.append(self._socket.recv(65536).decode())
        return self.notices

    def count(self, line: str) -> int:
        """How many notices have `line` among theirs."""
        return sum(line in notice.split("\n") for notice in self.read())

    def close(self) -> None:
        self._socket.close()


class Oinetd:
    """oinetd in the foreground, serving `text`; `ready` waits until the service manager hears of it."""

    def __init__(
        self,
        folder: Path,
        text: str,
        *words: str,
        environ: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        pass_fds: tuple[int, ...] = (),
        command: tuple[str, ...] = COMMAND,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.conf = folder / "oinetd.conf"
        self.conf.write_text(text)
        self.manager = Manager()
        self._said = folder / f"stderr-{next(_numbers)}"
        self._out = folder / f"stdout-{next(_numbers)}"
        with self._said.open("wb") as said, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, *(arguments or ("-f", "-c", str(self.conf))), *words],
                cwd=folder,
                env=surroundings(**{"NOTIFY_SOCKET": self.manager.address, **(environ or {})}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=said,
                start_new_session=True,
                preexec_fn=before,
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        """Its messages so far."""
        return self._said.read_text()

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return self._out.read_text()

    def wait_said(self, pattern: str) -> re.Match[str]:
        """Wait until its messages contain `pattern`."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.said)
            assert match or self.process.poll() is None, f"ended without saying {pattern!r}:\n{self.said}"
            return match

        match = until(found, f"{pattern!r} in its messages")
        assert match is not None
        return match

    def ready(self) -> Oinetd:
        """Wait until it serves."""
        until(lambda: self.manager.count("READY=1") or self.process.poll() is not None, "its readiness")
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said}"
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Where its first rule listens."""
        self.wait_said("listening on .*,")  # its messages are on their way when it is ready
        return self.addresses[0]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it said it listens, in order."""
        found = re.findall(r"listening on \[?([0-9a-f.:]+?)\]?:(\d+)(?:/udp)?,", self.said)
        return [(host, int(port)) for host, port in found]

    def reload(self, text: str | None = None) -> str:
        """Change the configuration, tell it, and wait until it is done; returns the new messages."""
        if text is not None:
            self.conf.write_text(text)
        before, readies = len(self.said), self.manager.count("READY=1")
        self.signal(signal.SIGHUP)
        until(lambda: self.manager.count("READY=1") > readies, "the end of the reload")
        self.wait_said(r"reloaded|reload failed")
        until(lambda: re.search("reloaded|reload failed", self.said[before:]), "the message of the reload")
        return self.said[before:]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """End it by force where it still runs, and see that it left no process behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.manager.close()
        with contextlib.suppress(ChildProcessError):  # those that have ended and were left to us
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError("it left processes behind")


def surroundings(**more: str) -> dict[str, str]:
    """An environment without what a service manager may have said to the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LISTEN_", "WATCHDOG_"))}
    for name in ("NOTIFY_SOCKET", "JOURNAL_STREAM", "INVOCATION_ID"):
        kept.pop(name, None)
    # Each process has its admin socket in a directory of its own, so that no two of this machine have the same name.
    return {**kept, "PYTHONPATH": str(ROOT), "RUNTIME_DIRECTORY": f"{_places.name}/{next(_numbers)}", **more}


def through(code: str) -> tuple[str, ...]:
    """oinetd as a command, started by a program that does `code` first."""
    prelude = "import os, resource, signal, sys\n"
    return (sys.executable, "-c", f"{prelude}{code}\nos.execv(sys.argv[1], sys.argv[1:])", *COMMAND)


def call(
    folder: Path, *words: str, command: tuple[str, ...] = COMMAND, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run oinetd to its end."""
    return subprocess.run(
        [*command, *words],
        cwd=folder,
        env=surroundings(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Orphans of our children become our children, as if we were process 1; at the end all of them have ended."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        until(_no_children, "the end of all children")
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _no_children() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


class EchoServer:
    """An upstream that gives everything back until the FIN; a thread for each connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.host, self.port = self._listener.getsockname()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                connection.sendall(piece)

    def close(self) -> None:
        """Wait for all its connections to end, too."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(PATIENCE_S)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)


class Client:
    """A blocking client with a deadline."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, PATIENCE_S)

    def echo(self, data: bytes) -> bytes:
        """Send `data`, and read as many bytes."""
        self.sock.sendall(data)
        return self.read(len(data))

    def read(self, count: int) -> bytes:
        got = b""
        while len(got) < count and (piece := self.sock.recv(count - len(got))):
            got += piece
        return got

    def ended(self) -> bool:
        """Wait for the end of the connection; whether it was a FIN (False: a reset)."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return False

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Background:
    """oinetd as a daemon; its parent's end is in `answer`. Needs `subreaper`, so that it can be waited for."""

    def __init__(self, folder: Path, text: str, *words: str, command: tuple[str, ...] = COMMAND, **more: str) -> None:
        self.conf, self.pid_file = folder / "oinetd.conf", folder / "pid"
        self.conf.write_text(f"pidlogfile {self.pid_file}\n{text}")
        self.answer = call(folder, "-c", self.conf.name, *words, command=command, **more)
        self._pid = int(self.pid_file.read_text()) if self.pid_file.exists() else 0

    @property
    def pid(self) -> int:
        assert self._pid, f"no daemon: exit code {self.answer.returncode}, {self.answer.stderr}"
        return self._pid

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens, as the kernel has it; a daemon has nowhere to say it."""
        return listening(self.pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal that ends it; its exit code, negative for the signal that killed it."""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""

        def ended() -> bool:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status)
            return pid != 0

        until(ended, "its end")
        self._pid = 0
        return self._code

    def close(self) -> None:
        """End it by force where it still runs."""
        if self._pid:
            self.stop(signal.SIGKILL)


def listening(pid: int) -> list[tuple[str, int]]:
    """The IPv4 addresses on which the process listens, in the order of its descriptors."""
    table = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            host, port = fields[1].split(":")
            table[f"socket:[{fields[9]}]"] = (socket.inet_ntoa(bytes.fromhex(host)[::-1]), int(port, 16))
    links = (os.readlink(entry) for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name)))
    return [table[link] for link in links if link in table]
