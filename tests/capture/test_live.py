"""Which upstream connection belongs to which client, and what is said of the two."""

from __future__ import annotations

import random

from bench.capture.live import pair
from bench.capture.streams import Stream

ROUTES = {8080: 80, 8443: 443}


class Wire:
    """Streams as a capture would tell them."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.now = 0

    def connection(
        self,
        source_port: int,
        port: int,
        up: bytes,
        down: bytes,
        *,
        ended: bool = True,
        reset: bool = False,
        lost: int = 0,
    ) -> None:
        self.now += 1
        first = len(self.streams)
        for data, ends, opposite in ((up, (source_port, port), first + 1), (down, (port, source_port), first)):
            length = len(data)
            covered = ((0, length - lost),) if length > lost else ()
            self.streams.append(
                Stream(
                    "10.0.0.1",
                    ends[0],
                    "10.0.0.2",
                    ends[1],
                    0,
                    True,
                    ended,
                    reset,
                    length if ended else None,
                    length + ended,
                    covered,
                    1,
                    length,
                    0,
                    0,
                    self.now,
                    self.now,
                    data[:24].hex(),
                    opposite,
                )
            )


def test_sessions_that_agree() -> None:
    wire = Wire()
    wire.connection(1001, 8080, b"question", b"answer")
    wire.connection(5001, 80, b"question", b"answer")
    (session,) = pair(wire.streams, ROUTES)
    assert session.verdict == "agree"
    assert session.client.sizes == (8, 6)
    assert session.missed == 0


def test_many_at_once_are_told_apart_by_what_they_say() -> None:
    wire, order = Wire(), list(range(200))
    for number in order:
        wire.connection(1000 + number, 8080, b"%03d" % number + bytes(number), bytes(7 * number))
    random.Random(1).shuffle(order)
    for number in order:
        wire.connection(5000 + number, 80, b"%03d" % number + bytes(number), bytes(7 * number))
    sessions = pair(wire.streams, ROUTES)
    assert len(sessions) == 200
    for session in sessions:
        assert session.upstream is not None
        assert session.upstream.forth.source_port == session.client.forth.source_port + 4000
        assert session.verdict == "agree"


def test_a_byte_less_is_a_difference() -> None:
    wire = Wire()
    wire.connection(1001, 8080, b"a" * 100, b"b" * 100)
    wire.connection(5001, 80, b"a" * 100, b"b" * 101)
    (session,) = pair(wire.streams, ROUTES)
    assert session.verdict == "differ"


def test_rules_are_kept_apart() -> None:
    wire = Wire()
    wire.connection(1001, 8080, b"", b"")
    wire.connection(1002, 8443, b"", b"")
    wire.connection(5002, 443, b"", b"")
    one, two = pair(wire.streams, ROUTES)
    assert one.verdict == "no upstream"
    assert two.verdict == "agree"


def test_an_upstream_connection_is_not_before_its_client() -> None:
    wire = Wire()
    wire.connection(5001, 80, b"x", b"y")
    wire.connection(1001, 8080, b"x", b"y")
    (session,) = pair(wire.streams, ROUTES)
    assert session.upstream is None


def test_what_is_open_or_reset_is_not_judged() -> None:
    wire = Wire()
    wire.connection(1001, 8080, b"abc", b"", ended=False)
    wire.connection(5001, 80, b"ab", b"", ended=False)
    wire.connection(1002, 8080, b"xyz", b"", reset=True)
    wire.connection(5002, 80, b"xy", b"")
    assert [session.verdict for session in pair(wire.streams, ROUTES)] == ["open", "reset"]


def test_what_the_capture_lost_is_counted_and_judged_by_the_ends() -> None:
    wire = Wire()
    wire.connection(1001, 8080, b"a" * 100, b"", lost=30)
    wire.connection(5001, 80, b"a" * 100, b"")
    (session,) = pair(wire.streams, ROUTES)
    assert session.verdict == "agree"
    assert session.missed == 30
