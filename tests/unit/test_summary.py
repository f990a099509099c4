"""The answer to SIGUSR2."""

from collections import Counter

from oinetd.core.record import Ending, SessionRecord
from oinetd.core.registry import RuleStats, Stats
from oinetd.model import Endpoint, Rule
from oinetd.observe.status import SESSIONS_MAX, summary

RULE = Rule(Endpoint("0.0.0.0", 8080), Endpoint("example.org", 80))


def test_rules_and_sessions() -> None:
    endings = Counter({Ending.DENIED: 2, Ending.CLIENT_CLOSED: 3, Ending.CONNECT_FAILED: 1})
    counts = RuleStats(live=1, accepted=7, refused=2, failed=1, bytes_up=10, bytes_down=20, endings=endings)
    stats = Stats(1, 7, 2, 1, 10, 20, {RULE: counts})
    record = SessionRecord(7, next(RULE.routes()), "192.0.2.7", 51234, 0.0, bytes_up=3, bytes_down=4)
    record.duration_s, record.idle_s = 2.4, 1.4
    words = "1 session live, 7 accepted, 2 refused, 1 failed, 10 bytes up, 20 down"
    assert list(summary(stats, [record])) == [
        f"1 rule, {words}",
        f"0.0.0.0 8080 -> example.org 80: {words}; endings: client-closed 3, denied 2, connect-failed 1",
        "session 7: 192.0.2.7 port 51234, 0.0.0.0 8080 -> example.org 80, 2 s old, idle for 1 s, 3 bytes up, 4 down",
    ]


def test_limits() -> None:
    waiting, calm = RuleStats(full=True, times_full=3), RuleStats(times_full=3, rate_waits=2)
    other = Rule(Endpoint("0.0.0.0", 8081), Endpoint("example.org", 80))
    lines = list(summary(Stats(0, 0, 0, 0, 0, 0, {RULE: waiting, other: calm}, room=229), []))
    assert lines[0].endswith(", room for 229 connections")
    assert lines[1].endswith(", full: clients wait in the accept queue")
    assert lines[2].endswith(", was full 3 times, 2 connections waited for the rate")


def test_not_all_of_very_many_sessions() -> None:
    """The most active ones, in the order of how long they have been idle."""
    records = [
        SessionRecord(number, next(RULE.routes()), "192.0.2.7", 51234, 0.0, idle_s=1000.0 - number)
        for number in range(SESSIONS_MAX + 5)
    ]
    lines = list(summary(Stats(0, 0, 0, 0, 0, 0, {}), records))
    assert lines[0].startswith("0 rules, 0 sessions live")
    assert [int(line.split()[1][:-1]) for line in lines[1:-1]] == list(range(SESSIONS_MAX + 4, 4, -1))
    assert lines[-1] == "and 5 more sessions, idle for longer"


def test_of_those_that_moved_in_the_same_second_the_busiest_first() -> None:
    records = [
        SessionRecord(number, next(RULE.routes()), "192.0.2.7", 51234, 0.0, idle_s=0.1 * number, bytes_up=number)
        for number in range(5)
    ]
    lines = list(summary(Stats(0, 0, 0, 0, 0, 0, {}), records))
    assert [int(line.split()[1][:-1]) for line in lines[1:]] == [4, 3, 2, 1, 0]
