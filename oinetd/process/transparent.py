"""`oinetd transparent`: what routing and nftables need for `src=client` and `transparent`, and whether it is there.

What brings connections to a rule with `transparent` is `tproxy`, or with `--redirect` the NAT of the kernel. That needs
no routes, and takes connections of this machine itself, too.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from oinetd.config.address import parse_host
from oinetd.errors import ConfigError
from oinetd.model import Config, Rule
from oinetd.net.transparent import MARK, TABLE, delivers_marked
from oinetd.process.invocation import EX_CONFIG, EX_OK, Options

__all__ = ["show", "transparent_lines"]

_ROUTES: Final = f"""\
ip rule add fwmark {MARK:#x} lookup {TABLE}
ip route add local default dev lo table {TABLE}
ip -6 rule add fwmark {MARK:#x} lookup {TABLE}
ip -6 route add local default dev lo table {TABLE}"""

_DIVERT: Final = f"""\
    chain divert {{
        type filter hook prerouting priority mangle; policy accept;
        meta l4proto tcp socket transparent 1 meta mark set {MARK:#x} accept"""

_CONNTRACK: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_LOOPBACK6: Final = bytes(15) + b"\1"
_INTERFACES: Final = Path("/proc/sys/net/ipv4/conf")


def transparent_lines(config: Config, *, redirect: bool = False, uid: int | None = None) -> Iterator[str]:
    """The commands, then what is missing. oinetd runs as the user `uid`, if that is known."""
    rules = [rule for rule in config.rules if rule.options.from_client or rule.options.transparent]
    if not rules:
        yield "no rule has src=client or transparent: nothing is needed"
        return
    takers = [rule for rule in rules if rule.options.transparent]
    from_client = any(rule.options.from_client for rule in rules)
    routed = from_client or not redirect
    if routed:
        yield from _ROUTES.splitlines()
    yield from ("nft -f - <<'END'", "table inet oinetd {")
    if routed:
        yield from _DIVERT.splitlines()
        yield from () if redirect else dict.fromkeys(map(_tproxy, takers))
        yield "    }"
    if redirect and takers:
        yield from _nat(takers, uid)
    yield from ("}", "END")
    if takers:
        word, other = ("NAT", "without --redirect, by tproxy") if redirect else ("tproxy", "with --redirect, by NAT")
        yield f"# The first line with {word} that fits takes a connection; as they are, they take all that come by."
        yield "# Write what is wanted into them, such as: iifname eth1, ip saddr 10.0.0.0/8, tcp dport { 80, 443 }."
        yield f"# Do it in one way only: {other}."
    if from_client:
        yield "# The servers need a route to the clients over this machine: as a rule, it is their default gateway."
    for rule in rules:
        yield f"# for {rule}"
    if routed:
        yield from _missing_routes()
    if redirect and takers:
        yield from _unreachable(takers)
        yield from _missing_nat(takers)


def _tproxy(rule: Rule) -> str:
    """The line of nftables that brings connections to the listener of `rule`, and leaves them as they are."""
    family, where = _listens(rule)
    to = " ".join(filter(None, ("tproxy", family, "to", f"{where}:{rule.bind.port}")))
    return f"        {_fits(rule)} {to} meta mark set {MARK:#x} accept"


def _nat(rules: list[Rule], uid: int | None) -> Iterator[str]:
    """The chains that change the destination of connections to that of a listener."""
    lines = dict.fromkeys(f"{_fits(rule)} {_changed(rule)}" for rule in rules)
    yield from ("    chain taken {", "        type nat hook prerouting priority dstnat; policy accept;")
    yield from (f"        {line}" for line in lines)
    yield "    }"
    # Of the connections of this machine none comes in through an interface. Those of oinetd must not come back to it.
    here = dict.fromkeys(f"{_fits(rule)} {_changed(rule)}" for rule in rules if not rule.options.interface)
    if here and uid is None:
        yield "    # For connections of this machine itself say -u USER, the user of oinetd, whose own are left out."
    elif here:
        yield from ("    chain taken_here {", "        type nat hook output priority -100; policy accept;")
        yield from (f"        meta skuid != {uid} {line}" for line in here)
        yield "    }"


def _changed(rule: Rule) -> str:
    family, where = _listens(rule)
    return f"dnat {family} to {where}:{rule.bind.port}" if where else f"redirect to :{rule.bind.port}"


def _listens(rule: Rule) -> tuple[str, str]:
    """The family that a listener takes, in the words of nftables and empty for both, and its address if it has one."""
    host = parse_host(rule.bind.host)
    family = {4: "ip", 16: "ip6"}.get(len(host.unmapped.packed), "")
    if host.wildcard and family == "ip6":  # which takes IPv4, too
        family = ""
    where = "" if host.wildcard or not family else rule.bind.address if family == "ip" else f"[{rule.bind.address}]"
    return family, where


def _fits(rule: Rule) -> str:
    """Which packets are for the listener of `rule`."""
    family = _listens(rule)[0]
    fits = ["fib daddr type != local", "meta l4proto tcp"]
    if rule.options.interface:
        fits.insert(0, f'iifname "{rule.options.interface}"')
    if family:
        fits.append(f"meta nfproto {'ipv4' if family == 'ip' else 'ipv6'}")
    return " ".join(fits)


def _missing_routes() -> Iterator[str]:
    for family, name in ((socket.AF_INET, "IPv4"), (socket.AF_INET6, "IPv6")):
        if delivers_marked(family) is False:
            yield f"# missing: for {name}, no route delivers packets with the mark {MARK:#x} to this machine"


def _unreachable(rules: list[Rule]) -> Iterator[str]:
    """The listeners on loopback, to which the kernel lets no connection from outside be redirected."""
    allowed = any(each.read_text().strip() == "1" for each in _INTERFACES.glob("*/route_localnet"))
    for rule in rules:
        packed = parse_host(rule.bind.host).unmapped.packed
        own = f"# Only connections of this machine itself reach {rule.bind.address}:"
        if packed == _LOOPBACK6:
            yield f"{own} listen on :: to take others."
        elif len(packed) == 4 and packed[0] == 127 and not allowed:
            yield f"{own} listen on 0.0.0.0 to take others,"
            yield "# or allow it where they come in: sysctl -w net.ipv4.conf.INTERFACE.route_localnet=1"


def _missing_nat(rules: list[Rule]) -> Iterator[str]:
    """What NAT lacks, as far as it can be seen: the lines of another program than nftables cannot."""
    if not _CONNTRACK.exists():
        yield "# missing: the kernel tracks no connections, and so does not know where they were going"
    ruleset = _ruleset()
    for port in dict.fromkeys(rule.bind.port for rule in rules if ruleset is not None):
        if not re.search(rf"\b(redirect|dnat)\b[^\n]*\b{port}\b", ruleset or ""):
            yield f"# missing: no line of nftables redirects connections to port {port}"


def _ruleset() -> str | None:
    """The rules of nftables; None if it does not tell."""
    if (nft := shutil.which("nft")) is None:
        return None
    try:
        done = subprocess.run([nft, "list", "ruleset"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def show(options: Options, *, redirect: bool = False) -> int:
    """Print the lines for the configuration of `options`; returns the exit code."""
    try:
        config = options.with_overrides(options.load())
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EX_CONFIG
    uid = None if options.identity is None else options.identity.uid
    sys.stdout.writelines(f"{line}\n" for line in transparent_lines(config, redirect=redirect, uid=uid))
    return EX_OK
