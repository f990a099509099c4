"""Machines in network namespaces of their own."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Iterator

__all__ = ["inside", "three_machines"]


def inside(namespace: str, *command: str, check: bool = True) -> str:
    done = subprocess.run(["ip", "netns", "exec", namespace, *command], capture_output=True, text=True, check=check)
    return done.stdout


@contextlib.contextmanager
def three_machines() -> Iterator[tuple[str, str, str]]:
    """A client, a router with oinetd, and a server whose gateway is the router."""
    names = tuple(f"{role}-{uuid.uuid4().hex[:8]}" for role in ("c", "r", "s"))
    client, router, server = names
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            inside(name, "ip", "link", "set", "lo", "up")
        for far, number in ((client, 1), (server, 2)):
            inside(router, "ip", "link", "add", f"to{number}", "type", "veth", "peer", "name", "to0", "netns", far)
            for name, link, end in ((router, f"to{number}", 1), (far, "to0", 2)):
                inside(name, "ip", "addr", "add", f"10.77.{number}.{end}/24", "dev", link)
                inside(name, "ip", "addr", "add", f"fd77:{number}::{end}/64", "dev", link, "nodad")
                inside(name, "ip", "link", "set", link, "up")
            for gateway in (f"10.77.{number}.1", f"fd77:{number}::1"):
                inside(far, "ip", "route", "add", "default", "via", gateway)
        yield client, router, server
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
