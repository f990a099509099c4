"""What goes along in an upgrade: UDP sessions, connections of the Python lane, kills, servers, counters, the log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oinetd.lanes.native.plane import available
from oinetd.preamble.proxy_protocol import Party
from oinetd.preamble.proxy_writer import write_v2
from tests.daemon.process import Client, EchoServer, Oinetd, text_of, until
from tests.daemon.upgrading import ask, rules_of, upgrade
from tests.peers import free_port
from tests.preamble.samples import binary, real_hello

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

Start = Callable[..., Oinetd]
LANES = ["native", "python"]
REACHED = Party("198.51.100.9", 53)


def closings(log: Path) -> list[dict[str, Any]]:
    """The closing lines of a log in JSON."""
    lines = [json.loads(line) for line in text_of(log).splitlines()]
    return [line for line in lines if "ending" in line]


def sessions_of(folder: Path, environ: dict[str, str]) -> list[dict[str, Any]]:
    asked = ask(folder, environ, "sessions", "--json")
    assert asked.returncode == 0, asked.stderr
    return list(json.loads(asked.stdout)["sessions"])


class Upstream:
    """A UDP server whose answers the test writes."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(20)
        self.port = self.sock.getsockname()[1]

    def receive(self) -> tuple[bytes, Any]:
        return self.sock.recvfrom(100)

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def udp_client(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", port))
    return sock


@pytest.mark.parametrize("lane", LANES)
def test_udp_sessions_keep_their_port_towards_the_server(
    start: Start, tmp_path: Path, environ: dict[str, str], lane: str
) -> None:
    port, log = free_port(), tmp_path / "log"
    with Upstream() as upstream, udp_client(port) as one, udp_client(port) as other:
        start(
            f"logfile {log}\nlogformat json\nengine {lane}\n"
            f"127.0.0.1 {port}/udp 127.0.0.1 {upstream.port}/udp [timeout=60]\n"
        )
        senders = []
        for client in (one, other):
            client.send(b"question")
            data, sender = upstream.receive()
            senders.append(sender)
            upstream.sock.sendto(data.upper(), sender)
            assert client.recv(100) == b"QUESTION"
        before = {session["id"]: session for session in sessions_of(tmp_path, environ)}
        for _ in range(2):
            upstream.sock.sendto(b"news", senders[0])
            done = upgrade(tmp_path, environ)
            assert (done.returncode, "2 sessions moved, 0 stay" in done.stdout) == (0, True), done
            assert one.recv(100) == b"news"
            for client, sender in zip((one, other), senders, strict=True):
                client.send(b"again")
                assert upstream.receive() == (b"again", sender)
                upstream.sock.sendto(b"yes", sender)
                assert client.recv(100) == b"yes"
        after = {session["id"]: session for session in sessions_of(tmp_path, environ)}
        assert after.keys() == before.keys()
        for number, session in after.items():
            assert session["started"] == before[number]["started"]
            assert (session["datagrams_up"], session["upstream_port"]) == (3, upstream.port)
        (rule,) = rules_of(tmp_path, environ)
        assert (rule["accepted"], rule["live"], rule["datagrams_up"], rule["datagrams_down"]) == (2, 2, 6, 8)
        assert ask(tmp_path, environ, "kill", str(min(after))).returncode == 0
        until(lambda: len(closings(log)) == 1, "the end of a session")
        assert closings(log)[0]["datagrams_down"] == 5


@pytest.mark.parametrize("lane", LANES)
def test_the_clients_of_a_udp_proxy_keep_their_sessions(
    start: Start, tmp_path: Path, environ: dict[str, str], lane: str
) -> None:
    """Two clients of one socket, and the proxy itself: each has its port towards the server, and its header there."""
    port = free_port()
    heads = [write_v2(Party(host, 9), REACHED, datagram=True) for host in ("192.0.2.7", "192.0.2.8")]
    heads.append(write_v2(None, None))
    with Upstream() as upstream, udp_client(port) as proxy:
        options = f"engine={lane}, accept-proxy, send-proxy=v2, max-connections-per-source=1"
        start(f"127.0.0.1 {port}/udp 127.0.0.1 {upstream.port}/udp [{options}]\ntrust 127.0.0.1\n")

        def ask_all() -> list[tuple[bytes, Any]]:
            found = []
            for head in heads:
                proxy.send(head + b"question")
                data, sender = upstream.receive()
                upstream.sock.sendto(b"answer", sender)
                assert proxy.recv(100) == b"answer"
                found.append((data, sender))
            return found

        before = ask_all()
        assert [data for data, _ in before] == [head + b"question" for head in heads]
        rows = sessions_of(tmp_path, environ)
        for times in range(2):
            done = upgrade(tmp_path, environ)
            assert (done.returncode, "3 sessions moved, 0 stay" in done.stdout) == (0, True), done
            assert ask_all() == before
            after = sessions_of(tmp_path, environ)
            assert [each["datagrams_up"] for each in after] == [times + 2] * 3
            assert [(each["client"], each["peer"]) for each in after] == [
                (each["client"], each["peer"]) for each in rows
            ]
        proxy.send(write_v2(Party("192.0.2.7", 10), REACHED, datagram=True) + b"one too many of a source")
        until(lambda: rules_of(tmp_path, environ)[0]["datagrams_lost"] == 1, "it is refused")


@pytest.mark.parametrize("lane", LANES)
def test_the_time_that_a_udp_session_has_left_goes_along(
    start: Start, tmp_path: Path, environ: dict[str, str], lane: str
) -> None:
    port, log = free_port(), tmp_path / "log"
    with Upstream() as upstream, udp_client(port) as client:
        start(
            f"logfile {log}\nlogformat json\nengine {lane}\n"
            f"127.0.0.1 {port}/udp 127.0.0.1 {upstream.port}/udp [timeout=2]\n"
        )
        client.send(b"question")
        upstream.receive()
        assert upgrade(tmp_path, environ).returncode == 0
        until(lambda: len(closings(log)) == 1, "the end by silence")
        (line,) = closings(log)
        assert line["ending"] == "idle-timeout"
        assert line["duration_s"] < 3.0


def test_a_udp_client_of_a_tcp_server_goes_along(
    start: Start, tmp_path: Path, environ: dict[str, str], echo: EchoServer
) -> None:
    port = free_port()
    start(f"127.0.0.1 {port}/udp {echo.host} {echo.port}/tcp\n")
    with udp_client(port) as client:
        for _ in range(2):
            client.send(b"into a stream")
            assert client.recv(100) == b"into a stream"
            done = upgrade(tmp_path, environ)
            assert "1 session moved, 0 stay" in done.stdout, done
        (session,) = sessions_of(tmp_path, environ)
        assert (session["bytes_up"], session["bytes_down"]) == (26, 26)


def test_a_tcp_client_of_a_udp_server_goes_along(start: Start, tmp_path: Path, environ: dict[str, str]) -> None:
    port = free_port()
    with Upstream() as upstream:
        start(f"127.0.0.1 {port} 127.0.0.1 {upstream.port}/udp\n")
        with Client(("127.0.0.1", port)) as client:
            senders = set()
            for _ in range(3):
                client.sock.sendall(b"datagram")
                data, sender = upstream.receive()
                senders.add(sender)
                upstream.sock.sendto(data, sender)
                assert client.read(8) == b"datagram"
                done = upgrade(tmp_path, environ)
                assert "1 session moved, 0 stay" in done.stdout, done
            assert len(senders) == 1


@pytest.mark.parametrize("engine", ["python", "auto"])
def test_connections_of_the_python_lane_lose_nothing(
    start: Start, tmp_path: Path, environ: dict[str, str], engine: str
) -> None:
    """With its own engine, and with the reactors' (a server name needs this lane)."""
    port, log = free_port(), tmp_path / "log"
    daemon = start(f"logfile {log}\nlogformat json\nengine {engine}\n127.0.0.1 {port} UPSTREAM [sni=a.example]\n")
    hello, data = real_hello("a.example"), os.urandom(1 << 20) * 64
    with Client(("127.0.0.1", port)) as idle, Client(("127.0.0.1", port)) as bulk:
        for client in (idle, bulk):
            assert client.echo(hello) == hello
        got = bytearray()

        def send() -> None:
            bulk.sock.sendall(data)
            bulk.sock.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        for _ in range(2):
            while len(got) < len(data) // 4:
                got += bulk.sock.recv(1 << 16)
            done = upgrade(tmp_path, environ)
            assert "2 sessions moved, 0 stay" in done.stdout, done
        while part := bulk.sock.recv(1 << 20):
            got += part
        sending.join()
        assert bytes(got) == data
        assert idle.echo(b"still here") == b"still here"
        (session,) = sessions_of(tmp_path, environ)
        assert session["bytes_up"] == len(hello) + 10
        # Half-closed: the answer of the server is still to come, and the FIN is not sent twice.
        idle.sock.shutdown(socket.SHUT_WR)
        assert idle.sock.recv(1) == b""
    until(lambda: len(closings(log)) == 2, "both ends")
    assert {(line["ending"], line["server_name"]) for line in closings(log)} == {("client-closed", "a.example")}
    assert sorted(line["bytes_up"] for line in closings(log)) == [len(hello) + 10, len(hello) + len(data)]
    (rule,) = rules_of(tmp_path, environ)
    assert (rule["accepted"], rule["live"], rule["bytes_up"]) == (2, 0, 2 * len(hello) + 10 + len(data))
    assert "Traceback" not in daemon.said


@pytest.mark.parametrize("engine", LANES)
def test_a_half_closed_connection_gets_its_answer(
    start: Start, tmp_path: Path, environ: dict[str, str], engine: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = free_port()
        start(f"engine {engine}\n127.0.0.1 {port} 127.0.0.1 {server.getsockname()[1]}\n")
        with Client(("127.0.0.1", port)) as client:
            client.sock.sendall(b"question")
            client.sock.shutdown(socket.SHUT_WR)
            upstream, _ = server.accept()
            with upstream:
                upstream.settimeout(20)
                assert upstream.recv(100) == b"question"
                assert upstream.recv(100) == b""
                done = upgrade(tmp_path, environ)
                assert "1 session moved, 0 stay" in done.stdout, done
                upstream.sendall(b"answer")
            assert client.read(7) == b"answer"
    until(lambda: rules_of(tmp_path, environ)[0]["endings"] == {"client-closed": 1}, "its end")


def test_rules_that_share_an_address_count_on_each_by_itself(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    port = free_port()
    names = ("a.example", "b.example", "b.example")
    start("".join(f"127.0.0.1 {port} UPSTREAM [sni={name}]\n" for name in dict.fromkeys(names)))
    for name in names:
        with Client(("127.0.0.1", port)) as client:
            hello = real_hello(name)
            assert client.echo(hello) == hello
    until(lambda: sum(rule["live"] for rule in rules_of(tmp_path, environ)) == 0, "their ends")
    for _ in range(2):
        found = rules_of(tmp_path, environ)
        assert [rule["accepted"] for rule in found] == [1, 2]
        assert all(rule["bytes_up"] > 0 for rule in found)
        before = ask(tmp_path, environ, "rules", "--json").stdout
        assert upgrade(tmp_path, environ).returncode == 0
        after = json.loads(ask(tmp_path, environ, "rules", "--json").stdout)["rules"]
        for now, then in zip(after, json.loads(before)["rules"], strict=True):
            assert (now["endings"], now["bytes_up"]) == (then["endings"], then["bytes_up"])


@pytest.mark.parametrize("lane", LANES)
def test_who_the_peer_was_goes_along(start: Start, tmp_path: Path, environ: dict[str, str], lane: str) -> None:
    port, log = free_port(), tmp_path / "log"
    start(
        f"logfile {log}\nlogformat json\nengine {lane}\ntrust 127.0.0.1\n127.0.0.1 {port} UPSTREAM [accept-proxy=on]\n"
    )
    with Client(("127.0.0.1", port)) as client:
        client.sock.sendall(binary())
        assert client.echo(b"x") == b"x"
        (before,) = sessions_of(tmp_path, environ)
        done = upgrade(tmp_path, environ)
        assert "1 session moved, 0 stay" in done.stdout, done
        (after,) = sessions_of(tmp_path, environ)
        assert client.echo(b"y") == b"y"
    until(lambda: len(closings(log)) == 1, "its end")
    (end,) = closings(log)
    for name in ("client", "client_port"):
        assert before[name] == after[name] == end[name]
    assert end["peer"] == "127.0.0.1" != end["client"]


def test_servers_keep_health_and_counters(
    start: Start, tmp_path: Path, environ: dict[str, str], echo: EchoServer
) -> None:
    port, dead = free_port(), free_port()
    start(
        f"upstream web {echo.host} {echo.port}\nupstream web {echo.host} {dead}\n"
        "upstream web [passive=1/60s]\n"
        f"127.0.0.1 {port} @web\n"
    )

    def servers() -> list[dict[str, Any]]:
        found = json.loads(ask(tmp_path, environ, "servers", "--json").stdout)
        return list(found["groups"][0]["servers"])

    for _ in range(4):
        with Client(("127.0.0.1", port)) as client:
            assert client.echo(b"x") == b"x"
    until(lambda: servers()[1]["state"] == "ejected", "the ejection of the dead server")
    before = servers()
    assert upgrade(tmp_path, environ).returncode == 0
    after = servers()
    for then, now in zip(before, after, strict=True):
        for name in ("state", "why", "since", "selected", "failed", "changes"):
            assert now[name] == then[name], name


@pytest.mark.parametrize("lane", LANES)
def test_the_log_has_each_line_once_and_whole(start: Start, tmp_path: Path, environ: dict[str, str], lane: str) -> None:
    """Also if the user of the daemon may not open the file any more: it is handed over open."""
    port, log = free_port(), tmp_path / "log"
    daemon = start(f"logfile {log}\nlogformat json\nengine {lane}\n127.0.0.1 {port} UPSTREAM\n")
    moved = tmp_path / "log.1"
    over, served = threading.Event(), [0]

    def come_and_go() -> None:
        while not over.is_set():
            with Client(("127.0.0.1", port)) as client:
                assert client.echo(b"hello") == b"hello"
            served[0] += 1

    crowd = threading.Thread(target=come_and_go)
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
        log.rename(moved)  # the new process goes on in the same file, and not in another one of this name
        crowd.start()
        try:
            for _ in range(2):
                done = upgrade(tmp_path, environ)
                assert done.returncode == 0, daemon.said
        finally:
            over.set()
            crowd.join()
    until(lambda: len(closings(moved)) == served[0] + 1, "the last line")
    lines = [json.loads(line) for line in moved.read_text().splitlines()]
    opened = [line["id"] for line in lines if "ending" not in line]
    assert len(lines) == 2 * len(opened) == 2 * len(set(opened))
    seen: set[int] = set()
    for line in lines:  # the opening comes before the end, whichever process wrote it
        assert ("ending" in line) is (line["id"] in seen)
        seen.add(line["id"])
    assert not log.exists()


def test_a_session_that_is_killed_on_its_way_ends(start: Start, tmp_path: Path, environ: dict[str, str]) -> None:
    """Whenever the word comes, during an upgrade or after it."""
    port = free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    clients = [Client(("127.0.0.1", port)) for _ in range(40)]
    for client in clients:
        assert client.echo(b"x") == b"x"
    numbers = sorted(session["id"] for session in sessions_of(tmp_path, environ))
    killed: list[int] = []

    def kill() -> None:
        daemon.wait_said(r"admin: upgrade")
        for number in numbers:
            killed.append(ask(tmp_path, environ, "kill", str(number)).returncode)
            if re.search("upgrade: process", daemon.said):
                return

    killing = threading.Thread(target=kill)
    killing.start()
    assert upgrade(tmp_path, environ).returncode == 0
    killing.join()
    gone = [number for number, code in zip(numbers, killed, strict=False) if code == 0]
    until(
        lambda: (
            sorted(session["id"] for session in sessions_of(tmp_path, environ))
            == [number for number in numbers if number not in gone]
        ),
        "the end of those that were killed",
    )
    for client in clients:
        client.close()


@pytest.mark.parametrize("lane", LANES)
def test_sessions_of_unix_sockets_keep_their_servers(
    start: Start, tmp_path: Path, environ: dict[str, str], lane: str
) -> None:
    """Also if the configuration knows nothing of a server, or of a destination, any more."""
    port, plain, log = free_port(), free_port(), tmp_path / "log"
    paths = [str(tmp_path / name) for name in "abcd"]
    servers = [f"unix:{path}" for path in paths]
    settings = f"logfile {log}\nlogformat json\nengine {lane}\n127.0.0.1 {port} @g\n"
    group = [f"upstream g {server}\n" for server in servers[:3]]
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in paths]
        for sock, path in zip(listening[1:], paths[1:], strict=True):  # nobody listens at the first
            sock.bind(path)
            sock.listen()
        options = "upstream g [balance=roundrobin, passive=off]\n"
        daemon = start("".join([settings, *group, options, f"127.0.0.1 {plain} {servers[3]}\n"]))
        for number in range(3):
            stack.enter_context(Client(("127.0.0.1", port if number else plain)))
            until(lambda number=number: len(sessions_of(tmp_path, environ)) == number + 1, "the session")
        before = told(sessions_of(tmp_path, environ))
        assert sorted(before.values()) == servers[1:]
        assert upgrade(tmp_path, environ).returncode == 0
        assert told(sessions_of(tmp_path, environ)) == before
        document = json.loads(ask(tmp_path, environ, "servers", "--json").stdout)
        assert [each["live"] for each in document["groups"][0]["servers"]] == [0, 1, 1]
        daemon.conf.write_text(
            "".join([settings, group[2], f"upstream g 127.0.0.1 9\n127.0.0.1 {plain} 127.0.0.1 9\n"])
        )
        for _ in range(2):
            assert upgrade(tmp_path, environ).returncode == 0
            assert told(sessions_of(tmp_path, environ)) == before
    until(lambda: len(closings(log)) == 3, "the closing lines")
    assert told(closings(log)) == before
    for each in closings(log):
        if each["connect"] == "@g":
            assert each["server"] == each["tries"][-1]["server"] == each["upstream"]


def told(lines: list[dict[str, Any]]) -> dict[int, str]:
    """Where each session went."""
    return {line["id"]: line["upstream"] for line in lines}
