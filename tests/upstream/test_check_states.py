"""What is said of servers before and after their first check, and how many checks there are at a time."""

from __future__ import annotations

import logging
import socket

import pytest

from oinetd import Forwarder
from oinetd.config import parse_config
from oinetd.preamble.proxy_protocol import Header, feed
from oinetd.upstream.member import ServerStatus
from tests.forwarding import bound, echoes, in_one_loop
from tests.peers import Peer, server, until
from tests.udp.rig import echo, name_service
from tests.upstream.servers import backends, configured, forwarding_to, refusing, silent_listener

QUICK = "check-interval=50ms, check-fast=20ms, check-down=50ms"


def servers_of(forwarder: Forwarder) -> list[ServerStatus]:
    return list(forwarder.upstreams()[0].servers)


@in_one_loop
async def test_the_first_result_is_said_once_and_no_assumption_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    dead, seen = refusing(), list[ServerStatus]()
    async with backends(2) as up:
        lines = "\n".join(f"127.0.0.1 {port}" for port in (up[0].port, dead, up[1].port))
        async with forwarding_to(f"{lines}\n[check=tcp, passive=off, {QUICK}]", on_server=seen.append) as forwarder:
            assert {each.why for each in servers_of(forwarder)} == {"not checked yet"}
            await until(lambda: all(each.checks_passed + each.checks_failed > 2 for each in servers_of(forwarder)))
            states = [(each.state.value, each.why) for each in servers_of(forwarder)]
            assert states == [("up", ""), ("down", "check: refused"), ("up", "")]
            assert [each.changes for each in servers_of(forwarder)] == [0, 1, 0]
    said = [(record.levelname, record.getMessage()) for record in caplog.records if "group web" in record.getMessage()]
    assert said[0] == ("INFO", f"group web: not checked yet: {up[0].name}, 127.0.0.1:{dead}, {up[1].name}")
    assert sorted(said[1:]) == sorted(
        [
            ("INFO", f"group web: server {up[0].name} is up"),
            ("INFO", f"group web: server {up[1].name} is up"),
            ("WARNING", f"group web: server 127.0.0.1:{dead} is down (check: refused)"),
        ]
    )
    assert sorted((each.name, each.state.value) for each in seen) == sorted(
        [(up[0].name, "up"), (up[1].name, "up"), (f"127.0.0.1:{dead}", "down")]
    )


@in_one_loop
async def test_a_server_in_use_stays_up_when_a_reload_brings_checks(caplog: pytest.LogCaptureFixture) -> None:
    async with backends(2) as up:
        lines = "\n".join(f"127.0.0.1 {each.port}" for each in up)
        async with forwarding_to(lines) as forwarder:
            assert await echoes(bound(forwarder))
            await forwarder.reload(configured(f"{lines}\n[check=tcp, check-fall=1, {QUICK}]"))
            assert [(each.state.value, each.why) for each in servers_of(forwarder)] == [("up", "")] * 2
            await up[0].stop()
            await until(lambda: servers_of(forwarder)[0].why == "check: refused")
            # A new one is only assumed to be down as long as another one is up.
            await forwarder.reload(configured(f"127.0.0.1 {refusing()}\n{lines}\n[check=tcp, check-interval=60s]"))
            assert (servers_of(forwarder)[0].state.value, servers_of(forwarder)[0].why) == ("down", "not checked yet")
    assert "not checked yet" not in [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@in_one_loop
async def test_checks_under_way_are_bounded_and_the_others_wait(caplog: pytest.LogCaptureFixture) -> None:
    listener, fillers = silent_listener()
    async with backends(1) as (up,):
        lines = f"127.0.0.1 {up.port}\n" + "\n".join(f"127.0.0.{at} {listener.getsockname()[1]}" for at in range(1, 2))
        text = f"{lines}\n[check=tcp, check-timeout=100ms, passive=off, {QUICK}]"
        async with forwarding_to(text) as forwarder:
            checks = forwarder._known.checks
            checks.at_once = 1
            await until(lambda: servers_of(forwarder)[1].why == "check: timed out")
            await until(lambda: servers_of(forwarder)[0].checks_passed > 3)
            await until(lambda: checks.late > 0)
            assert servers_of(forwarder)[0].state.value == "up"
    assert len([message for message in caplog.messages if message.startswith("checks: 1 are under way")]) == 1
    for sock in (listener, *fillers):
        sock.close()


@in_one_loop
async def test_a_shortage_of_descriptors_says_nothing_of_a_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import oinetd.upstream.probe as module

    asked = 0

    def no_socket(*_: object) -> socket.socket:
        nonlocal asked
        asked += 1
        raise OSError(24, "Too many open files")

    options = f"[check=tcp, check-fall=1, {QUICK}]"
    async with backends(1) as (up,), forwarding_to(f"127.0.0.1 {up.port}\n{options}") as forwarder:
        await until(lambda: servers_of(forwarder)[0].checks_passed > 0)
        with monkeypatch.context() as patch:
            patch.setattr(module.socket, "socket", no_socket)
            await until(lambda: asked > 0)
        assert servers_of(forwarder)[0].checks_failed == 0
        assert servers_of(forwarder)[0].state.value == "up"
    assert "checks: no descriptor or memory for a check; trying again" in caplog.messages


@pytest.mark.parametrize(("word", "version", "local"), [("v2", 2, True), ("v1", 1, False)])
@pytest.mark.parametrize("of_rule", [False, True])
@in_one_loop
async def test_a_check_of_a_server_that_expects_a_header(word: str, version: int, local: bool, of_rule: bool) -> None:
    heads: list[Header] = []
    requests: list[bytes] = []

    async def handle(peer: Peer) -> None:
        data = b""
        while not isinstance(found := feed(data), Header):
            data += await peer.read(1)
        heads.append(found)
        requests.append(await peer.read(4))
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with server(handle) as (host, port):
        own, rule = ("", f" [send-proxy={word}]") if of_rule else (f" [send-proxy={word}]", "")
        lines = f"upstream web {host} {port}{own}\nupstream web [check=http, {QUICK}]"
        text = f"engine python\n127.0.0.1 0 @web{rule}\n{lines}\n"
        async with Forwarder(parse_config(text)) as forwarder:
            await until(lambda: servers_of(forwarder)[0].checks_passed > 1)
    assert requests[0] == b"GET "
    assert (heads[0].version, heads[0].source is None) == (version, local)
    if not local:
        assert heads[0].destination is not None
        assert (heads[0].destination.host, heads[0].destination.port) == (host, port)


@in_one_loop
async def test_of_several_addresses_another_one_may_take_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    async with backends(1) as (up,):
        name_service(monkeypatch, "127.0.0.9", "127.0.0.1")
        text = f"two.example {up.port}\n[check=tcp, {QUICK}, allow-special]"
        async with forwarding_to(text) as forwarder:
            await until(lambda: servers_of(forwarder)[0].checks_passed > 2)
            assert servers_of(forwarder)[0].checks_failed == 0


@in_one_loop
async def test_a_datagram_is_a_check_too() -> None:
    with echo() as upstream:
        text = (
            f"engine python\n127.0.0.1 0/udp @dns\nupstream dns 127.0.0.1 {upstream.address[1]}/udp\n"
            f'upstream dns [check=send, check-send="ping", check-expect="ping", {QUICK}]'
        )
        async with Forwarder(parse_config(text)) as forwarder:
            await until(lambda: servers_of(forwarder)[0].checks_passed > 1)


@in_one_loop
async def test_groups_without_names_are_apart() -> None:
    text = (
        "engine python\n127.0.0.1 0 127.0.0.1,127.0.0.2 9 [balance=first]\n127.0.0.1 0 127.0.0.3,127.0.0.4 9\n"
        "127.0.0.1 5353/udp 127.0.0.1,127.0.0.2 9/udp\n"
    )
    async with Forwarder(parse_config(text.replace("5353", "0"))) as forwarder:
        names = [group.name for group in forwarder.upstreams()]
        assert names == ["127.0.0.1:0", "127.0.0.1:0#2", "127.0.0.1:0/udp"]
        assert [group.servers[0].name for group in forwarder.upstreams()][:2] == ["127.0.0.1:9", "127.0.0.3:9"]
