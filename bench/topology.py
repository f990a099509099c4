"""Where a bench runs: three network namespaces, or plain loopback.

    client 10.0.1.2 ── veth ── 10.0.1.1 forwarder 10.0.0.1 ── veth ── 10.0.0.2 server

Every run has namespaces of its own, so all may use the same addresses. Both ends of a veth pair are made inside
namespaces and go with them: the host's own network never sees an interface of the bench.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from bench.errors import BenchError, ToolMissing
from bench.identity import RunName
from bench.path import PLAIN, PathQuality
from bench.programs import Place
from bench.tools import need, need_libraries

__all__ = ["GROUP_SIZE", "NETNS_DIR", "Loopback", "Namespaces", "Topology", "remove_namespace", "topology_named"]

NETNS_DIR = Path("/run/netns")
_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
_CURRENT = Path("/proc/sys/net/ipv4/tcp_congestion_control")

LISTEN_PORTS = range(5000, 20000)
"""Where programs of the bench listen: below the ports that the kernel gives to outgoing connections."""

GROUP_SIZE = 16
"""Addresses of the server, for a group of servers."""

SYSCTLS = {
    # Wide, and reusable: a connection rate must not measure how fast ports run out.
    "net.ipv4.ip_local_port_range": "20000 65535",
    "net.ipv4.tcp_tw_reuse": "1",
    "net.ipv4.tcp_max_tw_buckets": "20000",
    # Client and server stay while the way between them is made anew for each subject.
    "net.ipv4.ip_nonlocal_bind": "1",
    "net.ipv4.tcp_max_syn_backlog": "16384",
    "net.core.somaxconn": "16384",
    # The floor of every table: `direct` is routed by the forwarder's namespace, DNAT is done in it.
    "net.ipv4.ip_forward": "1",
}


class Topology(Protocol):
    """Three places and their addresses. `forwarder_address` is where a forwarder listens."""

    name: str
    client: Place
    forwarder: Place
    server: Place
    client_address: str
    forwarder_address: str
    server_address: str
    server_addresses: tuple[str, ...]
    """Further ones of the server: those of a group of servers. None where there is but one."""
    facts: dict[str, str]
    """What is recorded with every result."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def between(self) -> contextlib.AbstractContextManager[None]:
        """A fresh place for a forwarder, joined to client and server, for as long as the block lasts."""
        ...


@dataclass(frozen=True, slots=True)
class _Link:
    """A veth pair: namespace and address of either end."""

    namespace: str
    address: str
    peer_namespace: str
    peer_address: str


class Loopback:
    """Everything on 127.0.0.1 of the host: needs no root, takes the host's settings as they are."""

    name = "loopback"

    def __init__(self, run: RunName) -> None:
        self.run = run
        self.client = self.forwarder = self.server = Place()
        self.client_address = self.forwarder_address = self.server_address = "127.0.0.1"
        self.server_addresses: tuple[str, ...] = ()
        self.facts = {"congestion control": _CURRENT.read_text().strip()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @contextlib.contextmanager
    def between(self) -> Iterator[None]:
        yield


class Namespaces:
    """Three namespaces joined by two veth pairs; needs root. Leaving the `with` block takes all of it down.

    Client and server stay for the whole run. The forwarder's namespace and both pairs are made anew for each subject.
    """

    name = "netns"

    def __init__(self, run: RunName, path: PathQuality = PLAIN) -> None:
        if os.geteuid() != 0:
            raise BenchError("network namespaces need root: use sudo, or --topology loopback")
        need_libraries("pyroute2")
        for program in ("nsenter", "sysctl"):
            need(program)
        self.run = run
        self.client = Place(f"{run}-client")
        self.forwarder = Place(f"{run}-forwarder")
        self.server = Place(f"{run}-server")
        self.client_address = "10.0.1.2"
        self.forwarder_address = "10.0.1.1"
        self.server_address = "10.0.0.2"
        self.server_addresses = tuple(f"10.0.0.{number}" for number in range(3, 2 + GROUP_SIZE))
        self.facts: dict[str, str] = {}
        self.path = path
        self._serial = 0
        self._between = False

    def __enter__(self) -> Self:
        try:
            self._up()
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._down()

    @property
    def places(self) -> tuple[Place, Place, Place]:
        return self.client, self.forwarder, self.server

    def _up(self) -> None:
        from pyroute2 import netns

        self.facts = {"congestion control": "", **SYSCTLS, **self.path.facts()}
        for place in (self.client, self.server):
            netns.create(place.namespace)
            self._set(place)
            _loopback_up(place.namespace, self.server_addresses if place is self.server else ())

    def _set(self, place: Place) -> None:
        with _congestion_control() as algorithm:
            _set(place, {**SYSCTLS, "net.ipv4.tcp_congestion_control": algorithm})
            self.facts["congestion control"] = algorithm

    @contextlib.contextmanager
    def between(self) -> Iterator[None]:
        from pyroute2 import netns

        if self._between:  # a second instance of the subject stands beside the first
            yield
            return
        self._serial += 1
        self._between = True
        self.forwarder = Place(f"{self.run}-forwarder{self._serial}")
        try:
            netns.create(self.forwarder.namespace)
            for link, name, peer_name in self._links():
                _join(link, name, peer_name)
            _loopback_up(self.forwarder.namespace)
            _route(self.client.namespace, "10.0.1.1")
            _route(self.server.namespace, "10.0.0.1")
            self._set(self.forwarder)
            self.path.apply(self.client, self.server, self.forwarder)
            yield
        finally:
            self._between = False
            self._apart()

    def _links(self) -> tuple[tuple[_Link, str, str], tuple[_Link, str, str]]:
        here = self.forwarder.namespace
        return (
            (_Link(self.client.namespace, "10.0.1.2", here, "10.0.1.1"), "to-forwarder", "to-client"),
            (_Link(self.server.namespace, "10.0.0.2", here, "10.0.0.1"), "to-forwarder", "to-server"),
        )

    def _apart(self) -> None:
        """At once: a namespace goes in its own time, and the next pair has the same name."""
        for place in (self.client, self.server):
            _remove_link(place.namespace, "to-forwarder")
        remove_namespace(self.forwarder.namespace)

    def _down(self) -> None:
        for place in self.places:
            remove_namespace(place.namespace)


def topology_named(name: str, run: RunName, path: PathQuality = PLAIN) -> Topology:
    """`netns`, `loopback`, or `auto`: namespaces where that is possible, else loopback."""
    if name == "loopback":
        if path.shaped:
            raise BenchError("delay, loss and bandwidth are set between namespaces: --topology netns")
        return Loopback(run)
    path.check()
    try:
        return Namespaces(run, path)
    except (BenchError, ToolMissing):
        if name == "netns" or path.shaped:
            raise
        return Loopback(run)


def remove_namespace(name: str) -> None:
    """Remove a namespace and, with it, its interfaces; one that is not there is no error."""
    from pyroute2 import netns

    if (NETNS_DIR / name).exists():
        with contextlib.suppress(FileNotFoundError):
            netns.remove(name)


def _join(link: _Link, name: str, peer_name: str) -> None:
    """Make a veth pair with an end in either namespace, addressed and up."""
    from pyroute2 import IPRoute

    with (NETNS_DIR / link.peer_namespace).open() as peer, IPRoute(netns=link.namespace) as here:
        here.link("add", ifname=name, kind="veth", peer={"ifname": peer_name, "net_ns_fd": peer.fileno()})
        _configure(here, name, link.address)
    with IPRoute(netns=link.peer_namespace) as there:
        _configure(there, peer_name, link.peer_address)


def _configure(route: object, name: str, address: str) -> None:
    from pyroute2 import IPRoute

    assert isinstance(route, IPRoute)
    (index,) = route.link_lookup(ifname=name)
    route.addr("add", index=index, address=address, prefixlen=24)
    route.link("set", index=index, state="up")


def _loopback_up(namespace: str, addresses: Sequence[str] = ()) -> None:
    """With these addresses, which are then the namespace's own whatever interface asks for them."""
    from pyroute2 import IPRoute

    with IPRoute(netns=namespace) as route:
        (loopback,) = route.link_lookup(ifname="lo")
        for address in addresses:
            route.addr("add", index=loopback, address=address, prefixlen=32)
        route.link("set", index=loopback, state="up")


def _remove_link(namespace: str, name: str) -> None:
    from pyroute2 import IPRoute

    if not (NETNS_DIR / namespace).exists():
        return
    with IPRoute(netns=namespace) as route:
        for index in route.link_lookup(ifname=name):
            route.link("del", index=index)


def _route(namespace: str, gateway: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute(netns=namespace) as route:
        route.route("add", dst="default", gateway=gateway)


def _set(place: Place, settings: dict[str, str]) -> None:
    words = [f"{key}={value}" for key, value in settings.items()]
    done = subprocess.run(place.enter(["sysctl", "-q", "-w", *words]), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"sysctl in {place.namespace}: {done.stderr.strip()}")


@contextlib.contextmanager
def _congestion_control() -> Iterator[str]:
    """The algorithm that every namespace is given, and may be given within this block.

    The kernel lends a new namespace only what `tcp_allowed_congestion_control` lists, for the whole machine. Where it
    has cubic and does not list it, it is listed for the length of this block; the lock keeps runs from undoing each
    other's list. bbr is never taken: it paces, and halves the figures of a link that has no bandwidth to find.
    """
    with contextlib.ExitStack() as stack:
        lock = os.open(NETNS_DIR, os.O_RDONLY)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        allowed = _ALLOWED.read_text().split()
        if "cubic" in allowed or "cubic" not in _AVAILABLE.read_text().split():
            yield "cubic" if "cubic" in allowed else "reno"
            return
        try:
            _ALLOWED.write_text(" ".join([*allowed, "cubic"]))
        except OSError:  # the bench itself is in a namespace, which may not change the list
            yield "reno"
            return
        try:
            yield "cubic"
        finally:
            _ALLOWED.write_text(" ".join(allowed))
