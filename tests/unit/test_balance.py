"""Which server is chosen: pure functions of the loads, the weights and the last choice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd.upstream.balance import FULL_WEIGHT, first, least_loaded, least_passed, ramped, stride, two_draws


@dataclass
class Server:
    """A server as the choice sees it."""

    weight: int = FULL_WEIGHT
    live: int = 0
    passed: int = 0
    open: bool = True


def group(*weights: int) -> list[Server]:
    return [Server(weight * FULL_WEIGHT, passed=stride(weight * FULL_WEIGHT) // 2) for weight in weights]


def burst(servers: Sequence[Server], clients: int) -> list[int]:
    """The choices of `leastconn` for clients that stay."""
    choices: list[int] = []
    for _ in range(clients):
        at = least_loaded(servers, choices[-1] + 1 if choices else 0)
        servers[at].live += 1
        choices.append(at)
    return choices


def rounds(servers: Sequence[Server], clients: int) -> list[int]:
    """The choices of `roundrobin`."""
    choices = []
    for _ in range(clients):
        at = least_passed(servers)
        servers[at].passed += stride(servers[at].weight)
        choices.append(at)
    return choices


def test_a_burst_lands_evenly() -> None:
    assert Counter(burst(group(1, 1, 1, 1), 64)) == {0: 16, 1: 16, 2: 16, 3: 16}


def test_a_burst_lands_by_weight() -> None:
    assert Counter(burst(group(3, 1, 4), 80)) == {0: 30, 1: 10, 2: 40}


def test_ties_go_round_among_those_that_are_open() -> None:
    servers = group(1, 1, 1, 1)
    servers[1].open = False
    last, choices = -1, []
    for _ in range(6):
        last = least_loaded(servers, last + 1)
        choices.append(last)
    assert choices == [0, 2, 3, 0, 2, 3]


def test_turns_are_spread_over_the_round() -> None:
    assert rounds(group(1, 1, 1), 7) == [0, 1, 2, 0, 1, 2, 0]
    assert rounds(group(3, 1), 8) == [0, 0, 1, 0, 0, 0, 1, 0]
    assert rounds(group(5, 1, 1), 7) == [0, 0, 0, 1, 2, 0, 0]


@given(st.lists(st.integers(1, 256), min_size=1, max_size=8))
def test_a_round_gives_each_server_its_weight(weights: list[int]) -> None:
    assert Counter(rounds(group(*weights), sum(weights))) == dict(enumerate(weights))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=2), st.integers(0, (1 << 64) - 1), st.integers(0, 1))
def test_random_with_two_servers_is_leastconn(loads: list[int], draw: int, start: int) -> None:
    servers = group(1, 2)
    for server, live in zip(servers, loads, strict=True):
        server.live = live
    assert two_draws(servers, draw, start) == least_loaded(servers, start)


def test_random_draws_two_different_ones_and_takes_the_better() -> None:
    source = random.Random(1)
    servers = group(1, 1, 1, 1, 1)
    servers[2].open = False
    for _ in range(2000):
        at = two_draws(servers, source.getrandbits(64), 0)
        servers[at].live += 1
    loads = [server.live for server in servers]
    assert loads[2] == 0
    assert max(loads) - min(loads[:2] + loads[3:]) <= 4


def test_first_is_the_first_open_one() -> None:
    servers = group(1, 1, 1)
    servers[0].open = False
    assert first(servers) == 1


@pytest.mark.parametrize("choose", [lambda s: least_loaded(s, 0), least_passed, first, lambda s: two_draws(s, 7, 0)])
def test_nothing_is_chosen_where_nothing_is_open(choose: object) -> None:
    assert callable(choose)
    servers = group(1, 1, 1)
    for server in servers:
        server.open = False
    assert choose(servers) == -1
    assert choose([]) == -1


@pytest.mark.parametrize(
    ("age_ms", "weight"), [(0, 300), (1, 300), (500, 1650), (999, 2997), (1000, 3000), (5000, 3000)]
)
def test_a_slow_start_grows_by_the_clock(age_ms: int, weight: int) -> None:
    assert ramped(3, age_ms, 1000) == weight
    assert ramped(3, age_ms, 0) == 3000
