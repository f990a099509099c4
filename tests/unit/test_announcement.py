"""What the log says of listeners: one line for a range, whatever order its ports come in."""

from __future__ import annotations

import logging
import socket

import pytest

from oinetd.config import parse_rule
from oinetd.model import Protocol, Route
from oinetd.net.ports import PortKey
from oinetd.net.sockets import Address
from oinetd.observe.announcement import listening, no_longer
from tests.forwarding import forwarding, rule
from tests.peers import echo, server


def at(port: int, host: str = "127.0.0.1") -> Address:
    if ":" in host:
        return Address(socket.AF_INET6, (host, port, 0, 0))
    return Address(socket.AF_INET, (host, port))


def routes(text: str) -> list[Route]:
    return list(parse_rule(text).routes())


def test_a_range_is_one_line() -> None:
    served = [(route, at(route.bind.port), "so") for route in routes("127.0.0.1 8000-8099 h.example 9000-9099")]
    assert list(listening(served)) == ["listening on 127.0.0.1:8000-8099, forwarding to h.example 9000-9099 (so)"]


def test_each_address_of_a_name_has_its_own() -> None:
    served = [
        (route, at(route.bind.port, host), "so")
        for route in routes("localhost 80-81 h.example 90-91/udp")
        for host in ("127.0.0.1", "::1")
    ]
    assert list(listening(served)) == [
        "listening on 127.0.0.1:80-81, forwarding to h.example 90-91/udp (so)",
        "listening on [::1]:80-81, forwarding to h.example 90-91/udp (so)",
    ]


def test_what_does_not_follow_is_told_apart() -> None:
    one, two, three, four = routes("0.0.0.0 1-4 h.example 11-14")
    (other,) = routes("0.0.0.0 5 h.example 15")
    served = [
        (one, at(1), "so"),
        (three, at(3), "so"),
        (four, at(4), "so"),
        (two, at(2), "otherwise"),
        (other, at(5), "so"),
    ]
    assert [line.partition(",")[0] for line in listening(served)] == [
        f"listening on 127.0.0.1:{ports}" for ports in ("1", "3-4", "2", "5")
    ]


def test_udp_listeners_say_so() -> None:
    rule = parse_rule("127.0.0.1 53-54/udp h.example 53-54")
    served = [(route, at(route.bind.port), "so") for route in rule.routes()]
    assert list(listening(served)) == ["listening on 127.0.0.1:53-54/udp, forwarding to h.example 53-54 (so)"]


def test_rules_that_share_a_listener_say_for_whom_they_are() -> None:
    text = "127.0.0.1 443 h.example {} [sni={}]"
    served = [
        (route, at(443), "so")
        for rule in (text.format(1, "a.example+*.example, alpn=h2"), text.format(2, "b.example"))
        for route in routes(rule)
    ]
    assert list(listening(served)) == [
        "listening on 127.0.0.1:443, forwarding to h.example 1 for sni=a.example+*.example for alpn=h2 (so)",
        "listening on 127.0.0.1:443, forwarding to h.example 2 for sni=b.example (so)",
    ]


def test_those_that_go() -> None:
    ports = [PortKey(address, v6only=False) for address in (at(1), at(2), at(7), at(3, "::1"))]
    datagrams = PortKey(at(8), v6only=False, protocol=Protocol.UDP)
    assert list(no_longer([*ports, datagrams])) == [
        f"no longer listening on {span}" for span in ("127.0.0.1:1-2", "127.0.0.1:7", "[::1]:3", "127.0.0.1:8/udp")
    ]


async def test_a_forwarder_says_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    async with server(echo) as upstream, forwarding(rule(upstream), rule(upstream, "127.0.0.7 0")) as forwarder:
        one, two = (f"{address.host}:{address.port}" for address in forwarder.addresses)
        said = [message.partition(",")[0] for message in caplog.messages if message.startswith("listening on ")]
        assert said == [f"listening on {one}", f"listening on {two}"]
