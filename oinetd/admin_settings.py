"""What a configuration says of the admin interface, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DEFAULT_ADMIN", "AdminAddress", "AdminSettings", "AdminSocket"]


@dataclass(frozen=True, slots=True)
class AdminSocket:
    """A unix socket of the admin interface; `path` is empty for the default one, `owner` is `user` or `user:group`.

    Its position in the configuration (`place`) has no part in equality.
    """

    path: str = ""
    mode: int = 0o600
    owner: str = ""
    place: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.mode <= 0o777:
            raise ValueError(f"mode is {self.mode:o}; it must be from 0 to 777 (octal)")


@dataclass(frozen=True, slots=True)
class AdminAddress:
    """A TCP listener of the admin interface: with the page, or for metrics alone."""

    host: str
    port: int
    page: bool = False
    metrics_only: bool = False
    place: str = field(default="", compare=False)

    @property
    def address(self) -> str:
        """`host` without the brackets of an IPv6 address."""
        return self.host[1:-1] if self.host.startswith("[") and self.host.endswith("]") else self.host


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """The admin interface: by default one unix socket at the default path.

    `hosts` are further names that the Host of a request over TCP may have. `token_file` contains the token that a
    request over TCP has to bring; empty if there is none, and then nothing can be changed over TCP.
    """

    sockets: tuple[AdminSocket, ...] = (AdminSocket(),)
    addresses: tuple[AdminAddress, ...] = ()
    hosts: tuple[str, ...] = ()
    token_file: str = ""


DEFAULT_ADMIN = AdminSettings()
