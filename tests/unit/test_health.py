"""The machines that judge a server: each row of their tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd.upstream.health import (
    EJECTED_MAX_S,
    PASSIVE_NEXT,
    UNCHECKED,
    CheckState,
    PassiveEvent,
    PassiveState,
    Standing,
    check_table,
)


def test_the_table_of_two_and_three_is_haproxys() -> None:
    # health: after a success, after a failure; up from 2 on
    assert check_table(2, 3) == {
        UNCHECKED: (4, 0),
        0: (1, 0),
        1: (4, 0),
        2: (4, 0),
        3: (4, 2),
        4: (4, 3),
    }


def test_the_table_of_one_and_one() -> None:
    assert check_table(1, 1) == {UNCHECKED: (1, 0), 0: (1, 0), 1: (1, 0)}


def by_counting(rise: int, fall: int, results: list[bool]) -> list[bool]:
    """Up or down after each result, by the words of the manual: so many in a row; the first one decides at once."""
    up, row, states = False, 0, []
    for at, passed in enumerate(results):
        if at == 0:
            up, row = passed, 0
        elif passed == up:
            row = 0
        else:
            row += 1
            if row == (fall if up else rise):
                up, row = passed, 0
        states.append(up)
    return states


@given(st.integers(1, 6), st.integers(1, 6), st.lists(st.booleans(), max_size=40))
def test_the_machine_counts_in_a_row(rise: int, fall: int, results: list[bool]) -> None:
    state, states = CheckState(rise, fall), []
    for passed in results:
        state = state.passed() if passed else state.failed()
        assert 0 <= state.health <= rise + fall - 1
        states.append(state.is_up)
    assert states == by_counting(rise, fall, results)


def test_it_is_in_transition_between_the_ends() -> None:
    assert [CheckState(2, 3, health).in_transition for health in (UNCHECKED, 0, 1, 2, 3, 4)] == [
        True, False, True, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("health", "up"), [(0, False), (1, False), (2, True), (4, True)])
def test_other_thresholds_keep_the_state(health: int, up: bool) -> None:
    changed = CheckState(2, 3, health).with_thresholds(5, 1)
    assert changed.is_up is up
    assert changed.is_checked
    assert not changed.in_transition
    assert not CheckState(2, 3).with_thresholds(5, 1).is_checked


def test_every_row_of_the_passive_table() -> None:
    assert {(standing, event) for standing in Standing for event in PassiveEvent} == set(PASSIVE_NEXT)
    assert {row for row, after in PASSIVE_NEXT.items() if after is Standing.EJECTED} == {
        (Standing.TRUSTED, PassiveEvent.FAILED_TOO_OFTEN),
        (Standing.EJECTED, PassiveEvent.FAILED),
        (Standing.EJECTED, PassiveEvent.FAILED_TOO_OFTEN),
        (Standing.ON_TRIAL, PassiveEvent.FAILED),
        (Standing.ON_TRIAL, PassiveEvent.FAILED_TOO_OFTEN),
    }


def failed(state: PassiveState, now: float, *, may_eject: bool = True) -> PassiveState:
    return state.failed(now, 3, 10.0, may_eject=may_eject)


def test_three_failures_in_a_row_eject() -> None:
    state = failed(failed(PassiveState(), 1), 2)
    assert state.standing is Standing.TRUSTED
    assert failed(state.worked(), 3).standing is Standing.TRUSTED
    state = failed(state, 3)
    assert (state.standing, state.until) == (Standing.EJECTED, 13.0)


def test_one_more_failure_ejects_again_for_twice_the_time() -> None:
    state, now = failed(failed(failed(PassiveState(), 0), 0), 0), 0.0
    holds = []
    for _ in range(7):
        holds.append(state.until - now)
        now = state.until
        state = state.time_passed(now)
        assert state.standing is Standing.ON_TRIAL
        state = failed(state, now)
        assert state.standing is Standing.EJECTED
    assert holds == [10, 20, 40, 80, 160, EJECTED_MAX_S, EJECTED_MAX_S]


def test_one_success_forgets_all() -> None:
    state = failed(failed(failed(PassiveState(), 0), 0), 0)
    assert state.worked() == PassiveState()
    assert state.time_passed(10.0).worked() == PassiveState()
    assert failed(failed(state.worked(), 20), 20).standing is Standing.TRUSTED


def test_failures_while_it_is_ejected_do_not_prolong_it() -> None:
    state = failed(failed(failed(PassiveState(), 0), 0), 0)
    assert failed(state, 5).until == 10.0
    assert state.time_passed(9.9).standing is Standing.EJECTED


def test_the_last_usable_server_is_not_ejected() -> None:
    state = PassiveState()
    for now in range(9):
        state = failed(state, now, may_eject=False)
    assert (state.standing, state.failures) == (Standing.TRUSTED, 9)
    assert failed(state, 9).standing is Standing.EJECTED
