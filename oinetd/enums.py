"""The words that a configuration can choose from. Their values are the words of the language."""

from __future__ import annotations

import enum

__all__ = [
    "AcceptProxy",
    "EngineChoice",
    "LogFormat",
    "OnDeny",
    "Protocol",
    "ProxyTlv",
    "RelayMode",
    "SendProxy",
    "SendProxyUdp",
    "Verb",
]


class Protocol(enum.Enum):
    """The transport of one side of a rule."""

    TCP = "tcp"
    UDP = "udp"


class EngineChoice(enum.Enum):
    """`auto` is the native engine if it can serve the rule, else the Python lane."""

    AUTO = "auto"
    NATIVE = "native"
    PYTHON = "python"


class RelayMode(enum.Enum):
    """How the native engine moves bytes: `auto` decides per direction and by what flows."""

    AUTO = "auto"
    COPY = "copy"
    SPLICE = "splice"


class OnDeny(enum.Enum):
    """What a reload does with live connections that its access rules refuse."""

    KEEP = "keep"
    RESET = "reset"


class AcceptProxy(enum.Enum):
    """Whether trusted clients must begin with a header of the PROXY protocol.

    Other clients are refused with `on`, and are plain clients with `optional`.
    """

    OFF = "off"
    ON = "on"
    OPTIONAL = "optional"


class SendProxy(enum.Enum):
    """The version of the PROXY protocol with which a server is told who the client is."""

    OFF = "off"
    V1 = "v1"
    V2 = "v2"


class SendProxyUdp(enum.Enum):
    """Which datagrams of a UDP session tell the server who the client is."""

    EVERY = "every"
    FIRST = "first"


class ProxyTlv(enum.Enum):
    """What a header of version 2 says besides addresses: `pass` is what an accepted header said."""

    CRC32C = "crc32c"
    UNIQUE_ID = "unique-id"
    AUTHORITY = "authority"
    PASS = "pass"


class LogFormat(enum.Enum):
    """`rinetd` and `common` are rinetd's, to the byte; `json` is one object a line."""

    RINETD = "rinetd"
    COMMON = "common"
    JSON = "json"


class Verb(enum.Enum):
    """What an access rule does with the addresses it matches. To trust is to believe their PROXY headers."""

    ALLOW = "allow"
    DENY = "deny"
    TRUST = "trust"
