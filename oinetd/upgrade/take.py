"""The new process of an upgrade: takes listeners and files first, says that it is ready, then takes the sessions."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, Self

from oinetd.lanes.moves import Moves
from oinetd.net.passed import passed_listener
from oinetd.net.unix_sockets import UnixListener
from oinetd.upgrade.channel import Channel, ChannelClosed, close_all
from oinetd.upgrade.frames import VERSION, BadFrame, Frame
from oinetd.upgrade.give import ENVIRONMENT
from oinetd.upgrade.thread import UpgradeThread

__all__ = ["GaveUp", "Taker", "refuse"]

PATIENCE_S: Final = 120.0
"""The old process may wait as long as this for sessions that are connecting."""

NOT_UNDERSTOOD: Final = (ValueError, LookupError, TypeError, OverflowError)
"""What comes of reading a document of another version as one of ours."""

logger = logging.getLogger("oinetd")


class GaveUp(Exception):
    """The old process goes on, and this one ends."""


class Taker:
    """The end of the channel that the new process has.

    `sockets` are the listeners, `inherited` those that the service manager holds, `files` descriptors by name, `facts`
    what the old process said besides. `finished` says that everything is this process's.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.sockets: list[socket.socket] = []
        self.inherited: list[socket.socket] = []
        self.files: dict[str, int] = {}
        self.facts: Mapping[str, Any] = {}
        self.finished = False

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Self | None:
        """The taker of this process, if an upgrade has started it. Raises `ChannelClosed` or `BadFrame`."""
        number = environ.pop(ENVIRONMENT, "")
        if not number.isdecimal() or len(number) > 6:
            return None
        try:
            sock = socket.socket(fileno=int(number))
        except OSError:
            return None
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            sock.close()
            return None
        os.set_inheritable(sock.fileno(), False)
        self = cls(Channel(sock, PATIENCE_S))
        try:
            self._take_listeners()
        except BaseException:
            self._channel.close()
            for listener in (*self.sockets, *self.inherited):
                if isinstance(listener, UnixListener):
                    listener.leave_file()
                listener.close()
            close_all(list(self.files.values()))
            raise
        return self

    def _take_listeners(self) -> None:
        hello = self._channel.receive()
        if hello.kind != "hello" or hello.document.get("version") != VERSION:
            close_all(hello.descriptors)
            raise BadFrame(f"the old process speaks version {hello.document.get('version')!r} of the protocol")
        self.facts = hello.document
        self.files = dict(zip(map(str, hello.document.get("files", ())), hello.descriptors, strict=False))
        more = True
        while more:
            frame = self._channel.receive()
            if frame.kind != "listeners":
                close_all(frame.descriptors)
                raise BadFrame("listeners were expected")
            passed = bool(frame.document.get("inherited"))
            owned = frame.document.get("owned", () if passed else range(len(frame.descriptors)))
            taken = self.inherited if passed else self.sockets
            left = dict(enumerate(frame.descriptors))
            try:
                for at in tuple(left):
                    taken.append(_listener(left.pop(at), at in owned))
            finally:
                close_all(list(left.values()))
            more = bool(frame.document.get("more"))

    def failed(self, code: int, message: str) -> None:
        """This process cannot take over."""
        try:
            self._channel.send(Frame("failed", {"code": code, "message": message}))
        except ChannelClosed:
            logger.warning("upgrade: the old process has gone: %s", message)
        self._channel.close()

    async def take(self, moves: Moves) -> Mapping[str, Any]:
        """Say that all is ready, and take the sessions; what the old process said last.

        If that process dies on the way, this one goes on with what it has. Raises `GaveUp`, or `OSError` if there is no
        thread for it.
        """
        self._thread = await UpgradeThread.start()
        begun = False
        try:
            await self._send(Frame("ready", {"pid": os.getpid()}))
            while True:
                frame = await self._thread.call(self._channel.receive)
                if frame.kind == "go":
                    begun = True
                    moves.number_from(int(frame.document["next_id"]))
                    moves.start_streams()
                elif frame.kind == "sessions":
                    begins = _adopt(moves, frame)
                    try:
                        await self._send(Frame("taken", {"ids": list(begins)}))
                    finally:  # also if the old process is dead
                        for begin in begins.values():
                            begin()
                elif frame.kind == "finish":
                    try:
                        moves.restore(frame.document["counters"])
                    except (*NOT_UNDERSTOOD, AttributeError) as error:
                        logger.warning("upgrade: counters are not understood and begin anew: %s", repr(error))
                    moves.start_datagrams()
                    self.finished = True
                    moves.settle()
                    await self._send(Frame("done", {}))
                    late = await self._thread.call(self._channel.receive_late)
                    return {**frame.document, **_taken_in(moves, late)}
                elif frame.kind == "stop":
                    raise GaveUp
                else:  # of a later version, and not needed
                    close_all(frame.descriptors)
        except (ChannelClosed, BadFrame, *NOT_UNDERSTOOD) as error:
            logger.warning("upgrade: the old process has gone (%s); serving what it handed over", error)
            if not begun:
                moves.start_streams()
            moves.start_datagrams()
            self.finished = True
            moves.settle()
            return {}
        finally:
            self._channel.close()
            self._thread.close()

    async def _send(self, frame: Frame) -> None:
        await self._thread.call(self._channel.send, frame)


def _taken_in(moves: Moves, frame: Frame | None) -> Mapping[str, Any]:
    """End what was to end while this process counted, and the signals of that time."""
    if frame is None or frame.kind != "late":
        return {}
    close_all(frame.descriptors)
    killed = frame.document.get("killed")
    moves.end(number for number in (killed if isinstance(killed, list) else ()) if isinstance(number, int))
    return {name: True for name in ("reload", "reopen") if frame.document.get(name)}


def refuse(environ: MutableMapping[str, str], code: int, message: str) -> bool:
    """Tell the old process that this one cannot take over; whether an upgrade has started it, and the old one hears."""
    try:
        taker = Taker.of(environ)
    except (ChannelClosed, BadFrame):
        return False
    if taker is not None:
        taker.failed(code, message)
    return taker is not None


def _listener(fd: int, owned: bool) -> socket.socket:
    """The socket, of the class that its family has here. Raises `BadFrame` if nobody could be served by it.

    If its file is not `owned` by the other process, it is the service manager's.
    """
    sock = passed_listener(fd)
    if sock is None:
        raise BadFrame("a descriptor is no listening socket")
    if isinstance(sock, UnixListener):
        sock.lent = True
        path = sock.getsockname()
        if owned and isinstance(path, str) and path.startswith("/"):
            with contextlib.suppress(OSError):
                sock.own_file(path)
    return sock


def _adopt(moves: Moves, frame: Frame) -> dict[int, Callable[[], object]]:
    """Take over the sessions of a frame: their ids, each with what lets it go on."""
    taken: dict[int, Callable[[], object]] = {}
    descriptors, at = list(frame.descriptors), 0
    for state in frame.document.get("sessions", ()):
        fds: list[int] = []
        try:
            count = int(state.get("fds", 2))
            fds, descriptors = descriptors[:count], descriptors[count:]
            up, down = (int(size) for size in state["pending"])
            data = frame.data[at : at + up + down]
            at += up + down
            whole = 0 < count == len(fds) and up >= 0 and len(data) == up + down
            number = int(state["id"])
            if whole and (begin := moves.adopt(state, tuple(fds), (data[:up], data[up:]))) is not None:
                taken[number] = begin
                continue
        except (*NOT_UNDERSTOOD, AttributeError, OSError, MemoryError) as error:
            logger.warning("upgrade: a session is not understood and stays with the old process: %s", repr(error))
        close_all(fds)
    close_all(descriptors)
    return taken
