"""Socket options of rules: what the kernel has of them, and what is said of those that it refuses."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from oinetd import BindError, Config, ConfigError, Forwarder, Settings
from oinetd.config import parse_config, parse_rule
from oinetd.net.options import IPPROTO_MPTCP, ListenOptions
from tests.forwarding import bound, echoes, exchange, forwarding
from tests.peers import dial, echo, free_port, server, until

ABSENT = "192.0.2.77"
"""An address that no machine has."""
SO_MARK, SO_BINDTODEVICE = 36, 25
TCP_DEFER_ACCEPT, TCP_CONGESTION, TCP_FASTOPEN = 9, 13, 23
IP_FREEBIND, IPV6_FREEBIND = 15, 78
MPTCP = Path("/proc/sys/net/mptcp/enabled")

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")


def outgoing(server_address: tuple[str, int], kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A copy of the descriptor that this process has connected to the server."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            fd = os.dup(int(entry))
        except OSError:
            continue
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            continue
        try:
            if sock.type == kind and sock.getpeername() == server_address:
                return sock
        except OSError:
            pass
        sock.close()
    raise AssertionError("nobody is connected to the server")


def device(sock: socket.socket) -> str:
    return sock.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16).rstrip(b"\0").decode()


@root
async def test_options_towards_the_server_are_set(settings: Settings) -> None:
    async with server(echo) as upstream:
        text = f"127.0.0.1 0 {upstream[0]} {upstream[1]} [mark=0x10, dscp=46, out-interface=lo, congestion=reno]"
        async with forwarding(parse_rule(text), settings=settings) as forwarder:
            peer = await dial(bound(forwarder))
            assert await exchange(peer)
            with outgoing(upstream) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, SO_MARK) == 0x10
                assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) & ~3 == 46 << 2
                assert device(sock) == "lo"
                assert sock.getsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
            peer.close()


@root
async def test_options_of_udp_towards_the_server_are_set(settings: Settings) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.setblocking(False)
        port = upstream.getsockname()[1]
        rule = parse_rule(f"127.0.0.1 0/udp 127.0.0.1 {port}/udp [mark=7, dscp=10]")
        async with forwarding(rule, settings=settings) as forwarder:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.connect(bound(forwarder))
                client.send(b"hello")
                assert await asyncio.get_running_loop().sock_recv(upstream, 100) == b"hello"
                with outgoing(("127.0.0.1", port), socket.SOCK_DGRAM) as sock:
                    assert sock.getsockopt(socket.SOL_SOCKET, SO_MARK) == 7
                    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) & ~3 == 10 << 2


async def test_options_of_the_listener_are_set(settings: Settings) -> None:
    async with server(echo) as upstream:
        options = "interface=lo, defer-accept=7s, fastopen, congestion=reno"
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [{options}]")
        async with forwarding(rule, settings=settings) as forwarder:
            (listener,) = forwarder._listeners.values()
            assert device(listener.sock) == "lo"
            assert 4 <= listener.sock.getsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT) <= 16
            assert listener.sock.getsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN) > 0
            assert listener.sock.getsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
            assert await echoes(bound(forwarder))


async def test_freebind_listens_on_an_address_that_is_not_there_yet(settings: Settings) -> None:
    with pytest.raises(BindError, match="does not have this address"):
        async with forwarding(parse_rule(f"{ABSENT} {free_port()} 127.0.0.1 1"), settings=settings):
            pass
    for suffix in ("", "/udp"):
        rule = parse_rule(f"{ABSENT} {free_port()}{suffix} 127.0.0.1 1{suffix} [freebind]")
        async with forwarding(rule, settings=settings) as forwarder:
            assert forwarder.addresses[0].host == ABSENT


@pytest.mark.skipif(not MPTCP.exists() or MPTCP.read_text().strip() != "1", reason="this kernel has no MPTCP")
async def test_mptcp_on_both_sides(settings: Settings) -> None:
    async with server(echo) as upstream:
        inner = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [mptcp]")
        async with forwarding(inner, settings=settings) as first:
            host, port = bound(first)
            outer = parse_rule(f"127.0.0.1 0 {host} {port} [mptcp]")
            async with forwarding(outer, settings=settings) as second:
                peer = await dial(bound(second))
                assert await exchange(peer, b"x" * 100_000)
                with outgoing((host, port)) as sock:
                    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == IPPROTO_MPTCP
                peer.close()


async def test_fastopen_towards_the_server(settings: Settings) -> None:
    async with server(echo) as upstream:
        rule = parse_rule(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [fastopen]")
        async with forwarding(rule, settings=settings) as forwarder:
            for _ in range(3):  # the first one gets the cookie
                assert await echoes(bound(forwarder))


async def test_reload_that_changes_an_option_of_the_listener_keeps_queue_and_sessions(settings: Settings) -> None:
    port = free_port()
    async with server(echo) as upstream:
        text = f"127.0.0.1 {port} {upstream[0]} {upstream[1]}"
        rule = parse_rule(f"{text} [max-connections=1]")
        async with forwarding(rule, settings=settings) as forwarder:
            live = await dial(bound(forwarder))
            assert await exchange(live)
            waiting = await dial(bound(forwarder))
            changed = parse_rule(f"{text} [interface=lo, max-connections=1]")
            await forwarder.reload(replace(forwarder.config, rules=(changed,)))
            (listener,) = forwarder._listeners.values()
            assert device(listener.sock) == "lo"
            assert await exchange(live)
            live.close()
            assert await exchange(waiting)
            waiting.close()
            await until(lambda: not forwarder.sessions())
            assert await echoes(bound(forwarder))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("interface=nothere", "interface: the kernel refuses it (ENODEV"),
        ("out-interface=nothere", "out-interface: the kernel refuses it (ENODEV"),
        ("congestion=nothere", "congestion: the kernel refuses it (ENOENT"),
    ],
)
async def test_refusal_names_place_option_errno_and_remedy(option: str, expected: str) -> None:
    config = parse_config(f"\n127.0.0.1 0 127.0.0.1 1 [{option}]\n", "some.conf")
    with pytest.raises(ConfigError) as caught:
        async with Forwarder(config):
            pass
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == ("some.conf", 2)
    assert problem.message.startswith(expected)
    assert "`ip link` lists them" in problem.hint or "modprobe" in problem.hint


async def test_reload_with_a_refused_option_leaves_everything_as_it_was(settings: Settings) -> None:
    async with server(echo) as upstream:
        text = f"127.0.0.1 {free_port()} {upstream[0]} {upstream[1]}"
        async with Forwarder(Config(rules=(parse_rule(text),), settings=settings)) as forwarder:
            with pytest.raises(ConfigError):
                await forwarder.reload(Config(rules=(parse_rule(f"{text} [interface=nothere]"),), settings=settings))
            assert await echoes(bound(forwarder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.0.0.0 80 ::1 80 [mark=0x1ffffffff]", "'0x1ffffffff' is out of range"),
        ("0.0.0.0 80 ::1 80 [mark=x]", "'x' is not a valid mark"),
        ("0.0.0.0 80 ::1 80 [dscp=64]", "'64' is out of range"),
        ("0.0.0.0 80 ::1 80 [freebind=yes]", "'yes' is not one of on, off"),
        ("0.0.0.0 80 ::1 80 [interface=a-name-of-more-than-15]", "'a-name-of-more-than-15' is not a valid name"),
        ("0.0.0.0 80 ::1 80 [mark]", "mark needs a value"),
        ("unix:/a ::1 80 [freebind]", "freebind has no effect on a unix socket"),
        ("0.0.0.0 80 unix:/a [mark=1]", "mark has no effect on a unix socket"),
        ("unix:/a unix:/b [mptcp]", "mptcp has no effect on a unix socket"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rule(text)
    assert caught.value.problems[0].message == message


def test_a_switch_needs_no_value() -> None:
    assert parse_rule("0.0.0.0 80 ::1 80 [freebind, mptcp=off]").options.freebind is True
    assert parse_rule("0.0.0.0 80 ::1 80 [freebind, mptcp=off]").options.mptcp is False


@root
def test_options_in_place_of_those_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that only a user with rights can take off: that they stay is said."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with socket.socket(socket.AF_INET6) as sock, socket.socket() as four:
        for each in (sock, four):
            ListenOptions(freebind=True, defer_accept_s=3.0, fastopen=True).apply(each)
            ListenOptions(interface="lo").apply(each)
            ListenOptions(interface="lo", defer_accept_s=7.0).replace(each)
            assert each.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16) == b"lo\0"
            assert each.getsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT) >= 7
            ListenOptions().replace(each)
            assert each.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16) == b""
            assert not each.getsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT)
            assert not each.getsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN)
            with monkeypatch.context() as without_rights:
                ListenOptions(interface="lo").apply(each)
                without_rights.setattr(socket.socket, "setsockopt", refuse)
                with pytest.raises(OSError, match="interface: the kernel refuses it \\(EPERM"):
                    ListenOptions().replace(each)
        assert not sock.getsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND)
        assert not four.getsockopt(socket.IPPROTO_IP, IP_FREEBIND)
