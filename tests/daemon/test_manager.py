"""The service manager: what it is told, and the sockets it hands over."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.process import Client, EchoServer, Oinetd, own_address, until

RULE = "127.0.0.1 0 UPSTREAM\n"

Start = Callable[..., Oinetd]


def test_ready_only_when_it_listens(oinetd: Start) -> None:
    host = own_address()
    daemon = oinetd(f"{host} 7001 UPSTREAM\n").ready()
    Client((host, 7001)).close()
    assert daemon.manager.notices[0].split("\n") == [
        "READY=1",
        f"MAINPID={daemon.pid}",
        "STATUS=Forwarding from 1 address",
    ]
    assert daemon.stop() == 0
    (stopping,) = daemon.manager.read()[1:]
    assert stopping.startswith("STOPPING=1\nSTATUS=Stopping: ")


def test_not_ready_where_the_start_fails(oinetd: Start) -> None:
    daemon = oinetd("127.0.0.1 0 no-such-host.invalid 9\n")
    assert daemon.wait() == 78
    assert daemon.manager.read() == []


def test_a_reload_is_told_with_its_time(oinetd: Start) -> None:
    daemon = oinetd(RULE).ready()
    before_us = time.monotonic_ns() // 1000
    daemon.reload()
    after_us = time.monotonic_ns() // 1000
    reloading, ready = daemon.manager.read()[1:]
    match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", reloading)
    assert match is not None
    assert before_us <= int(match[1]) <= after_us
    assert ready.startswith("READY=1\n")
    assert daemon.stop() == 0


def test_a_failed_reload_is_told_in_the_status(oinetd: Start) -> None:
    daemon = oinetd(RULE).ready()
    daemon.reload("bogus\n")
    assert "Forwarding from 1 address; the last reload failed: " in daemon.manager.read()[-1]
    assert daemon.manager.count("READY=1") == 2
    assert daemon.stop() == 0


def test_signs_of_life(oinetd: Start) -> None:
    daemon = oinetd(RULE, environ={"WATCHDOG_USEC": "100000"}).ready()
    until(lambda: daemon.manager.count("WATCHDOG=1") >= 5, "five signs of life")
    assert daemon.stop() == 0


def test_a_watchdog_for_somebody_else(oinetd: Start) -> None:
    daemon = oinetd(RULE, environ={"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).ready()
    daemon.reload()
    assert daemon.manager.count("WATCHDOG=1") == 0
    assert daemon.stop() == 0


def test_a_stop_takes_listeners_out_of_the_store(oinetd: Start) -> None:
    """They refuse clients from then on, and so would the next process that gets them."""
    daemon = oinetd(RULE, environ={"FDSTORE": "512"}).ready()
    until(lambda: daemon.manager.count("FDSTORE=1"), "the listener")
    (kept,) = [notice for notice in daemon.manager.notices if notice.startswith("FDSTORE=1\n")]
    name = next(line for line in kept.split("\n") if line.startswith("FDNAME="))
    assert daemon.stop() == 0
    assert daemon.manager.read()[-2:][0] == f"FDSTOREREMOVE=1\n{name}"
    assert daemon.manager.notices[-1].startswith("STOPPING=1\n")


def test_a_manager_that_is_gone_is_no_harm(oinetd: Start) -> None:
    daemon = oinetd(RULE, environ={"NOTIFY_SOCKET": "@oinetd-nobody-is-here"})
    daemon.wait_said("listening on")
    with Client(daemon.address) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


TAKE_OVER = """\
import os, sys
sockets = [int(word) for word in sys.argv[1].split(",")]
for place, fd in enumerate(sockets, 3):
    os.dup2(fd, 100 + place)
for place in range(3, 3 + len(sockets)):
    os.dup2(100 + place, place)
    os.close(100 + place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "oinetd", *sys.argv[3:]])
"""
"""As a service manager does it: the sockets from descriptor 3 on, the variables for this process."""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((own_address(), 0)) as sock:
        yield sock


def handed(*sockets: socket.socket, names: str = "") -> dict[str, object]:
    """How to start a daemon that is given `sockets`."""
    fds = tuple(sock.fileno() for sock in sockets)
    return {"command": (sys.executable, "-c", TAKE_OVER, ",".join(map(str, fds)), names), "pass_fds": fds}


def test_a_socket_that_is_handed_over_serves(oinetd: Start, listener: socket.socket) -> None:
    host, port = listener.getsockname()
    with Client((host, port)) as early:  # in the queue before there is a daemon
        daemon = oinetd(f"{host} {port} UPSTREAM\n", **handed(listener, names="oinetd-web.socket")).ready()
        assert early.echo(b"early") == b"early"
    assert daemon.stop() == 0
    # Ours is still open: the manager keeps the queue while the daemon is away.
    with Client((host, port)) as late:
        daemon = oinetd(f"{host} {port} UPSTREAM\n", **handed(listener)).ready()
        assert late.echo(b"late") == b"late"
    assert daemon.stop() == 0


def test_it_is_tuned_like_one_of_its_own(oinetd: Start, listener: socket.socket) -> None:
    host, port = listener.getsockname()
    daemon = oinetd(f"{host} {port} UPSTREAM\n", **handed(listener)).ready()
    # The options belong to the socket, which is ours as well.
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert daemon.stop() == 0


def test_reloads_with_a_socket_that_was_handed_over(oinetd: Start, listener: socket.socket, echo: EchoServer) -> None:
    host, port = listener.getsockname()
    rule = f"{host} {port} {echo.host} {echo.port}\n"
    daemon = oinetd(rule, **handed(listener)).ready()
    for text in (rule, "", rule, rule):
        assert "reloaded" in daemon.reload(text)
    with Client((host, port)) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_what_is_no_listening_tcp_socket_is_refused(oinetd: Start, listener: socket.socket) -> None:
    host, port = listener.getsockname()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as idle,
        open(os.devnull) as file,
    ):
        given = handed(datagrams, idle, file, listener, names="one:two:three:four")  # type: ignore[arg-type]
        daemon = oinetd(f"{host} {port} UPSTREAM\n", **given).ready()
    daemon.wait_said(
        r"warning: inherited descriptor 3 \(one\): closed, neither a listening socket nor a bound UDP socket"
    )
    daemon.wait_said(r"warning: inherited descriptor 4 \(two\)")
    daemon.wait_said(r"warning: inherited descriptor 5 \(three\)")
    with Client((host, port)) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_a_unix_socket_that_is_handed_over(oinetd: Start, tmp_path: Path) -> None:
    """Its file is the service manager's: it stays."""
    path = tmp_path / "handed"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as early:
        listener.bind(str(path))
        listener.listen()
        early.connect(str(path))
        daemon = oinetd(f"unix:{path} UPSTREAM\n", **handed(listener)).ready()
        early.sendall(b"early")
        assert early.recv(5) == b"early"
        assert "inherited" not in daemon.said
        assert daemon.stop() == 0
        assert path.is_socket()


def test_sockets_for_another_process_are_left_alone(oinetd: Start) -> None:
    daemon = oinetd(RULE, environ={"LISTEN_PID": "1", "LISTEN_FDS": "2"}).ready()
    assert "inherited" not in daemon.said
    assert daemon.stop() == 0


def test_a_socket_without_a_rule_is_told(oinetd: Start, listener: socket.socket) -> None:
    host, port = listener.getsockname()
    daemon = oinetd(RULE, **handed(listener)).ready()
    daemon.wait_said(rf"warning: inherited socket {host}:{port}: no rule has this address")
    assert daemon.stop() == 0


def test_stored_sockets_of_a_process_that_crashed(oinetd: Start) -> None:
    """One serves on, with the clients in its queue; one that no rule needs is closed and taken out of the store."""
    host = own_address()
    with socket.create_server((host, 0)) as kept, socket.create_server((host, 0)) as unused:
        place = kept.getsockname()
        names = f"oinetd-tcp-{host}-{place[1]}:oinetd-tcp-other-1"
        with Client(place) as early:
            daemon = oinetd(
                f"{host} {place[1]} UPSTREAM\n", environ={"FDSTORE": "9"}, **handed(kept, unused, names=names)
            ).ready()
            assert early.echo(b"early") == b"early"
        until(lambda: daemon.manager.count("FDNAME=oinetd-tcp-other-1"), "the word about the other")
        assert daemon.manager.read()[-1] == "FDSTOREREMOVE=1\nFDNAME=oinetd-tcp-other-1"
        assert "no rule has this address" not in daemon.said
        assert daemon.stop() == 0


def held(listener: socket.socket, rule: str, oinetd: Start) -> str:
    """What a daemon that is given `listener` and cannot serve `rule` says."""
    daemon = oinetd(f"{rule} UPSTREAM\n", **handed(listener))
    assert daemon.wait() == 71
    return daemon.said


def test_an_inherited_socket_that_holds_the_address_of_a_rule_is_named(oinetd: Start) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        port = both.getsockname()[1]
        for host in ("0.0.0.0", own_address()):
            said = held(both, f"{host} {port}", oinetd)
            assert f"cannot listen on {host}:{port}: the inherited socket [::]:{port} holds the port" in said
            assert "write the rule with :: or set BindIPv6Only=ipv6-only in the socket unit" in said
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("::", 0))
        port = datagrams.getsockname()[1]
        daemon = oinetd(f"0.0.0.0 {port}/udp 127.0.0.1 9/udp\n", **handed(datagrams))
        assert daemon.wait() == 71
        assert f"the inherited socket [::]:{port} holds the port (write the rule with ::" in daemon.said
    with socket.create_server(("0.0.0.0", 0)) as v4:
        port = v4.getsockname()[1]
        said = held(v4, f"127.0.0.1 {port}", oinetd)
        assert f"the inherited socket 0.0.0.0:{port} holds the port (write the rule with 0.0.0.0)" in said


def test_a_port_that_another_program_has_is_not_blamed_on_an_inherited_socket(
    oinetd: Start, listener: socket.socket
) -> None:
    with socket.create_server((own_address(), 0)) as other:
        host, port = other.getsockname()
        said = held(listener, f"{host} {port}", oinetd)
    assert f"cannot listen on {host}:{port}: the port is in use" in said
