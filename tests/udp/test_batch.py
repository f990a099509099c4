"""Batches by themselves, over real sockets: what is received and sent on is what was sent, whole and in order."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd.lanes.native.plane import available
from oinetd.net.datagrams import MESSAGES_MAX, Batch, new_batch
from oinetd.net.sockets import Address, bind_datagrams
from tests.peers import pattern

LARGEST = 65507

kinds = pytest.mark.parametrize(
    "native",
    [False, pytest.param(True, marks=pytest.mark.skipif(bool(available()), reason="the extension is not built"))],
)
sizes = st.one_of(
    st.sampled_from([0, 1, 64, 64, 64, 1400, 1400, 1472, 1473]),
    st.integers(0, 2000),
    st.sampled_from([9000, LARGEST]),
)


def bound(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return bind_datagrams(Address(family, (host, 0)), v6only=False)


@contextlib.contextmanager
def ground() -> Iterator[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]:
    """Two clients, the socket in the middle, and where it sends things on to."""
    with bound() as one, bound() as other, bound() as middle, bound() as sink:
        yield one, other, middle, sink


def drained(sock: socket.socket) -> list[bytes]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(sock.recv(70_000))
    return found


def all_of(batch: Batch, sock: socket.socket) -> dict[tuple[str, int], list[bytes]]:
    """Everything that is there, by sender."""
    found: dict[tuple[str, int], list[bytes]] = {}
    while groups := batch.receive(sock):
        for group in groups:
            found.setdefault(batch.explain(group.key).address[:2], []).extend(batch.take(group))
    return found


@kinds
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), sizes), max_size=40))
def test_boundaries_and_order_are_kept(native: bool, sent: list[tuple[bool, int]]) -> None:
    batch = new_batch(native=native)
    with ground() as (one, other, middle, sink):
        batch.prepare(middle)
        wanted: dict[tuple[str, int], list[bytes]] = {}
        for index, (first, size) in enumerate(sent):
            sender, data = one if first else other, pattern(size, index)
            sender.sendto(data, middle.getsockname())
            wanted.setdefault(sender.getsockname(), []).append(data)
        assert all_of(batch, middle) == wanted
        # The same once more, given on to the sink and, by the name of the sender, back to it.
        for index, (first, size) in enumerate(sent):
            (one if first else other).sendto(pattern(size, index), middle.getsockname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.connect(sink.getsockname())
            onward: list[bytes] = []
            while groups := batch.receive(middle):
                for group in groups:
                    there, back = batch.send(out, group), batch.send(middle, group, group.key)
                    assert there == back
                    assert (there.datagrams, there.errno) == (group.length, 0)
                    assert there.size == sum(map(len, batch.take(group)))
                    onward += batch.take(group)
            assert drained(sink) == onward
        for client in (one, other):
            assert drained(client) == wanted.get(client.getsockname(), [])


@kinds
@pytest.mark.parametrize("size", [64, 1400, 16384])
def test_a_train_that_arrives_is_taken_apart(native: bool, size: int) -> None:
    """The sender uses UDP_SEGMENT: several datagrams in one call."""
    batch = new_batch(native=native)
    with ground() as (one, _, middle, sink), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.connect(sink.getsockname())
        batch.prepare(middle)
        data = pattern(3 * size + size // 2)
        segment = size.to_bytes(2, "little")
        one.sendmsg([data], [(socket.IPPROTO_UDP, 103, segment)], 0, middle.getsockname())
        for group in batch.receive(middle):
            assert batch.send(out, group).errno == 0
        assert drained(sink) == [data[at : at + size] for at in range(0, len(data), size)]


@kinds
def test_a_group_is_one_sender(native: bool) -> None:
    batch = new_batch(native=native)
    with ground() as (one, other, middle, _):
        for index in range(10):
            (one if index % 2 else other).sendto(b"%d" % index, middle.getsockname())
        groups = batch.receive(middle)
        assert [batch.take(group) for group in groups] == [
            [b"0", b"2", b"4", b"6", b"8"],
            [b"1", b"3", b"5", b"7", b"9"],
        ]
        keys = [group.key for group in groups]
        one.sendto(b"x", middle.getsockname())
        assert [group.key for group in batch.receive(middle)] == keys[1:]


@kinds
def test_no_more_than_asked_for(native: bool) -> None:
    batch = new_batch(native=native)
    with ground() as (one, _, middle, _sink):
        for index in range(MESSAGES_MAX + 10):
            one.sendto(b"%d" % index, middle.getsockname())
        assert [group.length for group in batch.receive(middle, 3, named=False)] == [3]
        assert [group.length for group in batch.receive(middle)] == [MESSAGES_MAX]
        assert [group.length for group in batch.receive(middle)] == [7]
        assert list(batch.receive(middle)) == []


@kinds
@pytest.mark.parametrize(
    ("host", "written_to", "from_host"),
    [
        ("0.0.0.0", "127.0.0.5", "127.0.0.1"),
        ("::", "::1", "::1"),
        ("::", "127.0.0.9", "127.0.0.1"),
    ],
)
def test_the_answer_leaves_from_where_it_was_written_to(
    native: bool, host: str, written_to: str, from_host: str
) -> None:
    batch = new_batch(native=native)
    with bound(host) as middle, bound(from_host) as client:
        batch.prepare(middle)
        port = middle.getsockname()[1]
        for index in range(3):
            client.sendto(b"%d" % index, (written_to, port))
        (group,) = batch.receive(middle)
        assert batch.send(middle, group, group.key).datagrams == 3
        for index in range(3):
            data, address = client.recvfrom(100)
            assert (data, address[:2]) == (b"%d" % index, (written_to, port))


@kinds
def test_a_sender_is_told_apart_by_what_it_wrote_to(native: bool) -> None:
    batch = new_batch(native=native)
    with bound("0.0.0.0") as middle, bound() as client:
        for host in ("127.0.0.2", "127.0.0.3", "127.0.0.2"):
            client.sendto(b"x", (host, middle.getsockname()[1]))
        assert [group.length for group in batch.receive(middle)] == [2, 1]


@kinds
def test_a_refusal_is_told(native: bool) -> None:
    batch = new_batch(native=native)
    with bound() as client, bound() as gone, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.connect(gone.getsockname())
        gone.close()
        out.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            batch.receive(out, named=False)
        assert list(batch.receive(out, named=False)) == []
        client.sendto(b"y", client.getsockname())
        (group,) = batch.receive(client)
        assert batch.send(out, group).errno == 0
        assert batch.send(out, group) == (0, 0, errno.ECONNREFUSED)


@kinds
def test_what_is_too_large_is_lost_alone(native: bool) -> None:
    """65,527 bytes arrive over IPv6 and cannot leave over IPv4."""
    batch = new_batch(native=native)
    with bound("::1") as client, bound("::1") as middle, bound() as sink:
        out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        out.setblocking(False)
        with out:
            out.connect(sink.getsockname())
            for data in (b"before", bytes(65527), b"behind"):
                client.sendto(data, middle.getsockname())
            (group,) = batch.receive(middle)
            sent = batch.send(out, group)
            assert (sent.datagrams, sent.size, sent.errno) == (2, 12, errno.EMSGSIZE)
            assert drained(sink) == [b"before", b"behind"]
