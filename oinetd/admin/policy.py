"""Who may ask what: credentials of the kernel on the unix socket; Host, Origin and a token over TCP."""

from __future__ import annotations

import hmac
import ipaddress
import os
import stat
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from oinetd.admin.message import Refusal, Request
from oinetd.admin.routes import Route
from oinetd.admin_settings import AdminAddress
from oinetd.errors import ConfigError, Problem

__all__ = ["TcpPolicy", "check_content_type", "check_unix", "read_token"]

TOKEN_BYTES_MIN: Final = 16
TOKEN_BYTES_MAX: Final = 4096


def read_token(path: str) -> bytes:
    """The token in the file. Raises `ConfigError` if others can read the file, or if it contains no good token."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            content = os.read(fd, TOKEN_BYTES_MAX + 1).strip()
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(Problem(f"admin-token-file {path}: {error.strerror}")) from None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(Problem(f"admin-token-file {path}: is not a regular file"))
    if found.st_mode & 0o077:
        raise ConfigError(Problem(f"admin-token-file {path}: other users can read it", hint=f"chmod 600 {path}"))
    if not TOKEN_BYTES_MIN <= len(content) <= TOKEN_BYTES_MAX or not content.isascii() or b" " in content:
        hint = f"one line of at least {TOKEN_BYTES_MIN} characters, such as that of: openssl rand -hex 32"
        raise ConfigError(Problem(f"admin-token-file {path}: contains no token", hint=hint))
    return content


def check_content_type(request: Request) -> None:
    """A POST has to be JSON: no form of a web page can send that. Raises `Refusal`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method == "POST" and kind != "application/json":
        raise Refusal(415, "POST needs Content-Type: application/json")


def check_unix(route: Route, request: Request, users: frozenset[int]) -> None:
    """Changes are for `users`; who can connect may see everything. Raises `Refusal`."""
    if route.method != "GET" and request.peer.uid not in users:
        raise Refusal(403, f"changes are for root and the user of the daemon, not for uid {request.peer.uid}")


@dataclass(frozen=True, slots=True)
class TcpPolicy:
    """What a TCP listener asks of a request; `token` is empty if there is none."""

    address: AdminAddress
    hosts: frozenset[str]
    token: bytes

    def check(self, route: Route, request: Request) -> None:
        """Raises `Refusal` (400, 401, 403)."""
        host = request.headers.get("host", "")
        if not host:
            raise Refusal(400, "the request has no Host")
        if not self._is_own(_name_of(host)):
            raise Refusal(403, "the Host is not one of this listener; allow a name with admin-host NAME")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refusal(403, "the request comes from a page of another origin")
        if self.address.metrics_only or route.open:
            return
        if not self.token:
            if route.method != "GET":
                raise Refusal(403, "nothing can be changed over TCP without admin-token-file")
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self.token):
            raise Refusal(401, "the token is missing or wrong", headers=(("www-authenticate", "Bearer"),))

    def _is_own(self, name: str) -> bool:
        """Whether a request may name this host. A web page cannot choose an address, only names (DNS rebinding)."""
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts or name == self.address.address.lower() or (name == "localhost" and self._local)
        try:
            own = ipaddress.ip_address(self.address.address.partition("%")[0])
        except ValueError:
            return self.address.address == "localhost" and address.is_loopback
        return address == own or own.is_unspecified

    @property
    def _local(self) -> bool:
        try:
            own = ipaddress.ip_address(self.address.address.partition("%")[0])
        except ValueError:
            return False
        return own.is_loopback or own.is_unspecified


def _name_of(host: str) -> str:
    """The name in a Host, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return (host.rpartition(":")[0] if host.count(":") == 1 else host).lower()
