"""`oinetd transparent`: what routing and nftables need for `src=client` and `transparent`, and whether it is there."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import Final

from oinetd.config.address import parse_host
from oinetd.errors import ConfigError
from oinetd.model import Config, Rule
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
        meta l4proto tcp socket transparent 1 meta mark set {mark:#x} accept
{taken}    }}
}}
END
"""


def transparent_lines(config: Config) -> Iterator[str]:
    """The commands, then what is missing."""
    rules = [rule for rule in config.rules if rule.options.from_client or rule.options.transparent]
    if not rules:
        yield "no rule has src=client or transparent: nothing is needed"
        return
    taken = dict.fromkeys(_taken(rule) for rule in rules if rule.options.transparent)
    yield from _COMMANDS.format(mark=MARK, table=TABLE, taken="".join(taken)).splitlines()
    if taken:
        yield "# The first line with tproxy that fits takes a connection; as they are, they take all that pass through."
        yield "# Write what is wanted into them, such as: iifname eth1, ip saddr 10.0.0.0/8, tcp dport { 80, 443 }."
    if any(rule.options.from_client for rule in rules):
        yield "# The servers need a route to the clients over this machine: as a rule, it is their default gateway."
    for rule in rules:
        yield f"# for {rule}"
    for family, name in ((socket.AF_INET, "IPv4"), (socket.AF_INET6, "IPv6")):
        if delivers_marked(family) is False:
            yield f"# missing: for {name}, no route delivers packets with the mark {MARK:#x} to this machine"


def _taken(rule: Rule) -> str:
    """The line of nftables that brings connections to the listener of `rule`."""
    host, port = parse_host(rule.bind.host), rule.bind.port
    family = {4: "ip", 16: "ip6"}.get(len(host.unmapped.packed), "")
    if host.wildcard and family == "ip6":  # which takes IPv4, too
        family = ""
    where = "" if host.wildcard or not family else rule.bind.address if family == "ip" else f"[{rule.bind.address}]"
    fits = ["fib daddr type != local", "meta l4proto tcp"]
    if rule.options.interface:
        fits.insert(0, f'iifname "{rule.options.interface}"')
    if family:
        fits.append(f"meta nfproto {'ipv4' if family == 'ip' else 'ipv6'}")
    to = " ".join(filter(None, ("tproxy", family, "to", f"{where}:{port}")))
    return f"        {' '.join(fits)} {to} meta mark set {MARK:#x} accept\n"


def show(options: Options) -> int:
    """Print the lines for the configuration of `options`; returns the exit code."""
    try:
        config = options.with_overrides(options.load())
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EX_CONFIG
    sys.stdout.writelines(f"{line}\n" for line in transparent_lines(config))
    return EX_OK
