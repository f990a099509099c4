"""`src=client`: the server sees the address of the client, whoever relays."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from oinetd import Ending
from oinetd.config import parse_config
from oinetd.core.socket_check import check_options
from oinetd.errors import ConfigError
from oinetd.net.transparent import delivers_marked
from oinetd.preamble.proxy_writer import write_v2
from oinetd.process.transparent import transparent_lines
from tests.addresses.machines import inside, three_machines
from tests.forwarding import Seen
from tests.peers import dial, free_port, until
from tests.preamble.lanes import in_lanes, lane_options, looking, served

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@root
@in_lanes
async def test_the_server_sees_the_client(lane: str) -> None:
    seen = Seen()
    async with looking(wanted=1, headed=False) as upstream:
        port, host = free_port(), upstream.address[0]
        lines = [
            f"{bind} {port} {host} {upstream.address[1]} [src=client, {lane_options(lane)}]"
            for bind in ("127.0.0.1", "::1")
        ]
        async with served(lane, *parse_config("\n".join(lines)).rules, seen=seen):
            peer = await dial(("127.0.0.1", port), source="127.0.0.77")
            await peer.send(b"x")
            taken = await upstream.taken.get()
            assert taken.peer.sock.getpeername()[0] == "127.0.0.77"
            peer.close()
            with contextlib.suppress(ConnectionError):
                (await dial(("::1", port))).close()
            await until(lambda: len(seen.closed) == 2)
    (failed,) = (record for record in seen.closed if record.ending is Ending.BIND_FAILED)
    assert failed.client == "::1"


@root
@in_lanes
async def test_a_client_without_an_address_cannot_be_shown(lane: str, tmp_path: Path) -> None:
    """Of a unix socket, or behind a header that names none: nothing is connected in its place."""
    seen = Seen()
    async with looking(headed=False) as upstream:
        to = f"{upstream.address[0]} {upstream.address[1]} [src=client, {lane_options(lane)}"
        text = f"unix:{tmp_path}/in {to}]\n127.0.0.1 {free_port()} {to}, accept-proxy]\ntrust 127.*\n"
        config = parse_config(text)
        async with served(lane, *config.rules, seen=seen):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{tmp_path}/in")
                peer = await dial((config.rules[1].bind.host, config.rules[1].bind.port))
                with contextlib.suppress(ConnectionError):
                    await peer.send(write_v2(None, None) + b"x")
                await until(lambda: len(seen.closed) == 2)
                peer.close()
        assert upstream.taken.empty()
    assert {record.ending for record in seen.closed} == {Ending.BIND_FAILED}


def test_only_from_tcp_to_tcp() -> None:
    with pytest.raises(ConfigError, match="src=client is for rules from TCP to TCP"):
        parse_config("0.0.0.0 53/udp 192.0.2.1 53/udp [src=client]")


def test_nothing_is_needed_without_it() -> None:
    assert list(transparent_lines(parse_config("0.0.0.0 80 192.0.2.1 80"))) == [
        "no rule has src=client or transparent: nothing is needed"
    ]


SERVER = """
import socket
listener = socket.create_server(("10.77.2.2", 8080))
print("ready", flush=True)
for _ in range(2):
    client, peer = listener.accept()
    client.sendall(peer[0].encode())
    client.close()
"""
CLIENT = "import socket; print(socket.create_connection(('10.77.1.1', 9090), 10).makefile().read())"


@root
@pytest.mark.parametrize("engine", ["native", "python"])
def test_from_another_machine(tmp_path: Path, engine: str) -> None:
    """With what `oinetd transparent` prints, as an unprivileged user, and with nothing missing afterwards."""
    if shutil.which("nft") is None:
        pytest.skip("nft is missing")
    conf = tmp_path / "oinetd.conf"
    conf.write_text(f"admin off\n10.77.1.1 9090 10.77.2.2 8080 [src=client, engine={engine}]\n")
    conf.chmod(0o644)
    with three_machines() as (client, router, server), contextlib.ExitStack() as stack:
        oinetd = [sys.executable, "-m", "oinetd", "-c", str(conf)]
        said = inside(router, *oinetd[:3], "transparent", *oinetd[3:])
        assert "# missing: for IPv4" in said
        inside(router, "sh", "-ec", said)
        assert "missing" not in inside(router, *oinetd[:3], "transparent", *oinetd[3:])
        enter = ["ip", "netns", "exec"]
        started = [
            stack.enter_context(
                subprocess.Popen([*enter, server, sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
            ),
            stack.enter_context(
                subprocess.Popen([*enter, router, *oinetd, "-f", "-u", "nobody"], stderr=subprocess.PIPE, text=True)
            ),
        ]
        try:
            assert started[0].stdout is not None
            assert started[0].stdout.readline() == b"ready\n"
            assert started[1].stderr is not None
            lines = []
            while not (lines and re.search("listening on", lines[-1])):
                lines.append(started[1].stderr.readline())
                assert lines[-1], lines
            assert not any("src=client" in line for line in lines)
            assert inside(client, sys.executable, "-c", CLIENT).strip() == "10.77.1.2"
        finally:
            for each in started:
                each.kill()
                each.wait()


def test_without_an_answer_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> socket.socket:
        raise OSError

    monkeypatch.setattr(socket, "socket", refused)
    assert delivers_marked(socket.AF_INET) is None


@root
@pytest.mark.parametrize(
    ("bind", "there", "said"),
    [
        ("127.0.0.1", {socket.AF_INET}, ""),
        ("127.0.0.1", {socket.AF_INET6}, "IPv4"),
        ("::1", {socket.AF_INET}, "IPv6"),
        ("::", {socket.AF_INET}, "IPv6"),
        ("::", set(), "IPv4 and IPv6"),
        ("::ffff:127.0.0.1", {socket.AF_INET}, ""),
    ],
)
@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ("127.0.0.1 9 [src=client]", "src=client: answers of servers"),
        ("127.0.0.1 9 [transparent]", "transparent: what tproxy brings"),
    ],
)
def test_missing_routes_are_said_at_the_start(
    rule: str, what: str, bind: str, there: set[int], said: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("oinetd.core.socket_check.delivers_marked", lambda family: family in there)
    check_options(parse_config(f"{bind} {free_port()} {rule}").rules)
    remedy = "`oinetd transparent` prints what is needed"
    assert caplog.messages == ([f"{what} would not come here over {said}: {remedy}"] if said else [])


def test_clients_of_a_unix_socket_may_be_of_either_family(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("oinetd.core.socket_check.delivers_marked", lambda family: False)
    monkeypatch.setattr("oinetd.core.socket_check._refused", lambda *_: None)
    check_options(parse_config("unix:/run/a.sock 127.0.0.1 9 [src=client, accept-proxy=on]").rules)
    assert "over IPv4 and IPv6" in caplog.text
