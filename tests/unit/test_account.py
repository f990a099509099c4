"""The counters and the limits, without a socket: for both kinds of gate."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from oinetd.config import parse_rule
from oinetd.core.admission import Gate, LocalGate
from oinetd.core.record import Ending, SessionRecord
from oinetd.core.registry import Account, Live, RuleAccount
from oinetd.lanes.native.plane import available, new_permits
from oinetd.model import Rule


def rule(text: str = "127.0.0.1 8000 127.0.0.1 80") -> Rule:
    return parse_rule(text)


@pytest.fixture(params=["local", "native"])
def account(request: pytest.FixtureRequest) -> Account:
    if request.param == "native" and (reason := available()):
        pytest.skip(reason)
    make: dict[str, Callable[[], Gate]] = {"local": LocalGate, "native": new_permits}
    return Account(make[request.param](), make[request.param]())


def enter(account: Account, of: RuleAccount, client: str = "192.0.2.1") -> Live:
    """A connection that was accepted, in a place that was taken."""
    assert account.take_place(of)
    live = Live(SessionRecord(account.gate.next_id(), next(of.rule.routes()), client, 1, time.time()), of, list)
    account.enter(live)
    return live


def has_room(account: Account, of: RuleAccount) -> bool:
    if account.take_place(of):
        account.give_back(of)
        return True
    return False


def leave(account: Account, live: Live, ending: Ending = Ending.CLIENT_CLOSED) -> None:
    live.record.ending = ending
    account.leave(live)


def test_a_limit_is_exactly_that_many(account: Account) -> None:
    account.set_limits(3, 0)
    of = account.of(rule())
    lives = [enter(account, of) for _ in range(3)]
    assert not has_room(account, of)
    leave(account, lives[0])
    assert has_room(account, of)


def test_a_rule_has_its_own_limit(account: Account) -> None:
    one = account.of(rule("127.0.0.1 1 h.example 1 [max-connections=1]"))
    two = account.of(rule("127.0.0.1 2 h.example 2"))
    live = enter(account, one)
    assert not has_room(account, one)
    assert has_room(account, two)
    leave(account, live)
    assert has_room(account, one)


def test_a_place_that_the_process_has_not_is_not_kept_from_the_rule(account: Account) -> None:
    account.set_limits(1, 0)
    one = account.of(rule("127.0.0.1 1 h.example 1"))
    two = account.of(rule("127.0.0.1 2 h.example 2 [max-connections=1]"))
    live = enter(account, one)
    for _ in range(3):
        assert not has_room(account, two)
    leave(account, live)
    enter(account, two)


def test_a_limit_of_nothing_is_none(account: Account) -> None:
    of = account.of(rule())
    for _ in range(1000):
        assert account.admit_source(enter(account, of))


def test_one_source_has_exactly_its_limit_and_the_first_come_get_it(account: Account) -> None:
    account.set_limits(0, 2)
    of = account.of(rule())
    lives = [enter(account, of) for _ in range(4)]
    assert [account.admit_source(live) for live in lives] == [True, True, False, False]
    for refused in lives[2:]:
        leave(account, refused, Ending.LIMITED)
    late = enter(account, of)
    assert not account.admit_source(late)
    leave(account, lives[0])
    assert account.admit_source(late)
    assert account.admit_source(enter(account, of, "192.0.2.2"))


def test_who_is_denied_takes_no_room_of_his_source(account: Account) -> None:
    account.set_limits(0, 1)
    one, two = account.of(rule("127.0.0.1 1 h.example 1")), account.of(rule("127.0.0.1 2 h.example 2"))
    to_be_denied, good = enter(account, one), enter(account, two)
    assert account.admit_source(good)
    leave(account, to_be_denied, Ending.DENIED)
    assert not account.admit_source(enter(account, two))


def test_the_limit_of_a_source_within_one_rule(account: Account) -> None:
    one = account.of(rule("127.0.0.1 1 h.example 1 [max-connections-per-source=1]"))
    two = account.of(rule("127.0.0.1 2 h.example 2"))
    first = enter(account, one)
    assert account.admit_source(first)
    assert not account.admit_source(enter(account, one))
    assert account.admit_source(enter(account, one, "192.0.2.2"))
    assert account.admit_source(enter(account, two))
    leave(account, first)
    assert account.admit_source(enter(account, one))


def test_refused_by_the_rule_is_not_counted_by_the_process(account: Account) -> None:
    account.set_limits(0, 2)
    one = account.of(rule("127.0.0.1 1 h.example 1 [max-connections-per-source=1]"))
    two = account.of(rule("127.0.0.1 2 h.example 2"))
    assert account.admit_source(enter(account, one))
    for _ in range(3):
        assert not account.admit_source(enter(account, one))
    assert account.admit_source(enter(account, two))
    assert not account.admit_source(enter(account, two))


def test_limits_that_change_under_live_sessions_stay_exact(account: Account) -> None:
    of = account.of(rule())
    before = enter(account, of)
    assert account.admit_source(before)
    account.set_limits(2, 1)
    after = enter(account, of)
    assert not has_room(account, of)
    assert account.admit_source(after)
    leave(account, before)  # was never counted for its source
    late = enter(account, of)
    assert not account.admit_source(late)
    leave(account, after)
    assert account.admit_source(late)
    account.set_limits(0, 0)
    leave(account, late)
    account.set_limits(0, 1)
    assert account.admit_source(enter(account, of))


def test_who_waits_for_room_is_called_once(account: Account) -> None:
    of = account.of(rule())
    calls: list[str] = []

    def call() -> None:
        calls.append("room")

    lives = [enter(account, of) for _ in range(3)]
    account.when_room(call)
    account.when_room(call)
    leave(account, lives[0])
    leave(account, lives[1])
    assert calls == ["room"]
    account.when_room(call)
    account.forget_waiting(call)
    leave(account, lives[2])
    assert calls == ["room"]


def test_one_may_wait_again_while_it_is_called(account: Account) -> None:
    of = account.of(rule())
    calls: list[str] = []

    def call() -> None:
        calls.append("room")
        account.when_room(call)

    account.when_room(call)
    for live in [enter(account, of) for _ in range(2)]:
        leave(account, live)
    assert calls == ["room", "room"]


def test_what_is_counted(account: Account) -> None:
    of = account.of(rule())
    endings = [Ending.CLIENT_CLOSED, Ending.DENIED, Ending.LIMITED, Ending.NOT_ALLOWED, Ending.CONNECT_FAILED]
    for ending in endings:
        live = enter(account, of)
        live.record.bytes_up, live.record.bytes_down = 10, 1
        leave(account, live, ending)
    live = enter(account, of)
    live.meter.bytes_up, live.meter.bytes_down = 5, 7
    stats = account.stats()
    assert (stats.live, stats.accepted, stats.refused, stats.failed) == (1, 6, 3, 1)
    assert (stats.bytes_up, stats.bytes_down) == (55, 12)
    assert stats.rules[of.rule].endings == dict.fromkeys(endings, 1)
    # A snapshot stays what it was.
    leave(account, live)
    assert (stats.live, stats.rules[of.rule].live) == (1, 1)
    assert not account.anybody


@pytest.mark.parametrize("ending", [ending for ending in Ending if ending.refused])
def test_the_native_lane_opens_nobody_whom_it_refuses(account: Account, ending: Ending) -> None:
    of = account.of(rule())
    record = enter(account, of).record
    record.ending = ending
    account.native_closed(record)
    assert (of.stats.live, of.stats.accepted, of.stats.refused) == (1, 2, 1)


def test_a_live_session_shows_its_counts_of_the_moment(account: Account) -> None:
    live = enter(account, account.of(rule()))
    live.meter.bytes_up = 3
    (seen,) = account.sessions()
    assert (seen.id, seen.bytes_up, seen.ending) == (live.record.id, 3, None)
    assert seen is not live.record
    assert seen.duration_s >= 0


def test_a_clock_step_does_not_touch_durations(account: Account) -> None:
    enter(account, account.of(rule())).record.started -= 1e6
    (seen,) = account.sessions()
    assert seen.duration_s < 1e5


# Which account a rule has after a reload


def test_another_destination_goes_on_counting(account: Account) -> None:
    of = account.of(rule("127.0.0.1 1 h.example 1"))
    later = account.of(rule("127.0.0.1 1 h.example 2 [max-connections=1]"))
    assert later is of
    assert list(account.stats().rules) == [later.rule]


def test_rules_that_take_a_free_port_have_an_account_each(account: Account) -> None:
    rules = [rule(f"127.0.0.1 0 h.example {port} [max-connections=1]") for port in (1, 2)]
    one, two = (account.of(each) for each in rules)
    enter(account, one)
    assert not has_room(account, one)
    assert has_room(account, two)
    assert list(account.stats().rules) == rules
