"""What a configuration says, as frozen values: no behaviour, no I/O.

Durations are seconds (`_s`), 0 meaning "off"; sizes are bytes (`_bytes`). The defaults are those of the language,
which `oinetd -T` prints; a number that the language does not take is a `ValueError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

from oinetd.admin_settings import DEFAULT_ADMIN, AdminSettings
from oinetd.bounds import PREFIX_IPV4_MAX, PREFIX_IPV6_MAX, check_numbers, check_type, check_types
from oinetd.endpoint import NOWHERE, ORIGINAL, UNIX_PREFIX, Endpoint, Origin
from oinetd.enums import (
    AcceptProxy,
    EngineChoice,
    LogFormat,
    OnDeny,
    Protocol,
    ProxyTlv,
    RelayMode,
    SendProxy,
    SendProxyUdp,
    Verb,
)
from oinetd.errors import ConfigError, Problem
from oinetd.file_state import FileSource
from oinetd.quantities import KEEP_ALIVE, NO_RATE, SOURCE_PREFIX, KeepAlive, Rate, SourcePrefix
from oinetd.servers import Server, Upstream, all_named

__all__ = [
    "ORIGINAL", "SOURCE_PREFIX", "UNIX_PREFIX", "AcceptProxy", "AccessRule", "Config", "Endpoint", "EngineChoice",
    "KeepAlive", "LogFormat", "LogSettings", "OnDeny", "Origin", "Protocol", "ProxyTlv", "Rate", "RelayMode", "Route",
    "Rule", "RuleOptions", "SendProxy", "SendProxyUdp", "Server", "Settings", "SourcePrefix", "Upstream", "Verb",
]  # fmt: skip


FROM_CLIENT = "client"
"""In place of a source address: that of the client."""

UDP_TIMEOUT_S = 72.0
"""The life of a silent UDP session if `timeout=` is absent or 0, as in rinetd."""


@dataclass(frozen=True, slots=True)
class AccessRule:
    """One `allow`, `deny` or `trust` line: a shell pattern on the numeric client address, or a CIDR network."""

    verb: Verb
    pattern: str

    def __str__(self) -> str:
        return f"{self.verb.value} {self.pattern}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings that the configuration has for all rules, and that options of one rule override.

    Rates are of new connections. Bandwidths are bytes a second, each direction by itself: of one connection, of those
    of one source, of those of a rule; 0 is no bound.
    """

    engine: EngineChoice = EngineChoice.AUTO
    relay: RelayMode = RelayMode.AUTO
    buffer_bytes: int = 64 * 1024
    pipe_bytes: int = 256 * 1024
    listen_backlog: int = 4096
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 0.0
    half_close_timeout_s: float = 3600.0
    write_stall_timeout_s: float = 3600.0
    max_lifetime_s: float = 0.0
    dns_refresh_s: float = 60.0
    keepalive: KeepAlive = KEEP_ALIVE
    on_deny: OnDeny = OnDeny.KEEP
    accept_proxy: AcceptProxy = AcceptProxy.OFF
    proxy_timeout_s: float = 5.0
    peek_timeout_s: float = 10.0
    send_proxy: SendProxy = SendProxy.OFF
    send_proxy_udp: SendProxyUdp = SendProxyUdp.EVERY
    proxy_tlv: tuple[ProxyTlv, ...] = ()
    rate: Rate = NO_RATE
    rate_per_source: Rate = NO_RATE
    bandwidth_bytes: int = 0
    bandwidth_per_source_bytes: int = 0
    bandwidth_per_rule_bytes: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)

    def with_overrides(self, options: RuleOptions) -> Settings:
        """These settings with the overrides of `options`."""
        said = {item.name: value for item in fields(Settings) if (value := getattr(options, item.name)) is not None}
        return replace(self, **said) if said else self


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOptions:
    """The options of a rule in its `[...]`; None if the directive of the configuration holds.

    `name` is how metrics and commands call the rule, `source` the local address of the outgoing socket (`src=`),
    `udp_timeout_s` the life of a silent UDP session (`timeout=`, no effect on TCP). `max_connections` bounds its live
    sessions, `max_connections_per_source` those of one client address; 0 is no bound.

    `unix_mode` and `unix_owner` (`user:group`) are those of the file of a unix socket to listen on, `peer_user` is
    the only user that may serve a unix destination, by name or number. `freebind`, `interface`, `defer_accept_s` and
    `transparent` are options of the listening socket, `out_interface`, `mark` and `dscp` of the sockets towards the
    server, `fastopen`, `mptcp` and `congestion` of both. `sni` and `alpn` are what TLS clients of the rule want.
    """

    name: str | None = None
    source: str | None = None
    unix_mode: int | None = None
    unix_owner: str | None = None
    peer_user: str | None = None
    freebind: bool | None = None
    interface: str | None = None
    defer_accept_s: float | None = None
    transparent: bool | None = None
    out_interface: str | None = None
    mark: int | None = None
    dscp: int | None = None
    fastopen: bool | None = None
    mptcp: bool | None = None
    congestion: str | None = None
    sni: tuple[str, ...] | None = None
    alpn: tuple[str, ...] | None = None
    udp_timeout_s: float | None = None
    max_connections: int | None = None
    max_connections_per_source: int | None = None
    engine: EngineChoice | None = None
    relay: RelayMode | None = None
    buffer_bytes: int | None = None
    pipe_bytes: int | None = None
    listen_backlog: int | None = None
    connect_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    half_close_timeout_s: float | None = None
    write_stall_timeout_s: float | None = None
    max_lifetime_s: float | None = None
    dns_refresh_s: float | None = None
    keepalive: KeepAlive | None = None
    on_deny: OnDeny | None = None
    accept_proxy: AcceptProxy | None = None
    proxy_timeout_s: float | None = None
    peek_timeout_s: float | None = None
    send_proxy: SendProxy | None = None
    send_proxy_udp: SendProxyUdp | None = None
    proxy_tlv: tuple[ProxyTlv, ...] | None = None
    rate: Rate | None = None
    rate_per_source: Rate | None = None
    bandwidth_bytes: int | None = None
    bandwidth_per_source_bytes: int | None = None
    bandwidth_per_rule_bytes: int | None = None

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def from_client(self) -> bool:
        """Whether outgoing connections come from the address of their client (`src=client`)."""
        return self.source == FROM_CLIENT

    @property
    def source_host(self) -> str | None:
        """The local address of outgoing connections, as a host to resolve; None if there is none."""
        return None if self.from_client else self.source

    @property
    def datagram_timeout_s(self) -> float:
        """How long a UDP session may be silent; 0 is no limit."""
        return UDP_TIMEOUT_S if self.udp_timeout_s is None else self.udp_timeout_s


NO_OPTIONS = RuleOptions()


@dataclass(frozen=True, slots=True)
class Rule:
    """One forwarding rule: connections to `bind` go to `connect`.

    A rule with port ranges is one rule for limits and counters, and has a `Route` for each of its ports.
    """

    bind: Endpoint
    connect: Endpoint
    options: RuleOptions = NO_OPTIONS
    access: tuple[AccessRule, ...] = ()
    origin: Origin = field(default=NOWHERE, compare=False)
    upstream: Upstream | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        check_types(self.access, AccessRule)
        if self.upstream is not None:
            self._check_upstream(self.upstream)
            return
        bind, connect = len(self.bind.ports), len(self.connect.ports)
        if bind != connect:
            raise ValueError(f"{bind} ports to listen on, {connect} to connect to: the two ranges have one length")
        if self.connect.is_original:
            if not self.options.transparent or self.bind.protocol is Protocol.UDP:
                message = "the destination original needs a rule for TCP with transparent"
                raise ConfigError(Problem(message, self.origin.file, self.origin.line))
        elif not self.connect.port and not self.connect.is_unix:
            raise ConfigError(Problem("port 0 cannot be a destination", self.origin.file, self.origin.line))

    def _check_upstream(self, upstream: Upstream) -> None:
        check_type(upstream, Upstream)
        if not upstream.servers:
            raise ValueError(f"the upstream {upstream.name or 'of a rule'} has no server")
        if upstream.name and self.connect != upstream.endpoint:
            raise ValueError(f"the rule connects to {self.connect}, and its upstream is {upstream.endpoint}")
        wanted = len(self.bind.ports)
        for server in upstream.servers:
            if server.is_address and len(server.endpoint.ports) != wanted:
                raise ValueError(f"{wanted} ports to listen on, {len(server.endpoint.ports)} of the server {server}")
        if wanted > 1 and not all(server.is_address for server in upstream.servers):
            raise ValueError("a rule with a range of ports needs servers with addresses and ranges of ports")

    @classmethod
    def to(cls, bind: Endpoint, upstream: Upstream, options: RuleOptions = NO_OPTIONS) -> Rule:
        """A rule that forwards to a group with a name."""
        return cls(bind, upstream.endpoint, options, upstream=upstream)

    @property
    def destinations(self) -> tuple[Endpoint, ...]:
        """Its possible destinations: the one of the rule, or the servers of its group that are written as addresses."""
        if self.upstream is None:
            return (self.connect,)
        return tuple(server.endpoint for server in self.upstream.servers if server.is_address)

    @property
    def identity(self) -> Endpoint | Rule:
        """Its identity over reloads: its listening endpoint, or the whole rule if the kernel chooses the port."""
        shared = self.bind.shared_by(self.options.sni, self.options.alpn)
        return shared if self.bind.port or self.bind.is_unix else self

    @property
    def name(self) -> str:
        """Its name in metrics and commands: the option `name`, or its listening endpoint as written."""
        if self.options.name or self.bind.is_unix:
            return self.options.name or self.bind.host
        return f"{self.bind.host}:{self.bind.span}/{self.bind.protocol.value}"

    def routes(self) -> Iterator[Route]:
        """The rule's pairs of single ports, in order."""
        for offset, bind_port in enumerate(self.bind.ports):
            connect = self.connect if self.upstream is not None else self.connect.at(self.connect.port + offset)
            yield Route(self, self.bind.at(bind_port), connect, offset)

    def __str__(self) -> str:
        return f"{self.bind} -> {self.connect}"


@dataclass(frozen=True, slots=True, repr=False)
class Route:
    """One listening port of a rule and the destination of its connections; `offset` is its place in the range."""

    rule: Rule
    bind: Endpoint
    connect: Endpoint
    offset: int = 0

    @property
    def place(self) -> int:
        """The port of the destination; with a group, the offset from the ports of its servers."""
        return self.connect.port if self.rule.upstream is None else self.offset

    def __str__(self) -> str:
        return f"{self.bind} -> {self.connect}"

    def __repr__(self) -> str:
        return f"<Route {self}>"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The connection log: `file` is empty if there is none. `origin` has no part in equality."""

    file: str = ""
    format: LogFormat = LogFormat.RINETD
    origin: Origin = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration in force.

    `access` holds the global allow and deny rules. `threads` is the number of reactors of the native engine, 0 for
    as many as the process has cores. `upstreams` are the groups with a name, those of the rules included.
    `max_connections` 0 means what the descriptor limit allows;
    `max_connections_per_source` 0 is no bound; a source is an address without the bits behind `source_prefix`.
    `max_udp_sessions` 0 is none but that of the descriptors.
    `busy_poll_us` is for how many microseconds a reactor may poll before it sleeps: -1 leaves that to the reactor
    (`auto`), 0 is never.
    With `watch` a program that reads the configuration from files reads them again when they change; `sources` is what
    `load_config` read, and how it looked then; equality ignores it.
    `warnings` holds what is allowed and probably wrong, for `load_config` and `parse_config`; equality ignores it.
    """

    rules: tuple[Rule, ...] = ()
    access: tuple[AccessRule, ...] = ()
    settings: Settings = Settings()
    threads: int = 0
    busy_poll_us: int = -1
    max_connections: int = 0
    max_connections_per_source: int = 0
    source_prefix: SourcePrefix = SOURCE_PREFIX
    max_udp_sessions: int = 10_000
    drain_timeout_s: float = 10.0
    upgrade_timeout_s: float = 60.0
    log: LogSettings = LogSettings()
    pid_file: str = ""
    upstreams: tuple[Upstream, ...] = ()
    watch: bool = False
    sources: tuple[FileSource, ...] = field(default=(), compare=False, repr=False)
    admin: AdminSettings = DEFAULT_ADMIN
    warnings: tuple[Problem, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        check_types(self.rules, Rule)
        check_types(self.access, AccessRule)
        check_types(self.upstreams, Upstream)
        object.__setattr__(self, "upstreams", all_named(self.upstreams, (rule.upstream for rule in self.rules)))
        check_numbers(self)
        ipv4, ipv6 = self.source_prefix
        if not (0 <= ipv4 <= PREFIX_IPV4_MAX and 0 <= ipv6 <= PREFIX_IPV6_MAX):
            raise ValueError(
                f"source_prefix is {ipv4}/{ipv6}, and has to be from 0/0 to {PREFIX_IPV4_MAX}/{PREFIX_IPV6_MAX}"
            )

    def settings_of(self, rule: Rule) -> Settings:
        """What is in force for `rule`: its own options over the configuration's settings."""
        return self.settings.with_overrides(rule.options)
