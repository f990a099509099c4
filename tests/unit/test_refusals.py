"""Strangers who are refused do not fill the disk, and none of them is lost from the registry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from oinetd import Ending, Forwarder, SessionRecord, parse_config
from oinetd.model import Endpoint, LogFormat, LogSettings, Protocol, Rule
from oinetd.observe import refusals
from oinetd.observe.connection_log import ConnectionLog
from tests.peers import until

RULES = [Rule(Endpoint("0.0.0.0", port), Endpoint("example.org", 80)) for port in (8080, 8081)]


def refused(number: int, rule: Rule = RULES[0]) -> SessionRecord:
    return SessionRecord(number, next(rule.routes()), "192.0.2.7", 51234, 0.0, ending=Ending.DENIED)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "BURST_LINES", 10)
    monkeypatch.setattr(refusals, "LINES_PER_S", 0.001)


def events(path: Path) -> list[tuple[str, int]]:
    """The events of a JSON log, those of one kind in a row counted; of the clients left out, how many they were."""
    found: list[tuple[str, int]] = []
    for line in path.read_text().split("\n")[:-1]:  # the last one may be under way
        told = json.loads(line)
        name, count = told["event"], told.get("count", 1)
        if found and found[-1][0] == name:
            count += found.pop()[1]
        found.append((name, count))
    return found


@pytest.mark.usefixtures("small")
def test_each_rule_has_lines_of_its_own_and_the_gaps_are_told(tmp_path: Path) -> None:
    troubles: list[str] = []
    path = tmp_path / "log"
    connection_log = ConnectionLog(LogSettings(str(path), LogFormat.JSON), troubles.append)
    for number in range(100):
        connection_log.closed(refused(number))
    for number in range(5):
        connection_log.closed(refused(number, RULES[1]))
    connection_log.closed(SessionRecord(1, next(RULES[0].routes()), "::1", 1, 0.0, ending=Ending.CLIENT_CLOSED))
    connection_log.close()
    assert events(path) == [("refused", 15), ("closed", 1), ("left-out", 90)]
    assert troubles == [
        "0.0.0.0 8080 -> example.org 80: more than 0.001 refused clients per second; the connection log omits "
        "some of them and logs their number"
    ]


def test_lines_come_back_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("oinetd.observe.refusals.time.monotonic", lambda: now)
    route = next(RULES[0].routes())
    lines = refusals.RefusedLines()
    assert sum(lines.admits(route) for _ in range(5000)) == refusals.BURST_LINES
    now = 1.0
    assert sum(lines.admits(route) for _ in range(5000)) == refusals.LINES_PER_S
    now = 1e6
    assert sum(lines.admits(route) for _ in range(5000)) == refusals.BURST_LINES
    assert list(lines.take_left_out()) == [(route, 15000 - 2 * refusals.BURST_LINES - refusals.LINES_PER_S)]
    assert list(lines.take_left_out()) == []


@pytest.mark.usefixtures("small")
def test_a_rotation_tells_the_gap_in_the_file_it_belongs_to(tmp_path: Path) -> None:
    path, moved = tmp_path / "log", tmp_path / "log.1"
    connection_log = ConnectionLog(LogSettings(str(path), LogFormat.JSON), lambda _text: None)
    for number in range(30):
        connection_log.closed(refused(number))
    path.rename(moved)
    connection_log.reopen()
    for number in range(5):
        connection_log.closed(refused(number))
    connection_log.close()
    assert events(moved) == [("refused", 10), ("left-out", 20)]
    assert events(path) == [("left-out", 5)]


def flood_tcp(address: tuple[str, int]) -> int:
    for _ in range(50):
        with socket.create_connection(address) as client:
            client.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
    return 50


def flood_udp(address: tuple[str, int]) -> int:
    for number in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((f"127.1.0.{number + 1}", 0))
            client.sendto(b"x", address)
    return 50


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize(("protocol", "flood"), [("tcp", flood_tcp), ("udp", flood_udp)])
async def test_a_flood_in_both_lanes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    protocol: str,
    flood: Callable[[tuple[str, int]], int],
) -> None:
    """The gap is told while the flood's rule lives on; every client is counted, and the hook has each."""
    monkeypatch.setattr("oinetd.observe.connection_log.GAP_S", 0.05)
    path = tmp_path / "log"
    closed: list[SessionRecord] = []
    text = (
        f"engine {engine}\nlogfile {path}\nlogformat json\n"
        f"127.0.0.1 0/{protocol} 127.0.0.1 9/{protocol}\nallow 10.9.8.7\n"
    )
    async with Forwarder(parse_config(text), on_close=closed.append) as forwarder:
        host, port = forwarder.addresses[0][1:]
        count = await asyncio.to_thread(flood, (host, port))
        await until(lambda: len(closed) == count)
        await until(lambda: sum(number for _, number in events(path)) == count)
        stats = forwarder.stats()
        assert (stats.accepted, stats.refused) == (count, count)
    found = dict(events(path))
    assert sum(found.values()) == count
    assert found["refused"] in (10, 11)  # one comes back when that second was a slow one
    assert {record.ending for record in closed} == {Ending.NOT_ALLOWED}


def udp_record(number: int, ending: Ending | None = None, answers: int = 0) -> SessionRecord:
    rule = Rule(Endpoint("0.0.0.0", 53, Protocol.UDP), Endpoint("example.org", 53, Protocol.UDP))
    route = next((UDP_RULES.setdefault("rule", rule)).routes())
    return SessionRecord(number, route, "192.0.2.7", 51234, 0.0, ending=ending, datagrams_down=answers)


UDP_RULES: dict[str, Rule] = {}


def pairs(path: Path) -> tuple[list[int], list[int], int]:
    """The ids that have begun and those that ended in a JSON log, and how many clients were left out."""
    told = [json.loads(line) for line in path.read_text().split("\n")[:-1]]  # the last one may be under way
    begun, ended = ([each["id"] for each in told if each["event"] == event] for event in ("opened", "closed"))
    return begun, ended, sum(each.get("count", 0) for each in told)


@pytest.mark.usefixtures("small")
def test_udp_sessions_that_fail_have_both_lines_or_none(tmp_path: Path) -> None:
    path = tmp_path / "log"
    connection_log = ConnectionLog(LogSettings(str(path), LogFormat.JSON), lambda _text: None)
    for number in range(15):  # they begin before the bound is reached, and have their ends in any case
        connection_log.opened(udp_record(number))
    for number in range(15):
        connection_log.closed(udp_record(number, Ending.UPSTREAM_RESET))
    for number in range(15, 40):
        connection_log.opened(udp_record(number))
        connection_log.closed(udp_record(number, Ending.DISPLACED if number % 2 else Ending.CONNECT_FAILED))
    for number, ending, answers in ((40, Ending.UPSTREAM_RESET, 1), (41, Ending.IDLE_TIMEOUT, 0)):
        connection_log.opened(udp_record(number))
        assert number not in pairs(path)[0]
        connection_log.closed(udp_record(number, ending, answers))
    connection_log.opened(udp_record(42))
    connection_log.close()
    whole = [*range(15), 40, 41]
    assert pairs(path) == ([*whole, 42], whole, 25)


@pytest.mark.usefixtures("small")
def test_a_session_that_lives_has_its_line_as_soon_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("oinetd.observe.refusals.time.monotonic", lambda: now)
    lines = refusals.RefusedLines()
    for number in range(12):
        lines.admits(udp_record(number).route)
    assert lines.holds(udp_record(20), b"line")
    assert lines.any_held
    assert list(lines.take_held()) == []
    now = 1e6
    assert list(lines.take_held()) == [b"line"]
    assert lines.release(udp_record(20)) is None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize("destination", ["127.0.0.1 9/udp", "::1 9/udp [src=127.0.0.1]"], ids=["refuses", "no source"])
async def test_a_flood_of_clients_that_fail_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, destination: str
) -> None:
    monkeypatch.setattr("oinetd.observe.connection_log.GAP_S", 0.05)
    path = tmp_path / "log"
    opened: list[SessionRecord] = []
    closed: list[SessionRecord] = []
    text = f"engine {engine}\nlogfile {path}\nlogformat json\n127.0.0.1 0/udp {destination}\n"
    async with Forwarder(parse_config(text), on_open=opened.append, on_close=closed.append) as forwarder:
        for times in (1, 2):  # the second time the bound is reached already
            count = times * await asyncio.to_thread(flood_udp, forwarder.addresses[0][1:])
            if destination.startswith("::1"):  # each address is told of once
                await until(lambda count=count: forwarder.stats().datagrams_lost == count)
                count = 50
            await until(lambda count=count: len(closed) == count)
        await until(lambda: pairs(path)[2] + len(pairs(path)[1]) == len(closed))
    begun, ended, left_out = pairs(path)
    assert sorted(begun) == sorted(ended)
    assert left_out > 0
    assert len(opened) == len(closed)
