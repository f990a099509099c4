"""The lines of the log, to the byte."""

import calendar
import errno
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from oinetd.core.record import Ending, SessionRecord, Try
from oinetd.model import Endpoint, LogFormat, Origin, Route, Rule, RuleOptions
from oinetd.observe.formats import ROUTES_MAX, STATUS, RinetdLines, line_format

RULE = Rule(Endpoint("0.0.0.0", 8080), Endpoint("example.org", 80), origin=Origin("/etc/oinetd.conf", 7))
NOON = calendar.timegm((2026, 11, 21, 12, 0, 0)) + 0.25


def route_of(rule: Rule) -> Route:
    return next(rule.routes())


def record_of(ending: Ending | None = None, **facts: object) -> SessionRecord:
    record = SessionRecord(17, route_of(RULE), "192.0.2.7", 51234, NOON - 1.5, ending=ending)
    for name, value in facts.items():
        setattr(record, name, value)
    return record


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the time zone of the process, and sets it back."""

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    set_zone("UTC")
    yield set_zone
    monkeypatch.undo()
    time.tzset()


def test_rinetd_golden(zone: Callable[[str], None]) -> None:
    lines = line_format(LogFormat.RINETD)
    assert lines.opened(record_of(), NOON) == (
        b"21/Nov/2026:12:00:00 \t192.0.2.7\t0.0.0.0\t8080\texample.org\t80\t0\t0\topened\n"
    )
    assert lines.closed(record_of(Ending.CLIENT_CLOSED, bytes_up=5, bytes_down=1000), NOON) == (
        b"21/Nov/2026:12:00:00 \t192.0.2.7\t0.0.0.0\t8080\texample.org\t80\t5\t1000\tdone-remote-closed\n"
    )


def test_common_golden(zone: Callable[[str], None]) -> None:
    lines = line_format(LogFormat.COMMON)
    assert lines.opened(record_of(), NOON) == (
        b'192.0.2.7 - - [21/Nov/2026:12:00:00  +0000] "GET /rinetd-services/0.0.0.0/8080/example.org/80/opened'
        b' HTTP/1.0" 200 0 - - - 0\n'
    )
    assert lines.closed(record_of(Ending.UPSTREAM_CLOSED, bytes_up=5, bytes_down=1000), NOON) == (
        b'192.0.2.7 - - [21/Nov/2026:12:00:00  +0000] "GET /rinetd-services/0.0.0.0/8080/example.org/80/'
        b'done-local-closed HTTP/1.0" 200 1000 - - - 5\n'
    )


def test_json_opened(zone: Callable[[str], None]) -> None:
    assert json.loads(line_format(LogFormat.JSON).opened(record_of(), NOON)) == {
        "time": "2026-11-21T12:00:00.250+00:00",
        "event": "opened",
        "id": 17,
        "started": NOON - 1.5,
        "client": "192.0.2.7",
        "client_port": 51234,
        "bind": "0.0.0.0",
        "bind_port": 8080,
        "connect": "example.org",
        "connect_port": 80,
        "rule": "0.0.0.0 8080 -> example.org 80",
        "origin": "/etc/oinetd.conf:7",
    }


def test_json_has_the_name_of_a_rule_that_has_one() -> None:
    named = record_of(route=route_of(replace(RULE, options=RuleOptions(name="web"))))
    assert json.loads(line_format(LogFormat.JSON).opened(named, NOON))["name"] == "web"


def test_json_closed_has_every_fact(zone: Callable[[str], None]) -> None:
    record = record_of(
        Ending.CLIENT_RESET,
        upstream="203.0.113.9",
        upstream_port=80,
        engine="native",
        relay="splice",
        connect_s=0.0125,
        duration_s=1.5,
        bytes_up=5,
        bytes_down=1000,
        errno=errno.ECONNRESET,
    )
    line = line_format(LogFormat.JSON).closed(record, NOON)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert {name: value for name, value in json.loads(line).items() if name not in ("time", "started")} == {
        "event": "closed",
        "id": 17,
        "client": "192.0.2.7",
        "client_port": 51234,
        "bind": "0.0.0.0",
        "bind_port": 8080,
        "connect": "example.org",
        "connect_port": 80,
        "rule": "0.0.0.0 8080 -> example.org 80",
        "origin": "/etc/oinetd.conf:7",
        "upstream": "203.0.113.9",
        "upstream_port": 80,
        "engine": "native",
        "relay": "splice",
        "connect_s": 0.0125,
        "duration_s": 1.5,
        "bytes_up": 5,
        "bytes_down": 1000,
        "ending": "client-reset",
        "errno": errno.ECONNRESET,
        "error": "ECONNRESET",
    }


def test_json_tells_the_addresses_that_did_not_take_the_connection(zone: Callable[[str], None]) -> None:
    tries = (Try("2001:db8::1", 80, errno.EINPROGRESS), Try("192.0.2.1", 80, 99999))
    facts = json.loads(line_format(LogFormat.JSON).closed(record_of(Ending.CLIENT_CLOSED, tries=tries), NOON))
    assert facts["tries"] == [
        {"address": "2001:db8::1", "port": 80, "error": "EINPROGRESS"},
        {"address": "192.0.2.1", "port": 80, "error": "99999"},
    ]


@pytest.mark.parametrize(
    ("ending", "event"),
    [(ending, "closed") for ending in Ending if ending.connected]
    + [(Ending.CONNECT_FAILED, "closed"), (Ending.CONNECT_TIMEOUT, "closed"), (Ending.RESOLVE_FAILED, "closed")]
    + [(Ending.NOT_ALLOWED, "refused"), (Ending.DENIED, "refused"), (Ending.LIMITED, "refused")]
    + [(Ending.ACCEPT_FAILED, "refused"), (Ending.SOCKET_FAILED, "closed"), (Ending.BIND_FAILED, "closed")],
)
def test_json_tells_every_ending(ending: Ending, event: str) -> None:
    facts = json.loads(line_format(LogFormat.JSON).closed(record_of(ending), NOON))
    assert (facts["ending"], facts["event"], facts["error"]) == (ending.value, event, "")


def test_json_unknown_errno_and_odd_interface_names() -> None:
    record = record_of(Ending.CLIENT_RESET, errno=99999, client='fe80::1%e"\\t')
    facts = json.loads(line_format(LogFormat.JSON).closed(record, NOON))
    assert (facts["errno"], facts["error"], facts["client"]) == (99999, "", 'fe80::1%e"\\t')


def test_every_ending_has_a_status() -> None:
    assert set(STATUS) == set(Ending)


@pytest.mark.parametrize(
    ("ending", "word"),
    [
        (Ending.NOT_ALLOWED, b"not-allowed"),
        (Ending.DENIED, b"denied"),
        (Ending.LIMITED, b"limit-reached"),
        (Ending.ACCEPT_FAILED, b"accept-failed -"),
        (Ending.SOCKET_FAILED, b"local-socket-failed -"),
        (Ending.BIND_FAILED, b"local-bind-failed -"),
        (Ending.CONNECT_FAILED, b"done-local-closed"),
        (Ending.IDLE_TIMEOUT, b"done-local-closed"),
        (Ending.MAX_LIFETIME, b"done-local-closed"),
        (Ending.NO_SERVER, b"done-local-closed"),
        (Ending.SERVER_DOWN, b"done-local-closed"),
        (Ending.DRAINED, b"done-local-closed"),
        (Ending.NOT_TRUSTED, b"not-allowed"),
        (Ending.BAD_PROXY_HEADER, b"not-allowed"),
        (Ending.PROXY_TIMEOUT, b"not-allowed"),
        (Ending.NO_SNI_RULE, b"not-allowed"),
        (Ending.BAD_TLS_HELLO, b"not-allowed"),
        (Ending.PEEK_TIMEOUT, b"not-allowed"),
        (Ending.CLIENT_RESET, b"done-remote-closed"),
    ],
)
def test_status_words(ending: Ending, word: bytes) -> None:
    for choice, behind in ((LogFormat.RINETD, b"\n"), (LogFormat.COMMON, b' HTTP/1.0"')):
        assert word + behind in line_format(choice).closed(record_of(ending), NOON)


@pytest.mark.parametrize(
    ("name", "when", "common", "iso"),
    [
        ("Asia/Kolkata", NOON, b"[21/Nov/2026:17:30:00  +0530]", "2026-11-21T17:30:00.250+05:30"),
        ("America/St_Johns", NOON, b"[21/Nov/2026:08:30:00  -0330]", "2026-11-21T08:30:00.250-03:30"),
        ("Asia/Kathmandu", NOON, b"[21/Nov/2026:17:45:00  +0545]", "2026-11-21T17:45:00.250+05:45"),
        ("Pacific/Chatham", NOON, b"[22/Nov/2026:01:45:00  +1345]", "2026-11-22T01:45:00.250+13:45"),
        # The last second of summer time in Berlin, and the one after it.
        ("Europe/Berlin", 1792889999, b"[25/Oct/2026:02:59:59  +0200]", "2026-10-25T02:59:59.000+02:00"),
        ("Europe/Berlin", 1792890000, b"[25/Oct/2026:02:00:00  +0100]", "2026-10-25T02:00:00.000+01:00"),
    ],
)
def test_zones(zone: Callable[[str], None], name: str, when: float, common: bytes, iso: str) -> None:
    zone(name)
    assert common in line_format(LogFormat.COMMON).opened(record_of(), when)
    assert common[1:21] in line_format(LogFormat.RINETD).opened(record_of(), when)
    assert json.loads(line_format(LogFormat.JSON).opened(record_of(), when))["time"] == iso


def test_the_second_changes_within_one_format(zone: Callable[[str], None]) -> None:
    zone("Europe/Berlin")
    lines = line_format(LogFormat.COMMON)
    stamps = [lines.opened(record_of(), 1792889998.5 + half / 2).split(b"[")[1][:27] for half in range(6)]
    assert stamps == [
        b"25/Oct/2026:02:59:58  +0200",
        b"25/Oct/2026:02:59:59  +0200",
        b"25/Oct/2026:02:59:59  +0200",
        b"25/Oct/2026:02:00:00  +0100",
        b"25/Oct/2026:02:00:00  +0100",
        b"25/Oct/2026:02:00:01  +0100",
    ]


def test_addresses_are_logged_as_written() -> None:
    rule = Rule(Endpoint("[::1]", 0), Endpoint("LocalHost.", 443))
    record = SessionRecord(1, route_of(rule), "::1", 1, NOON)
    assert b"\t::1\t[::1]\t0\tLocalHost.\t443\t" in line_format(LogFormat.RINETD).opened(record, NOON)


def test_the_routes_of_a_rule_keep_apart_and_memory_is_bounded() -> None:
    lines = RinetdLines()
    rule = Rule(Endpoint("0", 1, last_port=ROUTES_MAX - 1), Endpoint("host", 1, last_port=ROUTES_MAX - 1))
    for _ in range(2):
        for route in rule.routes():
            assert lines.route(route) == f"0\t{route.bind.port}\thost\t{route.connect.port}"
            assert len(lines._routes) <= ROUTES_MAX


def test_clients_that_have_no_line(zone: Callable[[str], None]) -> None:
    zone("UTC")
    route = route_of(Rule(Endpoint("0.0.0.0", 8080), Endpoint("example.org", 80)))
    found = {choice: line_format(choice).left_out(route, 4711, 0.25) for choice in LogFormat}
    assert found[LogFormat.RINETD] == b"01/Jan/1970:00:00:00 \t-\t0.0.0.0\t8080\texample.org\t80\t0\t0\tleft-out 4711\n"
    assert found[LogFormat.COMMON] == (
        b'- - - [01/Jan/1970:00:00:00  +0000] "GET /rinetd-services/0.0.0.0/8080/example.org/80/left-out-4711 HTTP/1.0"'
        b" 200 0 - - - 0\n"
    )
    told = json.loads(found[LogFormat.JSON])
    assert (told["event"], told["count"], told["bind_port"], told["connect"]) == ("left-out", 4711, 8080, "example.org")
    assert "client" not in told
