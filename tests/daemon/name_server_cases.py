"""Names that a real resolver asks a real name server for. `test_name_server.py` runs these in a namespace."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.name_server import SERVFAIL, NameServer
from tests.daemon.process import COMMAND, Client, EchoServer, Oinetd, surroundings, until

Start = Callable[..., Oinetd]
ENGINES = ("native", "python")


@pytest.fixture
def names() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.close()


def text(echo: EchoServer, engine: str, name: str = "name.example") -> str:
    return f"engine {engine}\n127.0.0.1 0 {name} {echo.port}\n"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_failure_that_passes(oinetd: Start, echo: EchoServer, names: NameServer, engine: str) -> None:
    """The daemon starts, its client waits, and is served when the name server knows the name."""
    names.zone["name.example"] = SERVFAIL
    daemon = oinetd(text(echo, engine)).ready()
    assert daemon.wait_said("cannot resolve the destination name.example yet .*Temporary failure")
    with Client(daemon.address) as client:
        names.zone["name.example"] = [echo.host]
        assert client.echo(b"hello") == b"hello"
    assert daemon.wait_said(f"name.example now resolves to {echo.host}")
    assert daemon.stop() == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_slow_answer(oinetd: Start, echo: EchoServer, names: NameServer, engine: str) -> None:
    """Other rules are served meanwhile."""
    names.zone["name.example"] = [echo.host]
    names.speaks.clear()
    daemon = oinetd(text(echo, engine) + "127.0.0.1 0 UPSTREAM\n").ready()
    first, second = until(lambda: daemon.addresses if len(daemon.addresses) == 2 else None, "both listeners")
    with Client(second) as other, Client(first) as client:
        assert other.echo(b"hello") == b"hello"
        names.speaks.set()
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_a_name_that_does_not_exist(oinetd: Start, echo: EchoServer, names: NameServer) -> None:
    daemon = oinetd(text(echo, "auto"))
    assert daemon.wait() == 78
    assert "name.example" in daemon.said
    assert names.asked


@pytest.mark.parametrize(
    ("zone", "code"), [({}, 78), ({"name.example": SERVFAIL}, 75), ({"name.example": ["127.0.0.1"]}, 0)]
)
def test_names_are_looked_up_where_that_is_asked_for(
    tmp_path: Path, echo: EchoServer, names: NameServer, zone: dict[str, list[str] | int], code: int
) -> None:
    names.zone.update(zone)
    conf = tmp_path / "oinetd.conf"
    conf.write_text(text(echo, "auto"))
    looked = [*COMMAND, "-t", "--resolve", "-c", str(conf)]
    assert subprocess.run(looked, env=surroundings(), capture_output=True, check=False).returncode == code
    asked = len(names.asked)
    checked = subprocess.run([*COMMAND, "-t", "-c", str(conf)], env=surroundings(), capture_output=True, check=False)
    assert (checked.returncode, len(names.asked)) == (0, asked)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_listener_whose_name_gets_no_answer(oinetd: Start, echo: EchoServer, names: NameServer, engine: str) -> None:
    """It cannot listen now; it may later."""
    names.zone["name.example"] = SERVFAIL
    daemon = oinetd(f"engine {engine}\nname.example 0 UPSTREAM\n")
    assert daemon.wait() == 75


@pytest.mark.parametrize("engine", ENGINES)
def test_more_addresses_than_are_used(oinetd: Start, echo: EchoServer, names: NameServer, engine: str) -> None:
    """16 of them, and that is said."""
    names.zone["name.example"] = [f"127.0.99.{number}" for number in range(1, 20)] + [echo.host]
    daemon = oinetd(text(echo, engine)).ready()
    assert daemon.wait_said("name.example has 20 addresses; using 16 of them")
    assert daemon.stop() == 0
