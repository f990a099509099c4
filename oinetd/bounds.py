"""The ranges of numbers in a configuration, for the language and for values that a program makes.

Values of a program are also checked for their type, such as a text in place of a `Rule`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final, TypeVar

__all__ = [
    "ADDRESSES_MAX",
    "BACKLOG_MAX",
    "BUSY_POLL_US_MAX",
    "CHECKS_MAX",
    "CONNECTIONS_MAX",
    "KEEPALIVE_COUNT_MAX",
    "KEEPALIVE_S_MAX",
    "PREFIX_IPV4_MAX",
    "PREFIX_IPV6_MAX",
    "SERVERS_MAX",
    "SIZE_BYTES_MAX",
    "THREADS_MAX",
    "TIME_S_MAX",
    "TIME_S_MIN",
    "UPSTREAMS_MAX",
    "WEIGHT_MAX",
    "check_numbers",
    "check_type",
    "check_types",
]

TIME_S_MAX: Final = 365 * 86400
"""A year: for a longer time use `off`."""

TIME_S_MIN: Final = 0.001
"""A millisecond, the resolution of the timers; less would silently mean `off`."""

SIZE_BYTES_MAX: Final = 1 << 30
"""A gigabyte: a larger buffer is certainly a slip."""

KEEPALIVE_S_MAX: Final = 32767
KEEPALIVE_COUNT_MAX: Final = 127
"""The kernel's own limits, MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL and MAX_TCP_KEEPCNT of include/net/tcp.h."""

CONNECTIONS_MAX: Final = 1 << 20
"""The descriptor limit is never raised above this (the kernel's default for fs.nr_open)."""

PREFIX_IPV4_MAX: Final = 32
PREFIX_IPV6_MAX: Final = 128
"""The number of bits of an address."""

ADDRESSES_MAX: Final = 16
"""The number of addresses of a destination that are used; the native lane has this number of slots."""

SERVERS_MAX: Final = 1024
UPSTREAMS_MAX: Final = 4096
"""Servers of a group, and groups of a configuration: more are certainly made by a program that went wrong."""

WEIGHT_MAX: Final = 256
"""As in HAProxy."""

CHECKS_MAX: Final = 1000
"""More checks in a row would take an hour to notice anything."""

BACKLOG_MAX: Final = 1 << 20
THREADS_MAX: Final = 1024
"""More reactors than any machine has cores are certainly a slip."""

BUSY_POLL_US_MAX: Final = 10_000
"""Ten milliseconds: with a longer poll a thread would hardly ever sleep."""

_WHOLE: Final = {
    "buffer_bytes": (1, SIZE_BYTES_MAX),
    "pipe_bytes": (1, SIZE_BYTES_MAX),
    "listen_backlog": (1, BACKLOG_MAX),
    "max_connections": (0, CONNECTIONS_MAX),
    "max_connections_per_source": (0, CONNECTIONS_MAX),
    "max_udp_sessions": (0, CONNECTIONS_MAX),
    "threads": (0, THREADS_MAX),
    "busy_poll_us": (-1, BUSY_POLL_US_MAX),
    "idle_s": (0, KEEPALIVE_S_MAX),
    "interval_s": (1, KEEPALIVE_S_MAX),
    "bandwidth_bytes": (0, SIZE_BYTES_MAX),
    "bandwidth_per_source_bytes": (0, SIZE_BYTES_MAX),
    "bandwidth_per_rule_bytes": (0, SIZE_BYTES_MAX),
    "mark": (0, 0xFFFFFFFF),
    "dscp": (0, 63),
    "unix_mode": (0, 0o777),
    "count": (1, KEEPALIVE_COUNT_MAX),
    "weight": (0, WEIGHT_MAX),
    "check_rise": (1, CHECKS_MAX),
    "check_fall": (1, CHECKS_MAX),
    "check_port": (0, 65535),
}


def check_numbers(values: Any) -> None:
    """Raise `ValueError` if a number in the dataclass `values` is out of its range; None is not checked."""
    for field in fields(values):
        name, value = field.name, getattr(values, field.name)
        if value is None:
            continue
        if name in _WHOLE:
            low, high = _WHOLE[name]
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
        elif name.endswith("_s") and (
            not isinstance(value, int | float) or (value and not TIME_S_MIN <= value <= TIME_S_MAX)
        ):
            raise ValueError(
                f"{name} is {value!r}; it must be a number of seconds from {TIME_S_MIN} to {TIME_S_MAX}, or 0 for off"
            )


_T = TypeVar("_T")

_REMEDIES: Final = {
    "AccessRule": 'such as AccessRule(Verb.DENY, "192.0.2.*")',
    "Config": "use parse_config for a text, load_config for a file",
    "Rule": "use parse_rule for a text",
    "Server": 'such as Server(Endpoint("192.0.2.1", 80))',
    "Upstream": 'such as Upstream("web", (Server(Endpoint("192.0.2.1", 80)),))',
}


def check_type(value: object, kind: type[_T]) -> _T:
    """`value` itself. Raises `TypeError` with the remedy if it is not of type `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not of type {kind.__name__}; {_REMEDIES[kind.__name__]}")
    return value


def check_types(values: object, kind: type) -> None:
    """Raise `TypeError` unless `values` is a tuple or list of `kind`."""
    if not isinstance(values, tuple | list):
        raise TypeError(f"{values!r} is not a tuple of {kind.__name__}")
    for value in values:
        check_type(value, kind)
