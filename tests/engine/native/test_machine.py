"""Two peers that do whatever peers do, in any order, against what a direct connection would have shown them."""

from __future__ import annotations

import random
import socket

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from oinetd.lanes.native.plane import available
from tests.engine.native.plane import PATIENCE_S, Plane, reset

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

SIDES = st.sampled_from([0, 1])
SIZES = st.one_of(st.integers(1, 20), st.integers(1, 5000), st.sampled_from([65536, 65537, 300_000]))


class Party:
    """One peer: what it said, what it heard, and what it has done with its end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.said = bytearray()
        self.heard = bytearray()
        self.fin_sent = False
        self.was_reset = False
        self.end_heard = ""


class Relay(RuleBasedStateMachine):
    """The oracle is the definition of a relay: each hears a prefix of what the other said, in the end all of it,
    and an end of the kind that the other made."""

    mode: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.plane = Plane(**self.mode)
        self.random = random.Random(1)
        self.parties: list[Party] = []

    @initialize(small=st.booleans(), turned=st.booleans())
    def connect(self, small: bool, turned: bool) -> None:
        narrow = {"receive_bytes": 4096} if small else {}
        client, upstream, self.token = self.plane.wire(
            client=narrow if turned else {}, upstream={} if turned else narrow
        )
        self.parties = [Party(client), Party(upstream)]

    @rule(side=SIDES, size=SIZES)
    def say(self, side: int, size: int) -> None:
        party = self.parties[side]
        if not party.fin_sent:
            data = self.random.randbytes(size)
            try:
                party.said += data[: party.sock.send(data)]
            except BlockingIOError:
                return

    @rule(side=SIDES, size=st.integers(1, 50))
    def say_byte_by_byte(self, side: int, size: int) -> None:
        for _ in range(size):
            self.say(side, 1)

    @rule(side=SIDES)
    def say_urgently(self, side: int) -> None:
        party = self.parties[side]
        if not party.fin_sent:
            try:
                party.sock.send(b"!", socket.MSG_OOB)
            except BlockingIOError:
                return
            party.said += b"!"

    @rule(side=SIDES, size=SIZES)
    def hear(self, side: int, size: int) -> None:
        party = self.parties[side]
        try:
            part = party.sock.recv(size)
        except BlockingIOError:
            return
        if not part:
            assert self.parties[1 - side].fin_sent
            party.end_heard = "fin"
        party.heard += part
        assert self.parties[1 - side].said.startswith(party.heard)

    @rule(side=SIDES)
    def half_close(self, side: int) -> None:
        party = self.parties[side]
        if not party.fin_sent:
            party.fin_sent = True
            party.sock.shutdown(socket.SHUT_WR)

    @rule(side=SIDES, small=st.booleans(), turned=st.booleans())
    def reset(self, side: int, small: bool, turned: bool) -> None:
        """The end of this connection; the next one begins."""
        self.parties[side].was_reset = True
        reset(self.parties[side].sock)
        self.check_ends()
        self.connect(small, turned)

    def hear_to_the_end(self, party: Party, other: Party) -> None:
        party.sock.settimeout(PATIENCE_S)
        try:
            while part := party.sock.recv(1 << 18):
                party.heard += part
            party.end_heard = "fin"
        except ConnectionResetError:
            party.end_heard = "reset"
        assert other.said.startswith(party.heard)

    def teardown(self) -> None:
        try:
            if self.parties:
                self.check_ends()
        finally:
            self.plane.close()

    def check_ends(self) -> None:
        if not any(party.was_reset for party in self.parties):
            for side in (0, 1):
                self.half_close(side)
            for party, other in (self.parties, self.parties[::-1]):
                self.hear_to_the_end(party, other)
                assert party.heard == other.said
                assert party.end_heard == "fin"
            ending, up, down, error = self.plane.result(self.token)
            assert ending in (0, 1)
            assert (up, down, error) == (len(self.parties[0].said), len(self.parties[1].said), 0)
            return
        gone = next(party for party in self.parties if party.was_reset)
        other = self.parties[1 - self.parties.index(gone)]
        self.hear_to_the_end(other, gone)
        # Where both had said FIN and heard it all, the session was over before the reset.
        assert other.end_heard == "reset" or gone.fin_sent
        ending, _, _, error = self.plane.result(self.token)
        if not (gone.fin_sent and other.fin_sent):
            assert ending == 2 + self.parties.index(gone)
            assert error != 0


def machine(name: str, **mode: int) -> type:
    made = type(name, (Relay,), {"mode": mode})
    case = made.TestCase
    case.settings = settings(
        max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    return case  # type: ignore[no-any-return]


TestCopy = machine("Copy", relay=1)
TestSplice = machine("Splice", relay=2)
TestAuto = machine("Auto", relay=0)
TestFlip = machine("Flip", relay=0, flip_bytes=13)
TestFlipPages = machine("FlipPages", relay=0, flip_bytes=4096)
