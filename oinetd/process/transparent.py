"""`oinetd transparent`: what routing and nftables need for `src=client`, and whether it is there."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import Final

from oinetd.errors import ConfigError
from oinetd.model import Config
from oinetd.net.transparent import MARK, TABLE, delivers_marked
from oinetd.process.invocation import EX_CONFIG, EX_OK, Options

__all__ = ["show", "transparent_lines"]

_COMMANDS: Final = """\
ip rule add fwmark {mark:#x} lookup {table}
ip route add local default dev lo table {table}
ip -6 rule add fwmark {mark:#x} lookup {table}
ip -6 route add local default dev lo table {table}
nft -f - <<'END'
table inet oinetd {{
    chain divert {{
        type filter hook prerouting priority mangle; policy accept;
        meta l4proto tcp socket transparent 1 meta mark set {mark:#x}
    }}
}}
END
"""


def transparent_lines(config: Config) -> Iterator[str]:
    """The commands, then what is missing."""
    rules = [rule for rule in config.rules if rule.options.from_client]
    if not rules:
        yield "no rule has src=client: nothing is needed"
        return
    yield from _COMMANDS.format(mark=MARK, table=TABLE).splitlines()
    yield "# The servers need a route to the clients over this machine: as a rule, it is their default gateway."
    for rule in rules:
        yield f"# for {rule}"
    for family, name in ((socket.AF_INET, "IPv4"), (socket.AF_INET6, "IPv6")):
        if delivers_marked(family) is False:
            yield f"# missing: for {name}, no route delivers packets with the mark {MARK:#x} to this machine"


def show(options: Options) -> int:
    """Print the lines for the configuration of `options`; returns the exit code."""
    try:
        config = options.with_overrides(options.load())
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EX_CONFIG
    sys.stdout.writelines(f"{line}\n" for line in transparent_lines(config))
    return EX_OK
