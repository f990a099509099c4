"""The new process of an upgrade, which is not a child of the old one.

A shell starts it in the background and ends at once, so that whoever adopts orphans is its parent: the service manager.
systemd hears of the end of its children alone; it would not start a main process again of which it never heard that it
has crashed, and where it cannot ask the control group (a container) a stop would kill it without asking first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Offspring"]

SHELL: Final = "/bin/sh"
LAUNCH: Final = '"$@" </dev/null & echo $! >&0'
"""Standard input is the pipe that the number goes to: the new process has the other standard streams."""
LOOK_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Offspring:
    """A process that was started by `start`."""

    pid: int

    @classmethod
    def start(cls, command: Sequence[str], environment: Mapping[str, str], fds: Sequence[int]) -> Offspring:
        """Start the command in the root directory, with these descriptors. Raises `OSError`."""
        if not os.path.exists(SHELL):  # as in an image that has no service manager, either
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds, env=environment, cwd="/")
            child.returncode = 0  # nobody waits for it
            return cls(child.pid)
        reads, writes = os.pipe()
        with open(reads, encoding="ascii") as answer:
            try:
                words = [SHELL, "-c", LAUNCH, "sh", *command]
                subprocess.run(words, stdin=writes, pass_fds=fds, env=environment, cwd="/", check=False)
            finally:
                os.close(writes)
            said = answer.read()
        if not said:
            raise OSError(f"{SHELL} does not start {command[0]}")
        return cls(int(said))

    def lives(self) -> bool:
        """Whether it runs: not one that has ended and that its parent has not asked about yet."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] not in "ZX"

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; whether it has."""
        end = time.monotonic() + timeout_s
        while self.lives():
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_S)
        return True

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
