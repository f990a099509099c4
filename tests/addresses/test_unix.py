"""Unix sockets as addresses of rules, in both lanes: who may connect, what moves, whose the file is."""

from __future__ import annotations

import array
import asyncio
import errno
import json
import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from oinetd import (
    AccessRule,
    BindError,
    Config,
    ConfigError,
    Forwarder,
    LogFormat,
    LogSettings,
    RelayMode,
    Rule,
    Settings,
    Verb,
)
from oinetd.config import parse_rule
from oinetd.core.record import Ending
from tests.addresses.unix_peers import UnixPeer, sockaddr, unix_dial, unix_server
from tests.forwarding import Seen, bound, exchange, forwarding
from tests.peers import Peer, dial, echo, pattern, server, until


def rule_of(text: str) -> Rule:
    return parse_rule(text)


def to(upstream: tuple[str, int], folder: Path, options: str = "") -> Rule:
    """A rule that listens on the socket `in` of the folder."""
    return parse_rule(f"unix:{folder}/in {upstream[0]} {upstream[1]}" + (f" [{options}]" if options else ""))


async def serves(address: tuple[str, int]) -> bool:
    """Whether somebody gives back what a client sends; the connection may be reset as soon as it is there."""
    try:
        peer = await dial(address)
    except ConnectionError:
        return False
    try:
        return await exchange(peer)
    finally:
        peer.close()


async def test_unix_to_tcp_to_unix(settings: Settings, folder: Path) -> None:
    async with unix_server(folder / "server") as _:
        inner = rule_of(f"127.0.0.1 0 unix:{folder}/server")
        async with forwarding(inner, settings=settings) as first:
            host, port = bound(first)
            outer = rule_of(f"unix:{folder}/in {host} {port}")
            async with forwarding(outer, settings=settings):
                peer = await unix_dial(folder / "in")
                assert await exchange(peer)
                peer.close()


@pytest.mark.parametrize("name", ["{folder}/in", "@oinetd-test-{pid}"])
async def test_listens_on_a_path_and_on_an_abstract_name(settings: Settings, folder: Path, name: str) -> None:
    host = "unix:" + name.format(folder=folder, pid=os.getpid())
    async with server(echo) as upstream, forwarding(rule_of(f"{host} {upstream[0]} {upstream[1]}"), settings=settings):
        peer = await unix_dial(host)
        assert await exchange(peer)
        peer.close()


async def test_connects_to_an_abstract_name(settings: Settings) -> None:
    host = f"unix:@oinetd-server-{os.getpid()}"
    async with unix_server(host), forwarding(rule_of(f"127.0.0.1 0 {host}"), settings=settings) as forwarder:
        peer = await dial(bound(forwarder))
        assert await exchange(peer)
        (record,) = forwarder.sessions()
        assert (record.upstream, record.upstream_port) == (host, 0)
        peer.close()


@pytest.mark.parametrize("relay", list(RelayMode), ids=lambda mode: mode.value)
async def test_every_byte_arrives_both_ways(settings: Settings, folder: Path, relay: RelayMode) -> None:
    data = pattern(3 << 20)
    seen = Seen()
    rule = rule_of(f"unix:{folder}/in unix:{folder}/server")
    async with (
        unix_server(folder / "server"),
        forwarding(rule, settings=replace(settings, relay=relay), seen=seen),
    ):
        peer = await unix_dial(folder / "in")

        async def send() -> None:
            await peer.send(data)
            peer.half_close()

        _, got = await asyncio.gather(send(), peer.read_all())
        peer.close()
        assert got == data
        await until(lambda: seen.closed)
    (record,) = seen.closed
    assert (record.bytes_up, record.bytes_down, record.ending) == (len(data), len(data), Ending.CLIENT_CLOSED)


async def test_bytes_behind_passed_descriptors_are_not_left_behind(settings: Settings, folder: Path) -> None:
    """A read of a unix socket ends early where the peer passes descriptors, and no event follows."""
    rule = rule_of(f"unix:{folder}/in unix:{folder}/server")
    async with unix_server(folder / "server"), forwarding(rule, settings=settings):
        peer = await unix_dial(folder / "in")
        assert await exchange(peer)
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [peer.sock.fileno()]))]
        for _ in range(5):
            peer.sock.sendmsg([b"one"], passed)
            peer.sock.sendmsg([b"two"])
        assert await peer.read(30) == b"onetwo" * 5
        peer.close()


async def test_file_has_mode_and_owner_and_goes_with_the_listener(settings: Settings, folder: Path) -> None:
    owner = "1234:4321" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"
    async with server(echo) as upstream:
        rule = rule_of(f"unix:{folder}/in {upstream[0]} {upstream[1]} [mode=604, owner={owner}]")
        async with forwarding(rule, settings=settings):
            found = (folder / "in").stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o604
            assert f"{found.st_uid}:{found.st_gid}" == owner
        assert not (folder / "in").exists()


async def test_file_is_only_for_user_and_group_where_no_mode_is_given(settings: Settings, folder: Path) -> None:
    before = os.umask(0)
    try:
        async with forwarding(rule_of(f"unix:{folder}/in 127.0.0.1 1"), settings=settings):
            assert stat.S_IMODE((folder / "in").stat().st_mode) == 0o660
    finally:
        os.umask(before)


async def test_reload_keeps_the_socket_and_gives_it_the_new_mode(settings: Settings, folder: Path) -> None:
    async with server(echo) as upstream:
        text = f"unix:{folder}/in {upstream[0]} {upstream[1]}"
        async with forwarding(rule_of(text), settings=settings) as forwarder:
            inode = (folder / "in").stat().st_ino
            waiting = await unix_dial(folder / "in")
            changed = rule_of(f"{text} [mode=600]")
            await forwarder.reload(replace(forwarder.config, rules=(changed,)))
            found = (folder / "in").stat()
            assert (found.st_ino, stat.S_IMODE(found.st_mode)) == (inode, 0o600)
            assert await exchange(waiting)
            await forwarder.reload(replace(forwarder.config, rules=()))
            assert not (folder / "in").exists()
            assert await exchange(waiting)
            waiting.close()


async def test_client_in_the_queue_is_served_when_its_rule_goes(settings: Settings, folder: Path) -> None:
    async with server(echo) as upstream:
        rule = rule_of(f"unix:{folder}/in {upstream[0]} {upstream[1]} [max-connections=1]")
        async with forwarding(rule, settings=settings) as forwarder:
            first = await unix_dial(folder / "in")
            assert await exchange(first)
            second = await unix_dial(folder / "in")
            await forwarder.reload(replace(forwarder.config, rules=()))
            first.close()
            assert await exchange(second)
            second.close()


def leave_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
        crashed.listen()


async def test_stale_file_is_replaced(settings: Settings, folder: Path) -> None:
    leave_stale(folder / "in")
    async with server(echo) as upstream, forwarding(to(upstream, folder), settings=settings):
        peer = await unix_dial(folder / "in")
        assert await exchange(peer)
        peer.close()


async def refused(folder: Path) -> str:
    with pytest.raises(BindError) as caught:
        async with forwarding(rule_of(f"unix:{folder}/in 127.0.0.1 1")):
            pass
    return str(caught.value)


async def test_live_socket_is_an_error(folder: Path) -> None:
    async with unix_server(folder / "in"):
        assert "another program listens there" in await refused(folder)
        peer = await unix_dial(folder / "in")
        assert await exchange(peer)
        peer.close()


@pytest.mark.parametrize("kind", ["file", "link", "folder", "fifo"])
async def test_anything_else_in_the_place_is_never_removed(folder: Path, kind: str) -> None:
    place = folder / "in"
    if kind == "file":
        place.write_text("precious")
    elif kind == "link":
        leave_stale(folder / "elsewhere")
        place.symlink_to(folder / "elsewhere")
    elif kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    before = place.lstat()
    assert "is left as it is" in await refused(folder)
    assert place.lstat().st_ino == before.st_ino
    if kind == "link":
        assert (folder / "elsewhere").exists()


async def test_file_of_somebody_else_stays_at_the_stop(settings: Settings, folder: Path) -> None:
    async with forwarding(rule_of(f"unix:{folder}/in 127.0.0.1 1"), settings=settings):
        (folder / "in").unlink()
        leave_stale(folder / "in")
        inode = (folder / "in").stat().st_ino
    assert (folder / "in").stat().st_ino == inode


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be another user")
async def test_folder_is_not_reached_through_the_link_of_another_user(folder: Path) -> None:
    (folder / "target").mkdir()
    os.symlink(folder / "target", folder / "way")
    os.lchown(folder / "way", 1234, 1234)
    with pytest.raises(BindError, match="symbolic link that another user made"):
        async with forwarding(rule_of(f"unix:{folder}/way/in 127.0.0.1 1")):
            pass
    assert not list((folder / "target").iterdir())


async def test_missing_folder_is_named_with_a_remedy(folder: Path) -> None:
    with pytest.raises(BindError, match="its folder does not exist"):
        async with forwarding(rule_of(f"unix:{folder}/no/in 127.0.0.1 1")):
            pass


async def test_start_that_fails_leaves_no_file(folder: Path) -> None:
    (folder / "other").write_text("")
    rules = [rule_of(f"unix:{folder}/in 127.0.0.1 1"), rule_of(f"unix:{folder}/other 127.0.0.1 1")]
    with pytest.raises(BindError):
        async with forwarding(*rules):
            pass
    assert os.listdir(folder) == ["other"]


async def test_log_tells_user_group_and_process(settings: Settings, folder: Path) -> None:
    log = LogSettings(str(folder / "log"), LogFormat.JSON)
    async with server(echo) as upstream:
        rule = rule_of(f"unix:{folder}/in {upstream[0]} {upstream[1]}")
        async with forwarding(rule, settings=settings, log=log):
            peer = await unix_dial(folder / "in")
            assert await exchange(peer)
            peer.close()
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["opened", "closed"]
    for line in lines:
        assert (line["client"], line["client_port"], line["bind"]) == ("unix:", 0, f"unix:{folder}/in")
        assert (line["peer_uid"], line["peer_gid"], line["peer_pid"]) == (os.geteuid(), os.getegid(), os.getpid())


async def test_access_rules_do_not_judge_unix_clients(settings: Settings, folder: Path) -> None:
    async with server(echo) as upstream:
        rule = parse_rule(f"unix:{folder}/in {upstream[0]} {upstream[1]}")
        denied = Config(rules=(rule,), settings=settings)
        denied = replace(denied, access=(AccessRule(Verb.ALLOW, "192.0.2.1"), AccessRule(Verb.DENY, "*")))
        async with Forwarder(denied):
            peer = await unix_dial(folder / "in")
            assert await exchange(peer)
            peer.close()


async def test_limit_per_source_counts_users(settings: Settings, folder: Path) -> None:
    seen = Seen()
    async with server(echo) as upstream:
        text = f"unix:{folder}/in {upstream[0]} {upstream[1]} [max-connections-per-source=1]"
        async with forwarding(rule_of(text), settings=settings, seen=seen):
            first = await unix_dial(folder / "in")
            assert await exchange(first)
            second = await unix_dial(folder / "in")
            assert await second.read_all() == b""
            second.close()
            first.close()
            await until(lambda: len(seen.closed) == 2)
            third = await unix_dial(folder / "in")
            assert await exchange(third)
            third.close()
            await until(lambda: len(seen.closed) == 3)
    assert {record.ending for record in seen.closed} == {Ending.LIMITED, Ending.CLIENT_CLOSED}


async def test_destination_is_only_served_by_the_user_that_the_rule_demands(settings: Settings, folder: Path) -> None:
    seen = Seen()
    async with unix_server(folder / "server"):
        right = rule_of(f"127.0.0.1 0 unix:{folder}/server [peer-uid={os.geteuid()}]")
        wrong = rule_of(f"127.0.0.1 0 unix:{folder}/server [peer-uid=4242]")
        async with forwarding(right, wrong, settings=settings, seen=seen) as forwarder:
            assert await serves(bound(forwarder, 0))
            assert not await serves(bound(forwarder, 1))
            await until(lambda: len(seen.closed) == 2)
    assert [(record.ending, record.errno) for record in seen.closed if record.errno] == [
        (Ending.CONNECT_FAILED, errno.EPERM)
    ]


async def test_unknown_user_is_an_error_at_the_start(folder: Path) -> None:
    with pytest.raises(ConfigError, match="there is no user 'nobody-has-it'"):
        async with forwarding(rule_of(f"127.0.0.1 0 unix:{folder}/server [peer-uid=nobody-has-it]")):
            pass
    with pytest.raises(BindError, match="there is no group 'nobody-has-it'"):
        async with forwarding(rule_of(f"unix:{folder}/in 127.0.0.1 1 [owner=:nobody-has-it]")):
            pass


async def test_missing_server_is_a_failed_connect(settings: Settings, folder: Path) -> None:
    seen = Seen()
    leave_stale(folder / "server")
    async with forwarding(rule_of(f"127.0.0.1 0 unix:{folder}/server"), settings=settings, seen=seen) as forwarder:
        for expected in (errno.ECONNREFUSED, errno.ENOENT):
            assert not await serves(bound(forwarder))
            await until(lambda: seen.closed)
            record = seen.closed.pop()
            assert (record.ending, record.errno) == (Ending.CONNECT_FAILED, expected)
            (folder / "server").unlink(missing_ok=True)


async def test_full_accept_queue_is_waited_for(settings: Settings, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "server"))
        listener.listen(0)
        listener.setblocking(False)
        filling = await unix_dial(folder / "server")
        async with forwarding(rule_of(f"127.0.0.1 0 unix:{folder}/server"), settings=settings) as forwarder:
            peer = await dial(bound(forwarder))
            await peer.send(b"hello")
            await until(lambda: forwarder.sessions(), "the session")
            first, _ = listener.accept()
            second = UnixPeer((await asyncio.get_running_loop().sock_accept(listener))[0])
            assert await second.read(5) == b"hello"
            for each in (first, second, filling, peer):
                each.close()


async def test_full_accept_queue_ends_with_the_connect_timeout(settings: Settings, folder: Path) -> None:
    seen = Seen()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "server"))
        listener.listen(0)
        filling = await unix_dial(folder / "server")
        rule = rule_of(f"127.0.0.1 0 unix:{folder}/server [connect-timeout=0.2s]")
        async with forwarding(rule, settings=settings, seen=seen) as forwarder:
            assert not await serves(bound(forwarder))
            await until(lambda: seen.closed)
        filling.close()
    assert [(record.ending, record.errno) for record in seen.closed] == [(Ending.CONNECT_TIMEOUT, errno.EAGAIN)]


async def test_reset_of_a_tcp_peer_closes_the_unix_side_after_its_bytes(settings: Settings, folder: Path) -> None:
    seen = Seen()

    async def answer_and_reset(peer: Peer) -> None:
        await peer.read(5)
        await peer.send(b"answer")
        peer.reset()

    async with server(answer_and_reset) as upstream:
        rule = rule_of(f"unix:{folder}/in {upstream[0]} {upstream[1]}")
        async with forwarding(rule, settings=settings, seen=seen):
            peer = await unix_dial(folder / "in")
            await peer.send(b"hello")
            assert await peer.read_all() == b"answer"
            peer.close()
            await until(lambda: seen.closed)
    assert seen.closed[0].ending is Ending.UPSTREAM_RESET


async def test_unix_peer_that_closes_with_bytes_unread_resets_the_tcp_side(settings: Settings, folder: Path) -> None:
    seen = Seen()
    rule = rule_of(f"127.0.0.1 0 unix:{folder}/server")
    async with (
        unix_server(folder / "server", lambda peer: peer.read(1)),
        forwarding(rule, settings=settings, seen=seen) as forwarder,
    ):
        peer = await dial(bound(forwarder))
        await peer.send(b"more than one byte")
        await peer.read_to_reset()
        peer.close()
        await until(lambda: seen.closed)
    assert seen.closed[0].ending is Ending.UPSTREAM_RESET


async def test_rule_that_leads_back_to_its_own_socket_is_refused(settings: Settings, folder: Path) -> None:
    seen = Seen()
    async with forwarding(rule_of(f"unix:{folder}/in unix:{folder}/in"), settings=settings, seen=seen):
        peer = await unix_dial(folder / "in")
        assert await peer.read_all() == b""
        peer.close()
        await until(lambda: seen.closed)
    assert (seen.closed[0].ending, seen.closed[0].errno) == (Ending.CONNECT_FAILED, errno.ELOOP)


async def test_socket_of_a_service_manager_is_used_and_its_file_stays(settings: Settings, folder: Path) -> None:
    inherited = socket.socket(socket.AF_UNIX)
    inherited.bind(str(folder / "in"))
    inherited.listen()
    async with server(echo) as upstream:
        config = Config(rules=(rule_of(f"unix:{folder}/in {upstream[0]} {upstream[1]}"),), settings=settings)
        async with Forwarder(config, inherited=[inherited]):
            peer = await unix_dial(folder / "in")
            assert await exchange(peer)
            peer.close()
    assert (folder / "in").exists()


async def test_udp_on_one_side(folder: Path) -> None:
    rule = rule_of(f"127.0.0.1 0/udp unix:{folder}/server")
    async with unix_server(folder / "server"), forwarding(rule) as forwarder:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(bound(forwarder))
            client.send(b"hello")
            assert await asyncio.get_running_loop().sock_recv(client, 100) == b"hello"


async def test_client_that_sends_and_closes_while_the_connect_is_under_way(settings: Settings, folder: Path) -> None:
    """HUP of a unix socket is no reset: what the client sent is still there."""
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(peer: UnixPeer) -> None:
        got.set_result(await peer.read_all())

    rule = rule_of(f"unix:{folder}/in unix:{folder}/server")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "server"))
        listener.listen(0)
        listener.setblocking(False)
        filling = await unix_dial(folder / "server")
        async with forwarding(rule, settings=settings) as forwarder:
            client = await unix_dial(folder / "in")
            await client.send(b"last words")
            client.close()
            await until(lambda: forwarder.sessions(), "the session")
            first, _ = listener.accept()
            second = UnixPeer((await asyncio.get_running_loop().sock_accept(listener))[0])
            await take(second)
            for each in (first, second, filling):
                each.close()
    assert got.result() == b"last words"


def test_mode_is_set_before_anybody_can_connect(folder: Path) -> None:
    """Between bind and listen the file has no permission at all."""
    script = (
        "import os, socket, sys\n"
        "from oinetd.net.address import Address\n"
        "from oinetd.net import unix_sockets\n"
        "bind = socket.socket.bind\n"
        "def spy(sock, place):\n"
        "    bind(sock, place)\n"
        "    print(oct(os.stat(place).st_mode & 0o777))\n"
        "unix_sockets.UnixListener.bind = spy\n"
        "sock = unix_sockets.bind_unix(Address.of_unix(sys.argv[1]), unix_sockets.FileAccess(0o666))\n"
        "print(oct(os.stat(sock.path).st_mode & 0o777), sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))\n"
        "sock.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"unix:{folder}/in"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0o0", "0o666", "0"]
    assert sockaddr("unix:@name") == "\0name"
