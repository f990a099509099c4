"""Servers that come and go: the addresses of a name, SRV records, a file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from oinetd import ConfigError, Ending, Forwarder
from oinetd.config import parse_config
from oinetd.enums import Protocol
from oinetd.model import Endpoint, Origin
from oinetd.net import file_watch, srv
from oinetd.net.srv import ServiceRecord
from oinetd.servers import GroupOptions, Server
from oinetd.upstream.destination import Destination
from oinetd.upstream.server_file import FileSource
from oinetd.upstream.srv import weights_of
from tests.forwarding import Seen, bound, echoes, exchange, in_one_loop
from tests.peers import dial, until
from tests.udp.rig import name_service
from tests.upstream.servers import backends, forwarding_to


def names(forwarder: Forwarder) -> list[str]:
    return [server.name for server in forwarder.upstreams()[0].servers]


@pytest.mark.parametrize("engine", ["python", "native"])
@in_one_loop
async def test_each_address_of_a_name_is_a_server(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name_service(monkeypatch, "127.0.0.1", "127.0.0.2")
    async with backends(1) as (up,):
        lines = f"two.example {up.port} [resolve=each]\n[balance=first, allow-special]"
        async with forwarding_to(lines, engine) as forwarder:
            assert names(forwarder) == [f"127.0.0.1:{up.port}", f"127.0.0.2:{up.port}"]
            assert await echoes(bound(forwarder))
            before = forwarder.upstreams()[0].servers[0]
            name_service(monkeypatch, "127.0.0.1", "127.0.0.3")
            assert forwarder._reload.destinations is not None
            for destination in forwarder._reload.destinations:
                destination.look_up_now()
            await until(lambda: names(forwarder) == [f"127.0.0.1:{up.port}", f"127.0.0.3:{up.port}"])
            assert await echoes(bound(forwarder))
            assert forwarder.upstreams()[0].servers[0].selected == before.selected + 1


# Files


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "QUIET_S", 0.01)


def write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@pytest.mark.usefixtures("quick_watch")
@pytest.mark.parametrize("engine", ["python", "native"])
@in_one_loop
async def test_a_file_of_servers_is_watched(engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    file, seen = tmp_path / "web.servers", Seen()
    async with backends(3) as up:
        write(file, f"# the servers\n127.0.0.1 {up[0].port} [weight=3]\n127.0.0.1 {up[1].port} [backup]\n")
        lines = f"file:{file} [weight=2]\n[allow-special, drain-spread=10ms, balance=first]"
        async with forwarding_to(lines, engine, on_close=seen.closed.append) as forwarder:
            assert [(each.name, each.weight, each.backup) for each in forwarder.upstreams()[0].servers] == [
                (up[0].name, 3, False), (up[1].name, 2, True),
            ]  # fmt: skip
            client = await dial(bound(forwarder))
            assert await exchange(client)
            write(file, f"127.0.0.1 {up[1].port}\n127.0.0.1 {up[2].port}\n")
            await until(lambda: names(forwarder) == [up[1].name, up[2].name])
            await until(lambda: [record.ending for record in seen.closed] == [Ending.DRAINED])
            client.close()
            assert await echoes(bound(forwarder))
            assert up[1].accepted == 1
            write(file, "127.0.0.1 80 [wieght=3]\nfile:/x\n127.0.0.1 80\n127.0.0.1 80\n10.0.0.1 53/udp\n")
            await until(lambda: f"{file}: the servers stay as they were" in caplog.messages)
            assert names(forwarder) == [up[1].name, up[2].name]
            warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert any(f"{file}:1:" in line and "unknown option 'wieght'" in line for line in warned)
            assert any(f"{file}:4:" in line and "twice, also in line 3" in line for line in warned)
            # A reload keeps what is known, and reads the file again.
            file.write_text(f"127.0.0.1 {up[2].port}\n")
            await forwarder.reload(forwarder.config)
            assert names(forwarder) == [up[2].name]


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda file: None, "No such file"),
        (lambda file: file.mkdir(), "it is not a regular file"),
        (lambda file: (file.write_text("127.0.0.1 80"), file.chmod(0o666)), "everybody may write to it; chmod o-w"),
        (lambda file: (file.write_text("127.0.0.1 80"), os.chown(file, 12345, -1)), "it belongs to the user 12345"),
        (lambda file: file.write_text("#" * 1024 * 1024 + "\n"), "it has more than 1048576 bytes"),
        (lambda file: os.mkfifo(file), "it is not a regular file"),
    ],
)
@in_one_loop
async def test_a_file_that_is_refused(tmp_path: Path, prepare: Any, why: str) -> None:
    if "12345" in why and os.geteuid():
        pytest.skip("only root gives files away")
    file = tmp_path / "web.servers"
    prepare(file)
    with pytest.raises(ConfigError) as caught:
        async with forwarding_to(f"file:{file}"):
            pass
    assert f"cannot read the servers in {file}: {why}" in str(caught.value)
    assert "line 3" in str(caught.value) or ":3" in str(caught.value)


@in_one_loop
async def test_special_addresses_of_a_file_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "web.servers"
    file.write_text("169.254.169.254 80\n192.0.2.1 80\n")
    async with forwarding_to(f"file:{file}") as forwarder:
        assert names(forwarder) == ["192.0.2.1:80"]
    assert f"{file}: left out 169.254.169.254:80, a special address" in caplog.text


# SRV records

dns = pytest.importorskip("dns.message", reason="dnspython is not installed")


class NameServer(asyncio.DatagramProtocol):
    """Answers each question for SRV records with `records`; none is that there is no such name, None is silence."""

    def __init__(self) -> None:
        self.records: list[str] | None = []
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        import dns.message
        import dns.rcode
        import dns.rrset

        self.asked += 1
        if self.records is None:
            return
        question = dns.message.from_wire(data)
        answer = dns.message.make_response(question)
        if self.records:
            answer.answer.append(dns.rrset.from_text(question.question[0].name, 5, "IN", "SRV", *self.records))
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), addr)


@contextlib.asynccontextmanager
async def name_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NameServer]:
    import dns.asyncresolver

    transport, served = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], transport.get_extra_info("sockname")[1]
    monkeypatch.setattr(srv, "_resolver", lambda: resolver)
    monkeypatch.setattr(srv, "LIFETIME_S", 0.3)
    try:
        yield served
    finally:
        transport.close()


LINE = "_web._tcp.example.org [resolve=srv, max-connections=9]\n[balance=first, allow-special]"


@in_one_loop
async def test_servers_from_srv_records(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    name_service(monkeypatch, "127.0.0.1")
    async with backends(2) as up, name_server(monkeypatch) as served:
        served.records = [f"10 60 {up[0].port} a.example.", f"20 0 {up[1].port} b.example."]
        async with Forwarder(
            parse_config(
                f"engine python\ndns-refresh 50ms\n127.0.0.1 0 @web\nupstream web {LINE}".replace(
                    "\n[", "\nupstream web ["
                )
            )
        ) as forwarder:
            found = forwarder.upstreams()[0].servers
            assert [(each.name, each.weight, each.backup) for each in found] == [
                (up[0].name, 60, False), (up[1].name, 1, True),
            ]  # fmt: skip
            assert await echoes(bound(forwarder))
            served.records = [f"10 60 {up[1].port} b.example."]
            await until(lambda: names(forwarder) == [up[1].name])
            assert await echoes(bound(forwarder))
            served.records = None
            await until(lambda: "cannot resolve the SRV records of _web._tcp.example.org" in caplog.text)
            assert names(forwarder) == [up[1].name]
            await forwarder.reload(forwarder.config)
            assert names(forwarder) == [up[1].name]
            caplog.clear()
            await until(lambda: "cannot resolve the SRV records of _web._tcp.example.org" in caplog.text)
            served.records = [f"1 1 {up[0].port} a.example."]
            await until(lambda: names(forwarder) == [up[0].name])
            assert "DNS: _web._tcp.example.org resolves again" in caplog.messages


@in_one_loop
async def test_a_name_without_srv_records_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with name_server(monkeypatch) as served:
        for records in ([], ["0 0 0 ."]):
            served.records = records
            with pytest.raises(ConfigError, match=r"cannot resolve the server _web\._tcp\.example\.org"):
                async with forwarding_to(LINE):
                    pass


@in_one_loop
async def test_without_an_answer_there_is_no_server_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    name_service(monkeypatch, "127.0.0.1")
    async with backends(1) as (up,), name_server(monkeypatch) as served:
        served.records = None
        async with forwarding_to(LINE) as forwarder:
            assert names(forwarder) == []
            assert not await echoes(bound(forwarder))
            served.records = [f"1 1 {up.port} a.example."]
            await until(lambda: names(forwarder) == [up.name])
            assert await echoes(bound(forwarder))


@in_one_loop
async def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    with pytest.raises(ConfigError, match=r"resolve=srv needs dnspython: install oinetd\[dns\]"):
        async with forwarding_to(LINE):
            pass


def test_weights_of_records_fit_into_those_of_servers() -> None:
    def weights(*said: int) -> list[int]:
        return weights_of([ServiceRecord(1, weight, 80, "a") for weight in said])

    assert weights(0, 1, 256) == [1, 1, 256]
    assert weights(0, 100, 65535, 32768) == [1, 1, 256, 128]


async def test_a_file_that_changes_while_its_names_are_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, texts, asked, go = tmp_path / "servers", list[str](), asyncio.Event(), asyncio.Event()

    async def slow(*_: object) -> None:
        asked.set()
        await go.wait()

    def read(_: str, origin: Origin, protocol: Protocol) -> list[Server]:
        texts.append(path.read_text())
        return [Server(Endpoint("127.0.0.1", len(texts)), origin=origin)]

    path.write_text("first")
    source = FileSource(Server(Endpoint(f"file:{path}", 0)), GroupOptions(allow_special=True), None, 60.0, [], read)
    await source.prepare()
    monkeypatch.setattr(Destination, "resolve", slow)
    source.start(lambda: None)
    path.write_text("second, longer")
    await until(asked.is_set)
    assert source._watch is not None
    source._watch.close()
    path.write_text("third, longer still")
    source._changed()  # the watch would say it once, while the second is being read
    go.set()
    await until(lambda: texts == ["first", "second, longer", "third, longer still"])
    source.stop()
