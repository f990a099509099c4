"""When reactors join and leave, and what moves between them: the rule, and what feeds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd.lanes.native.packing import CALM_WINDOWS, WHOLE, Move, Plan, core_times, decide, idle_cores


@pytest.mark.parametrize(
    ("loads", "serving", "most", "idle", "calm", "plan"),
    [
        ([0.5, 0.0], 1, 2, 1.5, 0, Plan(1)),  # one does it
        ([0.8, 0.0], 1, 2, 0.9, 0, Plan(2, (Move(0, 1, 500),))),  # too much for one, and there is a core
        ([0.8, 0.0], 1, 2, 0.2, 0, Plan(1)),  # every core is busy: a second one would only cost
        ([0.99], 1, 1, 1.0, 0, Plan(1)),  # no more are allowed
        ([0.8, 0.3], 2, 2, 0.0, 0, Plan(2, (Move(0, 1, 312),))),  # there is one that has room
        ([0.8, 0.75], 2, 4, 1.2, 0, Plan(3, (Move(0, 2, 500),))),
        ([0.45, 0.40], 2, 2, 1.0, 0, Plan(2)),  # even enough
        ([0.5, 0.2], 2, 2, 1.0, 0, Plan(2, (Move(0, 1, 300),))),
        ([0.2, 0.2], 2, 2, 1.0, CALM_WINDOWS - 1, Plan(2)),  # not yet
        ([0.2, 0.2], 2, 2, 1.0, CALM_WINDOWS, Plan(1, (Move(1, 0, WHOLE),))),
        ([0.2, 0.2, 0.2], 3, 3, 1.0, CALM_WINDOWS, Plan(2, (Move(2, 0, WHOLE),))),
        ([0.2, 0.2, 0.2], 3, 2, 1.0, 0, Plan(2)),  # a reload allows fewer
    ],
)
def test_the_rule(loads: list[float], serving: int, most: int, idle: float, calm: int, plan: Plan) -> None:
    assert decide(loads, serving, most, idle, calm) == plan


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.data())
def test_a_plan_can_be_carried_out_and_never_makes_it_worse(loads: list[float], data: st.DataObject) -> None:
    most = data.draw(st.integers(1, len(loads)))
    serving = data.draw(st.integers(1, most))
    loads = [load if at < serving else 0.0 for at, load in enumerate(loads)]
    plan = decide(loads, serving, most, data.draw(st.floats(0, 6)), data.draw(st.integers(0, 12)))
    assert 1 <= plan.serving <= most
    assert abs(plan.serving - serving) <= 1
    for move in plan.moves:
        after = list(loads)
        moved = after[move.source] * move.share / WHOLE
        after[move.source] -= moved
        after[move.to] += moved
        assert move.source != move.to < plan.serving
        assert max(after) <= max(max(loads), 0.6)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
def test_moves_come_to_an_end(loads: list[float]) -> None:
    """What is even stays where it is: with a steady load no connection goes in circles."""
    serving, moves = len(loads), 0
    for _ in range(200):
        plan = decide(loads, serving, len(loads), 0.0, 0)
        if not plan.moves:
            return
        for move in plan.moves:
            moved = loads[move.source] * move.share / WHOLE
            loads[move.source] -= moved
            loads[move.to] += moved
            moves += 1
    pytest.fail(f"{moves} moves, and still uneven: {loads}")


def test_idle_cores_are_added_up() -> None:
    before = {0: (100, 200), 1: (50, 200)}
    now = {0: (110, 210), 1: (55, 210), 2: (5, 10)}
    assert idle_cores(before, now) == pytest.approx(1.5)
    assert idle_cores({}, now) == 0.0
    assert idle_cores(now, now) == 0.0


def test_core_times_are_read_from_the_kernel(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  1 1 1 1 1 1 1 1 1 1\ncpu0 10 0 5 80 5 0 0 0 3 0\nintr 1\n")
    assert core_times(stat).get(0, (85, 100)) == (85, 100)  # a process that may not use core 0 does not look at it
    assert core_times(tmp_path / "none") == {}
    assert core_times()
