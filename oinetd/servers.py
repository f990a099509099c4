"""Groups of servers as a configuration says them: an `Upstream` with its `Server`s and its options."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from oinetd.bounds import SERVERS_MAX, check_numbers, check_types
from oinetd.endpoint import NOWHERE, Endpoint, Origin
from oinetd.enums import Protocol, SendProxy

__all__ = [
    "AllDown",
    "Balance",
    "Check",
    "GroupOptions",
    "OnDown",
    "Passive",
    "Resolve",
    "Server",
    "StatusRange",
    "Upstream",
    "all_named",
]


class Balance(enum.Enum):
    """How a server is chosen; see `oinetd.upstream.balance`."""

    LEASTCONN = "leastconn"
    ROUNDROBIN = "roundrobin"
    RANDOM = "random"
    SOURCE = "source"
    FIRST = "first"


class Check(enum.Enum):
    """How servers are checked: not at all, by a connect, by HTTP, or by what they answer to a text."""

    OFF = "off"
    TCP = "tcp"
    HTTP = "http"
    SEND = "send"


class OnDown(enum.Enum):
    """What happens to the sessions of a server that goes down."""

    KEEP = "keep"
    RESET = "reset"


class AllDown(enum.Enum):
    """What a client gets if no server is usable."""

    TRY = "try"
    REFUSE = "refuse"


class Resolve(enum.Enum):
    """What a server's name means: one server, a server for each address, or the SRV records of the name."""

    ONE = "one"
    EACH = "each"
    SRV = "srv"


class Passive(NamedTuple):
    """After `failures` connects that failed in a row a server is ejected for `hold_s`; 0 failures is never."""

    failures: int = 3
    hold_s: float = 10.0


PASSIVE = Passive()


class StatusRange(NamedTuple):
    """HTTP status codes from `low` to `high`, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOptions:
    """What holds for all servers of a group; `source` is the local address of checks and of connects (`src=`)."""

    balance: Balance = Balance.LEASTCONN
    check: Check = Check.OFF
    check_method: str = "GET"
    check_path: str = "/"
    check_host: str = ""
    check_status: tuple[StatusRange, ...] = (StatusRange(200, 399),)
    check_send: bytes = b""
    check_expect: bytes = b""
    check_interval_s: float = 2.0
    check_timeout_s: float = 1.0
    check_rise: int = 2
    check_fall: int = 3
    check_fast_s: float = 0.5
    check_down_s: float = 5.0
    check_port: int = 0
    passive: Passive = PASSIVE
    on_down: OnDown = OnDown.KEEP
    slow_start_s: float = 0.0
    drain_spread_s: float = 0.0
    all_down: AllDown = AllDown.TRY
    all_backups: bool = False
    resolve: Resolve = Resolve.ONE
    allow_special: bool = False
    source: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("check_interval_s", "check_timeout_s", "check_fast_s", "check_down_s"):
            if not getattr(self, name):
                raise ValueError(f"{name} is 0, and has to be a time")


DEFAULT_OPTIONS = GroupOptions()

FILE_PREFIX = "file:"


@dataclass(frozen=True, slots=True)
class Server:
    """A server of a group, or what stands for several: a name whose addresses or SRV records are servers, or a file.

    The port of `endpoint` is 0 for SRV names and files. `weight` 0 is drain. What is None is the group's or the rule's.
    """

    endpoint: Endpoint
    weight: int = 1
    backup: bool = False
    max_connections: int = 0
    source: str | None = None
    check_port: int | None = None
    connect_timeout_s: float | None = None
    resolve: Resolve | None = None
    send_proxy: SendProxy | None = None
    origin: Origin = field(default=NOWHERE, compare=False)

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def is_address(self) -> bool:
        """Whether it has a host and a port, or is a unix socket."""
        return self.endpoint.port > 0 or self.endpoint.is_unix

    @property
    def is_file(self) -> bool:
        """Whether it is a file of servers."""
        return self.endpoint.host.startswith(FILE_PREFIX)

    def stands_for_several(self, options: GroupOptions) -> bool:
        """Whether its servers come from DNS or a file."""
        return self.is_file or (self.resolve or options.resolve) is not Resolve.ONE

    @property
    def name(self) -> str:
        """`host:port` as written, as commands and logs call it."""
        endpoint = self.endpoint
        if not endpoint.port:
            return endpoint.host
        host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.host
        ports = str(endpoint.port) if endpoint.last_port == endpoint.port else f"{endpoint.port}-{endpoint.last_port}"
        return f"{host}:{ports}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Upstream:
    """A group of servers. `name` is empty for one that belongs to a single rule."""

    name: str
    servers: tuple[Server, ...] = ()
    options: GroupOptions = DEFAULT_OPTIONS
    origin: Origin = field(default=NOWHERE, compare=False)

    def __post_init__(self) -> None:
        check_types(self.servers, Server)
        if len(self.servers) > SERVERS_MAX:
            raise ValueError(
                f"the upstream {self.name} has {len(self.servers)} servers, and {SERVERS_MAX} are possible"
            )
        if len({server.endpoint.protocol for server in self.servers}) > 1:
            raise ValueError(f"the upstream {self.name} has servers of two protocols")
        names = [server.name for server in self.servers]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the upstream {self.name} has the server {twice} twice")

    @property
    def protocol(self) -> Protocol:
        return self.servers[0].endpoint.protocol if self.servers else Protocol.TCP

    @property
    def endpoint(self) -> Endpoint:
        """What stands for the group in rules and logs: `@name`, port 0."""
        return Endpoint(f"@{self.name}", 0, self.protocol)

    def __str__(self) -> str:
        return f"@{self.name}"


def all_named(upstreams: tuple[Upstream, ...], of_rules: Iterable[Upstream | None]) -> tuple[Upstream, ...]:
    """The groups with a name, those of rules included. Raises `ValueError` if a name means two groups."""
    known = {upstream.name: upstream for upstream in upstreams}
    if len(known) < len(upstreams):
        raise ValueError("two upstreams have one name")
    for upstream in of_rules:
        if upstream is not None and upstream.name and known.setdefault(upstream.name, upstream) != upstream:
            raise ValueError(f"two upstreams have the name {upstream.name}")
    return tuple(known.values())
