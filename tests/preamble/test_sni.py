"""Rules that share a bind address are chosen by the TLS hello: `sni`, `alpn`, `peek-timeout`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import resource
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from oinetd import Config, Ending, Forwarder
from oinetd.config import parse_config
from oinetd.core.names import NameTable
from oinetd.model import LogFormat
from oinetd.observe.formats import line_format
from oinetd.preamble.proxy_protocol import AUTHORITY, Party
from oinetd.preamble.proxy_writer import write_v1
from tests.forwarding import Seen
from tests.peers import Peer, dial, free_port, until
from tests.preamble import samples
from tests.preamble.lanes import LANES, Server, in_lanes, lane_options, looking, served

HELLO = samples.records(samples.hello(samples.server_name(b"a.example.org"), samples.protocols(b"h2", b"http/1.1")))


def hello(name: str, *protocols: str, size: int = 16384) -> bytes:
    parts = [samples.server_name(name.encode())] if name else []
    parts += [samples.protocols(*(each.encode() for each in protocols))] if protocols else []
    return samples.records(samples.hello(*parts), size)


@dataclass
class Named:
    """A forwarder at one port, with a server for each of its rules."""

    lane: str
    port: int = field(default_factory=free_port)
    servers: list[Server] = field(default_factory=list)
    forwarder: Forwarder | None = None

    def config(self, *rules: str, before: str = "", behind: str = "") -> Config:
        lines = [before]
        for upstream, rule in zip(self.servers, rules, strict=False):
            host, port = upstream.address
            options = ", ".join(filter(None, (rule, lane_options(self.lane))))
            lines.append(f"127.0.0.1 {self.port} {host} {port} [{options}]")
        return parse_config("\n".join([*lines, behind]))

    async def taken_by(self, sent: bytes) -> int:
        """The number of the server that gets a connection which begins with these bytes; -1 for a reset."""
        peer = await dial(("127.0.0.1", self.port))
        try:
            await peer.send(sent)
            gets = [asyncio.ensure_future(each.taken.get()) for each in self.servers]
            end = asyncio.ensure_future(peer.read_all())
            done, rest = await asyncio.wait([*gets, end], return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            if end in done:
                assert isinstance(end.exception(), ConnectionResetError)
                return -1
            (won,) = done
            assert won.result().data == sent  # type: ignore[union-attr]
            return gets.index(won)  # type: ignore[arg-type]
        finally:
            peer.close()


@contextlib.asynccontextmanager
async def named(
    lane: str, *rules: str, seen: Seen | None = None, wanted: int = 1, headed: bool = False, **texts: str
) -> AsyncIterator[Named]:
    """Rules with these options at one port."""
    found = Named(lane)
    async with contextlib.AsyncExitStack() as stack:
        for _ in rules:
            found.servers.append(await stack.enter_async_context(looking(wanted, headed=headed)))
        config = found.config(*rules, **texts)
        forwarder = served(lane, *config.rules, seen=seen, settings=config.settings, access=config.access)
        found.forwarder = await stack.enter_async_context(forwarder)
        yield found


RULES = (
    "sni=a.example.org",
    "sni=*.example.org",
    "sni=a.example.org, alpn=h2",
    "",
    "alpn=acme-tls/1",
    "sni=b.example.org+c.example.org, alpn=h2+h3",
)

CHOICES = [
    (hello("a.example.org"), 0),
    (hello("A.EXAMPLE.org."), 0),
    (hello("a.example.org", "http/1.1"), 0),
    (hello("a.example.org", "http/1.1", "h2"), 2),
    (hello("x.example.org"), 1),
    (hello("x.example.org", "acme-tls/1"), 1),
    (hello("b.example.org", "h3"), 5),
    (hello("c.example.org", "h2"), 5),
    (hello("b.example.org", "http/1.1"), 1),
    (hello("y.x.example.org"), 3),
    (hello("example.org"), 3),
    (hello("other.test", "acme-tls/1"), 4),
    (hello(""), 3),
    (hello("192.0.2.1"), 3),
    (b"GET / HTTP/1.0\r\n\r\n", 3),
    (b"\x15\x03\x01\0\2\1\0", 3),
    (hello("a.example.org", "h2", size=1), 2),
    (hello("a.example.org", "h2", size=7), 2),
    (samples.records(samples.hello(samples.extension(51, bytes(1300)), samples.server_name(b"a.example.org"))), 0),
]


@in_lanes
async def test_which_rule_is_chosen(lane: str) -> None:
    async with named(lane, *RULES) as names:
        for sent, wanted in CHOICES:
            for each in names.servers:
                each.wanted = len(sent)
            assert await names.taken_by(sent) == wanted, sent


@in_lanes
async def test_without_a_rule_for_everything_else(lane: str) -> None:
    seen = Seen()
    async with named(lane, "sni=a.example.org", "sni=b.example.org", seen=seen) as names:
        for sent in (hello("c.example.org"), hello(""), b"x"):
            assert await names.taken_by(sent) == -1
        await until(lambda: len(seen.closed) == 3)
        assert names.forwarder is not None
        assert names.forwarder.stats().refused == 3
    assert {record.ending for record in seen.closed} == {Ending.NO_SNI_RULE}
    assert not seen.opened
    line = json.loads(line_format(LogFormat.JSON).closed(seen.closed[0], 0.0))
    assert (line["ending"], line["server_name"]) == ("no-sni-rule", "c.example.org")


@in_lanes
async def test_a_broken_hello(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "oinetd")
    seen = Seen()
    async with named(lane, "sni=a.example.org", "", seen=seen) as names:
        for sent in (
            samples.records(samples.hello(samples.server_name(b"a\0b"))),
            samples.records(samples.hello(samples.server_name(b"a"), samples.server_name(b"a"))),
            b"\x16\x03\x01\0\0",
        ):
            assert await names.taken_by(sent) == -1
        await until(lambda: len(seen.closed) == 3)
    assert {record.ending for record in seen.closed} == {Ending.BAD_TLS_HELLO}
    said = [record.getMessage() for record in caplog.records if "TLS hello" in record.getMessage()]
    assert len(said) == 1
    assert "the server name is not valid" in said[0]


@in_lanes
async def test_half_a_hello(lane: str) -> None:
    """It is reset at the deadline, or ends with its client; others are served meanwhile."""
    seen = Seen()
    async with named(lane, "sni=a.example.org, peek-timeout=0.4", "peek-timeout=0.4", seen=seen) as names:
        for each in names.servers:
            each.wanted = len(HELLO)
        late = [await dial(("127.0.0.1", names.port)) for _ in range(10)]
        for nth, peer in enumerate(late):
            await peer.send(HELLO[: 5 * nth])
        assert await names.taken_by(HELLO) == 0
        for sent in (b"", HELLO[:50]):
            gone = await dial(("127.0.0.1", names.port))
            await gone.send(sent)
            gone.half_close()
            with contextlib.suppress(ConnectionResetError):
                assert await gone.read_all() == b""
            gone.close()
        for peer in late:
            assert await peer.read_to_reset() == b""
            peer.close()
        await until(lambda: len(seen.closed) == 13)
    endings = [record.ending for record in seen.closed]
    assert endings.count(Ending.PEEK_TIMEOUT) == 10
    assert endings.count(Ending.CLIENT_CLOSED) == 3


@in_lanes
async def test_the_hello_arrives_whole_however_it_was_cut(lane: str) -> None:
    async with named(lane, "sni=a.example.org", "", wanted=len(HELLO)) as names:
        for at in range(1, len(HELLO), 13):
            peer = await dial(("127.0.0.1", names.port))
            await peer.send(HELLO[:at])
            await asyncio.sleep(0)
            await peer.send(HELLO[at:])
            assert (await names.servers[0].taken.get()).data == HELLO
            peer.close()


@in_lanes
async def test_the_smallest_segments_cost_little(lane: str) -> None:
    """A hello of nearly 64 KiB on the wire, in records and segments of one byte. The low-water mark keeps it cheap."""
    big = samples.records(samples.hello(samples.extension(21, bytes(10700)), samples.server_name(b"a.example.org")), 1)
    async with named(lane, "sni=a.example.org", "", wanted=len(big)) as names:
        peer = await dial(("127.0.0.1", names.port))
        for at in range(3000):
            peer.sock.send(big[at : at + 1])
        await peer.send(big[3000:])
        assert (await names.servers[0].taken.get()).data == big
        peer.close()


@in_lanes
async def test_limits_and_access_of_the_chosen_rule(lane: str) -> None:
    seen = Seen()
    config = "deny 127.0.0.9\n127.0.0.1 {port} {first} [sni=a.example.org, max-connections=1{lane}]\ndeny 127.0.0.8\n"
    config += "127.0.0.1 {port} {second} [sni=b.example.org{lane}]\n"
    async with looking(wanted=1, headed=False) as first, looking(wanted=1, headed=False) as second:
        port = free_port()
        text = config.format(
            port=port,
            first="{} {}".format(*first.address),
            second="{} {}".format(*second.address),
            lane=f", {lane_options(lane)}",
        )
        parsed = parse_config(text)
        async with served(lane, *parsed.rules, seen=seen, access=parsed.access) as forwarder:
            peers: list[Peer] = []

            async def begin(name: str, source: str = "") -> None:
                peers.append(await dial(("127.0.0.1", port), source=source))
                with contextlib.suppress(ConnectionError):
                    await peers[-1].send(hello(name))

            await begin("a.example.org")
            await first.taken.get()
            await begin("b.example.org", "127.0.0.8")
            await second.taken.get()
            await begin("a.example.org")
            await until(lambda: len(seen.closed) == 1)
            await begin("a.example.org", "127.0.0.9")
            await until(lambda: len(seen.closed) == 2)
            assert [record.ending for record in seen.closed] == [Ending.LIMITED, Ending.DENIED]
            counts = [forwarder.stats().rules[rule] for rule in parsed.rules]
            assert [count.live for count in counts] == [1, 1]
            peers[0].close()
            await until(lambda: len(seen.closed) == 3)
            await begin("a.example.org", "127.0.0.8")
            await until(lambda: len(seen.closed) == 4)
            assert seen.closed[-1].ending is Ending.DENIED
            await begin("a.example.org")
            await first.taken.get()
            for peer in peers:
                peer.close()
            await until(lambda: forwarder.stats().live == 0)


@in_lanes
async def test_counters_of_each_rule(lane: str) -> None:
    """Sessions, bytes, refusals: each is counted for the rule that was chosen; what came to no rule, for the first."""
    rules = ("sni=a.example.org", "sni=b.example.org", "sni=c.example.org, max-connections=1")
    async with named(lane, *rules) as names:
        forwarder = names.forwarder
        assert forwarder is not None
        config = names.config(*rules)
        peers = []
        for name, at in (("b.example.org", 1), ("c.example.org", 2), ("b.example.org", 1)):
            peers.append(await dial(("127.0.0.1", names.port)))
            await peers[-1].send(hello(name))
            await names.servers[at].taken.get()
        assert await names.taken_by(hello("c.example.org")) == -1
        assert await names.taken_by(hello("d.example.org")) == -1

        def counts(field: str) -> list[int]:
            stats = forwarder.stats().rules
            return [getattr(stats[rule], field) for rule in config.rules]

        size = len(hello("b.example.org"))
        await until(lambda: counts("bytes_up") == [0, 2 * size, size])
        await until(lambda: counts("refused") == [1, 0, 1])
        assert counts("live") == [0, 2, 1]
        await forwarder.reload(config)
        for peer in peers:
            peer.close()
        await until(lambda: forwarder.stats().live == 0)
        assert counts("bytes_up") == [0, 2 * size, size]
        assert counts("accepted") == [1, 2, 2]
        assert [state.lane for state in forwarder.rules()] == ["native" if lane == "native" else "python"] * 3
        assert all(state.in_force for state in forwarder.rules())


@in_lanes
async def test_the_rate_of_the_chosen_rule(lane: str) -> None:
    """Clients above it wait, others do not; whoever would wait for too long is refused."""
    seen = Seen()
    rules = ("sni=a.example.org, rate=2/s:1, peek-timeout=0.7", "sni=b.example.org, peek-timeout=0.7")
    async with named(lane, *rules, seen=seen) as names:
        forwarder = names.forwarder
        assert forwarder is not None
        for each in names.servers:
            each.wanted = len(hello("a.example.org"))
        peers = [await dial(("127.0.0.1", names.port)) for _ in range(4)]
        for peer in peers:
            await peer.send(hello("a.example.org"))
        for _ in range(2):
            await names.servers[0].taken.get()
        await until(lambda: len(seen.closed) == 2)
        for peer in peers:
            peer.close()
        assert await names.taken_by(hello("b.example.org")) == 1
        await until(lambda: len(seen.closed) == 5)
        assert names.servers[0].taken.empty()
        waits = {rule.options.sni: counts.rate_waits for rule, counts in forwarder.stats().rules.items()}
        assert waits == {("a.example.org",): 3, ("b.example.org",): 0}
    endings = [record.ending for record in seen.closed]
    assert endings.count(Ending.LIMITED) == 2


@in_lanes
async def test_who_waits_for_the_rate_has_no_place_of_the_preamble(lane: str) -> None:
    """Clients of other names are served, however many wait for their turn: they hold places of their rule."""
    rules = ("sni=a.example.org, rate=1/m:1, peek-timeout=1h", "sni=b.example.org, peek-timeout=1h")
    async with contextlib.AsyncExitStack() as stack:
        names = Named(lane)
        for _ in rules:
            names.servers.append(await stack.enter_async_context(looking(1, headed=False)))
        config = names.config(*rules)
        forwarder = await stack.enter_async_context(served(lane, *config.rules, max_connections=10))
        waiting = [await dial(("127.0.0.1", names.port)) for _ in range(6)]  # more than half of the places
        for peer in waiting:
            await peer.send(hello("a.example.org"))
        await until(lambda: sum(counts.rate_waits for counts in forwarder.stats().rules.values()) == 5)
        await names.servers[0].taken.get()
        assert await names.taken_by(hello("b.example.org")) == 1
        for peer in waiting:
            peer.close()


@in_lanes
async def test_a_reload_holds_for_those_who_wait_for_the_rate(lane: str) -> None:
    """They are served as the newest rule for their name says: elsewhere, not at all, or not any more."""
    seen, slow = Seen(), "rate=1/s:1, peek-timeout=1h"
    rules = [f"sni={name}.example.org, {slow}" for name in "abc"]
    async with named(lane, *rules, "sni=other.example.org, peek-timeout=1h", seen=seen) as names:
        forwarder, servers = names.forwarder, names.servers
        assert forwarder is not None
        peers = {}
        for name, upstream in zip("abc", servers, strict=False):
            await (first := await dial(("127.0.0.1", names.port))).send(hello(f"{name}.example.org"))
            await upstream.taken.get()
            first.close()
            peers[name] = await dial(("127.0.0.1", names.port))
            await peers[name].send(hello(f"{name}.example.org"))
        await until(lambda: sum(counts.rate_waits for counts in forwarder.stats().rules.values()) == 3)
        names.servers = [servers[3], servers[2]]
        await forwarder.reload(names.config(rules[0], rules[2], behind="deny *"))
        await servers[3].taken.get()
        await until(lambda: len(seen.closed) == 5)
        for peer in peers.values():
            peer.close()
        await until(lambda: len(seen.closed) == 6)
        assert all(each.taken.empty() for each in servers)
    endings = {record.server_name: record.ending for record in seen.closed[3:5]}
    assert endings == {"b.example.org": Ending.NO_SNI_RULE, "c.example.org": Ending.DENIED}
    assert seen.closed[5].upstream_port == servers[3].address[1]


@in_lanes
async def test_a_name_that_leads_back_to_the_listener(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever of the rules that share the listener it is; the others are served."""
    async with looking(1, headed=False) as upstream:
        names, itself = Named(lane), Server()
        itself.address = ("127.0.0.1", names.port)
        names.servers = [upstream, itself]
        config = names.config("sni=a.example.org", "sni=b.example.org")
        seen = Seen()
        async with served(lane, *config.rules, seen=seen):
            peer = await dial(("127.0.0.1", names.port))
            await peer.send(hello("b.example.org"))
            with contextlib.suppress(ConnectionError):
                assert await peer.read(1) == b""
            peer.close()
            await until(lambda: len(seen.closed) == 1)
            assert (seen.closed[0].ending, seen.closed[0].errno) == (Ending.CONNECT_FAILED, errno.ELOOP)
            names.servers = [upstream]
            assert await names.taken_by(hello("a.example.org")) == 0
    said = [line for line in caplog.messages if "leads back here (ELOOP)" in line]
    assert len(said) == 1
    assert "b.example.org" in said[0] or f" 127.0.0.1 {names.port}" in said[0]


@in_lanes
async def test_a_reload_adds_and_takes_names(lane: str) -> None:
    async with named(lane, "sni=a.example.org", "sni=b.example.org", "sni=c.example.org") as names:
        assert names.forwarder is not None
        first = await dial(("127.0.0.1", names.port))
        await first.send(hello("b.example.org"))
        await names.servers[1].taken.get()
        servers = names.servers
        names.servers = [servers[0], servers[2]]
        await names.forwarder.reload(names.config("sni=a.example.org", "sni=c.example.org"))
        names.servers = servers
        assert await names.taken_by(hello("b.example.org")) == -1
        for each in servers:
            each.wanted = len(hello("c.example.org"))
        assert await names.taken_by(hello("c.example.org")) == 2
        assert await names.taken_by(hello("a.example.org")) == 0
        await until(lambda: names.forwarder is not None and names.forwarder.stats().live == 1)
        await names.forwarder.reload(names.config("sni=a.example.org", "sni=b.example.org", ""))
        assert await names.taken_by(hello("b.example.org")) == 1
        assert await names.taken_by(hello("c.example.org")) == 2
        await names.forwarder.reload(names.config("sni=d.example.org"))
        assert await names.taken_by(hello("a.example.org")) == -1
        first.close()
        await until(lambda: names.forwarder is not None and names.forwarder.stats().live == 0)


@in_lanes
async def test_behind_a_proxy(lane: str) -> None:
    """A PROXY header comes first; the server is told of the client in it, and of the name."""
    client, reached = Party("192.0.2.7", 40000), Party("198.51.100.9", 443)
    seen = Seen()
    options = "accept-proxy, send-proxy=v2, proxy-tlv=authority"
    rules = (f"sni=a.example.org, {options}", options)
    async with named(lane, *rules, seen=seen, wanted=len(HELLO), headed=True, behind="trust 127.*") as names:
        for cut in (0, 10, 80):
            whole = write_v1(client, reached) + HELLO
            peer = await dial(("127.0.0.1", names.port))
            await peer.send(whole[:cut])
            await asyncio.sleep(0)
            await peer.send(whole[cut:])
            taken = await names.servers[0].taken.get()
            assert taken.data == HELLO
            assert taken.header is not None
            assert (taken.header.source, taken.header.destination) == (client, reached)
            assert taken.header.value(AUTHORITY) == b"a.example.org"
            peer.close()
        await until(lambda: len(seen.closed) == 3)
    record = seen.closed[0]
    assert (record.client, record.peer, record.server_name, record.alpn) == (
        "192.0.2.7",
        "127.0.0.1",
        "a.example.org",
        "h2,http/1.1",
    )


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """What a server of this name has."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt", "-subj", f"/CN={name}",
         "-addext", f"subjectAltName=DNS:{name}"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return context


@pytest.mark.parametrize("lane", LANES)
async def test_real_tls(lane: str, tmp_path: Path) -> None:
    """Two TLS servers with certificates of their own behind one port: each name gets its own."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    ways = ("a.example.org", "b.example.org")
    contexts = {name: certificate(tmp_path, name) for name in ways}
    trusted = ssl.create_default_context()
    for name in ways:
        trusted.load_verify_locations(tmp_path / f"{name}.crt")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        lines = []
        for name in ways:
            listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=contexts[name])
            await stack.enter_async_context(listening)
            to = listening.sockets[0].getsockname()[1]
            lines.append(f"127.0.0.1 {port} 127.0.0.1 {to} [sni={name}, {lane_options(lane)}]")
        rules = parse_config("\n".join(lines)).rules
        await stack.enter_async_context(served(lane, *rules))
        for name in ways:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted, server_hostname=name)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await writer.wait_closed()


async def test_thousands_of_names_cost_no_more_than_a_few() -> None:
    table = NameTable(((f"n{nth}.example.org",), (), nth) for nth in range(20_000))
    assert table.choose("n7777.example.org", (b"h2",)) == 7777
    assert table.choose("n20000.example.org", ()) is None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = parse_config("".join(f"127.0.0.1 443 192.0.2.1 443 [sni=n{nth}.example.org]\n" for nth in range(3000)))
    assert len({rule.identity for rule in config.rules}) == 3000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@in_lanes
async def test_silent_clients(lane: str) -> None:
    """They take no more than half of the places, and a stop does not wait for them."""
    async with named(lane, "sni=a.example.org, peek-timeout=1h", "peek-timeout=1h") as names:
        silent = [await dial(("127.0.0.1", names.port)) for _ in range(20)]
        assert names.forwarder is not None
        await until(lambda: names.forwarder is not None and len(names.forwarder.sessions()) == 20)
        for peer in silent[:10]:
            peer.reset()
        await until(lambda: names.forwarder is not None and len(names.forwarder.sessions()) == 10)
    for peer in silent[10:]:
        peer.close()


@pytest.mark.parametrize("lane", ["native", "python"])
async def test_a_thousand_clients_that_say_nothing_or_half(lane: str) -> None:
    """Each is gone at its deadline, and honest clients are served meanwhile."""
    seen = Seen()
    options = "accept-proxy, proxy-timeout=1, peek-timeout=1"
    header = write_v1(Party("192.0.2.7", 40000), Party("198.51.100.9", 443))
    rules = (f"sni=a.example.org, {options}", options)
    async with named(lane, *rules, seen=seen, wanted=len(HELLO), behind="trust 127.*") as names:
        silent = []
        for nth in range(1000):
            silent.append(await dial(("127.0.0.1", names.port)))
            await silent[-1].send((b"", header[:20], header + HELLO[:30])[nth % 3])
        honest = await dial(("127.0.0.1", names.port))
        await honest.send(header + HELLO)
        assert (await names.servers[0].taken.get()).data == HELLO
        await until(lambda: len(seen.closed) == 1000)
        endings = [record.ending for record in seen.closed]
        assert endings.count(Ending.PROXY_TIMEOUT) == 667
        assert endings.count(Ending.PEEK_TIMEOUT) == 333
        for peer in (*silent, honest):
            peer.close()
