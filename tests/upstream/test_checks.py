"""Checks of servers: what counts as an answer, and that states follow."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from oinetd.net.poller import Poller
from oinetd.servers import Check, GroupOptions, StatusRange
from oinetd.upstream.checks import Checks, _Watched
from oinetd.upstream.probe import judge_answer, request_of
from tests.forwarding import bound, echoes
from tests.peers import until
from tests.upstream.servers import backends, forwarding_to

HTTP = GroupOptions(
    check=Check.HTTP, check_path="/healthz", check_status=(StatusRange(200, 299), StatusRange(404, 404))
)
SEND = GroupOptions(check=Check.SEND, check_send=b"PING\r\n", check_expect=b"+PONG")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 404 Not Found\r\n", ""),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n", "http: status 301"),
        (b"HTTP/1.1 503 No\r\n", "http: status 503"),
        (b"SSH-2.0-x\x1b[31m\r\n", "http: no status: SSH-2.0-x?[31m??"),
        (b"HTTP/1.1 2x0 \r\n", "http: no status: HTTP/1.1 2x0 ??"),
    ],
)
def test_an_http_answer_at_every_split_point(answer: bytes, why: str) -> None:
    verdicts = [judge_answer(HTTP, answer[:size], False) for size in range(len(answer) + 1)]
    decided = [verdict for verdict in verdicts if verdict is not None]
    last = judge_answer(HTTP, answer, True)
    assert last == why
    assert all((verdict == "") == (why == "") for verdict in decided)


@pytest.mark.parametrize(
    ("answer", "why"),
    [(b"+PONG", ""), (b"+PONG\r\n", ""), (b"-ERR", "answer: -ERR"), (b"+P", "answer: +P"), (b"", "no answer")],
)
def test_an_answer_to_a_text(answer: bytes, why: str) -> None:
    assert judge_answer(SEND, answer, True) == why


def test_the_request() -> None:
    assert request_of(HTTP, "10.0.0.1:80").startswith(b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:80\r\n")
    assert request_of(SEND, "x:1") == b"PING\r\n"


async def test_a_check_that_is_due_at_once() -> None:
    """The timer of uvloop for it is another object than that for a later one."""
    loop = asyncio.get_running_loop()
    poller = Poller(loop)
    checks = Checks(poller)
    watched = _Watched(mock.Mock(), mock.Mock())
    for delay_s in (0.0, -1.0, 60.0):
        checks._due(watched, loop.time() + delay_s)
        checks._arm()
    checks.close()
    poller.close()


async def test_states_follow_checks() -> None:
    async with backends(2) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port}" for server in servers)
        lines += "\n[check=tcp, check-interval=50ms, check-fast=20ms, check-down=50ms, passive=off, balance=first]"
        async with forwarding_to(lines) as forwarder:

            def state(at: int) -> tuple[str, str]:
                server = forwarder.upstreams()[0].servers[at]
                return server.state.value, server.why

            await until(lambda: all(each.checks_passed for each in forwarder.upstreams()[0].servers))
            await servers[0].stop()
            await until(lambda: state(0) == ("down", "check: refused"))
            assert await echoes(bound(forwarder))
            await servers[0].start()
            await until(lambda: state(0)[0] == "up")
            await forwarder.reload(forwarder.config)
            assert state(0)[0] == "up"
            forwarder.set_server("web", servers[0].name, state="maint")
            await asyncio.sleep(0)
            assert state(0) == ("maint", "operator")
