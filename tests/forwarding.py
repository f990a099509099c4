"""A forwarder as tests start it: rules as text, real ports of the kernel's choice."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from oinetd import Config, Forwarder, Rule, SessionRecord
from oinetd.config import parse_rule
from tests.peers import Peer, dial


def rule(upstream: tuple[str, int], bind: str = "127.0.0.1 0", options: str = "") -> Rule:
    """`bind` forwarded to `upstream`; `options` is what stands between the brackets."""
    return parse_rule(f"{bind} {upstream[0]} {upstream[1]}" + (f" [{options}]" if options else ""))


def bound(forwarder: Forwarder, nth: int = 0) -> tuple[str, int]:
    """Where the `nth` listener can be reached."""
    address = forwarder.addresses[nth]
    return address.host, address.port


@dataclass
class Seen:
    """Every record that the hooks were given, in order."""

    opened: list[SessionRecord] = field(default_factory=list)
    closed: list[SessionRecord] = field(default_factory=list)


@contextlib.asynccontextmanager
async def forwarding(
    *rules: Rule, seen: Seen | None = None, admit: Any = None, route: Any = None, **config: Any
) -> AsyncIterator[Forwarder]:
    """A running forwarder."""
    hooks: dict[str, Any] = {"on_open": seen.opened.append, "on_close": seen.closed.append} if seen else {}
    async with Forwarder(Config(rules=rules, **config), admit=admit, route=route, **hooks) as forwarder:
        yield forwarder


async def echoes(address: tuple[str, int], message: bytes = b"hello") -> bool:
    """Whether somebody at `address` gives `message` back."""
    try:
        peer = await dial(address)
    except ConnectionResetError:  # refused before the connect was seen to be complete
        return False
    try:
        return await exchange(peer, message)
    finally:
        peer.close()


async def exchange(peer: Peer, message: bytes = b"hello") -> bool:
    """Whether the other end of `peer` gives `message` back."""
    try:
        await peer.send(message)
        return await peer.read(len(message)) == message
    except ConnectionError:
        return False


def in_one_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on one kind of event loop: for what does not depend on it."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run
