"""`oinetd demo`: a forwarder with an embedded service as its destination, for a first look."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Final

from oinetd.core.record import SessionRecord
from oinetd.errors import BindError
from oinetd.forwarder import Forwarder
from oinetd.model import Config, Endpoint, Rule
from oinetd.observe.writer import LineWriter
from oinetd.process.eventloop import loop_factory
from oinetd.process.greeter import Greeter
from oinetd.process.invocation import EX_OK, exit_code

__all__ = ["run"]

HOST: Final = "127.0.0.1"
PORT: Final = 8080
STDOUT_FD: Final = 1


def run(port: int | None) -> int:
    """Serve until Ctrl-C; returns the exit code. `port` None is 8080, or a free port if 8080 is in use."""
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_demo(port))
    except BindError as error:
        print(f"oinetd demo: {error}", file=sys.stderr)
        return exit_code(error)
    return EX_OK


async def _demo(port: int | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    out = LineWriter(STDOUT_FD, lambda text: None)
    greeter = Greeter()
    await greeter.start(HOST)
    try:
        forwarder = await _forwarder(port, greeter.port, out)
        greeter.front = f"{HOST}:{forwarder.addresses[0].port}"
        if port is None and forwarder.addresses[0].port != PORT:
            _say(out, f"Port {PORT} is in use (`ss -lntp` shows by which program); using another free port.")
        for line in _welcome(greeter.front, f"{greeter.host}:{greeter.port}"):
            _say(out, line)
        await stop.wait()
        await forwarder.stop()
        _say(out, "Stopped.")
    finally:
        await greeter.stop()
        out.close()


async def _forwarder(port: int | None, upstream_port: int, out: LineWriter) -> Forwarder:
    """A forwarder that has started. Raises `BindError`."""

    def opened(record: SessionRecord) -> None:
        _say(out, f"#{record.id} opened by {record.client} port {record.client_port}")

    def closed(record: SessionRecord) -> None:
        assert record.ending is not None
        _say(
            out,
            f"#{record.id} closed after {record.duration_s:.3f} s ({record.ending.value}): "
            f"{record.bytes_up} bytes up, {record.bytes_down} bytes down, {record.engine} engine",
        )

    for candidate in (PORT, 0) if port is None else (port,):
        rule = Rule(Endpoint(HOST, candidate), Endpoint(HOST, upstream_port))
        forwarder = Forwarder(Config(rules=(rule,)), on_open=opened, on_close=closed)
        try:
            await forwarder.start()
        except BindError:
            if port is not None or candidate == 0:
                raise
        else:
            return forwarder
    raise AssertionError("a free port was refused and nothing raised")


def _welcome(front: str, back: str) -> tuple[str, ...]:
    host, _, port = front.partition(":")
    return (
        f"oinetd listens on {front} and forwards to a small service on {back}.",
        "Try, in another terminal:",
        f"    curl http://{front}/",
        f"    nc {host} {port}            (what you type comes back)",
        "Ctrl-C stops it.",
        "",
    )


def _say(out: LineWriter, line: str) -> None:
    out.write(f"{line}\n".encode())
