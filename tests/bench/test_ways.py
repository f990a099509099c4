"""Loads with PROXY headers, server names and unix sockets: what comes before a hello is sent, wanted and checked."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bench.errors import BenchError
from bench.experiment import Options
from bench.experiments.rate import Rate
from bench.experiments.throughput import Throughput
from bench.extension import native
from bench.key import KINDS
from bench.results import Result, Sample, newest
from bench.stand import Stand
from bench.subjects import Destination, Subject, choose
from bench.ways import NAMES, SERVER_NAME, chosen_ways, client_hello, proxy_header

CLIENT = "192.0.2.7"  # of `proxy_header`
V1 = f"PROXY TCP4 {CLIENT} 198.51.100.1 40000 443\r\n".encode()


@contextlib.contextmanager
def serving(**expected: bytes) -> Iterator[tuple[Any, Any, tuple[str, int]]]:
    """The native server with what it expects; the key, it, and where it listens."""
    key = native().Key(b"sixteen bytes ..")
    stop = os.eventfd(0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        server = native().Server(key, listener.fileno(), stop, 1, **expected)
        thread = threading.Thread(target=server.serve, args=(0,))
        thread.start()
        try:
            yield key, server, listener.getsockname()
        finally:
            os.eventfd_write(stop, 1)
            thread.join()
            os.close(stop)


def greeted(key: Any, place: tuple[str, int], parts: list[bytes], number: int) -> bool:
    """Whether the server greets a client that sends this, part by part, and its hello."""
    with socket.create_connection(place) as client:
        client.settimeout(10)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for part in [*parts, key.hello(KINDS["exchange"], number, 64, 64)]:
                client.sendall(part)
            return len(client.recv(8, socket.MSG_WAITALL)) == 8
    return False


def wanted(address: str) -> bytes:
    return bytes.fromhex(chosen_ways(["send-proxy"], address)[1].expects.partition(":")[2])


@pytest.mark.parametrize("header", [proxy_header(), V1], ids=["v2", "v1"])
def test_the_server_takes_a_header_off_wherever_it_is_cut(header: bytes) -> None:
    with serving(proxy=wanted(CLIENT)) as (key, server, place):
        for cut in range(len(header) + 1):
            assert greeted(key, place, [header[:cut], header[cut:]], cut)
        assert greeted(key, place, [header[at : at + 1] for at in range(len(header))], 1000)
        assert server.counts()["hellos"] == len(header) + 2
        assert server.counts()["foreign"] == 0


@pytest.mark.parametrize(
    "header",
    [
        b"",
        proxy_header().replace(socket.inet_aton(CLIENT), socket.inet_aton("192.0.2.8")),
        proxy_header().replace(b"\x21\x11", b"\x20\x11"),
        V1.replace(CLIENT.encode(), b"192.0.2.70"),
        b"PROXY UNKNOWN\r\n",
        V1[:-2] + b" " * 256,
    ],
    ids=["none", "another address", "local", "another address in v1", "unknown", "no end"],
)
def test_a_connection_without_the_right_header_is_foreign(header: bytes) -> None:
    with serving(proxy=wanted(CLIENT)) as (key, server, place):
        assert not greeted(key, place, [header], 1)
        assert server.counts()["hellos"] == 0
        assert server.counts()["foreign"] == 1


def test_the_server_wants_the_very_hello_that_the_client_sent() -> None:
    hello = client_hello()
    assert SERVER_NAME.encode() in hello
    with serving(exact=hello) as (key, server, place):
        assert greeted(key, place, [hello[:7], hello[7:]], 1)
        assert not greeted(key, place, [hello[:-1] + bytes([hello[-1] ^ 1])], 2)
        assert not greeted(key, place, [], 3)
        assert (server.counts()["hellos"], server.counts()["foreign"]) == (1, 2)


def subjects() -> list[Subject]:
    return choose(["native-auto", "python", "haproxy", "nginx"], [65536], [])


@pytest.fixture(scope="module")
def bed() -> Iterator[tuple[Rate, Stand, list[Destination]]]:
    """One stand and the servers of all ways, for all subjects."""
    experiment = Rate(Options(seconds=0.05, extra={"with": ["send-proxy", "accept-proxy", "sni", "unix-unix"]}))
    with Stand("loopback") as stand, experiment.server(stand) as destinations:
        stand.warm_up_s = 0.02
        yield experiment, stand, [each for each in destinations if isinstance(each, Destination)]


@pytest.mark.parametrize("subject", subjects(), ids=lambda subject: subject.name)
def test_a_subject_carries_every_way(subject: Subject, bed: tuple[Rate, Stand, list[Destination]]) -> None:
    experiment, stand, destinations = bed
    if reason := subject.unavailable(stand.topology):
        pytest.skip(reason)
    with stand.subject(subject, *destinations) as running:
        if subject.family == "oinetd":  # not where the service of the machine has its socket
            assert list(stand.directory.glob("subject-*/oinetd.sock"))
        for case in experiment.cases()[1:]:
            sample = experiment.measure(stand, running, case)
            assert [text for text in sample.invalid if not text.startswith("drift")] == [], case.name
            assert sample.values["per_second"], case.name


def test_a_forwarder_that_sends_no_header_is_told_from_one_that_does(
    bed: tuple[Rate, Stand, list[Destination]],
) -> None:
    """The route says plain, and the server wants a header."""
    experiment, stand, destinations = bed
    (subject,) = choose(["native-auto"], [65536], [])
    plainly = [Destination(each.port, "plain") for each in destinations if each.port]
    (case,) = (case for case in experiment.cases() if case.name.endswith("send-proxy"))
    with stand.subject(subject, *plainly) as running:
        sample = experiment.measure(stand, running, case)
    assert any("did not carry what the client had sent" in text for text in sample.invalid)


def test_what_a_way_costs_is_reckoned_by_pairs_of_one_round() -> None:
    experiment = Rate(Options(extra={"with": ["sni"]}))
    result = Result("rate", {"with": ["sni"]}, {}, {}, False)
    for number, (usual, rate) in enumerate([(1000.0, 950.0), (2000.0, 1960.0)]):
        for way, value in (("sni", rate), ("plain", usual)):
            values: dict[str, float | None] = {"per_second": value, "cpu_us": 50.0 if way == "plain" else 55.0}
            result.samples.append(Sample("a", f"connect/close × 16, {way}", number, values))
    result.samples.append(Sample("b", "connect/close × 16, sni", 0, {"per_second": 5.0}))
    experiment.finish(result)
    lost = [sample.values["lost_percent"] for sample in result.samples if "lost_percent" in sample.values]
    assert lost == pytest.approx([5.0, 2.0])
    assert result.samples[0].values["more_cpu_percent"] == pytest.approx(10.0)
    assert newest([result]) == {}


def test_ways_take_turns_and_plain_is_always_there() -> None:
    experiment = Throughput(Options(extra={"with": ["unix"]}))
    cases = experiment.cases()
    assert [case.name for case in cases] == ["P1, plain", "P1, unix-tcp", "P1, unix-unix"]
    first = [experiment.order(cases, number)[0].name for number in range(6)]
    assert {first.count(case.name) for case in cases} == {2}


@pytest.mark.parametrize(
    ("extra", "subjects", "said"),
    [
        ({"with": ["tls"]}, [], f"--with tls: there are {', '.join(NAMES)}"),
        ({"with": ["sni"], "idle": 5}, [], "--with cannot be combined with --idle"),
        ({"with": ["sni"]}, ["socat"], "not for socat"),
    ],
)
def test_ways_that_cannot_be_meant(extra: dict[str, Any], subjects: list[str], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        Rate(Options(extra=extra, subjects=subjects)).chosen()
