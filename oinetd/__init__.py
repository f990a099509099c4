"""A TCP and UDP port forwarder: rinetd's configuration, a uvloop control plane, a native data plane."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oinetd.blocking import BlockingForwarder
    from oinetd.config import load_config, parse_config, parse_rule, render_config
    from oinetd.core.record import Ending, RelayResult, SessionRecord
    from oinetd.core.registry import RuleStats, Stats
    from oinetd.core.tap import Direction
    from oinetd.errors import BindError, ConfigError, EngineUnavailable, OinetdError, Problem
    from oinetd.forwarder import Forwarder
    from oinetd.model import (
        AcceptProxy,
        AccessRule,
        Config,
        Endpoint,
        EngineChoice,
        KeepAlive,
        LogFormat,
        LogSettings,
        OnDeny,
        Protocol,
        ProxyTlv,
        RelayMode,
        Route,
        Rule,
        RuleOptions,
        SendProxy,
        SendProxyUdp,
        Settings,
        SourcePrefix,
        Verb,
    )
    from oinetd.net.ports import BoundAddress
    from oinetd.servers import AllDown, Balance, Check, GroupOptions, OnDown, Passive, Resolve, Server, Upstream
    from oinetd.upstream.member import ServerStatus

__all__ = [
    "AcceptProxy",
    "AccessRule",
    "AllDown",
    "Balance",
    "BindError",
    "BlockingForwarder",
    "BoundAddress",
    "Check",
    "Config",
    "ConfigError",
    "Direction",
    "Ending",
    "Endpoint",
    "EngineChoice",
    "EngineUnavailable",
    "Forwarder",
    "GroupOptions",
    "KeepAlive",
    "LogFormat",
    "LogSettings",
    "OinetdError",
    "OnDeny",
    "OnDown",
    "Passive",
    "Problem",
    "Protocol",
    "ProxyTlv",
    "RelayMode",
    "RelayResult",
    "Resolve",
    "Route",
    "Rule",
    "RuleOptions",
    "RuleStats",
    "SendProxy",
    "SendProxyUdp",
    "Server",
    "ServerStatus",
    "SessionRecord",
    "Settings",
    "SourcePrefix",
    "Stats",
    "Upstream",
    "Verb",
    "load_config",
    "parse_config",
    "parse_rule",
    "render_config",
]

__version__ = "0.1.0"

_HOMES = {
    "oinetd.blocking": ("BlockingForwarder",),
    "oinetd.core.registry": ("RuleStats", "Stats"),
    "oinetd.config": ("load_config", "parse_config", "parse_rule", "render_config"),
    "oinetd.errors": ("BindError", "ConfigError", "EngineUnavailable", "OinetdError", "Problem"),
    "oinetd.forwarder": ("Forwarder",),
    "oinetd.net.ports": ("BoundAddress",),
    "oinetd.model": (
        "AcceptProxy",
        "AccessRule",
        "Config",
        "Endpoint",
        "EngineChoice",
        "KeepAlive",
        "LogFormat",
        "LogSettings",
        "OnDeny",
        "Protocol",
        "ProxyTlv",
        "RelayMode",
        "Route",
        "Rule",
        "RuleOptions",
        "SendProxy",
        "SendProxyUdp",
        "Settings",
        "SourcePrefix",
        "Verb",
    ),
    "oinetd.servers": (
        "AllDown",
        "Balance",
        "Check",
        "GroupOptions",
        "OnDown",
        "Passive",
        "Resolve",
        "Server",
        "Upstream",
    ),
    "oinetd.core.record": ("Ending", "RelayResult", "SessionRecord"),
    "oinetd.core.tap": ("Direction",),
    "oinetd.upstream.member": ("ServerStatus",),
}
"""The module of each name. It is imported when the name is first used: a program that needs only the version, a checked
configuration or an error class does not wait for the import of the event loop."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # it would make every name a known one

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
