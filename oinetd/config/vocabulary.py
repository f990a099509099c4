"""The words of the language: all directives and all options of a rule, in one table.

The parser, the suggestions, `render` and the test of the manual use `VOCABULARY`. A new setting is a new row here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from oinetd.bounds import BACKLOG_MAX, BUSY_POLL_US_MAX, CHECKS_MAX, CONNECTIONS_MAX, THREADS_MAX, WEIGHT_MAX
from oinetd.config.values.admin import AdminPlace, RuleName
from oinetd.config.values.check import GroupName, HeaderText, PassiveForm, PathText, StatusRanges, Text, Token
from oinetd.config.values.common import (
    AccessPattern,
    Choice,
    Count,
    FileName,
    Flags,
    KeepAliveForm,
    PrefixPair,
    Size,
    SourceAddress,
    Switch,
    Time,
    Value,
)
from oinetd.config.values.limit import Bandwidth, RateForm
from oinetd.config.values.socket import FileMode, Mark, Name, UserName
from oinetd.config.values.tls import ProtocolNames, ServerNames
from oinetd.model import (
    UDP_TIMEOUT_S,
    AcceptProxy,
    EngineChoice,
    LogFormat,
    OnDeny,
    ProxyTlv,
    RelayMode,
    SendProxy,
    SendProxyUdp,
    Verb,
)
from oinetd.servers import AllDown, Balance, Check, OnDown, Resolve

__all__ = ["DIRECTIVES", "GROUP_OPTIONS", "OPTIONS", "SERVER_OPTIONS", "VOCABULARY", "Duty", "Entry"]


class Duty(enum.Enum):
    """What a directive does."""

    SET = enum.auto()
    ACCESS = enum.auto()
    INCLUDE = enum.auto()
    UPSTREAM = enum.auto()
    ADMIN = enum.auto()


@dataclass(frozen=True, slots=True)
class Entry:
    """One word of the language.

    `value` is the kind of its value; None if it has none, and `constant` is set instead. `setting` is the field of
    `Config` that the directive sets, with a dot for a field of a part; empty if it sets none. `option` is the field of
    `RuleOptions` that the option sets; empty if it is no option. `group` and `server` are the same for the options of
    a group of servers (`GroupOptions`) and of one of its servers (`Server`). An `alias` means the same as another
    directive, and `render` never writes it.
    """

    name: str
    value: Value | None
    setting: str = ""
    option: str = ""
    duty: Duty = Duty.SET
    constant: object = None
    alias: bool = False
    group: str = ""
    server: str = ""

    @property
    def usage(self) -> str:
        """The directive with the form of its value, for messages and the manual."""
        return f"{self.name} {self.value.form}" if self.value else self.name

    @property
    def option_usage(self) -> str:
        """The option with the form of its value."""
        return f"{self.name}={self.value.form}" if self.value else self.name


def _both(name: str, value: Value, field: str) -> Entry:
    """A word that is a directive for all rules and an option of one rule."""
    return Entry(name, value, setting=f"settings.{field}", option=field, server=field if name in _OF_SERVERS else "")


_OF_SERVERS = ("connect-timeout", "send-proxy")


_CONNECTIONS = Count(0, CONNECTIONS_MAX, {"off": 0})
_SEND_PROXY = Choice(SendProxy, {"on": SendProxy.V2}, bare="on")
_BUSY_POLL = Count(0, BUSY_POLL_US_MAX, {"auto": -1, "off": 0}, form="MICROSECONDS")

VOCABULARY = (
    Entry("include", FileName("GLOB"), duty=Duty.INCLUDE),
    Entry("logfile", FileName(), setting="log.file"),
    Entry("logformat", Choice(LogFormat), setting="log.format"),
    Entry("logcommon", None, setting="log.format", constant=LogFormat.COMMON, alias=True),
    Entry("pidlogfile", FileName(), setting="pid_file"),
    Entry("threads", Count(0, THREADS_MAX, {"auto": 0}), setting="threads"),
    Entry("busy-poll", _BUSY_POLL, setting="busy_poll_us"),
    Entry(
        "max-connections",
        _CONNECTIONS,
        setting="max_connections",
        option="max_connections",
        server="max_connections",
    ),
    Entry(
        "max-connections-per-source",
        _CONNECTIONS,
        setting="max_connections_per_source",
        option="max_connections_per_source",
    ),
    Entry("source-prefix", PrefixPair(), setting="source_prefix"),
    Entry("max-udp-sessions", _CONNECTIONS, setting="max_udp_sessions"),
    Entry("drain-timeout", Time(), setting="drain_timeout_s"),
    Entry("upgrade-timeout", Time(), setting="upgrade_timeout_s"),
    Entry("watch", Switch(), setting="watch"),
    Entry("admin", AdminPlace("auto|off|unix:PATH|ADDRESS PORT"), duty=Duty.ADMIN),
    Entry("admin-host", AdminPlace("NAME"), duty=Duty.ADMIN),
    Entry("admin-token-file", FileName(), setting="admin.token_file"),
    Entry("metrics", AdminPlace("ADDRESS PORT"), duty=Duty.ADMIN),
    _both("engine", Choice(EngineChoice), "engine"),
    _both("relay", Choice(RelayMode), "relay"),
    _both("buffersize", Size(), "buffer_bytes"),
    _both("pipesize", Size(), "pipe_bytes"),
    _both("listen-backlog", Count(1, BACKLOG_MAX, {}), "listen_backlog"),
    _both("connect-timeout", Time(), "connect_timeout_s"),
    _both("idle-timeout", Time(), "idle_timeout_s"),
    _both("half-close-timeout", Time(), "half_close_timeout_s"),
    _both("write-stall-timeout", Time(), "write_stall_timeout_s"),
    _both("max-lifetime", Time(), "max_lifetime_s"),
    _both("dns-refresh", Time(), "dns_refresh_s"),
    _both("keepalive", KeepAliveForm(), "keepalive"),
    _both("on-deny", Choice(OnDeny), "on_deny"),
    _both("accept-proxy", Choice(AcceptProxy, bare="on"), "accept_proxy"),
    _both("proxy-timeout", Time(), "proxy_timeout_s"),
    _both("peek-timeout", Time(), "peek_timeout_s"),
    _both("send-proxy", _SEND_PROXY, "send_proxy"),
    _both("send-proxy-udp", Choice(SendProxyUdp), "send_proxy_udp"),
    _both("proxy-tlv", Flags(ProxyTlv), "proxy_tlv"),
    _both("rate", RateForm(), "rate"),
    _both("rate-per-source", RateForm(), "rate_per_source"),
    _both("bandwidth", Bandwidth(), "bandwidth_bytes"),
    _both("bandwidth-per-source", Bandwidth(), "bandwidth_per_source_bytes"),
    _both("bandwidth-per-rule", Bandwidth(), "bandwidth_per_rule_bytes"),
    Entry("name", RuleName(), option="name"),
    Entry("src", SourceAddress(), option="source", group="source", server="source"),
    Entry("mode", FileMode(), option="unix_mode"),
    Entry("owner", UserName(group=True), option="unix_owner"),
    Entry("peer-uid", UserName(), option="peer_user"),
    Entry("freebind", Switch(), option="freebind"),
    Entry("interface", Name("INTERFACE", "eth0"), option="interface"),
    Entry("defer-accept", Time(), option="defer_accept_s"),
    Entry("transparent", Switch(), option="transparent"),
    Entry("out-interface", Name("INTERFACE", "eth0"), option="out_interface"),
    Entry("mark", Mark(), option="mark"),
    Entry("dscp", Count(0, 63, {}), option="dscp"),
    Entry("fastopen", Switch(), option="fastopen"),
    Entry("mptcp", Switch(), option="mptcp"),
    Entry("congestion", Name("NAME", "bbr"), option="congestion"),
    Entry("sni", ServerNames(), option="sni"),
    Entry("alpn", ProtocolNames(), option="alpn"),
    Entry("timeout", Time(zero_s=UDP_TIMEOUT_S), option="udp_timeout_s"),
    Entry("upstream", GroupName(), duty=Duty.UPSTREAM),
    Entry("balance", Choice(Balance), group="balance"),
    Entry("check", Choice(Check), group="check"),
    Entry("check-method", Token(), group="check_method"),
    Entry("check-path", PathText(), group="check_path"),
    Entry("check-host", HeaderText(), group="check_host"),
    Entry("check-status", StatusRanges(), group="check_status"),
    Entry("check-send", Text(), group="check_send"),
    Entry("check-expect", Text(), group="check_expect"),
    Entry("check-interval", Time(never=False), group="check_interval_s"),
    Entry("check-timeout", Time(never=False), group="check_timeout_s"),
    Entry("check-rise", Count(1, CHECKS_MAX, {}), group="check_rise"),
    Entry("check-fall", Count(1, CHECKS_MAX, {}), group="check_fall"),
    Entry("check-fast", Time(never=False), group="check_fast_s"),
    Entry("check-down", Time(never=False), group="check_down_s"),
    Entry("check-port", Count(1, 65535, {}, form="PORT"), group="check_port", server="check_port"),
    Entry("passive", PassiveForm(), group="passive"),
    Entry("on-down", Choice(OnDown), group="on_down"),
    Entry("slow-start", Time(), group="slow_start_s"),
    Entry("drain-spread", Time(), group="drain_spread_s"),
    Entry("all-down", Choice(AllDown), group="all_down"),
    Entry("all-backups", Switch(), group="all_backups"),
    Entry("resolve", Choice(Resolve), group="resolve", server="resolve"),
    Entry("allow-special", Switch(), group="allow_special"),
    Entry("weight", Count(0, WEIGHT_MAX, {}), server="weight"),
    Entry("backup", Switch(), server="backup"),
    Entry("allow", AccessPattern(), duty=Duty.ACCESS, constant=Verb.ALLOW),
    Entry("deny", AccessPattern(), duty=Duty.ACCESS, constant=Verb.DENY),
    Entry("trust", AccessPattern(), duty=Duty.ACCESS, constant=Verb.TRUST),
)

DIRECTIVES = {entry.name: entry for entry in VOCABULARY if entry.setting or entry.duty is not Duty.SET}
OPTIONS = {entry.name: entry for entry in VOCABULARY if entry.option}
GROUP_OPTIONS = {entry.name: entry for entry in VOCABULARY if entry.group}
SERVER_OPTIONS = {entry.name: entry for entry in VOCABULARY if entry.server}
