"""The order of sessions: who ends by silence, and when; who makes room. The clock is the test's own."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd.core.admission import LocalGate
from oinetd.core.record import Ending
from oinetd.core.registry import RuleEntry
from oinetd.lanes.python.udp.table import GRAIN_S, HELD_BYTES_MAX, Queue, SessionTable
from oinetd.model import Endpoint, Rule, RuleOptions


class Clock:
    """What the table uses of a loop; `go` lets time pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Any, *words: Any) -> Timer:
        timer = Timer(self, when, call, words)
        self.timers.append(timer)
        return timer

    def go(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= until]:
            first = min(due, key=lambda timer: timer.at)
            self.timers.remove(first)
            self.now = max(self.now, first.at)
            first.call(*first.words)
        self.now = until


class Timer:
    def __init__(self, clock: Clock, when: float, call: Any, words: tuple[Any, ...]) -> None:
        self.clock, self.at, self.call, self.words = clock, when, call, words

    def cancel(self) -> None:
        self.clock.timers.remove(self)


class Client:
    """A session that does nothing but end."""

    queue: Queue

    def __init__(self, table: SessionTable, rule: RuleEntry, timeout_s: float) -> None:
        self.table, self.rule, self.timeout_s = table, rule, timeout_s
        self.last = 0.0
        self.answered = False
        self.asked = 0.0
        self.ending: Ending | None = None
        assert table.make_room(rule)
        table.enter(self)

    def end(self, ending: Ending, code: int = 0) -> None:
        assert self.ending is None
        self.ending = ending
        self.table.leave(self)
        self.rule.gate.leave()
        self.table.gate.leave()


def table_of(sessions_max: int = 100) -> tuple[Clock, SessionTable]:
    clock = Clock()
    gate = LocalGate()
    gate.set_limits(sessions_max, 0)
    return clock, SessionTable(clock, gate)  # type: ignore[arg-type]


def rule_of(sessions_max: int = 0) -> RuleEntry:
    entry = RuleEntry(Rule(Endpoint("0", 1), Endpoint("0", 1), RuleOptions(max_connections=sessions_max)))
    entry.gate.set_limits(sessions_max, 0)
    return entry


def test_silence_and_traffic() -> None:
    clock, table = table_of()
    rule = rule_of()
    silent, talking = Client(table, rule, 10), Client(table, rule, 10)
    for _ in range(5):
        clock.go(6)
        if talking.ending is None:
            table.touch(talking)
    assert (silent.ending, talking.ending) == (Ending.IDLE_TIMEOUT, None)
    clock.go(10)
    assert talking.ending is Ending.IDLE_TIMEOUT
    assert clock.timers == []


def test_no_timeout_and_no_timer() -> None:
    clock, table = table_of()
    client = Client(table, rule_of(), 0)
    assert clock.timers == []
    clock.go(1e9)
    assert client.ending is None
    assert table.displace()
    assert client.ending is Ending.DISPLACED
    assert not table.displace()


def test_a_smaller_bound_ends_the_oldest() -> None:
    _, table = table_of()
    rule = rule_of()
    clients = [Client(table, rule, 10) for _ in range(5)]
    table.touch(clients[0])
    table.gate.set_limits(2, 0)
    table.trim()
    assert [client.ending is None for client in clients] == [True, False, False, False, True]


def test_a_rule_that_is_to_have_fewer() -> None:
    clock, table = table_of()
    rule, other = rule_of(3), rule_of()
    elsewhere = Client(table, other, 10)
    clients = []
    for timeout_s in (20.0, 10.0, 0.0):
        clock.go(1)
        clients.append(Client(table, rule, timeout_s))
    rule.gate.set_limits(1, 0)
    last = Client(table, rule, 10)
    assert [client.ending for client in clients] == [Ending.DISPLACED] * 3
    assert last.ending is elsewhere.ending is None


def test_those_without_an_answer_make_room_first() -> None:
    _, table = table_of(10)
    established, flooded = rule_of(), rule_of()
    known = [Client(table, established, 10) for _ in range(9)]
    for client in known:
        table.answer(client)
    strangers = [Client(table, flooded, 10) for _ in range(1000)]
    assert {client.ending for client in known} == {None}
    assert [client.ending is None for client in strangers] == [False] * 999 + [True]


def test_an_answered_flood_makes_room_for_itself() -> None:
    """Each rule keeps at least half of an equal share."""
    _, table = table_of(100)
    rules = [rule_of() for _ in range(4)]
    known = [Client(table, rule, 10) for rule in rules[1:] for _ in range(100 // 4 // 2)]
    for client in known:
        table.answer(client)
    for _ in range(1000):
        table.answer(Client(table, rules[0], 10))
    assert {client.ending for client in known} == {None}


def test_a_rule_with_a_share_gets_it() -> None:
    """One rule holds every place; another's clients come."""
    _, table = table_of(64)
    first, second = rule_of(), rule_of()
    for _ in range(64):
        table.answer(Client(table, first, 10))
    late = [Client(table, second, 10) for _ in range(64)]
    for client in late:
        if client.ending is None:
            table.answer(client)
    assert sum(client.ending is None for client in late) == 1  # while no answer came they make room for each other
    more = []
    for _ in range(64):
        more.append(Client(table, second, 10))
        table.answer(more[-1])
    assert 32 <= sum(client.ending is None for client in more) <= 64


def test_what_is_held_has_a_bound() -> None:
    _, table = table_of()
    assert table.hold(HELD_BYTES_MAX)
    assert not table.hold(1)
    table.let_go(HELD_BYTES_MAX)
    assert table.hold(1)


@settings(deadline=None)
@given(
    st.integers(1, 6),
    st.lists(
        st.tuples(
            st.sampled_from(["new", "touch", "answer", "wait"]), st.integers(0, 30), st.sampled_from([0.0, 3.0, 10.0])
        ),
        max_size=60,
    ),
)
def test_against_a_list(sessions_max: int, steps: list[tuple[str, int, float]]) -> None:
    """Against a plain list in the order of the last traffic."""
    clock, table = table_of(sessions_max)
    rules = [rule_of(), rule_of(2)]
    alive: list[Client] = []
    for step, number, timeout_s in steps:
        clock.now += 1e-6  # two that were heard of at the same moment are as good as each other
        if step == "new":
            rule = rules[number % 2]
            newcomer = Client(table, rule, timeout_s)
            gone = [client for client in alive if client.ending is not None]
            left = [client for client in alive if client.ending is None]
            assert len(gone) <= 1 + (rule is rules[1])
            assert bool(gone) or len(left) == len(alive) < sessions_max
            for victim in gone:
                assert victim.ending is Ending.DISPLACED
                same = [each for each in left if each.rule is victim.rule and each.answered is victim.answered]
                assert all(alive.index(victim) < alive.index(each) for each in same)
                if victim.rule is not rule:
                    assert not victim.answered or all(each.answered for each in left)
                    counts = [
                        sum(each.rule is one and each.answered is victim.answered for each in alive) for one in rules
                    ]
                    mine, other = (counts[rules.index(each)] for each in (rule, victim.rule))
                    assert mine.bit_length() < other.bit_length()
            alive = [*left, newcomer]
        elif step == "touch" and alive:
            client = alive[number % len(alive)]
            table.touch(client)
            alive = [*(each for each in alive if each is not client), client]
        elif step == "answer" and alive:
            client = alive[number % len(alive)]
            if not client.answered:
                table.answer(client)
                alive = [*(each for each in alive if each is not client), client]
        elif step == "wait":
            clock.go(number / 3)
            for client in alive:
                if client.ending is None:
                    assert not client.timeout_s or clock.now - client.last < client.timeout_s
                else:
                    assert clock.now - client.last >= client.timeout_s - GRAIN_S
            alive = [client for client in alive if client.ending is None]
        assert len(table) == len(alive)
        assert all(client.ending is None for client in alive)
        queues = {client.queue for client in alive if client.timeout_s}
        assert len(clock.timers) == len(queues)
