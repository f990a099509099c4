"""Numbers that a program puts into a configuration: what the language refuses is refused, by the field's name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from oinetd import Config, KeepAlive, RuleOptions, Settings, render_config


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (Settings, "buffer_bytes", 0),
        (Settings, "buffer_bytes", 65536.0),
        (RuleOptions, "pipe_bytes", (1 << 30) + 1),
        (Settings, "listen_backlog", 0),
        (RuleOptions, "connect_timeout_s", -1),
        (Settings, "idle_timeout_s", math.nan),
        (Settings, "half_close_timeout_s", math.inf),
        (RuleOptions, "write_stall_timeout_s", 0.0001),
        (Settings, "dns_refresh_s", "60"),
        (RuleOptions, "udp_timeout_s", -0.5),
        (RuleOptions, "max_connections", -1),
        (Config, "max_connections_per_source", -1),
        (Config, "max_udp_sessions", 1 << 21),
        (Config, "threads", 1025),
        (Config, "busy_poll_us", -2),
        (Config, "drain_timeout_s", -1.0),
        (KeepAlive, "idle_s", 32768),
        (KeepAlive, "interval_s", 0),
        (KeepAlive, "count", 128),
    ],
)
def test_out_of_range(make: Any, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .* to \d+") as failure:
        make(**{name: value})
    assert repr(value) in str(failure.value)


def test_the_ends_of_the_ranges() -> None:
    Settings(buffer_bytes=1, pipe_bytes=1 << 30, idle_timeout_s=0.001, dns_refresh_s=365 * 86400, listen_backlog=1)
    Config(threads=1024, busy_poll_us=-1, max_connections=1 << 20, drain_timeout_s=0)
    assert RuleOptions(idle_timeout_s=0) != RuleOptions()
    assert "idle-timeout 1s" in render_config(Config(settings=Settings(idle_timeout_s=1)))
