"""Warnings: what they say, in full; that they prevent nothing; and that they are told once at start and reload."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from oinetd import Config, Forwarder, load_config, parse_config, render_config

ITSELF = "127.0.0.1 1 127.0.0.1 1\n"

LISTENS = "0.0.0.0 80 h 80"

SAID = {
    "itself": (
        "0.0.0.0 8080  127.0.0.1   8080 # oops",
        """\
oinetd.conf:1:15: the destination 127.0.0.1 8080 is the rule's own listener
    0.0.0.0 8080  127.0.0.1   8080 # oops
                  ^^^^^^^^^^^^^^^^
    hint: no client of this rule can be served; use another address or port""",
    ),
    "there-and-back": (
        "127.0.0.1 1 127.0.0.1 2/udp\n127.0.0.1 2/udp 127.0.0.1 1",
        """\
oinetd.conf:2:17: the destination 127.0.0.1 1 leads back to this rule, through oinetd.conf:1
    127.0.0.1 2/udp 127.0.0.1 1
                    ^^^^^^^^^^^
    hint: no client of this rule can be served; use another address or port""",
    ),
    "a-range": (
        "::1 8000-8009/udp localhost 8000-8009/udp",
        """\
oinetd.conf:1:19: the destination localhost 8000-8009/udp is the rule's own listener
    ::1 8000-8009/udp localhost 8000-8009/udp
                      ^^^^^^^^^^^^^^^^^^^^^^^
    hint: no client of this rule can be served; use another address or port""",
    ),
    "no-rule": (
        "logfile /var/log/rinetd.log\n",
        """\
oinetd.conf: no forwarding rule: nothing is forwarded
    hint: write a rule: bindaddress bindport connectaddress connectport""",
    ),
}

SAID_OF_PATTERNS = {
    "never": (
        "\tdeny  127.0.0.01  # the loopback address",
        """\
oinetd.conf:1:8: deny 127.0.0.01 can never match
    \tdeny  127.0.0.01  # the loopback address
    \t      ^^^^^^^^^^
    hint: did you mean 127.0.0.1?""",
    ),
    "never-and-no-idea-why": (
        "allow 1.2.3.4.5",
        """\
oinetd.conf:1:7: allow 1.2.3.4.5 can never match
    allow 1.2.3.4.5
          ^^^^^^^^^
    hint: an address is matched in its printed form, such as 192.0.2.1 or 2001:db8::1""",
    ),
    "never-by-its-number": (
        "deny 10.256.*",
        """\
oinetd.conf:1:6: deny 10.256.* can never match
    deny 10.256.*
         ^^^^^^^^
    hint: the numbers of an IPv4 address go from 0 to 255""",
    ),
    "nobody": (
        "allow 0.0.0.0",
        """\
oinetd.conf:1:7: allow 0.0.0.0 can never match: no client has this address
    allow 0.0.0.0
          ^^^^^^^
    hint: * matches every address""",
    ),
    "a-part-of-a-network": (
        "deny 2001:db8:1:2::*",
        """\
oinetd.conf:1:6: deny 2001:db8:1:2::* matches only a part of 2001:db8:1:2::/64
    deny 2001:db8:1:2::*
         ^^^^^^^^^^^^^^^
    hint: zeros are printed as '::'; for the whole network write 2001:db8:1:2::/64""",
    ),
    "one-address": (
        "deny 192.168.7.0",
        """\
oinetd.conf:1:6: deny 192.168.7.0 matches one address, not a network
    deny 192.168.7.0
         ^^^^^^^^^^^
    hint: for the network write 192.168.7.0/24, for this address only 192.168.7.0/32""",
    ),
    "a-header-of-a-plain-client": (
        "trust 192.0.2.1\n0 82 h 80 [accept-proxy=optional]\n0 81 h 80 [accept-proxy=optional, send-proxy]",
        """\
oinetd.conf:2:1: accept-proxy=optional without send-proxy: a header that a plain client writes reaches the server
    0 82 h 80 [accept-proxy=optional]
    ^
    hint: add send-proxy=v2, or be sure that the server expects no header""",
    ),
    "mapped": (
        "deny ::ffff:10.0.0.1",
        """\
oinetd.conf:1:6: deny ::ffff:10.0.0.1 matches IPv4 clients of an IPv6 listener, but not of an IPv4 listener
    deny ::ffff:10.0.0.1
         ^^^^^^^^^^^^^^^
    hint: 10.0.0.1 matches both""",
    ),
}

MEANT = {
    "127.0.0.01": "127.0.0.1",
    "10.1.2": "10.1.2.*",
    "10.1.2.": "10.1.2.*",
    "10..": "10.*",
    "010.020.030.*": "10.20.30.*",
    "10.?": "10.?.*",
    "10.1.2.*.*": "10.1.2.*",
    "127.0.0.1:80": "127.0.0.1",
    "10.1.*:80": "10.1.*",
    "[::1]:80": "::1",
    "2001:0db8:*": "2001:db8:*",
    "2001:0DB8:*": "2001:db8:*",
    "2001:db8:0000:*": "2001:db8::/48",
    "2001:0db8:0:0:*": "2001:db8::/64",
    "[2001:db8:*": "2001:db8:*",
    "2001:db8:": "2001:db8:*",
    "2001:db8": "2001:db8:*",
    "*:0db8:*": "*:db8:*",
    "2001:db8::1%eth0": "2001:db8::1",
    "1.2.3.4%eth0": "1.2.3.4",
    "0": "*",
}

PART = {
    "2001:db8:0:0:*": "2001:db8::/64",
    "2001:db8:0:*": "2001:db8::/48",
    "2001:0:0:1:*": "2001:0:0:1::/64",
    "2001:db8::*": "2001:db8::/32",
    "0:*": "::/16",
}

NETWORKS = {"10.0.0.0": "10.0.0.0/8", "172.16.0.0": "172.16.0.0/16", "2001:db8::": "2001:db8::/32"}

SOUND = [
    "*",
    "10.*",
    "10.1.2.3",
    "10.1.2*",
    "?.?.?.?",
    "10.0.0.0/8",
    "10.0.0.0/32",
    "0.0.0.0/0",
    "::/0",
    "::1",
    "0:0:0:0:0:0:0:1",
    "2001:db8:*",
    "2001:db8:0:1:*",
    "2001:DB8::/32",
    "2001:db8::1",
    "fe80::*",
    "fe80::*%eth0",
    "fe80::1%eth0",
    "::ffff:10.*",
]


@pytest.mark.parametrize(("text", "message"), SAID.values(), ids=SAID)
def test_what_is_said(text: str, message: str) -> None:
    config = parse_config(text, "oinetd.conf")
    assert "\n".join(map(str, config.warnings)) == message


@pytest.mark.parametrize(("pattern", "meant"), MEANT.items())
def test_what_was_meant_by_a_pattern_that_can_never_match(pattern: str, meant: str) -> None:
    (warning,) = parse_config(f"{LISTENS}\ndeny {pattern}").warnings
    assert (warning.message, warning.hint) == (f"deny {pattern} can never match", f"did you mean {meant}?")
    assert parse_config(f"{LISTENS}\ndeny {meant}").warnings == ()


@pytest.mark.parametrize(("pattern", "network"), PART.items())
def test_a_part_of_a_network(pattern: str, network: str) -> None:
    (warning,) = parse_config(f"{LISTENS}\ndeny {pattern}").warnings
    assert warning.message == f"deny {pattern} matches only a part of {network}"
    assert parse_config(f"{LISTENS}\ndeny {network}").warnings == ()


@pytest.mark.parametrize(("pattern", "network"), NETWORKS.items())
def test_an_address_that_looks_like_a_network(pattern: str, network: str) -> None:
    (warning,) = parse_config(f"{LISTENS}\ndeny {pattern}").warnings
    assert f"for the network write {network}," in warning.hint
    assert parse_config(f"{LISTENS}\ndeny {network}").warnings == ()


@pytest.mark.parametrize("pattern", SOUND)
def test_nothing_is_said_of_a_pattern_that_is_as_it_should_be(pattern: str) -> None:
    assert parse_config(f":: 80 h 80\ndeny {pattern}").warnings == ()


def test_a_mapped_pattern_is_looked_at_for_the_listeners_it_holds_for() -> None:
    mapped = "deny ::ffff:10.0.0.0/120\n"
    ipv6, ipv4 = ":: 80 h 80\n", "127.0.0.1 81 h 80\n"
    assert parse_config(mapped + ipv6).warnings == ()
    assert parse_config(ipv4 + ipv6 + mapped).warnings == ()
    for text in (mapped + ipv6 + ipv4, ipv6 + ipv4 + mapped):
        (warning,) = parse_config(text).warnings
        assert warning.hint == "10.0.0.0/24 matches both"


def test_what_is_cut_off_is_said() -> None:
    config = parse_config("\n".join([LISTENS, *(f"deny 10.{number}" for number in range(300))]), "x")
    assert len(config.warnings) == 201
    assert str(config.warnings[-1]) == "x: more warnings are not shown"


@pytest.mark.parametrize(("text", "message"), SAID_OF_PATTERNS.values(), ids=SAID_OF_PATTERNS)
def test_what_is_said_of_patterns(text: str, message: str) -> None:
    config = parse_config(f"{text}\n{LISTENS}", "oinetd.conf")
    assert "\n".join(map(str, config.warnings)) == message


def test_a_bound_of_no_connections_is_none() -> None:
    text = (
        "max-connections 0\n0.0.0.0 80 @web [max-connections=0, max-connections-per-source=0]\n"
        "upstream web 10.0.0.1 80 [weight=2, max-connections=0]\nupstream web 10.0.0.2 80 [max-connections=off]\n"
    )
    config = parse_config(text)
    assert config.upstreams[0].servers[0].max_connections == 0
    assert [(each.line, each.column) for each in config.warnings] == [(1, 17), (2, 34), (2, 64), (3, 53)]
    for each in config.warnings:
        assert (each.message, "weight=0" in each.hint) == ("a maximum of 0 connections means no limit", True)


def test_they_are_in_the_order_of_the_text_and_name_their_files(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("127.0.0.1 1 127.0.0.1 1\n")
    (tmp_path / "oinetd.conf").write_text("127.0.0.1 2 127.0.0.1 2\ninclude more.conf\n127.0.0.1 3 127.0.0.1 3\n")
    config = load_config(tmp_path / "oinetd.conf")
    assert [warning.place for warning in config.warnings] == [
        f"{tmp_path}/oinetd.conf:1:13",
        f"{tmp_path}/more.conf:1:13",
        f"{tmp_path}/oinetd.conf:3:13",
    ]


def test_they_play_no_part_in_equality_and_are_not_written() -> None:
    config = parse_config(ITSELF)
    assert config.warnings
    assert config == Config(rules=config.rules)
    assert "warning" not in render_config(config) + repr(config)


async def test_a_forwarder_logs_them_at_start_and_at_each_reload(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "oinetd")
    clean = parse_config("127.0.0.1 0 127.0.0.1 9")
    warned = parse_config("127.0.0.1 4321 127.0.0.1 4321", "x.conf")
    said = [str(warning) for warning in warned.warnings]
    async with Forwarder(warned) as forwarder:
        assert caplog.messages == said
        await forwarder.reload(warned)
        assert caplog.messages == said * 2
        await forwarder.reload(clean)
        assert caplog.messages == said * 2
