"""A server is told who the client is, in every lane: `send-proxy` and `proxy-tlv`."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from pathlib import Path

import pytest

from oinetd import Ending
from oinetd.config import parse_rule
from oinetd.preamble.proxy_protocol import CRC32C, UNIQUE_ID, Party
from oinetd.preamble.unique_id import unique_id
from tests.forwarding import Seen, bound, exchange, rule
from tests.peers import dial, echo, server, until
from tests.preamble.lanes import in_lanes, lane_options, looking, served


def own(peer: socket.socket) -> Party:
    return Party(*peer.getsockname()[:2])


@in_lanes
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_the_header_and_the_first_bytes_are_one_segment(lane: str, version: str) -> None:
    async with looking(wanted=5, answer=b"world") as upstream:
        options = f"{lane_options(lane)}, send-proxy={version}"
        async with served(lane, rule(upstream.address, options=options)) as forwarder:
            client = await dial(bound(forwarder))
            await client.send(b"hello")
            taken = await upstream.taken.get()
            assert taken.header is not None
            assert taken.header.version == int(version[1])
            assert (taken.header.source, taken.header.destination) == (own(client.sock), Party(*bound(forwarder)))
            assert taken.data == b"hello"
            assert await client.read(5) == b"world"
            client.close()


@in_lanes
async def test_bytes_that_are_there_when_the_server_answers_share_its_segment(lane: str) -> None:
    """The client's bytes wait in the accept queue before the forwarder looks at it."""
    async with looking(wanted=5) as upstream:
        options = f"{lane_options(lane)}, send-proxy, max-connections=1"
        async with served(lane, rule(upstream.address, options=options)) as forwarder:
            first = await dial(bound(forwarder))
            await until(lambda: forwarder.stats().live == 1)
            second = await dial(bound(forwarder))
            await second.send(b"hello")
            first.close()
            await upstream.taken.get()  # of the first, which sent nothing
            taken = await upstream.taken.get()
            assert taken.data == b"hello"
            assert taken.segments == 1
            second.close()


@in_lanes
async def test_a_server_that_speaks_first_is_not_kept_waiting(lane: str) -> None:
    async with looking(answer=b"220 ready\r\n") as upstream:
        options = f"{lane_options(lane)}, send-proxy=on"
        async with served(lane, rule(upstream.address, options=options)) as forwarder:
            client = await dial(bound(forwarder))
            assert await client.read(11) == b"220 ready\r\n"
            client.close()


@in_lanes
async def test_headers_are_not_counted(lane: str) -> None:
    seen = Seen()
    async with looking(wanted=5, answer=b"four") as upstream:
        options = f"{lane_options(lane)}, send-proxy=v2, proxy-tlv=crc32c+unique-id"
        async with served(lane, rule(upstream.address, options=options), seen=seen) as forwarder:
            client = await dial(bound(forwarder))
            await client.send(b"hello")
            assert await client.read(4) == b"four"
            taken = await upstream.taken.get()
            client.close()
            await until(lambda: seen.closed)
            record = seen.closed[0]
            assert (record.bytes_up, record.bytes_down) == (5, 4)
            assert forwarder.stats().bytes_up == 5
    assert taken.header is not None
    assert taken.header.value(UNIQUE_ID) == unique_id(record.id)
    assert len(taken.header.value(CRC32C)) == 4


@in_lanes
async def test_an_ipv4_client_of_an_ipv6_socket_is_an_ipv4_client(lane: str) -> None:
    async with looking() as upstream:
        one = rule(upstream.address, bind=":: 0", options=f"{lane_options(lane)}, send-proxy=v1")
        async with served(lane, one) as forwarder:
            port = bound(forwarder)[1]
            client = await dial(("127.0.0.1", port))
            taken = await upstream.taken.get()
            assert taken.header is not None
            assert (taken.header.source, taken.header.destination) == (own(client.sock), Party("127.0.0.1", port))
            client.close()
            client = await dial(("::1", port))
            taken = await upstream.taken.get()
            assert taken.header is not None
            assert (taken.header.source, taken.header.destination) == (own(client.sock), Party("::1", port))
            client.close()


@in_lanes
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_client_of_a_unix_socket_is_unknown(lane: str, version: str, tmp_path: Path) -> None:
    async with looking(wanted=2) as upstream:
        host, port = upstream.address
        text = f"unix:{tmp_path}/s {host} {port} [{lane_options(lane)}, send-proxy={version}]"
        async with served(lane, parse_rule(text)):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, f"{tmp_path}/s")
            await asyncio.get_running_loop().sock_sendall(client, b"hi")
            taken = await upstream.taken.get()
            assert taken.header is not None
            assert (taken.header.version, taken.header.source, taken.data) == (int(version[1]), None, b"hi")
            client.close()


@in_lanes
async def test_a_client_that_sends_only_its_fin(lane: str) -> None:
    seen = Seen()
    async with looking(wanted=1) as upstream:
        options = f"{lane_options(lane)}, send-proxy"
        async with served(lane, rule(upstream.address, options=options), seen=seen) as forwarder:
            client = await dial(bound(forwarder))
            client.half_close()
            taken = await upstream.taken.get()
            assert taken.header is not None
            assert taken.data == b""
            assert await client.read_all() == b""
            client.close()
            await until(lambda: seen.closed)
    assert seen.closed[0].ending is Ending.CLIENT_CLOSED


@in_lanes
@pytest.mark.parametrize("relay", ["copy", "splice", "auto"])
async def test_much_behind_a_header(lane: str, relay: str) -> None:
    data = bytes(range(256)) * 4096
    async with looking(wanted=len(data)) as upstream:
        options = f"{lane_options(lane)}, send-proxy=v2, relay={relay}"
        async with served(lane, rule(upstream.address, options=options)) as forwarder:
            client = await dial(bound(forwarder))
            await client.send(data)
            assert (await upstream.taken.get()).data == data
            client.close()


HAPROXY = """
global
    maxconn 100
defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend first
    bind 127.0.0.1:{bind} accept-proxy
    default_backend second
backend second
    server s {host}:{port} {send}
"""


@in_lanes
@pytest.mark.parametrize("version", ["v1", "v2, proxy-tlv=crc32c+unique-id"])
async def test_haproxy_takes_the_header(lane: str, version: str, tmp_path: Path) -> None:
    """It is told who the client is by us, and tells the server, whose parser has been compared with another one."""
    if (program := shutil.which("haproxy")) is None:
        pytest.skip("haproxy is missing")
    from tests.peers import free_port

    async with looking(wanted=5) as upstream:
        port = free_port()
        host, to = upstream.address
        config = tmp_path / "haproxy.cfg"
        config.write_text(HAPROXY.format(bind=port, host=host, port=to, send="send-proxy"))
        process = await asyncio.create_subprocess_exec(program, "-db", "-q", "-f", str(config))
        try:
            await until(lambda: _listens(port))
            options = f"{lane_options(lane)}, send-proxy={version}"
            async with served(lane, rule(("127.0.0.1", port), options=options)) as forwarder:
                client = await dial(bound(forwarder))
                await client.send(b"hello")
                taken = await upstream.taken.get()
                assert taken.header is not None
                assert (taken.header.source, taken.header.destination) == (own(client.sock), Party(*bound(forwarder)))
                client.close()
        finally:
            process.kill()
            await process.wait()


def _listens(port: int) -> bool:
    pattern = rf"^ *\d+: [0-9A-F]+:{port:04X} [0-9A-F]+:0000 0A "
    return re.search(pattern, Path("/proc/self/net/tcp").read_text(), re.MULTILINE) is not None


NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{
        listen 127.0.0.1:{port} proxy_protocol;
        return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port";
    }}
}}
"""


@in_lanes
@pytest.mark.parametrize("version", ["v1", "v2, proxy-tlv=crc32c"])
async def test_nginx_takes_the_header(lane: str, version: str, tmp_path: Path) -> None:
    if (program := shutil.which("nginx")) is None:
        pytest.skip("nginx is missing")
    from tests.peers import free_port

    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(folder=tmp_path, port=port))
    process = await asyncio.create_subprocess_exec(program, "-c", str(config), "-p", str(tmp_path), "-e", "stderr")
    try:
        await until(lambda: _listens(port))
        options = f"{lane_options(lane)}, send-proxy={version}"
        async with served(lane, rule(("127.0.0.1", port), options=options)) as forwarder:
            client = await dial(bound(forwarder))
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            answer = await client.read_all()
            host, from_port = client.sock.getsockname()
            assert answer.endswith(f"{host} {from_port} {bound(forwarder)[1]}".encode()), answer
            client.close()
    finally:
        process.terminate()
        await process.wait()


@in_lanes
async def test_without_it_nothing_is_sent(lane: str) -> None:
    async with server(echo) as address, served(lane, rule(address, options=lane_options(lane))) as forwarder:
        client = await dial(bound(forwarder))
        assert await exchange(client)
        client.close()
