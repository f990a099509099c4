"""The old process of an upgrade: starts the new one, and hands it listeners, files and sessions."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

from oinetd.core.lane import Departing
from oinetd.errors import OinetdError
from oinetd.lanes.moves import Moves
from oinetd.net.unix_sockets import UnixListener
from oinetd.upgrade.channel import Channel, ChannelClosed
from oinetd.upgrade.frames import VERSION, BadFrame, Frame
from oinetd.upgrade.offspring import Offspring
from oinetd.upgrade.thread import UpgradeThread

__all__ = ["ENVIRONMENT", "Giver", "Report", "UpgradeFailed", "child_environment", "is_trusted"]

ENVIRONMENT: Final = "OINETD_UPGRADE"
"""The environment variable that has the number of the new process's end of the channel."""

SESSIONS_A_FRAME: Final = 100
"""Two descriptors each, of at most 250: one frame is in flight, and its sessions pause that long."""
DATAGRAM_SESSIONS_A_FRAME: Final = 200
"""One descriptor each."""
PENDING_A_FRAME: Final = 8 << 20
LISTENERS_A_FRAME: Final = 200
LOOK_S: Final = 0.01
"""Time between two looks for sessions that were still connecting."""
KILL_WAIT_S: Final = 2.0
END_WAIT_S: Final = 0.5
"""From when a process has closed its channel until it has ended, if it does."""
EX_TEMPFAIL: Final = 75

logger = logging.getLogger("oinetd")


class UpgradeFailed(OinetdError):
    """The new process did not take over, and this one serves as before. `code` is an exit code of sysexits.h."""

    def __init__(self, message: str, code: int = EX_TEMPFAIL) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Report:
    """What an upgrade did: the new process, and how many sessions moved and stay; `moving_s` is how long these took of
    all the time.

    Of those that stay the new process has `declined` some: it has no rule or server for them, or another version. The
    others were not connected yet, or were about to end.
    """

    pid: int
    moved: int
    staying: int
    duration_s: float
    declined: int = 0
    moving_s: float = 0.0
    dry_run: bool = False


@dataclass(slots=True)
class Giver:
    """One upgrade by `command`. `files` are descriptors with a name each; `facts` go along with them.

    `patience_s` is how long the new process may say nothing, `connect_s` how long a session that is connecting is
    waited for. `settle` is called in a thread before sessions are sent, and writes what was logged of them.
    `inherited` are sockets that the service manager holds. The new process is started within `rights`, in a thread.
    """

    moves: Moves
    command: Sequence[str]
    environment: Mapping[str, str]
    files: Mapping[str, int]
    facts: Mapping[str, Any]
    patience_s: float | None
    connect_s: float
    settle: Callable[[], object] = lambda: None
    inherited: Sequence[socket.socket] = ()
    rights: Callable[[], AbstractContextManager[None]] = nullcontext
    ready: bool = False
    _channel: Channel | None = None
    _thread: UpgradeThread = field(init=False)
    _process: Offspring | None = None
    _out: list[Departing] = field(default_factory=list)
    _declined: list[Departing] = field(default_factory=list)

    async def run(
        self,
        *,
        dry_run: bool = False,
        last: Callable[[], Mapping[str, Any]] = dict,
        late: Callable[[], Mapping[str, Any]] = dict,
        done: Callable[[int], object] = lambda pid: None,
    ) -> Report:
        """Hand everything over, at the end what `last` says; `done` gets the new pid before that process may go on.

        `late` says again what may have come while the new process took that in.
        Raises `UpgradeFailed`, and then this process serves as before.
        """
        began = time.monotonic()
        paused = False
        try:
            self._thread = await UpgradeThread.start()
        except OSError as error:
            raise UpgradeFailed(error.strerror or str(error)) from None
        try:
            await self._start()
            await self._receive("ready")
            self.ready = True
            assert self._process is not None
            if dry_run:
                would_move = await self._count_movable()
                await self._send(Frame("stop", {}))
                await self._thread.call(self._end_process)
                staying = self.moves.staying - would_move
                return Report(0, would_move, staying, time.monotonic() - began, dry_run=True)
            paused = True
            paused_at = time.monotonic()
            self.moves.pause()
            await self._send(Frame("go", {"next_id": self.moves.id_for_another()}))
            moved = await self._hand_over() + await self._hand_over_datagrams()
            declined = len(self._declined)
            self._put_back(self._declined)
            staying = self.moves.staying  # what these do from now on is counted here alone
            counters = self.moves.counters()
            await self._send(Frame("finish", {"counters": counters, **last()}))
            await self._receive("done")
            done(self._process.pid)
            self._send_late(counters["killed"], late())
            now = time.monotonic()
            return Report(self._process.pid, moved, staying, now - began, declined, now - paused_at)
        except (ChannelClosed, BadFrame, OSError) as error:
            why = await self._why(error)
            await self._give_up(paused)
            raise UpgradeFailed(f"the new process failed: {why}") from None
        except BaseException:
            await self._give_up(paused)
            raise
        finally:
            if self._channel is not None:
                self._channel.close()
            self._thread.close()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours, self.patience_s)
        with theirs:
            environment = {**self.environment, ENVIRONMENT: str(theirs.fileno())}
            starting = asyncio.ensure_future(self._thread.call(self._start_process, environment, theirs.fileno()))
            try:
                self._process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                self._process = await starting  # it cannot be called back, and is not to be left alone
                raise
        files = dict(self.files)
        await self._send(
            Frame("hello", {"version": VERSION, "files": list(files), **self.facts}, descriptors=tuple(files.values()))
        )
        parts = [
            (passed, socks[at : at + LISTENERS_A_FRAME])
            for passed, socks in ((False, self.moves.sockets()), (True, list(self.inherited)))
            for at in range(0, len(socks), LISTENERS_A_FRAME)
        ]
        for number, (passed, part) in enumerate(parts or [(False, [])], 1):
            owned = [at for at, sock in enumerate(part) if isinstance(sock, UnixListener) and sock.path]
            document = {"more": number < len(parts), "inherited": passed, "owned": owned}
            await self._send(Frame("listeners", document, descriptors=tuple(sock.fileno() for sock in part)))

    def _start_process(self, environment: Mapping[str, str], channel: int) -> Offspring:
        with self.rights():
            return Offspring.start(self.command, environment, (channel,))

    def _send_late(self, told: Sequence[int], signals: Mapping[str, Any]) -> None:
        """The new process serves: pass on what came after the last frame. It does not await, so nothing more comes."""
        assert self._channel is not None
        try:
            self._channel.send(Frame("late", {"killed": self.moves.killed_late(told), **signals}))
        except ChannelClosed as error:
            logger.warning("upgrade: the new process has not heard of late commands: %s", error)

    async def _send(self, frame: Frame) -> None:
        assert self._channel is not None
        await self._thread.call(self._channel.send, frame)

    async def _receive(self, kind: str) -> Frame:
        """The next frame, which has to be of this kind. Raises `UpgradeFailed` if the new process says why it ends."""
        assert self._channel is not None
        frame = await self._thread.call(self._channel.receive)
        if frame.kind == "failed":
            raise UpgradeFailed(str(frame.document.get("message", "")), int(frame.document.get("code", EX_TEMPFAIL)))
        if frame.kind != kind:
            raise BadFrame(f"{kind} was expected, not {frame.kind[:32]}")
        return frame

    async def _hand_over(self) -> int:
        """Move sessions until none can move any more; how many those were."""
        deadline = time.monotonic() + self.connect_s
        total = 0
        while True:
            self._out, left = self.moves.take_out(SESSIONS_A_FRAME)
            if self._out:
                total += await self._move(self._out)
            elif not left or time.monotonic() >= deadline:
                return total
            else:
                await asyncio.sleep(LOOK_S)

    async def _hand_over_datagrams(self) -> int:
        """The same for UDP sessions, whose sockets are not read any more."""
        total = 0
        while True:
            self._out = self.moves.take_out_datagrams(DATAGRAM_SESSIONS_A_FRAME)
            if not self._out:
                return total
            total += await self._move(self._out)

    def _put_back(self, departing: list[Departing]) -> None:
        while departing:
            self.moves.put_back(departing.pop(0))

    async def _move(self, departing: list[Departing]) -> int:
        """Send sessions until the list is empty; how many of them the new process has taken."""
        moved = 0
        await self._thread.call(self.settle)
        while departing:
            states: list[dict[str, Any]] = []
            descriptors: list[int] = []
            parts: list[bytes] = []
            size = 0
            for each in departing:
                state, pending = each.state(), each.pending
                if size and size + sum(map(len, pending)) > PENDING_A_FRAME:
                    break
                size += sum(map(len, pending))
                states.append({**state, "pending": [len(part) for part in pending], "fds": len(each.descriptors)})
                descriptors += each.descriptors
                parts += pending
            await self._send(Frame("sessions", {"sessions": states}, b"".join(parts), tuple(descriptors)))
            answer = await self._receive("taken")
            taken = set(answer.document.get("ids", ()))
            for state in states:
                each = departing.pop(0)
                if state["id"] in taken:
                    each.release()
                    moved += 1
                else:
                    self._declined.append(each)
        return moved

    async def _count_movable(self) -> int:
        """How many sessions would move: each is out for a moment."""
        departing, _ = self.moves.take_out(1 << 20)
        departing += self.moves.take_out_datagrams(1 << 20)
        count = len(departing)
        self._put_back(departing)
        self.moves.resume()
        return count

    async def _why(self, error: Exception) -> str:
        """What to say of an error: a program that cannot run says why itself, where this process has standard error."""
        if self.ready or self._process is None or not isinstance(error, ChannelClosed):
            return str(error)
        ended = await self._thread.call(self._process.wait, END_WAIT_S)
        where = "what it said is on standard error of the running process, which a daemon has not"
        return f"{self.command[0]} ended before it was ready; {where}" if ended else str(error)

    def _end_process(self) -> None:
        """Wait until the new process has ended."""
        assert self._process is not None
        if not self._process.wait(KILL_WAIT_S):
            self._process.kill()
            self._process.wait(KILL_WAIT_S)

    async def _give_up(self, paused: bool) -> None:
        """The new process has not taken over: what it did not acknowledge goes on here, and this one accepts again."""
        if self._process is not None:
            self._process.kill()
            if self._channel is not None:
                self._channel.close()  # what waits there ends
            await self._thread.call(self._process.wait, KILL_WAIT_S)
        self._put_back(self._out)
        self._put_back(self._declined)
        if paused:
            self.moves.resume()


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the new process: nothing that changes what the interpreter or the linker loads."""
    return {name: value for name, value in environ.items() if not name.startswith(("PYTHON", "LD_"))}


def is_trusted(path: str, uid: int) -> str:
    """Why a program may not be started in an upgrade; empty if it may.

    It and the directories above it belong to root or to `uid`, and nobody else can write to them.
    """
    if not os.path.isabs(path):
        return "is not an absolute path"
    part = os.path.realpath(path)
    try:
        if not os.path.isfile(part):
            return "is not a file" if os.path.exists(part) else "there is no such file"
        if not os.access(part, os.X_OK):
            return "cannot be executed"
        while True:
            found = os.stat(part)
            if found.st_uid not in (0, uid):
                return f"{part} belongs to user {found.st_uid}, and must belong to root or to the user of the daemon"
            sticky = os.path.isdir(part) and found.st_mode & 0o1000
            if found.st_mode & 0o022 and not sticky:
                return f"other users can write to {part}, and could replace the program (chmod go-w)"
            if part == "/":
                return ""
            part = os.path.dirname(part)
    except OSError as error:
        return f"{error.strerror}"
