"""The upstream leg: addresses in turn, the source address, the deadline, and a client that gives up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

import oinetd.lanes.python.dialer
from oinetd.core.admission import LocalGate
from oinetd.core.dial import Dialed, DialRequest
from oinetd.core.record import Ending
from oinetd.lanes.python.dialer import StreamDialer
from oinetd.model import KeepAlive, Settings
from oinetd.net.options import ConnectOptions
from oinetd.net.poller import Poller
from oinetd.net.sockets import Address, open_upstream
from oinetd.upstream.destination import Destination
from tests.peers import Peer, tcp_pair, until


@dataclass
class Rig:
    """A dialer, and the client for whom it dials; `far` is the client's own end."""

    dialer: StreamDialer
    poller: Poller
    client: socket.socket
    far: Peer

    def dial(self, *addresses: tuple[str, int], source: str = "", **settings: float) -> asyncio.Task[Dialed]:
        """Dial hosts that share a port; port 0 stands for that of the others."""
        port = max(port for _, port in addresses)
        destination = Destination("name.example", 0.0, tuple(address_of(host, 0) for host, _ in addresses))
        local = Destination(source, 0.0, (address_of(source, 0),)) if source else None
        self.destination = destination
        return asyncio.get_running_loop().create_task(
            self.dialer.dial(DialRequest(destination, port, Settings(**settings), local, self.client))  # type: ignore[arg-type]
        )


def address_of(host: str, port: int) -> Address:
    return Address(socket.AF_INET6, (host, port, 0, 0)) if ":" in host else Address(socket.AF_INET, (host, port))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    far, client = tcp_pair()
    poller = Poller(asyncio.get_running_loop())
    yield Rig(StreamDialer(asyncio.get_running_loop(), poller, LocalGate()), poller, client, Peer(far))
    assert not poller._handlers, "what it dialled is nobody's"
    poller.close()
    client.close()
    far.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """An address that answers nothing: its queue is full, and the kernel drops whoever knocks."""
    with socket.socket() as sock, contextlib.ExitStack() as knocking:
        sock.bind(("127.0.0.77", 0))
        sock.listen(0)
        for _ in range(4):
            client = knocking.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
        yield sock.getsockname()


async def test_connects(rig: Rig, listener: socket.socket) -> None:
    dialed = await rig.dial(listener.getsockname())
    assert (dialed.failed, dialed.errno) == (None, 0)
    assert dialed.upstream is not None
    assert dialed.address == address_of(*listener.getsockname())
    with dialed.upstream as sock:
        assert sock.getpeername() == listener.getsockname()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize("finish", [False, True])
async def test_reset_before_anybody_looked(rig: Rig, listener: socket.socket, finish: bool) -> None:
    """What the upstream said first is there, and the reset behind it; a FIN does not hide it."""
    dialing = rig.dial(listener.getsockname())
    await asyncio.sleep(0)  # it connects
    upstream, _ = listener.accept()
    upstream.sendall(b"busy")
    if finish:
        upstream.shutdown(socket.SHUT_WR)
    Peer(upstream).reset()
    dialed = await dialing
    assert dialed.upstream is not None
    assert dialed.upstream.recv(100) == b"busy"
    if finish:
        assert dialed.upstream.recv(100) == b""
        assert dialed.upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
    else:
        with pytest.raises(ConnectionResetError):
            dialed.upstream.recv(100)
    dialed.upstream.close()


async def test_reset_without_a_word(rig: Rig, listener: socket.socket) -> None:
    dialing = rig.dial(listener.getsockname(), ("127.0.0.9", 0))
    await asyncio.sleep(0)
    upstream, _ = listener.accept()
    Peer(upstream).reset()
    dialed = await dialing
    assert (dialed.upstream, dialed.failed, dialed.errno) == (None, Ending.UPSTREAM_RESET, errno.ECONNRESET)
    assert rig.destination._failures == 0, "it took the connection"


async def test_the_first_address_is_dead_the_second_alive(rig: Rig, listener: socket.socket) -> None:
    dialed = await rig.dial(("127.0.0.9", 0), ("::1", 0), listener.getsockname())
    assert dialed.address == address_of(*listener.getsockname())
    assert dialed.upstream is not None
    dialed.upstream.close()


async def test_the_first_address_is_silent_the_second_alive(rig: Rig, silent: tuple[str, int]) -> None:
    with socket.socket() as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", silent[1]))
        except OSError:
            pytest.skip("somebody has the same port on the other address")
        listener.listen()
        dialed = await rig.dial(silent, listener.getsockname(), connect_timeout_s=0.15)
        assert dialed.address == address_of(*listener.getsockname())
        assert dialed.upstream is not None
        dialed.upstream.close()


async def test_refused_by_all(rig: Rig, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    dialed = await rig.dial(("127.0.0.8", port), ("127.0.0.9", 0))
    assert (dialed.upstream, dialed.failed, dialed.errno) == (None, Ending.CONNECT_FAILED, errno.ECONNREFUSED)
    assert dialed.address == address_of("127.0.0.9", port)


async def test_no_address(rig: Rig) -> None:
    settings = Settings(connect_timeout_s=0.02)
    dialed = await rig.dialer.dial(DialRequest(Destination("name.example", 0.0), 80, settings, None, rig.client))
    assert (dialed.upstream, dialed.address, dialed.failed) == (None, None, Ending.RESOLVE_FAILED)


@pytest.mark.parametrize("timeout_s", [0.02, 0.15])
async def test_nobody_answers(rig: Rig, silent: tuple[str, int], timeout_s: float) -> None:
    dialed = await rig.dial(silent, connect_timeout_s=timeout_s)
    assert (dialed.upstream, dialed.failed, dialed.errno) == (None, Ending.CONNECT_TIMEOUT, errno.ETIMEDOUT)


@pytest.mark.parametrize("timeout_s", [0.0, 3600.0])
async def test_the_client_gives_up(rig: Rig, silent: tuple[str, int], timeout_s: float) -> None:
    dialing = rig.dial(silent, ("127.0.0.1", 0), connect_timeout_s=timeout_s)
    await asyncio.sleep(0)
    rig.far.reset()
    dialed = await dialing
    assert (dialed.upstream, dialed.failed) == (None, Ending.CLIENT_RESET)
    assert dialed.address == address_of(*silent)  # no other was tried


async def test_the_half_close_and_the_bytes_of_a_client_are_legal(rig: Rig, silent: tuple[str, int]) -> None:
    dialing = rig.dial(silent, connect_timeout_s=0.3)
    await asyncio.sleep(0)
    await rig.far.send(b"request")
    rig.far.half_close()
    assert (await dialing).failed is Ending.CONNECT_TIMEOUT
    assert rig.client.recv(100) == b"request"


async def test_cancelled(rig: Rig, silent: tuple[str, int]) -> None:
    dialing = rig.dial(silent)
    await until(lambda: rig.poller._handlers)
    dialing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialing
    assert not rig.poller._handlers


async def test_cancelled_when_it_has_just_connected(rig: Rig, listener: socket.socket) -> None:
    dialing = rig.dial(listener.getsockname())
    await asyncio.sleep(0)  # its first step
    for handler in tuple(rig.poller._handlers.values()):
        handler(0)  # the kernel has answered, and the task has not seen it yet
    dialing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialing
    assert not rig.poller._handlers
    accepted, _ = listener.accept()
    with accepted:
        accepted.setblocking(True)
        with contextlib.suppress(ConnectionResetError):
            assert accepted.recv(1) == b""


async def test_from_a_source_address(rig: Rig, listener: socket.socket) -> None:
    dialed = await rig.dial(listener.getsockname(), source="127.0.0.5")
    assert dialed.upstream is not None
    with dialed.upstream as sock:
        assert sock.getsockname()[0] == "127.0.0.5"


async def test_a_source_address_that_is_not_ours(rig: Rig, listener: socket.socket) -> None:
    dialed = await rig.dial(listener.getsockname(), source="192.0.2.1")
    assert (dialed.upstream, dialed.failed, dialed.errno) == (None, Ending.BIND_FAILED, errno.EADDRNOTAVAIL)


async def test_a_source_of_the_other_family_leaves_the_addresses_of_its_own(rig: Rig, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    dialed = await rig.dial(("::1", 0), listener.getsockname(), ("::1", 0), source="127.0.0.5")
    assert dialed.upstream is not None
    dialed.upstream.close()
    refused = await rig.dial(("127.0.0.9", port), ("::1", 0), source="127.0.0.5")
    assert (refused.failed, refused.errno) == (Ending.CONNECT_FAILED, errno.ECONNREFUSED)
    nowhere = await rig.dial(("::1", port), source="127.0.0.5")
    assert (nowhere.failed, nowhere.errno) == (Ending.BIND_FAILED, errno.EAFNOSUPPORT)


IP_LOCAL_PORT_RANGE = 51
"""Since Linux 6.3: which ports the kernel may choose for one socket."""


def only_port(patch: pytest.MonkeyPatch, port: int) -> None:
    """Let the kernel choose `port` for every upstream socket."""
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
        except OSError:
            pytest.skip("this kernel has no IP_LOCAL_PORT_RANGE")

    def narrow(family: int, keepalive: KeepAlive, options: ConnectOptions) -> socket.socket:
        sock = open_upstream(family, keepalive, options)
        sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
        return sock

    patch.setattr(oinetd.lanes.python.dialer, "open_upstream", narrow)


def free_ports(host: str) -> Iterator[int]:
    """Ports that are free on `host`; on another address somebody may have one, and then the kernel never chooses it."""
    for _ in range(20):
        with socket.create_server((host, 0)) as free:
            port = free.getsockname()[1]
        yield port
    pytest.skip("no port that the kernel would choose")


async def test_a_source_address_has_its_ports_for_each_destination(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the port chosen before the destination is known, two destinations would share the ports of one."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.2", 0)) as two:
        for port in free_ports("127.0.0.5"):
            only_port(monkeypatch, port)
            first = await rig.dial(one.getsockname(), source="127.0.0.5")
            if first.upstream is not None:
                break
        with first.upstream:
            second = await rig.dial(two.getsockname(), source="127.0.0.5")
            assert second.upstream is not None
            with second.upstream:
                assert first.upstream.getsockname() == second.upstream.getsockname() == ("127.0.0.5", port)


async def test_a_connect_that_comes_back_to_itself_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody listening, the kernel may choose the very port as the outgoing one, and TCP connects it to itself."""
    for port in free_ports("127.0.0.1"):
        only_port(monkeypatch, port)
        dialed = await rig.dial(("127.0.0.1", port))
        if dialed.errno != errno.EADDRNOTAVAIL:
            break
    assert (dialed.upstream, dialed.failed, dialed.errno) == (None, Ending.CONNECT_FAILED, errno.ECONNREFUSED)
    # The port is free for whom it belongs to.
    socket.create_server(("127.0.0.1", port)).close()


async def test_no_descriptor_is_left(rig: Rig, listener: socket.socket) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)  # the lowest number that is free
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        dialed = await rig.dial(listener.getsockname(), connect_timeout_s=0.05)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (dialed.upstream, dialed.failed, dialed.errno) == (None, Ending.SOCKET_FAILED, errno.EMFILE)


async def test_no_room_to_watch_it(rig: Rig, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, handler: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(rig.poller, "watch", full)
    dialed = await rig.dial(listener.getsockname())
    assert (dialed.upstream, dialed.failed, dialed.errno) == (None, Ending.CONNECT_FAILED, errno.ENOSPC)
