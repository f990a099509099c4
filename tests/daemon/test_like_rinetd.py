"""The log of oinetd beside that of rinetd, which has lived through the same."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.process import PATIENCE_S, Client, EchoServer, Oinetd, own_address, surroundings, text_of, until

RINETD = shutil.which("rinetd") or shutil.which("rinetd", path="/usr/sbin")

pytestmark = pytest.mark.skipif(RINETD is None, reason="rinetd is not installed")

Start = Callable[..., Oinetd]


def live(host: str, log: Path) -> list[str]:
    """A served connection and one to a destination that refuses; returns the log, with times and hosts made equal."""
    with Client((host, 7001)) as client:
        assert client.echo(b"hello") == b"hello"
    until(lambda: text_of(log).count("\n") >= 2, "the lines of the first connection")
    with contextlib.suppress(ConnectionResetError), Client((host, 7002)) as client:
        client.ended()
    until(lambda: text_of(log).count("\n") >= 4, "the lines of the second connection")
    return [
        re.sub(r"\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d", "TIME", line.replace(host, "HOST"))
        for line in log.read_text().splitlines()
    ]


def touch(address: tuple[str, int]) -> bool:
    """Connect and leave; whether there was somebody, even if only to reset the connection."""
    with socket.socket() as sock:
        return sock.connect_ex(address) in (0, errno.ECONNRESET)


@pytest.mark.parametrize("style", ["", "logcommon\n"])
def test_the_same_lines(oinetd: Start, echo: EchoServer, tmp_path: Path, style: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        dead = nobody.getsockname()[1]
        theirs, ours = own_address(), own_address()

        def text(host: str, log: Path) -> str:
            rules = f"{host} 7001 {echo.host} {echo.port}\n{host} 7002 localhost {dead}\n"
            return f"{style}{rules}logfile {log}\n"

        conf = tmp_path / "rinetd.conf"
        conf.write_text(text(theirs, tmp_path / "theirs.log"))
        assert RINETD is not None
        rinetd = subprocess.Popen(
            [RINETD, "-f", "-c", str(conf)], env=surroundings(TZ="America/St_Johns"), stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: touch((theirs, 7001)), "rinetd")
            until(lambda: text_of(tmp_path / "theirs.log").count("\n") >= 2, "its first lines")
            (tmp_path / "theirs.log").write_text("")
            expected = live(theirs, tmp_path / "theirs.log")
        finally:
            rinetd.send_signal(signal.SIGKILL)
            rinetd.wait(PATIENCE_S)
        daemon = oinetd(text(ours, tmp_path / "ours.log"), environ={"TZ": "America/St_Johns"}).ready()
        assert live(ours, tmp_path / "ours.log") == expected
        assert daemon.stop() == 0
