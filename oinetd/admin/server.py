"""The listeners of the admin interface: opened before root is dropped, exchanged by a reload, closed at the end."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from oinetd.admin.api import Api
from oinetd.admin.events import LISTENERS_MAX
from oinetd.admin.instance import Instance
from oinetd.admin.listener import AdminListener
from oinetd.admin.message import Refusal, Request, Response
from oinetd.admin.place import BACKLOG, SUFFIX, InUse, PlaceUnavailable, bind_socket, default_folders, owner_ids
from oinetd.admin.policy import TcpPolicy, check_content_type, check_unix, read_token
from oinetd.admin_settings import AdminAddress, AdminSettings, AdminSocket
from oinetd.errors import BindError, ConfigError, Problem

__all__ = ["AdminServer"]

TCP_BACKLOG: Final = 64

logger = logging.getLogger("oinetd")


@dataclass(eq=False, slots=True)
class _Open:
    """An open socket: what it was opened for, where its file is, what it asks of requests."""

    asked: AdminSocket | AdminAddress
    sock: socket.socket
    path: str = ""
    policy: TcpPolicy | None = None
    listener: AdminListener | None = None
    listening_to_events: int = 0
    users: frozenset[int] = field(default_factory=frozenset)
    lent: bool = False
    """By another process, whose file it is until this one answers."""
    inode: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.path:
            with contextlib.suppress(OSError):
                self.inode = os.stat(self.path, follow_symlinks=False).st_ino


class AdminServer:
    """The admin interface of one process: `open`, `start`, perhaps `prepare` and `exchange`, `close`.

    `path` is a socket that the command line asks for, in place of those of the configuration. `identity` is the user
    that the process will become: the owner of a socket of which nothing is said.
    """

    def __init__(
        self, name: str, environ: Mapping[str, str], *, path: str = "", identity: tuple[int, int] | None = None
    ) -> None:
        self.name = name
        self._environ = dict(environ)
        self._path = path
        self._identity = identity
        self._open: list[_Open] = []
        self._given: dict[str, socket.socket] = {}
        self._api: Api | None = None
        self._warned: set[str] = set()

    @property
    def paths(self) -> list[str]:
        """The unix sockets there are."""
        return [each.path for each in self._open if each.path]

    def adopt(self, sockets: Mapping[str, socket.socket]) -> None:
        """Use these sockets of another process, by the names of `shared`, in place of new ones."""
        self._given = dict(sockets)

    def shared(self) -> dict[str, socket.socket]:
        """The open sockets, for a process that takes over, each by a name."""
        return {each.path or _place(each.asked): each.sock for each in self._open}

    def leave_files(self) -> None:
        """The files of the sockets belong to another process now, and so do events."""
        if self._api is not None:
            self._api.events.end()
        for each in self._open:
            each.path = ""
            if each.listener is not None:
                each.listener.stop_accepting()

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way."""
        return any(each.listener is not None and each.listener.busy for each in self._open)

    def open(self, settings: AdminSettings) -> None:
        """Open every socket of `settings`. Raises `ConfigError`, `BindError` or `InUse`; then none is open."""
        self._open = self.prepare(settings)

    def prepare(self, settings: AdminSettings) -> list[_Open]:
        """What is to be open for `settings`; sockets that are open already are among them."""
        token = read_token(settings.token_file) if settings.token_file else b""
        wanted: list[AdminSocket | AdminAddress] = [*settings.sockets, *settings.addresses]
        if self._path:
            wanted = [AdminSocket(self._path), *settings.addresses]
        found: list[_Open] = []
        try:
            for asked in wanted:
                opened = next((each for each in self._open if each.asked == asked), None) or self._opened(asked)
                if opened is None:
                    continue
                found.append(opened)
                if isinstance(asked, AdminAddress):
                    opened.policy = TcpPolicy(asked, frozenset(host.lower() for host in settings.hosts), token)
        except BaseException:
            self._shut([each for each in found if each not in self._open])
            raise
        return found

    def _opened(self, asked: AdminSocket | AdminAddress) -> _Open | None:
        if isinstance(asked, AdminAddress):
            given = self._given.pop(_place(asked), None)
            return _Open(asked, given if given is not None else _bind_tcp(asked))
        uid, gid = owner_ids(asked.owner)
        users = frozenset({uid} - {-1})
        if uid < 0 and self._identity is not None:
            uid, gid = self._identity[0], self._identity[1] if gid < 0 else gid
        if (given := self._given.pop(asked.path, None)) is not None:
            return _Open(asked, given, asked.path, users=users, lent=True)
        if asked.path:
            try:
                return _Open(
                    asked, bind_socket(asked.path, asked.mode, uid, gid, make_folder=False), asked.path, users=users
                )
            except PlaceUnavailable as error:
                raise ConfigError(Problem(error.strerror or "", asked.place.rpartition(":")[0])) from None
        return self._default(asked, uid, gid, users)

    def _default(self, asked: AdminSocket, uid: int, gid: int, users: frozenset[int]) -> _Open | None:
        """The default socket. If there is no place for it, oinetd forwards without it: nobody has asked for it."""
        for path in self._given:  # of the process that is replaced, which may have begun as another user
            if os.path.basename(path) == self.name + SUFFIX:
                return _Open(asked, self._given.pop(path), path, users=users, lent=True)
        folders = default_folders(self._environ, os.geteuid())
        why = "no admin socket: XDG_RUNTIME_DIR is not set; choose a path (admin unix:PATH), or admin off"
        if folders:
            path = os.path.join(folders[0], self.name + SUFFIX)
            try:
                return _Open(asked, bind_socket(path, asked.mode, uid, gid, make_folder=True), path, users=users)
            except InUse:
                raise
            except PlaceUnavailable as error:
                why = f"no admin socket: {error.strerror}"
        if why not in self._warned:
            self._warned.add(why)
            logger.warning("%s", why)
        return None

    def own_files(self) -> None:
        """Everything is taken over from another process: the files are this one's, also if it ends now."""
        for each in self._open:
            if each.lent and each.path:
                each.sock.listen(BACKLOG)  # again: who asks the kernel for the listener's process gets this one
            each.lent = False

    def start(self, instance: Instance) -> None:
        """Answer from now on."""
        self._api = Api(instance)
        self.own_files()
        for name, sock in self._given.items():  # of another process, and not wanted here: nobody would answer there
            self._shut([_Open(AdminSocket(name), sock, name if sock.family == socket.AF_UNIX else "")])
        self._given.clear()
        self._serve()

    def started(self) -> None:
        """The forwarder has started."""
        assert self._api is not None
        self._api.start()

    @property
    def api(self) -> Api:
        assert self._api is not None
        return self._api

    async def exchange(self, prepared: list[_Open]) -> None:
        """Put what `prepare` opened in place of what is open."""
        gone = [each for each in self._open if each not in prepared]
        self._open = prepared
        self._serve()
        await self._end(gone)

    def abandon(self, prepared: list[_Open]) -> None:
        """Close what `prepare` opened: it will not be used."""
        self._shut([each for each in prepared if each not in self._open])

    async def close(self) -> None:
        """Close everything."""
        if self._api is not None:
            self._api.stop()
        gone, self._open = self._open, []
        await self._end(gone)

    def shut(self) -> None:
        """Close everything, in a process that never got to a loop."""
        gone, self._open = self._open, []
        self._shut(gone)

    def _serve(self) -> None:
        for each in self._open:
            if each.listener is None:
                each.listener = AdminListener(each.sock, functools.partial(self._answer, each))
                each.listener.start()

    async def _end(self, gone: list[_Open]) -> None:
        for each in gone:
            _unlink(each)
        for each in gone:
            if each.listener is not None:
                await each.listener.close()
        self._shut(gone)

    @staticmethod
    def _shut(gone: list[_Open]) -> None:
        for each in gone:
            if each.sock.fileno() >= 0:
                _unlink(each)
                each.sock.close()

    async def _answer(self, via: _Open, request: Request) -> Response:
        assert self._api is not None
        policy = via.policy
        metrics_only = policy is not None and policy.address.metrics_only
        page = policy is not None and policy.address.page
        route, request = self._api.routes.find(request, metrics_only=metrics_only, page=page)
        if policy is not None:
            policy.check(route, request)
        else:
            check_unix(route, request, self._api.instance.users | via.users)
        check_content_type(request)
        response = await route.handler(request)
        if response.endless:
            if via.listening_to_events >= LISTENERS_MAX:
                raise Refusal(503, f"{LISTENERS_MAX} clients get events already")
            assert not isinstance(response.body, bytes)
            response = replace(response, body=_counted(via, response.body))
        return response


async def _counted(via: _Open, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    via.listening_to_events += 1
    try:
        async with contextlib.aclosing(parts):  # type: ignore[type-var]
            async for part in parts:
                yield part
    finally:
        via.listening_to_events -= 1


def _place(asked: AdminSocket | AdminAddress) -> str:
    return f"{asked.host} {asked.port}" if isinstance(asked, AdminAddress) else asked.path


def _unlink(each: _Open) -> None:
    """Remove the file of a socket, if it is still the one of this process."""
    if not each.path or each.lent:
        return
    with contextlib.suppress(OSError):
        found = os.stat(each.path, follow_symlinks=False)
        if stat.S_ISSOCK(found.st_mode) and found.st_ino == each.inode:
            os.unlink(each.path)


def _bind_tcp(asked: AdminAddress) -> socket.socket:
    what = "metrics" if asked.metrics_only else "admin"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            asked.address, asked.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        raise BindError(f"{what} on {asked.host} {asked.port}: {error.strerror}", error.errno or 0) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(TCP_BACKLOG)
    except OSError as error:
        sock.close()
        number = error.errno or errno.EINVAL
        raise BindError(f"{what} on {asked.host} {asked.port}: {os.strerror(number)}", number) from None
    return sock
