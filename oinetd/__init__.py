"""A TCP and UDP port forwarder: rinetd's configuration, a uvloop control plane, a native data plane."""

from oinetd.account import RuleStats, Stats
from oinetd.config import load_config, parse_config, parse_rule, render_config
from oinetd.errors import BindError, ConfigError, EngineUnavailable, OinetdError, Problem
from oinetd.forwarder import BoundAddress, Forwarder
from oinetd.model import (
    AccessRule,
    Config,
    Endpoint,
    EngineChoice,
    KeepAlive,
    LogFormat,
    LogSettings,
    Protocol,
    RelayMode,
    Route,
    Rule,
    RuleOptions,
    Settings,
    Verb,
)
from oinetd.record import Ending, RelayResult, SessionRecord

__all__ = [
    "AccessRule",
    "BindError",
    "BoundAddress",
    "Config",
    "ConfigError",
    "Ending",
    "Endpoint",
    "EngineChoice",
    "EngineUnavailable",
    "Forwarder",
    "KeepAlive",
    "LogFormat",
    "LogSettings",
    "OinetdError",
    "Problem",
    "Protocol",
    "RelayMode",
    "RelayResult",
    "Route",
    "Rule",
    "RuleOptions",
    "RuleStats",
    "SessionRecord",
    "Settings",
    "Stats",
    "Verb",
    "load_config",
    "parse_config",
    "parse_rule",
    "render_config",
]

__version__ = "0.1.0"
