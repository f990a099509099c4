"""The answer to SIGUSR2."""

from oinetd.account import RuleStats, Stats
from oinetd.model import Endpoint, Rule
from oinetd.record import SessionRecord
from oinetd.summary import SESSIONS_MAX, summary

RULE = Rule(Endpoint("0.0.0.0", 8080), Endpoint("example.org", 80))


def test_rules_and_sessions() -> None:
    counts = RuleStats(live=1, accepted=7, refused=2, failed=1, bytes_up=10, bytes_down=20)
    stats = Stats(1, 7, 2, 1, 10, 20, {RULE: counts})
    record = SessionRecord(7, next(RULE.routes()), "192.0.2.7", 51234, 0.0, duration_s=2.4, bytes_up=3, bytes_down=4)
    words = "1 sessions live, 7 accepted, 2 refused, 1 failed, 10 bytes up, 20 down"
    assert list(summary(stats, [record])) == [
        f"1 rules, {words}",
        f"0.0.0.0 8080 -> example.org 80: {words}",
        "session 7: 192.0.2.7 port 51234, 0.0.0.0 8080 -> example.org 80, 2 s, 3 bytes up, 4 down",
    ]


def test_limits() -> None:
    waiting, calm = RuleStats(full=True, times_full=3), RuleStats(times_full=3)
    other = Rule(Endpoint("0.0.0.0", 8081), Endpoint("example.org", 80))
    lines = list(summary(Stats(0, 0, 0, 0, 0, 0, {RULE: waiting, other: calm}, room=229), []))
    assert lines[0].endswith(", room for 229 connections")
    assert lines[1].endswith(", full: clients wait in the accept queue")
    assert lines[2].endswith(", was full 3 times")


def test_not_all_of_very_many_sessions() -> None:
    record = SessionRecord(7, next(RULE.routes()), "192.0.2.7", 51234, 0.0)
    lines = list(summary(Stats(0, 0, 0, 0, 0, 0, {}), [record] * (SESSIONS_MAX + 5)))
    assert len(lines) == 1 + SESSIONS_MAX + 1
    assert lines[-1] == "and 5 sessions more"
