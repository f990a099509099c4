"""The client of the admin interface: finds the running instance and asks it. Blocking; it imports no event loop."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

import h11

from oinetd.admin.place import SUFFIX, SYSTEM_FOLDER, default_folders, short_path
from oinetd.net.unix_sockets import peer_of

__all__ = ["Answer", "Client", "ConnectionLost", "NoInstance", "SeveralInstances", "find_instance"]

ANSWER_S: Final = 60.0
"""A reload waits for name servers; nothing else takes long."""

READ_BYTES: Final = 64 << 10

NO_PERMISSION: Final = "no permission; run it as root or as the user of the daemon"

LEFT: Final = "left of a process that has ended, replaced by the next start of its name: {}"


class NoInstance(Exception):
    """No running oinetd was found, or it may not be asked."""


class ConnectionLost(NoInstance):
    """The connection ended within an answer."""


class SeveralInstances(Exception):
    """More than one is running; `names` are theirs."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"several are running, choose one with -n NAME: {', '.join(names)}")
        self.names = names


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its JSON value."""

    status: int
    value: Any


def find_instance(name: str, path: str, environ: Mapping[str, str]) -> str:
    """The path of the socket to ask: the one at `path`, the one called `name`, or the only one.

    Raises `NoInstance` or `SeveralInstances`.
    """
    if path:
        return path
    folders = search_folders(environ)
    if name:
        for folder in folders:
            candidate = os.path.join(folder, name + SUFFIX)
            if _is_socket(candidate):
                if not _has_listener(candidate):
                    raise NoInstance(f"no oinetd with the name {name} is running; {LEFT.format(candidate)}")
                return candidate
        running = [_name_of(each) for each in running_instances(folders)]
        more = f"; running: {', '.join(running)}" if running else ""
        raise NoInstance(f"no oinetd with the name {name} is running{more}")
    found = running_instances(folders)
    if not found:
        left = [path for path in _sockets(folders) if not _has_listener(path)]
        more = f"; {LEFT.format(', '.join(left))}" if left else ""
        raise NoInstance(f"no oinetd with an admin socket is running (looked in {' and '.join(folders)}){more}")
    if len(found) > 1:  # those of other users do not count beside one that may be asked
        those = ", ".join(found)
        found = [path for path in found if os.access(path, os.W_OK)]
        if not found:
            raise NoInstance(f"{those}: {NO_PERMISSION}")
    if len(found) > 1:
        raise SeveralInstances([_name_of(each) for each in found])
    return found[0]


def search_folders(environ: Mapping[str, str]) -> list[str]:
    """Where instances may be; the service manager's directory alone, if there is one."""
    if environ.get("RUNTIME_DIRECTORY"):
        return default_folders(environ, os.geteuid())[:1]
    return list(dict.fromkeys([*default_folders(environ, os.geteuid()), SYSTEM_FOLDER]))


def running_instances(folders: list[str]) -> list[str]:
    """The sockets on which somebody listens; one that may not be asked is among them."""
    return [path for path in _sockets(folders) if _has_listener(path)]


def _sockets(folders: list[str]) -> list[str]:
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):
            found += [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(SUFFIX)]
    return [path for path in found if _is_socket(path)]


def _has_listener(path: str) -> bool:
    """Whether a process listens; not if it was killed, which leaves the file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, short_path(path) as short:
        probe.settimeout(1.0)
        try:
            probe.connect(short)
        except PermissionError:
            pass
        except OSError:
            return False
    return True


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _name_of(path: str) -> str:
    return os.path.basename(path).removesuffix(SUFFIX)


class Client:
    """Asks the instance at the unix socket `path`; a connection for each request."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, path: str, query: Mapping[str, str] | None = None, *, timeout_s: float = ANSWER_S) -> Answer:
        """Ask. Raises `NoInstance` if nobody answers within `timeout_s`."""
        return self._ask("GET", path, query or {}, timeout_s=timeout_s)

    def post(
        self, path: str, query: Mapping[str, str] | None = None, value: Any = None, *, timeout_s: float = ANSWER_S
    ) -> Answer:
        """Change something; the answer comes within `timeout_s`."""
        body = b"{}" if value is None else json.dumps(value).encode()
        return self._ask("POST", path, query or {}, body, timeout_s=timeout_s)

    def events(self) -> Iterator[tuple[str, Any]]:
        """The events from now on: each with its name and value. The first one is `listening`."""
        name, rest = "", b""
        for part in self._parts("GET", "/v1/events", {}, None, timeout_s=None):
            if isinstance(part, int):
                if part != 200:
                    raise NoInstance(f"the answer to /v1/events is {part}")
                yield "listening", None
                continue
            rest += part
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if line.startswith(b"event: "):
                    name = line[7:].decode("ascii", "replace")
                elif line.startswith(b"data: "):
                    yield name, json.loads(line[6:])

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | None = None,
        *,
        timeout_s: float = ANSWER_S,
    ) -> Answer:
        status, content = 0, bytearray()
        for part in self._parts(method, path, query, body, timeout_s=timeout_s):
            if isinstance(part, int):
                status = part
            else:
                content += part
        try:
            return Answer(status, json.loads(content))
        except ValueError:
            raise NoInstance(f"{self.path}: the answer is not JSON; is this an oinetd?") from None

    def _parts(
        self, method: str, path: str, query: Mapping[str, str], body: bytes | None, *, timeout_s: float | None
    ) -> Iterator[int | bytes]:
        """The status, then the parts of the body."""
        http = h11.Connection(h11.CLIENT)
        headers = [("host", "localhost"), ("connection", "close")]
        if body is not None:
            headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        with contextlib.closing(self._connect(timeout_s)) as sock:
            try:
                request = http.send(h11.Request(method=method, target=target, headers=headers)) or b""
                request += (http.send(h11.Data(data=body)) or b"") if body else b""
                request += http.send(h11.EndOfMessage()) or b""
                sock.sendall(request)
                while not isinstance(event := http.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
                    if event is h11.NEED_DATA:
                        data = sock.recv(READ_BYTES)
                        if not data and http.their_state is h11.SEND_RESPONSE:
                            raise ConnectionLost(f"{self.path}: the process closed the connection without an answer")
                        http.receive_data(data)
                    elif isinstance(event, h11.Response):
                        yield event.status_code
                    elif isinstance(event, h11.Data):
                        yield bytes(event.data)
            except (OSError, h11.ProtocolError) as error:
                why = _why(error) if isinstance(error, TimeoutError) else error
                raise ConnectionLost(f"{self.path}: {why}") from None

    def _connect(self, timeout_s: float | None) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            with short_path(self.path) as short:
                sock.connect(short)
            self._check_server(sock)
        except OSError as error:
            sock.close()
            raise NoInstance(f"{self.path}: {_why(error)}") from None
        except NoInstance:
            sock.close()
            raise
        return sock

    def _check_server(self, sock: socket.socket) -> None:
        """Root asks only root, or the user to whom the system's directory belongs: others could answer anything."""
        uid = peer_of(sock).uid
        if os.geteuid() or uid == 0:
            return
        folder = os.path.dirname(self.path)
        managed = folder in default_folders(os.environ, 0)
        if not managed or os.stat(folder).st_uid != uid:
            raise NoInstance(
                f"{self.path}: its server runs as user {uid}; ask as this user (sudo -u '#{uid}' oinetd …)"
            )


def _why(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return NO_PERMISSION
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "no process listens there; is oinetd running?"
    if isinstance(error, TimeoutError):
        return "no answer in time: the process is stopped, hangs, or is very busy; see its log, or restart it"
    return error.strerror or str(error)
