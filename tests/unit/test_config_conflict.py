"""Rules that cannot listen side by side, and those that can."""

from __future__ import annotations

import pytest

from oinetd.config import parse_config
from oinetd.errors import ConfigError

APART = [
    ("0.0.0.0 80", ":: 80"),
    ("127.0.0.1 80", "127.0.0.2 80"),
    ("127.0.0.1 80", "127.0.0.1 81"),
    ("127.0.0.1 80", "::1 80"),
    ("0.0.0.0 80", "::1 80"),
    (":: 80", "127.0.0.1 80"),
    ("0.0.0.0 0", "0.0.0.0 0"),
    ("0.0.0.0 0", "127.0.0.1 0"),
    ("127.0.0.1 8000-8009", "127.0.0.1 8010-8019"),
    ("fe80::1%eth0 80", "fe80::1%eth1 80"),
    ("a.example 80", "b.example 80"),
    ("0.0.0.0 80", "0.0.0.0 80/udp"),
    ("0.0.0.0 80/udp", "127.0.0.1 80"),
    ("a.example 80", "0.0.0.0 80"),
]

TOGETHER = [
    ("0.0.0.0 80", "0.0.0.0 80"),
    ("0 80", "0.0.0.0 80"),
    ("0 http", "0.0.0.0 80/tcp"),
    ("::1 80", "[::1] 80"),
    ("0.0.0.0 53/udp", "0.0.0.0 domain/udp"),
    ("0.0.0.0 53/udp", "127.0.0.1 53/udp"),
    ("::1 80", "0:0:0:0:0:0:0:1 80"),
    ("2001:db8::A 80", "2001:db8::a 80"),
    (":: 80", "[::] 80"),
    ("fe80::1%eth0 80", "[fe80::1%eth0] 80"),
    ("::ffff:127.0.0.1 80", "127.0.0.1 80"),
    ("127.0.0.1 8000-8010", "127.0.0.1 8010"),
    ("127.0.0.1 8005", "127.0.0.1 8000-8010"),
    ("127.0.0.1 8000-8010", "127.0.0.1 8010-8020"),
    ("a.example 80", "A.Example. 80"),
    ("0.0.0.0 80", "127.0.0.1 80"),
    ("127.0.0.1 80", "0 80"),
    ("127.0.0.1 8000-8010", "0.0.0.0 8010-8020"),
    (":: 80", "::1 80"),
    ("::1 80", "[::] 80"),
]


def rule(bind: str) -> str:
    ports = bind.split()[1].partition("/")[0]
    return f"{bind} h {ports if '-' in ports else 1}"


@pytest.mark.parametrize(("one", "other"), APART)
def test_side_by_side(one: str, other: str) -> None:
    assert len(parse_config(f"{rule(one)}\n{rule(other)}").rules) == 2
    assert len(parse_config(f"{rule(other)}\n{rule(one)}").rules) == 2


@pytest.mark.parametrize(("one", "other"), TOGETHER)
def test_not_side_by_side(one: str, other: str) -> None:
    for first, second in ((one, other), (other, one)):
        with pytest.raises(ConfigError) as caught:
            parse_config(f"# x\n{rule(first)}\n0 1 h 1\n{rule(second)}", "conf")
        (problem,) = caught.value.problems
        assert problem.line == 4
        assert "used by conf:2" in problem.message


def test_each_rule_is_told_once() -> None:
    lines = ["127.0.0.1 80 h 1", "127.0.0.2 80 h 1", "0 80 h 1", "0 80 h 1", "127.0.0.1 80 h 1", "0 81 h 1"]
    with pytest.raises(ConfigError) as caught:
        parse_config("\n".join(lines))
    assert [problem.line for problem in caught.value.problems] == [3, 4, 5]


@pytest.mark.timeout(30)
def test_many_ranges_take_no_longer_than_they_should() -> None:
    lines = [f"10.{index >> 8}.{index & 255}.1 1-65535 h 1-65535" for index in range(3000)]
    assert len(parse_config("\n".join(lines)).rules) == 3000
    with pytest.raises(ConfigError) as caught:
        parse_config("\n".join(["0 1-65535 h 1-65535", *lines]))
    assert len(caught.value.problems) == 3000


@pytest.mark.parametrize(
    "option",
    [
        "accept-proxy", "proxy-timeout=1s", "peek-timeout=1s", "listen-backlog=9", "keepalive=off", "engine=python",
        "interface=lo", "freebind", "transparent", "mptcp", "fastopen", "defer-accept=1s", "congestion=reno",
    ],
)  # fmt: skip
@pytest.mark.parametrize("swapped", [False, True])
def test_rules_that_share_a_listener_agree_on_what_is_of_it(option: str, swapped: bool) -> None:
    """The first one is named; what is of the rule may differ."""
    own = "max-connections=5, relay=copy, bandwidth=1M, rate=5/s, send-proxy=v2, idle-timeout=1s"
    lines = [f"0 443 h 1 [sni=a.example, {option}]", f"0 443 h 2 [sni=b.example, {own}]"]
    with pytest.raises(ConfigError) as caught:
        parse_config("\n".join(["trust *", *(reversed(lines) if swapped else lines)]), "conf")
    (problem,) = caught.value.problems
    assert problem.line == 3
    assert problem.message.startswith(f"{option.partition('=')[0]} differs from that of conf:2")
    assert len(parse_config("\n".join(["trust *", lines[0], f"0 443 h 2 [sni=b.example, {option}, {own}]"])).rules) == 2
