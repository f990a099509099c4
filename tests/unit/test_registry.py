"""The counters and the limits, without a socket: for both kinds of gate."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from oinetd.config import parse_rule
from oinetd.core.admission import Gate, LocalGate
from oinetd.core.record import Ending, SessionRecord
from oinetd.core.registry import Live, Registry, RuleEntry
from oinetd.lanes.native.plane import available, new_gate
from oinetd.model import Rule


def rule(text: str = "127.0.0.1 8000 127.0.0.1 80") -> Rule:
    return parse_rule(text)


@pytest.fixture(params=["local", "native"])
def registry(request: pytest.FixtureRequest) -> Registry:
    if request.param == "native" and (reason := available()):
        pytest.skip(reason)
    make: dict[str, Callable[[], Gate]] = {"local": LocalGate, "native": new_gate}
    return Registry(make[request.param](), make[request.param]())


def enter(registry: Registry, of: RuleEntry, client: str = "192.0.2.1") -> Live:
    """A connection that was accepted, in a place that was taken."""
    assert registry.take_place(of)
    live = Live(SessionRecord(registry.gate.next_id(), next(of.rule.routes()), client, 1, time.time()), of, list)
    registry.enter(live)
    return live


def has_room(registry: Registry, of: RuleEntry) -> bool:
    if registry.take_place(of):
        registry.give_back(of)
        return True
    return False


def leave(registry: Registry, live: Live, ending: Ending = Ending.CLIENT_CLOSED) -> None:
    live.record.ending = ending
    registry.leave(live)


def test_a_limit_is_exactly_that_many(registry: Registry) -> None:
    registry.set_limits(3, 0)
    of = registry.of(rule())
    lives = [enter(registry, of) for _ in range(3)]
    assert not has_room(registry, of)
    leave(registry, lives[0])
    assert has_room(registry, of)


def test_a_rule_has_its_own_limit(registry: Registry) -> None:
    one = registry.of(rule("127.0.0.1 1 h.example 1 [max-connections=1]"))
    two = registry.of(rule("127.0.0.1 2 h.example 2"))
    live = enter(registry, one)
    assert not has_room(registry, one)
    assert has_room(registry, two)
    leave(registry, live)
    assert has_room(registry, one)


def test_a_place_that_the_process_has_not_is_not_kept_from_the_rule(registry: Registry) -> None:
    registry.set_limits(1, 0)
    one = registry.of(rule("127.0.0.1 1 h.example 1"))
    two = registry.of(rule("127.0.0.1 2 h.example 2 [max-connections=1]"))
    live = enter(registry, one)
    for _ in range(3):
        assert not has_room(registry, two)
    leave(registry, live)
    enter(registry, two)


def test_a_limit_of_nothing_is_none(registry: Registry) -> None:
    of = registry.of(rule())
    for _ in range(1000):
        assert registry.admit_source(enter(registry, of))


def test_one_source_has_exactly_its_limit_and_the_first_come_get_it(registry: Registry) -> None:
    registry.set_limits(0, 2)
    of = registry.of(rule())
    lives = [enter(registry, of) for _ in range(4)]
    assert [registry.admit_source(live) for live in lives] == [True, True, False, False]
    for refused in lives[2:]:
        leave(registry, refused, Ending.LIMITED)
    late = enter(registry, of)
    assert not registry.admit_source(late)
    leave(registry, lives[0])
    assert registry.admit_source(late)
    assert registry.admit_source(enter(registry, of, "192.0.2.2"))


def test_who_is_denied_takes_no_room_of_his_source(registry: Registry) -> None:
    registry.set_limits(0, 1)
    one, two = registry.of(rule("127.0.0.1 1 h.example 1")), registry.of(rule("127.0.0.1 2 h.example 2"))
    to_be_denied, good = enter(registry, one), enter(registry, two)
    assert registry.admit_source(good)
    leave(registry, to_be_denied, Ending.DENIED)
    assert not registry.admit_source(enter(registry, two))


def test_the_limit_of_a_source_within_one_rule(registry: Registry) -> None:
    one = registry.of(rule("127.0.0.1 1 h.example 1 [max-connections-per-source=1]"))
    two = registry.of(rule("127.0.0.1 2 h.example 2"))
    first = enter(registry, one)
    assert registry.admit_source(first)
    assert not registry.admit_source(enter(registry, one))
    assert registry.admit_source(enter(registry, one, "192.0.2.2"))
    assert registry.admit_source(enter(registry, two))
    leave(registry, first)
    assert registry.admit_source(enter(registry, one))


def test_refused_by_the_rule_is_not_counted_by_the_process(registry: Registry) -> None:
    registry.set_limits(0, 2)
    one = registry.of(rule("127.0.0.1 1 h.example 1 [max-connections-per-source=1]"))
    two = registry.of(rule("127.0.0.1 2 h.example 2"))
    assert registry.admit_source(enter(registry, one))
    for _ in range(3):
        assert not registry.admit_source(enter(registry, one))
    assert registry.admit_source(enter(registry, two))
    assert not registry.admit_source(enter(registry, two))


def test_limits_that_change_under_live_sessions_stay_exact(registry: Registry) -> None:
    of = registry.of(rule())
    before = enter(registry, of)
    assert registry.admit_source(before)
    registry.set_limits(2, 1)
    after = enter(registry, of)
    assert not has_room(registry, of)
    assert registry.admit_source(after)
    leave(registry, before)  # was never counted for its source
    late = enter(registry, of)
    assert not registry.admit_source(late)
    leave(registry, after)
    assert registry.admit_source(late)
    registry.set_limits(0, 0)
    leave(registry, late)
    registry.set_limits(0, 1)
    assert registry.admit_source(enter(registry, of))


def test_who_waits_for_room_is_called_once(registry: Registry) -> None:
    of = registry.of(rule())
    calls: list[str] = []

    def call() -> None:
        calls.append("room")

    lives = [enter(registry, of) for _ in range(3)]
    registry.when_room(call)
    registry.when_room(call)
    leave(registry, lives[0])
    leave(registry, lives[1])
    assert calls == ["room"]
    registry.when_room(call)
    registry.forget_waiting(call)
    leave(registry, lives[2])
    assert calls == ["room"]


def test_one_may_wait_again_while_it_is_called(registry: Registry) -> None:
    of = registry.of(rule())
    calls: list[str] = []

    def call() -> None:
        calls.append("room")
        registry.when_room(call)

    registry.when_room(call)
    for live in [enter(registry, of) for _ in range(2)]:
        leave(registry, live)
    assert calls == ["room", "room"]


def test_what_is_counted(registry: Registry) -> None:
    of = registry.of(rule())
    endings = [Ending.CLIENT_CLOSED, Ending.DENIED, Ending.LIMITED, Ending.NOT_ALLOWED, Ending.CONNECT_FAILED]
    for ending in endings:
        live = enter(registry, of)
        live.meter.bytes_up, live.meter.bytes_down = 10, 1
        leave(registry, live, ending)
    live = enter(registry, of)
    live.meter.bytes_up, live.meter.bytes_down = 5, 7
    stats = registry.stats()
    assert (stats.live, stats.accepted, stats.refused, stats.failed) == (1, 6, 3, 1)
    assert (stats.bytes_up, stats.bytes_down) == (55, 12)
    assert stats.rules[of.rule].endings == dict.fromkeys(endings, 1)
    # A snapshot stays what it was.
    leave(registry, live)
    assert (stats.live, stats.rules[of.rule].live) == (1, 1)
    assert not registry.busy


@pytest.mark.parametrize("ending", [ending for ending in Ending if ending.refused])
def test_the_native_lane_opens_nobody_whom_it_refuses(registry: Registry, ending: Ending) -> None:
    of = registry.of(rule())
    record = enter(registry, of).record
    record.ending = ending
    registry.native_closed(record)
    assert (of.stats.live, of.stats.accepted, of.stats.refused) == (1, 2, 1)


def test_a_live_session_shows_its_counts_of_the_moment(registry: Registry) -> None:
    live = enter(registry, registry.of(rule()))
    live.meter.bytes_up = 3
    (seen,) = registry.sessions()
    assert (seen.id, seen.bytes_up, seen.ending) == (live.record.id, 3, None)
    assert seen is not live.record
    assert seen.duration_s >= 0


def test_a_clock_step_does_not_touch_durations(registry: Registry) -> None:
    enter(registry, registry.of(rule())).record.started -= 1e6
    (seen,) = registry.sessions()
    assert seen.duration_s < 1e5


# Which entry a rule has after a reload


def test_another_destination_goes_on_counting(registry: Registry) -> None:
    of = registry.of(rule("127.0.0.1 1 h.example 1"))
    later = registry.of(rule("127.0.0.1 1 h.example 2 [max-connections=1]"))
    assert later is of
    assert list(registry.stats().rules) == [later.rule]


def test_rules_that_take_a_free_port_have_an_entry_each(registry: Registry) -> None:
    rules = [rule(f"127.0.0.1 0 h.example {port} [max-connections=1]") for port in (1, 2)]
    one, two = (registry.of(each) for each in rules)
    enter(registry, one)
    assert not has_room(registry, one)
    assert has_room(registry, two)
    assert list(registry.stats().rules) == rules
