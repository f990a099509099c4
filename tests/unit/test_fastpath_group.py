"""Both lanes choose the same server: same states, same client."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd.lanes.native.plane import available
from oinetd.model import Endpoint
from oinetd.net.sockets import lookup
from oinetd.servers import AllDown, Balance, GroupOptions, Server
from oinetd.upstream import balance, maglev
from oinetd.upstream.destination import Destination
from oinetd.upstream.load import LocalLoad
from oinetd.upstream.member import Member
from oinetd.upstream.member import State as ServerState
from oinetd.upstream.selection import Refusal, Selection

pytestmark = pytest.mark.skipif(bool(available()), reason=available())
if not available():
    from oinetd import _fastpath

UP, DOWN, EJECTED, DRAIN, MAINT = range(5)
FULL = -2
REFUSALS = {Refusal.NONE: -1, Refusal.FULL: FULL, Refusal.REFUSED: -3}
NOW_MS, SLOW_MS = 1_000_000, 60_000


@dataclass
class State:
    """A server as both sides see it."""

    weight: int
    live: int = 0
    bound: int = 0
    state: int = UP
    backup: bool = False
    resolved: bool = True
    passed: int = 0
    failed_ms: int = 0
    slow_since_ms: int = 0
    overdue: int = 0
    failures: int = 0


def members_of(states: Sequence[State], options: GroupOptions) -> list[Member]:
    """The servers as both lanes have them: the counts are the native ones."""
    found = []
    for at, state in enumerate(states):
        load = _fastpath.Server(at + 1, state.weight)
        destination = Destination("192.0.2.1", 0.0, lookup("192.0.2.1") if state.resolved else ())
        member = Member("group", f"192.0.2.1:{at + 1}", load)
        endpoint = Endpoint("192.0.2.1", at + 1)
        member.configure(Server(endpoint, state.weight, state.backup, state.bound), options, destination)
        load.max_connections = 0
        for _ in range(state.live):
            assert load.enter()
        member.state = list(ServerState)[state.state]
        load.state, load.passed, load.failed_ms = state.state, state.passed, state.failed_ms
        load.max_connections, load.slow_since_ms = state.bound, state.slow_since_ms
        for _ in range(state.overdue):
            assert load.wait(9)
        load.failures = state.failures
        found.append(member)
    return found


def make(states: Sequence[State], how: Balance, **said: Any) -> tuple[Any, Selection]:
    """The native group, and that of the Python lane; both count in the same servers."""
    refuse = AllDown.REFUSE if said.get("refuse") else AllDown.TRY
    options = GroupOptions(
        balance=how, all_down=refuse, all_backups=said.get("all_backups", False), slow_start_s=SLOW_MS / 1000
    )
    members = members_of(states, options)
    tables = (table(states, False), table(states, True)) if how is Balance.SOURCE else (None, None)
    native = _fastpath.Group(
        [
            _fastpath.Member(each.load, [address.sockaddr for address in each.addresses(0)], each.backup)
            for each in members
        ],
        balance=list(Balance).index(how),
        slow_ms=SLOW_MS,
        ejects=True,
        tables=tables,
        **said,
    )
    python = Selection(options)
    python.set_members(options, members, tables)
    return native, python


def table(states: Sequence[State], backup: bool) -> array[int]:
    """Maglev's table of a tier, with the numbers of the servers in the whole group."""
    places = [at for at, state in enumerate(states) if state.backup is backup and state.weight]
    entries = maglev.table_of([(b"192.0.2.%d:80" % at, states[at].weight) for at in places])
    return array("h", [places[entry] if entry >= 0 else -1 for entry in entries])


def choose(python: Selection, host: str, tried: Sequence[int], draw: int, answering: bool = False) -> int:
    """What the Python lane chooses, by its number."""
    with mock.patch("time.monotonic_ns", return_value=NOW_MS * 1_000_000):
        found = python.pick(
            host, [python.members[at] for at in tried if at < len(python.members)], draw, answering=answering
        )
    return python.members.index(found) if isinstance(found, Member) else REFUSALS[found]


hosts = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
states = st.builds(
    State,
    weight=st.sampled_from([0, 1, 1, 2, 3, 256]),
    live=st.integers(0, 6),
    bound=st.sampled_from([0, 0, 0, 2, 5]),
    state=st.sampled_from([UP, UP, UP, DOWN, EJECTED, DRAIN, MAINT]),
    backup=st.sampled_from([False, False, True]),
    resolved=st.sampled_from([True, True, True, False]),
    passed=st.integers(0, 3).map(lambda turns: turns * balance.stride(1000)),
    failed_ms=st.integers(0, 3),
    slow_since_ms=st.sampled_from([0, 0, NOW_MS, NOW_MS - 30_000, NOW_MS - 61_000]),
    overdue=st.sampled_from([0, 0, 1, 3]),
    failures=st.sampled_from([0, 0, 2, 3]),
)


@settings(max_examples=400, deadline=None)
@given(
    group=st.lists(states, min_size=1, max_size=9),
    how=st.sampled_from([each for each in Balance if each is not Balance.SOURCE]),
    refuse=st.booleans(),
    all_backups=st.booleans(),
    tried=st.sets(st.integers(0, 8), max_size=4),
    host=hosts,
    draw=st.integers(0, 2**64 - 1),
    answering=st.booleans(),
)
def test_same_states_same_server(
    group: list[State], how: Balance, refuse: bool, all_backups: bool, tried: set[int], host: str, draw: int,
    answering: bool,
) -> None:  # fmt: skip
    native, python = make(group, how, refuse=refuse, all_backups=all_backups)
    wanted = choose(python, host, sorted(tried), draw, answering)
    assert native.pick(host, sorted(tried), NOW_MS, draw, answering) == wanted


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(["wait", "over", "failed", "worked", "took"]), st.integers(0, 9))),
)
def test_same_connects_same_patience(limit: int, steps: list[tuple[str, int]]) -> None:
    """What both lanes count of connects that are overdue; never more wait than would eject the server."""
    loads = (_fastpath.Server(1), LocalLoad(1))
    waiting: list[tuple[int, int]] = []
    for step, number in steps:
        if step == "wait":
            marks = tuple(load.wait(limit) for load in loads)
            assert bool(marks[0]) is bool(marks[1])
            if marks[0]:
                waiting.append(marks)
                assert all(load.overdue == 1 or load.overdue + load.failures <= limit for load in loads)
        elif step == "over" and waiting:
            for load, mark in zip(loads, waiting.pop(number % len(waiting)), strict=True):
                load.wait_over(mark)
        elif step == "failed":
            assert len({load.note_failed(number) for load in loads}) == 1
        for load in loads:
            if step == "worked":
                load.note_worked()
            elif step == "took":
                load.took(40 * number)
        assert len({(load.overdue, load.is_silent(limit), load.patience_ms, load.took_ms) for load in loads}) == 1
    for marks in waiting:
        for load, mark in zip(loads, marks, strict=True):
            load.wait_over(mark)
    assert [load.overdue for load in loads] == [0, 0]


@settings(max_examples=10, deadline=None)
@given(
    group=st.lists(states, min_size=1, max_size=5),
    all_backups=st.booleans(),
    tried=st.sets(st.integers(0, 4), max_size=2),
    clients=st.lists(hosts, min_size=1, max_size=5),
)
def test_same_client_same_server(group: list[State], all_backups: bool, tried: set[int], clients: list[str]) -> None:
    native, python = make(group, Balance.SOURCE, all_backups=all_backups)
    for host in clients:
        wanted = choose(python, host, sorted(tried), 0)
        assert native.pick(host, sorted(tried), NOW_MS) == wanted


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "192.0.2.1", "::ffff:192.0.2.1", "2001:db8:1:2:3::4", "2001:db8::9", "0.0.0.0", "::"]
)
def test_the_entry_of_a_client(host: str) -> None:
    """Every server has an entry of its own at first, so the choice tells the entry."""
    count = 1024
    entries = array("h", [at % count for at in range(maglev.TABLE_SIZE)])
    members = [_fastpath.Member(_fastpath.Server(at + 1), [("192.0.2.1", 80)]) for at in range(count)]
    group = _fastpath.Group(members, balance=list(Balance).index(Balance.SOURCE), tables=(entries, None))
    assert group.pick(host) == maglev.entry_of(host) % count


@pytest.mark.parametrize("how", [Balance.LEASTCONN, Balance.RANDOM, Balance.ROUNDROBIN])
def test_a_burst_lands_evenly(how: Balance) -> None:
    group, _ = make([State(1) for _ in range(4)], how)
    if how is Balance.RANDOM:
        group, _ = make([State(1) for _ in range(2)], how)
    for server in group.servers:
        server.passed = balance.stride(1000) // 2
    chosen = Counter(group.select("192.0.2.9", draw=0x123456789ABCDEF * turn % 2**64) for turn in range(64))
    assert set(chosen.values()) == {64 // len(group.servers)}


def test_weights_are_met_in_a_burst() -> None:
    group, _ = make([State(3), State(1), State(4)], Balance.LEASTCONN)
    assert Counter(group.select("192.0.2.9") for _ in range(80)) == {0: 30, 1: 10, 2: 40}


def test_a_round_is_by_weight() -> None:
    group, _ = make([State(5), State(1), State(1)], Balance.ROUNDROBIN)
    for server, weight in zip(group.servers, (5, 1, 1), strict=True):
        server.passed = balance.stride(1000 * weight) // 2
    chosen = [group.select("192.0.2.9") for _ in range(7)]
    assert Counter(chosen) == {0: 5, 1: 1, 2: 1}


@pytest.mark.parametrize("lane", ["native", "python"])
def test_a_server_that_was_passed_over_does_not_catch_up(lane: str) -> None:
    """It has just begun to answer again: the next clients are not all its own."""
    native, python = make([State(1), State(1), State(1), State(1, backup=True)], Balance.ROUNDROBIN)

    def chosen() -> int:
        if lane == "native":
            return int(native.select("192.0.2.9"))
        found = python.select("192.0.2.9")
        assert isinstance(found, Member)
        return python.members.index(found)

    silent = native.servers[0]
    marks = [silent.wait(3) for _ in range(3)]
    assert all(marks)
    assert Counter(chosen() for _ in range(100)) == {1: 50, 2: 50}
    silent.note_worked()
    assert {count in (9, 10, 11) for count in Counter(chosen() for _ in range(30)).values()} == {True}
    assert native.servers[3].passed == 0


def test_a_group_with_bounds_is_full_until_one_leaves() -> None:
    group, _ = make([State(1, bound=1), State(1, bound=1), State(1, backup=True)], Balance.LEASTCONN)
    assert sorted(group.select("192.0.2.9") for _ in range(2)) == [0, 1]
    assert group.is_full
    assert group.select("192.0.2.9") == FULL, "a backup is not for those who find the others full"
    group.servers[0].leave()
    assert not group.is_full
    assert group.select("192.0.2.9") == 0


def test_groups_share_a_table() -> None:
    table = _fastpath.Table(array("h", [0, 1] * 32768 + [0]))
    assert (len(table), table[1], list(table)[-3:], table.users) == (maglev.TABLE_SIZE, 1, [0, 1, 0], 0)
    members = [_fastpath.Member(_fastpath.Server(at + 1), [("192.0.2.1", 80)]) for at in range(2)]
    groups = [_fastpath.Group(members, balance=3, tables=(table, None)) for _ in range(3)]
    assert table.users == 3
    chosen = groups[0].pick("192.0.2.9")
    del table
    assert [group.pick("192.0.2.9") for group in groups] == [chosen] * 3
    with pytest.raises(ValueError, match="the table has a member 1, and the group none"):
        _fastpath.Group(members[:1], balance=3, tables=(_fastpath.Table(array("h", [0, 1] * 32768 + [0])), None))
    with pytest.raises(ValueError, match="in all entries, or in none"):
        _fastpath.Table(array("h", [0, -1] * 32768 + [0]))
    with pytest.raises(IndexError):
        _fastpath.Table(array("h", [0]) * maglev.TABLE_SIZE)[maglev.TABLE_SIZE]


def test_what_cannot_be_a_group() -> None:
    server = _fastpath.Server(1)
    for members, said in (
        ([_fastpath.Member(server)], {"balance": 5}),
        ([_fastpath.Member(server)], {"tables": (array("h", [0]), None)}),
    ):
        with pytest.raises(ValueError, match=r".+"):
            _fastpath.Group(members, **said)
    with pytest.raises(ValueError, match="weight"):
        server.weight = 257
    with pytest.raises(ValueError, match="state"):
        server.state = 5
