"""The native parsers and writers do what those in Python do, byte for byte."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oinetd.core.names import NameTable
from oinetd.lanes.native.plane import available
from oinetd.preamble import proxy_protocol, proxy_writer, tls_hello
from oinetd.preamble.progress import Invalid, NeedMore
from oinetd.preamble.proxy_protocol import CRC32C, Header, Party, Tlv
from tests.preamble import samples
from tests.preamble.test_proxy_protocol import INVALID, VALID, hosts4, parties4, parties6, ports, tlvs
from tests.preamble.test_tls_hello import BROKEN
from tests.preamble.test_tls_hello import VALID as HELLOS

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
HEADERS = [data for data, *_ in (*VALID, *INVALID)]
WIRES = [samples.records(message, size) for message, _ in (*HELLOS, *BROKEN) for size in (1, 50, 16384)]


def native_header(data: bytes, datagram: bool = False) -> object:
    from oinetd._fastpath import read_proxy_header

    return read_proxy_header(data, datagram)


def python_header(data: bytes, datagram: bool = False) -> object:
    found = proxy_protocol.feed_datagram(data) if datagram else proxy_protocol.feed(data)
    if isinstance(found, NeedMore):
        return (0, found.total)
    if isinstance(found, Invalid):
        return (2, found.fault, found.at)
    values = b"".join(samples.tlv(*value) for value in found.tlvs)
    return (1, found.length, found.version, found.source, found.destination, values)


def native_hello(data: bytes) -> object:
    from oinetd._fastpath import read_tls_hello

    return read_tls_hello(data)


def python_hello(data: bytes) -> object:
    found = tls_hello.feed(data)
    if isinstance(found, NeedMore):
        return (0, found.total)
    if isinstance(found, Invalid):
        return (2, found.fault, found.at)
    return (1, found.server_name, b"".join(bytes([len(name)]) + name for name in found.protocols))


@st.composite
def changed(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the samples with some bytes replaced, removed or added, cut anywhere."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def test_every_sample_at_every_split_point() -> None:
    for data in HEADERS:
        for part in (*samples.prefixes(data), data, data + b"behind"):
            assert native_header(part) == python_header(part), part
            assert native_header(part, True) == python_header(part, True), part


@settings(max_examples=500, deadline=None)
@given(st.one_of(changed(HEADERS), st.binary(max_size=64)), st.booleans())
def test_same_header(data: bytes, datagram: bool) -> None:
    assert native_header(data, datagram) == python_header(data, datagram)


def test_every_input_of_the_fuzzer() -> None:
    inputs = sorted(CORPUS.iterdir())
    assert len(inputs) > 100
    for path in inputs:
        choice, data = path.read_bytes()[:1], path.read_bytes()[2:]
        if not choice or choice[0] % 3 == 2:
            assert native_hello(data) == python_hello(data), path.name
        else:
            datagram = choice[0] % 3 == 1
            assert native_header(data, datagram) == python_header(data, datagram), path.name


def test_every_hello_at_every_split_point() -> None:
    for data in WIRES:
        step = 1 if len(data) < 600 else 97
        for size in (*range(0, len(data), step), len(data)):
            assert native_hello(data[:size]) == python_hello(data[:size]), data[:size]


@settings(max_examples=500, deadline=None)
@given(st.one_of(changed(WIRES), st.binary(max_size=64)))
@example(samples.records(samples.hello(samples.extension(21, bytes(12000))), 1))
@example(samples.records(samples.hello(samples.extension(21, bytes(16300)))) * 5)
def test_same_hello(data: bytes) -> None:
    assert native_hello(data) == python_hello(data)


def test_same_hello_whatever_the_records() -> None:
    chance = random.Random(7)
    for _ in range(300):
        message, _ = chance.choice(HELLOS)
        wire = b""
        while message:
            size = chance.choice((1, 2, 5, 30, 400))
            wire += samples.records(message[:size])
            message = message[size:]
        for size in (chance.randrange(len(wire) + 1), len(wire)):
            assert native_hello(wire[:size]) == python_hello(wire[:size])


parties = st.one_of(st.none(), parties4, parties6, st.builds(Party, hosts4.map("::ffff:{}".format), ports))
big = st.lists(st.builds(Tlv, st.just(0xE0), st.binary(min_size=900, max_size=1500)), max_size=4)


@settings(max_examples=400, deadline=None)
@given(parties, parties, st.one_of(tlvs, big), st.booleans(), st.booleans())
def test_same_bytes_are_written(
    source: Party | None, destination: Party | None, values: list[Tlv], checksum: bool, datagram: bool
) -> None:
    from oinetd._fastpath import write_proxy_header

    assert write_proxy_header(1, source, destination) == proxy_writer.write_v1(source, destination)
    written = write_proxy_header(2, source, destination, values, checksum=checksum, datagram=datagram)
    assert written == proxy_writer.write_v2(source, destination, values, checksum=checksum, datagram=datagram)
    read = proxy_protocol.feed(written)
    assert isinstance(read, Header)
    assert len(read.value(CRC32C)) == (4 if checksum and source and destination else 0)


def test_families_differ() -> None:
    from oinetd._fastpath import write_proxy_header

    first, second = Party("192.0.2.7", 1), Party("2001:db8::1", 2)
    for version, write in ((1, proxy_writer.write_v1), (2, proxy_writer.write_v2)):
        assert write_proxy_header(version, first, second) == write(first, second)  # type: ignore[operator]


labels = st.sampled_from(["a", "b", "www", "x-y", "_t"])
chosen_names = st.lists(labels, min_size=0, max_size=3).map(".".join)
rule_names = st.one_of(
    chosen_names, st.lists(labels, min_size=1, max_size=2).map(lambda parts: ".".join(["*", *parts]))
)
spoken = st.lists(st.sampled_from([b"h2", b"h3", b"http/1.1", b"\n\n"]), max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(rule_names, st.sampled_from(["", "h2", "h3", "http/1.1"])), unique=True, max_size=40),
    st.lists(st.tuples(chosen_names, spoken), max_size=20),
)
def test_same_rule_is_chosen(rules: list[tuple[str, str]], clients: list[tuple[str, list[bytes]]]) -> None:
    from oinetd._fastpath import Names

    entries = [
        ((name,) if name else (), (protocol,) if protocol else (), at) for at, (name, protocol) in enumerate(rules)
    ]
    table = NameTable(entries)
    native = Names([(name.encode(), protocol.encode(), at) for at, (name, protocol) in enumerate(rules)])
    for name, protocols in clients:
        wire = b"".join(bytes([len(each)]) + each for each in protocols)
        wanted = table.choose(name, protocols)
        assert native.choose(name.encode(), wire) == (-1 if wanted is None else wanted)


def test_thousands_of_names() -> None:
    from oinetd._fastpath import Names

    native = Names([(f"n{nth}.example.org".encode(), b"", nth) for nth in range(20_000)])
    assert all(native.choose(f"n{nth}.example.org".encode(), b"\2h2") == nth for nth in range(0, 20_000, 37))
    assert native.choose(b"n20000.example.org", b"") == -1
