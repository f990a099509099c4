"""The native access rules refuse as `oinetd.core.access`, whatever the rules and whoever the client."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd.core.access import AccessControl
from oinetd.core.record import Ending
from oinetd.lanes.native.plane import ENDINGS, available, compile_policy
from oinetd.model import AccessRule, Settings, Verb

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

NOT_ALLOWED = ENDINGS.index(Ending.NOT_ALLOWED)
REFUSALS = {0: None, NOT_ALLOWED: Ending.NOT_ALLOWED, ENDINGS.index(Ending.DENIED): Ending.DENIED}

ipv4 = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.sampled_from(["127.0.0.1", "10.0.0.1", "10.1.2.3", "192.0.2.77", "0.0.0.0", "255.255.255.255"]),
)
ipv6 = st.one_of(
    st.ip_addresses(v=6).map(str),
    st.sampled_from(["::1", "::", "fe80::1", "2001:db8::7"]),
    st.sampled_from(["fe80::1%lo", "fe80::2%lo"]),
    ipv4.map(lambda host: "::ffff:" + host),
)
hosts = st.one_of(ipv4, ipv6)


@st.composite
def globs(draw: st.DrawFn) -> str:
    """A client's address with some of its characters replaced by wildcards."""
    text = draw(st.one_of(ipv4, ipv6.filter(lambda host: "%" not in host)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.sampled_from("*?")) + text[start + draw(st.integers(0, 4)) :]
    return text


networks = st.one_of(
    st.tuples(ipv4, st.integers(0, 32)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.tuples(st.ip_addresses(v=6).map(str), st.integers(0, 128)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.integers(0, 32).map(lambda bits: f"::ffff:0:0/{96 + bits}"),
)
patterns = st.one_of(globs(), networks, hosts, st.sampled_from(["*", "*.*", "*:*", "?*", "fe80::*%lo", "**1", "*.1"]))
rules = st.lists(st.builds(AccessRule, st.sampled_from(Verb), patterns), max_size=4).map(tuple)


@settings(max_examples=600, deadline=None)
@given(rules, rules, st.lists(hosts, min_size=1, max_size=5))
def test_same_refusals(globally: tuple[AccessRule, ...], own: tuple[AccessRule, ...], who: list[str]) -> None:
    python = AccessControl(globally, own)
    native = compile_policy(1, None, Settings(), access=(globally, own))
    for host in who:
        assert REFUSALS[native.decide(host)] is python.decide(host), host


def test_every_prefix_length() -> None:
    for version, host in ((4, "203.0.113.170"), (6, "2001:db8:aa55::1:aaaa:5555")):
        for bits in range((32 if version == 4 else 128) + 1):
            inside = ipaddress.ip_network(f"{host}/{bits}", strict=False)
            rule = AccessRule(Verb.ALLOW, str(inside))
            native = compile_policy(1, None, Settings(), access=((), (rule,)))
            assert native.decide(host) == 0
            if bits:
                first_bit_outside = int(ipaddress.ip_address(host)) ^ (1 << (inside.max_prefixlen - bits))
                assert native.decide(str(type(inside.network_address)(first_bit_outside))) == NOT_ALLOWED
