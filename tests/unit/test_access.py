"""Who may come in: the order of the rules, the forms of an address, and patterns against a naive oracle."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oinetd.core.access import AccessControl, glob_match
from oinetd.core.pattern import Kind, PatternError, compile_access, compile_pattern
from oinetd.core.record import Ending
from oinetd.model import AccessRule, Verb

ALLOWED, NOT_ALLOWED, DENIED = None, Ending.NOT_ALLOWED, Ending.DENIED


def rules(*lines: str) -> tuple[AccessRule, ...]:
    """`"+10.*"` is an allow, `"-10.*"` a deny."""
    return tuple(AccessRule(Verb.ALLOW if line[0] == "+" else Verb.DENY, line[1:]) for line in lines)


def matches(pattern: str, address: str) -> bool:
    return AccessControl(rules(f"-{pattern}")).decide(address) is DENIED


ORDER = [
    ((), (), "1.1.1.1", ALLOWED),
    (("+1.*",), (), "1.1.1.1", ALLOWED),
    (("+2.*",), (), "1.1.1.1", NOT_ALLOWED),
    (("+2.*", "+1.*"), (), "1.1.1.1", ALLOWED),
    (("-1.*",), (), "1.1.1.1", DENIED),
    (("-2.*",), (), "1.1.1.1", ALLOWED),
    (("-1.*", "+1.1.1.1"), (), "1.1.1.1", DENIED),
    (("+1.1.1.1", "-1.*"), (), "1.1.1.1", DENIED),
    (("+2.*", "-1.*"), (), "1.1.1.1", NOT_ALLOWED),
    (("-1.*", "+2.*"), (), "1.1.1.1", NOT_ALLOWED),
    ((), ("+1.*",), "1.1.1.1", ALLOWED),
    ((), ("+2.*",), "1.1.1.1", NOT_ALLOWED),
    ((), ("-1.*",), "1.1.1.1", DENIED),
    (("+1.*",), ("+2.*",), "1.1.1.1", NOT_ALLOWED),
    (("-1.*",), ("+1.*",), "1.1.1.1", DENIED),
    (("+2.*",), ("+1.*",), "1.1.1.1", NOT_ALLOWED),
    (("-1.*",), ("+2.*",), "1.1.1.1", DENIED),
    (("+1.*",), ("-1.1.*",), "1.1.1.1", DENIED),
    (("+1.*", "-1.2.*"), ("+1.1.*", "-1.1.2.*"), "1.1.1.1", ALLOWED),
]


@pytest.mark.parametrize(("of_all", "own", "address", "refusal"), ORDER)
def test_order(of_all: tuple[str, ...], own: tuple[str, ...], address: str, refusal: Ending | None) -> None:
    assert AccessControl(rules(*of_all), rules(*own)).decide(address) is refusal


MATCHING = [
    ("*", "1.2.3.4"),
    ("*", "::1"),
    ("1.2.3.4", "1.2.3.4"),
    ("1.2.3.?", "1.2.3.4"),
    ("1.2.*", "1.2.3.4"),
    ("*.4", "1.2.3.4"),
    ("*.2.*.4", "1.2.3.4"),
    ("1*2*3*4", "1.2.3.4"),
    ("1.2.3.4*", "1.2.3.4"),
    ("?*", "1.2.3.4"),
    ("10.0.0.0/8", "10.255.1.2"),
    ("10.1.2.3/8", "10.255.1.2"),
    ("0.0.0.0/0", "1.2.3.4"),
    ("1.2.3.4/32", "1.2.3.4"),
    ("1.2.3.4/31", "1.2.3.5"),
    ("fe80:*", "fe80::1"),
    ("FE80:*", "fe80::1"),
    ("fe80:*", "FE80::1"),
    ("2001:DB8::A", "2001:db8::a"),
    ("0:0:0:0:0:0:0:1", "::1"),
    ("[::1]", "::1"),
    ("[fe80::*]", "fe80::1"),
    ("2001:db8::/32", "2001:db8:1::5"),
    ("[2001:db8::]/32", "2001:db8:1::5"),
    ("::/0", "2001:db8::1"),
    ("1.2.3.4", "::ffff:1.2.3.4"),
    ("1.2.*", "::ffff:1.2.3.4"),
    ("1.2.0.0/16", "::ffff:1.2.3.4"),
    ("::ffff:1.2.*", "::ffff:1.2.3.4"),
    ("::FFFF:1.2.3.4", "::ffff:1.2.3.4"),
    ("::ffff:1.2.0.0/112", "::ffff:1.2.3.4"),
    ("::ffff:102:304", "::ffff:1.2.3.4"),
    ("fe80::1", "fe80::1%eth0"),
    ("fe80::1%eth0", "fe80::1%eth0"),
    ("FE80:0::1%eth0", "fe80::1%eth0"),
    ("[fe80::1%eth0]", "fe80::1%eth0"),
    ("fe80:*%eth?", "fe80::1%eth0"),
    ("fe80::*", "fe80::1%eth0"),
    ("*%eth0", "fe80::1%eth0"),
    ("fe80::/10", "fe80::1%eth0"),
    ("*", "not an address"),
]

NOT_MATCHING = [
    ("1.2.3.4", "1.2.3.40"),
    ("1.2.3.4", "11.2.3.4"),
    ("1.2.3.?", "1.2.3.40"),
    ("1.2.3.4?", "1.2.3.4"),
    ("1.2.3", "1.2.3.4"),
    ("2.*", "1.2.3.4"),
    ("*.3", "1.2.3.4"),
    ("1.[23].3.4", "1.2.3.4"),
    ("10.0.0.0/8", "11.0.0.1"),
    ("1.2.3.4/32", "1.2.3.5"),
    ("0.0.0.0/0", "::1"),
    ("::/0", "1.2.3.4"),
    ("fe80:*", "fe81::1"),
    ("2001:db8::/32", "2001:db9::"),
    ("::ffff:1.2.*", "1.2.3.4"),
    ("fe80::1%eth0", "fe80::1%eth1"),
    ("fe80::1%eth0", "fe80::1"),
    ("fe80::1%ETH0", "fe80::1%eth0"),
    ("1.2.3.4%eth0", "1.2.3.4"),
    ("1.2.3.0/24", "not an address"),
]


@pytest.mark.parametrize(("pattern", "address"), MATCHING)
def test_matches(pattern: str, address: str) -> None:
    assert matches(pattern, address)


@pytest.mark.parametrize(("pattern", "address"), NOT_MATCHING)
def test_does_not_match(pattern: str, address: str) -> None:
    assert not matches(pattern, address)


@pytest.mark.parametrize(
    "pattern",
    ["", "localhost", "1.2.3.4,1.2.3.5", "1/2/3", "1.2.3.4/", "1.2.3.4/33", "1.2.3.4/-1", "::/129", "1.*/8", "a b",
     "fe80::%eth0/64", "1" * 256, "\0", "1.2.3.4%\udcff", "10/8", "1.2.3.4/٣"],
)  # fmt: skip
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(PatternError):
        AccessControl(rules(f"-{pattern}"))


def test_the_compiled_form() -> None:
    """What the native engine is given, to the byte."""
    compiled = compile_access(rules("+192.168.*.?", "-10.1.2.3/8", "+FE80::*%Eth0", "-2001:db8::/32", "+::1"))
    assert [(rule.verb, rule.kind, rule.data) for rule in compiled] == [
        (Verb.ALLOW, Kind.GLOB, b"192.168.*.?"),
        (Verb.DENY, Kind.NET4, b"\x0a\0\0\0\x08"),
        (Verb.ALLOW, Kind.GLOB, b"fe80::*%Eth0"),
        (Verb.DENY, Kind.NET6, b"\x20\x01\x0d\xb8" + bytes(12) + b"\x20"),
        (Verb.ALLOW, Kind.NET6, bytes(15) + b"\x01\x80"),
    ]


def test_global_rules_are_those_given_last() -> None:
    """The memory of the last global list must not answer for another one."""
    one, other = rules("-1.*"), rules("-2.*")
    for globals_, verdict in ((one, DENIED), (other, ALLOWED), (one, DENIED), ((), ALLOWED), (list(one), DENIED)):
        assert AccessControl(globals_, ()).decide("1.1.1.1") is verdict


@pytest.mark.timeout(20)
def test_no_pattern_is_slow() -> None:
    control = AccessControl(rules(*(f"-{'*a' * 100}*b{index % 10}" for index in range(100))))
    for _ in range(10):
        assert control.decide("fe80::aaaa:aaaa:aaaa:aaaa%" + "a" * 15) is ALLOWED


def naive(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(naive(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and naive(pattern[1:], text[1:])


@given(st.text("*?ab", max_size=8), st.text("ab", max_size=10))
@example("*a*b", "aab")
@example("*", "")
def test_glob_against_a_naive_one(pattern: str, text: str) -> None:
    assert glob_match(pattern, text) is naive(pattern, text)


@given(st.text("*?12.", min_size=1, max_size=8), st.sampled_from(["1.2.1.2", "21.1.12.2", "1.1.1.1"]))
def test_decide_against_a_naive_one(pattern: str, address: str) -> None:
    assert matches(pattern, address) is naive(pattern, address)


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
def test_networks_against_ipaddress(network: ipaddress.IPv4Address, bits: int, client: ipaddress.IPv4Address) -> None:
    bits = min(bits, network.max_prefixlen)
    expected = client.version == network.version and client in ipaddress.ip_network(f"{network}/{bits}", strict=False)
    mapped = getattr(client, "ipv4_mapped", None)
    if mapped is not None and network.version == 4:
        expected = mapped in ipaddress.ip_network(f"{network}/{bits}", strict=False)
    assert matches(f"{network}/{bits}", str(client)) is expected


@given(st.text(max_size=40))
def test_any_text_is_a_pattern_or_none(text: str) -> None:
    try:
        kind, data = compile_pattern(text)
    except PatternError:
        return
    assert len(data) == {Kind.NET4: 5, Kind.NET6: 17}.get(kind, len(data))
    assert kind is not Kind.GLOB or re.fullmatch(rb"[ -~]+", data)
