"""Rules that forward to themselves: which do, and which only look so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd import parse_config

LOOPS = {
    "the same address": "127.0.0.1 80 127.0.0.1 80",
    "another way to write it": "::1 80 [0:0:0:0:0:0:0:1] http",
    "a wildcard": "0.0.0.0 80 127.0.0.1 80",
    "any loopback address": "0 80 127.1.2.3 80",
    "the IPv6 wildcard": ":: 80 ::1 80",
    "the IPv6 wildcard takes IPv4": ":: 80 127.0.0.1 80",
    "a wildcard as destination": "0.0.0.0 80 0.0.0.0 80",
    "the IPv6 wildcard as destination": "::1 80 :: 80",
    "a wildcard as destination is the loopback address": "127.0.0.1 80 0 80",
    "a wildcard as destination is the source address": "192.0.2.1 80 0 80 [src=192.0.2.1]",
    "a mapped destination": "127.0.0.1 80 ::ffff:127.0.0.1 80",
    "a mapped listener": "::ffff:127.0.0.1 80 127.0.0.1 80",
    "a mapped wildcard": "::ffff:0.0.0.0 80 127.0.0.1 80",
    "an address that another rule binds": "0.0.0.0 80 192.0.2.1 80\n192.0.2.1 81 example.org 80",
    "an address that another rule goes out from": "0.0.0.0 80 192.0.2.1 80\n127.0.0.1 1 h 1 [src=192.0.2.1]",
    "an IPv6 address that another rule binds": ":: 80 2001:db8::1 80\n2001:db8::1 81 example.org 80",
    "a scope": "fe80::1%eth0 80 [fe80::1%eth0] 80",
    "a name": "example.org 80 Example.ORG. 80",
    "localhost": "0.0.0.0 80 localhost 80",
    "localhost, IPv6": "::1 80 localhost 80",
    "a listener on localhost": "localhost 80 127.0.0.1 80",
    "UDP": "0.0.0.0 53/udp 127.0.0.1 53/udp",
    "TCP that goes to UDP and back": "127.0.0.1 53 127.0.0.1 53/udp\n127.0.0.1 53/udp 127.0.0.1 53",
    "a range": "0.0.0.0 8000-8010 127.0.0.1 8000-8010",
    "a port within a range": "127.0.0.1 1 127.0.0.1 8005\n127.0.0.1 8000-8010 127.0.0.1 65525-65535\n"
    "127.0.0.1 65530 127.0.0.1 1",
    "a cycle of three": "127.0.0.1 1 127.0.0.1 2\n127.0.0.1 2 127.0.0.1 3\n127.0.0.1 3 127.0.0.1 1",
    "a destination that leads into a cycle": "127.0.0.1 9 127.0.0.1 1\n127.0.0.1 1 127.0.0.1 1",
    "a range that is shifted, and shifted back": "127.0.0.1 10-19 127.0.0.1 20-29\n127.0.0.1 20-29 127.0.0.1 10-19",
}

NO_LOOPS = {
    "another port": "127.0.0.1 80 127.0.0.1 81",
    "another protocol": "0.0.0.0 53/udp 127.0.0.1 53",
    "another protocol, the other way round": "0.0.0.0 53 127.0.0.1 53/udp",
    "another address": "127.0.0.1 80 127.0.0.2 80",
    "the other family": "0.0.0.0 80 ::1 80",
    "an address that is not known to be ours": "0.0.0.0 80 192.0.2.1 80",
    "an IPv6 address that is not known to be ours": ":: 80 2001:db8::1 80",
    "another scope": "fe80::1%eth0 80 fe80::1%eth1 80",
    "the IPv6 wildcard beside an IPv4 listener": ":: 80 127.0.0.1 80\n192.0.2.1 80 example.org 81",
    "a port of the kernel's choice": "127.0.0.1 0 127.0.0.1 80",
    "a chain": "127.0.0.1 1 127.0.0.1 2\n127.0.0.1 2 127.0.0.1 3\n127.0.0.1 3 127.0.0.1 4",
    "a range that leads away from itself": "127.0.0.1 8000-8999 127.0.0.1 8500-9499",
    "ranges that only touch": "127.0.0.1 10-19 127.0.0.1 20-29\n127.0.0.1 20-29 127.0.0.1 30-39",
    "another name": "a.example 80 b.example 80",
    "a name of this machine": "0.0.0.0 80 example.org 80",
    "localhost from an IPv4 address": "::1 80 localhost 80 [src=127.0.0.1]",
    "a wildcard as destination, from an address": "127.0.0.1 80 0 80 [src=192.0.2.1]",
}


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_loop(text: str) -> None:
    assert parse_config(text).warnings


@pytest.mark.parametrize("text", NO_LOOPS.values(), ids=NO_LOOPS)
def test_no_loop(text: str) -> None:
    assert parse_config(text).warnings == ()


def test_it_is_told_once_and_at_the_last_rule_of_the_cycle() -> None:
    text = "127.0.0.1 2 127.0.0.1 3\n127.0.0.1 3 127.0.0.1 1\n127.0.0.1 1 127.0.0.1 2"
    (warning,) = parse_config(text, "x").warnings
    assert warning.place == "x:3:13"
    assert warning.message == "the destination 127.0.0.1 2 leads back to this rule, through x:1, x:2"


def test_a_range_names_the_ports_that_are_a_loop() -> None:
    (warning,) = parse_config("0.0.0.0 8000-8009 127.0.0.1 9000-9009\n0.0.0.0 9005-9019 127.0.0.1 8005-8019").warnings
    assert warning.message == "the destination 127.0.0.1 8005-8009 leads back to this rule, through <text>:1"


def test_two_loops_are_told_apart() -> None:
    first, second = parse_config("127.0.0.1 1 127.0.0.1 1\n127.0.0.1 2 127.0.0.1 2").warnings
    assert (first.line, second.line) == (1, 2)


def test_a_cycle_longer_than_the_stack() -> None:
    count = 20_000
    ring = "\n".join(f"127.0.0.1 {port} 127.0.0.1 {port % count + 1}" for port in range(1, count + 1))
    (warning,) = parse_config(ring).warnings
    assert warning.line == count
    assert warning.message.endswith("<text>:7, 19992 more")


def test_a_range_of_all_ports() -> None:
    (warning,) = parse_config("0.0.0.0 1-65535 127.0.0.1 1-65535").warnings
    assert warning.message == "the destination 127.0.0.1 1-65535 is the rule's own listener"


_RuleWords = tuple[str, int, str, str, int, str]
TARGETS = ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"]
ADDRESSES = [
    "127.0.0.1",
    "127.0.0.2",
    "0.0.0.0",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "localhost",
    "192.0.2.1",
    "h.example",
]
HOSTS = st.sampled_from(ADDRESSES)
PROTOCOLS = st.sampled_from(["", "/tcp", "/udp"])
RULES = st.lists(
    st.tuples(
        st.sampled_from(ADDRESSES),
        st.integers(0, 5),
        PROTOCOLS,
        st.sampled_from(ADDRESSES),
        st.integers(1, 6),
        PROTOCOLS,
    ),
    min_size=1,
    max_size=8,
)


def _text(rules: list[_RuleWords], base: int) -> str:
    # Each rule listens on a block of ports of its own, so that no two conflict.
    return "\n".join(
        f"{bind} {10 * number + low + 1}-{10 * number + low + 3}{one} {connect} {base + high}-{base + high + 2}{other}"
        for number, (bind, low, one, connect, high, other) in enumerate(rules)
    )


@given(RULES.filter(bool))
def test_no_false_alarm_where_no_rule_listens_on_the_port_of_a_destination(
    rules: list[_RuleWords],
) -> None:
    assert parse_config(_text(rules, 1000)).warnings == ()


@given(RULES, st.integers(0, 80))
def test_a_loop_is_what_following_a_connection_comes_back_to(rules: list[_RuleWords], base: int) -> None:
    """Against a reference that follows every port of every rule, for destinations that are one address."""
    rules = [rule for rule in rules if rule[3] in TARGETS]
    config = parse_config(_text(rules, base))

    def listens(address: str, port: int, protocol: object) -> list[tuple[int, int]]:
        ipv4 = [rule for rule in config.rules if ":" not in rule.bind.host and rule.bind.protocol is protocol]
        heard = {address.removeprefix("::ffff:"), "0.0.0.0" if "." in address else "::"}
        heard |= {"localhost"} if address.endswith(("127.0.0.1", "::1")) else set()
        if "." in address and not any(port in rule.bind.ports for rule in ipv4):
            heard.add("::")
        return [
            (number, port)
            for number, rule in enumerate(config.rules)
            if port in rule.bind.ports
            and rule.bind.host.removeprefix("::ffff:") in heard
            and rule.bind.protocol is protocol
            and port in rule.bind.ports
        ]

    loops = False
    for number, rule in enumerate(config.rules):
        for start in rule.bind.ports:
            at: list[tuple[int, int]] = [(number, start)]
            seen: set[tuple[int, int]] = set()
            while at and at[0] not in seen:
                seen.add(at[0])
                index, port = at[0]
                here = config.rules[index]
                at = listens(here.connect.host, here.connect.port + port - here.bind.port, here.connect.protocol)
            loops = loops or bool(at)
    assert any(warning.message.startswith("the destination") for warning in config.warnings) is loops
