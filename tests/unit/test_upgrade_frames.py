"""What two processes send each other in an upgrade: foreign bytes and descriptors are refused, none is left open."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd import __version__
from oinetd.upgrade.channel import Channel, ChannelClosed
from oinetd.upgrade.frames import (
    BYTES_MAX,
    DESCRIPTORS_MAX,
    DOCUMENT_BYTES_MAX,
    HEADER_BYTES,
    VERSION,
    BadFrame,
    Frame,
    Header,
)
from oinetd.upgrade.give import ENVIRONMENT
from oinetd.upgrade.take import Taker, _adopt
from tests.forwarding import in_one_loop

ROOT = Path(__file__).parents[2]

documents = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "kind"), st.integers() | st.text(max_size=8)
)
frames = st.builds(Frame, st.text(max_size=12), documents, st.binary(max_size=64))


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = socket.socketpair()
    with Channel(ours, 10.0) as one, Channel(theirs, 10.0) as other:
        yield one, other


@given(frames)
def test_a_frame_comes_as_it_was_sent(frame: Frame) -> None:
    head, rest = frame.encode()
    read = Frame.decode(Header.read(head), rest, ())
    assert (read.kind, read.data) == (frame.kind, frame.data)
    assert read.document == {**frame.document, "kind": frame.kind}


@given(st.binary(max_size=40))
def test_no_bytes_are_read_as_anything_else(data: bytes) -> None:
    """A header, or `BadFrame`, and never a size beyond the bounds."""
    try:
        header = Header.read(data)
    except BadFrame:
        return
    assert header.document_bytes <= DOCUMENT_BYTES_MAX
    assert header.data_bytes <= BYTES_MAX
    assert header.descriptors <= DESCRIPTORS_MAX


@given(st.binary(max_size=80), st.integers(0, 80), st.integers(0, 80))
def test_no_document_is_read_as_anything_else(body: bytes, document: int, data: int) -> None:
    try:
        frame = Frame.decode(Header(document, data, 0), body, ())
    except BadFrame:
        return
    assert isinstance(frame.kind, str)


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"kind":7}', b"\xff", b"[" * 100_000, b'{"kind":"go"', b"c__builtin__\neval\n."]
)
def test_what_is_no_document_is_refused(document: bytes) -> None:
    with pytest.raises(BadFrame):
        Frame.decode(Header(len(document), 0, 0), document, ())


@given(frames, st.data())
def test_one_changed_byte_never_breaks_the_reader(frame: Frame, data: st.DataObject) -> None:
    head, rest = frame.encode()
    whole = bytearray(head + rest)
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BadFrame):
        Frame.decode(Header.read(bytes(whole[:HEADER_BYTES])), bytes(whole[HEADER_BYTES:]), ())


def test_a_frame_that_is_too_large_is_not_sent() -> None:
    for frame in (
        Frame("go", {"x": "x" * DOCUMENT_BYTES_MAX}),
        Frame("go", {}, bytes(BYTES_MAX + 1)),
        Frame("go", {}, b"", tuple(range(DESCRIPTORS_MAX + 1))),
    ):
        with pytest.raises(BadFrame):
            frame.encode()


def test_it_is_read_from_any_pieces(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    head, rest = Frame("sessions", {"a": 1}, b"data").encode()
    whole = head + rest
    for at in range(1, len(whole)):
        one.sock.sendall(whole[:at])
        later = threading.Timer(0.001, one.sock.sendall, [whole[at:]])
        later.start()
        assert other.receive().data == b"data"
        later.join()


def test_descriptors_come_closed_on_exec_and_those_that_are_cut_end_it(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    with open(os.devnull, "rb") as file:
        one.send(Frame("hello", {}, b"", (file.fileno(),) * 3))
        received = other.receive().descriptors
        assert len(received) == 3
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in received)
        for fd in received:
            os.close(fd)
        one.send(Frame("hello", {}, b"", (file.fileno(),) * DESCRIPTORS_MAX))
        before = open_descriptors()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 2, limits[1]))
        try:
            with pytest.raises(BadFrame, match="descriptors were lost"):
                other.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert open_descriptors() == before


def test_descriptors_of_a_frame_that_is_none_are_closed(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    before = open_descriptors()
    with open(os.devnull, "rb") as file:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))]
        one.sock.sendmsg([b"x" * HEADER_BYTES], rights)
        with pytest.raises(BadFrame):
            other.receive()
        head, rest = Frame("hello", {}, b"", (file.fileno(),)).encode()
        one.sock.sendall(head + rest)  # without the descriptor that it speaks of
        with pytest.raises(BadFrame):
            other.receive()
    assert open_descriptors() == before


def open_descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def test_too_many_descriptors_in_flight_are_waited_for() -> None:
    class Crowded:
        tries = 0
        sent = b""

        def settimeout(self, timeout_s: float | None) -> None:
            pass

        def gettimeout(self) -> float | None:
            return 10.0

        def sendmsg(self, parts: list[bytes], _: object) -> int:
            self.tries += 1
            if self.tries < 3:
                raise OSError(errno.ETOOMANYREFS, "Too many references")
            return len(parts[0])

        def sendall(self, data: bytes) -> None:
            self.sent += data

    sock: Any = Crowded()
    Channel(sock, 10.0).send(Frame("go", {}, b"data"))
    assert (sock.tries, sock.sent.endswith(b"data")) == (3, True)


def test_a_process_that_goes_is_noticed(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.sock.sendall(b"oiu1")
    one.close()
    with pytest.raises(ChannelClosed):
        other.receive()


# The new process


def taker_of(*frames: Frame) -> Taker | None:
    """The taker that gets these frames first."""
    ours, theirs = socket.socketpair()
    with Channel(ours, 10.0) as old:
        for frame in frames:
            old.send(frame)
        return Taker.of({ENVIRONMENT: str(theirs.detach())})


HELLO = Frame("hello", {"version": VERSION, "files": [], "later": {"more": 1}})


def test_another_version_of_the_protocol_is_refused() -> None:
    for version in (VERSION + 1, None, "1"):
        with pytest.raises(BadFrame, match="version"):
            taker_of(Frame("hello", {"version": version, "files": []}))


def refused_listeners() -> list[Callable[[], socket.socket]]:
    def connected() -> socket.socket:
        one, other = socket.socketpair()
        other.close()
        return one

    return [
        lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),  # does not listen
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        connected,
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),  # has no address
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE),
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    ]


@pytest.mark.parametrize("number", range(len(refused_listeners())))
def test_a_descriptor_that_is_no_listener_of_ours_is_refused(number: int) -> None:
    try:
        sock = refused_listeners()[number]()
    except OSError as error:
        pytest.skip(f"the kernel has no such socket: {error.strerror}")
    before = open_descriptors()
    with pytest.raises(BadFrame):
        taker_of(HELLO, Frame("listeners", {}, b"", (sock.fileno(),) * 2))
    assert open_descriptors() == before
    sock.close()


def test_a_file_is_no_listener() -> None:
    before = open_descriptors()
    with open(os.devnull, "rb") as file, pytest.raises(BadFrame):
        taker_of(HELLO, Frame("listeners", {}, b"", (file.fileno(),)))
    assert open_descriptors() == before


def test_listeners_of_all_kinds_are_taken() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as stream,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
    ):
        datagrams.bind(("127.0.0.1", 0))
        local.bind(f"\0oinetd-test-{os.getpid()}-frames")
        local.listen()
        socks = (stream, datagrams, local)
        names = [sock.getsockname() for sock in socks]
        taker = taker_of(HELLO, Frame("listeners", {"later": 1}, b"", tuple(sock.fileno() for sock in socks)))
    assert taker is not None
    assert [sock.getsockname() for sock in taker.sockets] == names
    for sock in taker.sockets:
        sock.close()
    taker._channel.close()


@in_one_loop
async def test_what_a_later_version_says_besides_is_skipped() -> None:
    ours, theirs = socket.socketpair()
    did: list[str] = []

    class Moves:
        def number_from(self, least: int) -> None:
            did.append(f"from {least}")

        def start_streams(self) -> None:
            did.append("streams")

        def start_datagrams(self) -> None:
            did.append("datagrams")

        def restore(self, counters: Any) -> None:
            did.append("counters")

        def settle(self) -> None:
            did.append("files")

    moves: Any = Moves()
    before = open_descriptors()
    with Channel(theirs, 10.0) as old:
        taking = asyncio.ensure_future(Taker(Channel(ours, 10.0)).take(moves))
        assert (await asyncio.to_thread(old.receive)).kind == "ready"
        for frame in (
            Frame("news", {"x": 1}, b"data", (theirs.fileno(),)),
            Frame("go", {"next_id": 7, "later": True}),
            Frame("finish", {"counters": {}, "later": True}),
        ):
            await asyncio.to_thread(old.send, frame)
        assert (await asyncio.to_thread(old.receive)).kind == "done"
        old.close()
        assert (await taking)["later"] is True
    assert did == ["from 7", "streams", "counters", "datagrams", "files"]
    assert open_descriptors() <= before


@pytest.mark.parametrize("error", [ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, OSError])
def test_a_session_that_is_not_understood_stays_and_the_others_come(error: type[Exception]) -> None:
    began: list[int] = []

    def adopt(state: Any, fds: tuple[int, ...], pending: tuple[bytes, bytes]) -> Callable[[], object]:
        if state["id"] == 1:
            raise error("of another version")
        assert pending == (b"u", b"d")
        for fd in fds:
            os.close(fd)
        return lambda: began.append(state["id"])

    moves: Any = type("Moves", (), {"adopt": staticmethod(adopt)})
    before = open_descriptors()
    fds = tuple(os.dup(0) for _ in range(5))
    each = {"fds": 2, "pending": [1, 1]}
    said = [{"id": 1, **each}, {"id": 2, **each}, 7, {"id": 3, **each, "pending": [-1, 1]}, {"id": 4, **each, "fds": 9}]
    for begin in _adopt(moves, Frame("sessions", {"sessions": said}, b"udud", fds)).values():
        begin()
    assert began == [2]
    assert open_descriptors() == before


def test_the_table_of_versions_has_this_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"(?m)^\| (\d+) \| ([0-9., ]+) \|", text))
    assert __version__.rpartition(".")[0] in rows[str(VERSION)].replace(",", " ").split()


def test_nothing_that_runs_code_is_read() -> None:
    for path in (ROOT / "oinetd").rglob("*.py"):
        assert not re.search(r"\b(import|from) (pickle|marshal|shelve|dill)\b", path.read_text()), path
