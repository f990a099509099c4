"""Root, until everything is open."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.process import Background, Client, EchoServer, Oinetd, own_address, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")

NOBODY = pwd.getpwnam("nobody")
CAP_NET_BIND_SERVICE = 10

Start = Callable[..., Oinetd]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of nobody's, which nobody can get to; pytest's own are for root alone."""
    path = Path(tempfile.mkdtemp(prefix="oinetd-"))
    path.chmod(0o755)
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    yield path
    shutil.rmtree(path)


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    return dict(re.findall(r"(?m)^(\w+):\s*(.*)$", Path(f"/proc/{pid}/status").read_text()))


def test_it_becomes_the_user_after_it_has_bound(oinetd: Start, folder: Path) -> None:
    host, log, pid_file = own_address(), folder / "log", folder / "pid"
    text = f"logfile {log}\npidlogfile {pid_file}\n{host} 80 UPSTREAM\n"
    daemon = oinetd(text, "-u", "nobody").ready()
    facts = status(daemon.pid)
    assert facts["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    assert facts["Gid"].split() == [str(NOBODY.pw_gid)] * 4
    assert facts["Groups"].split() == [str(NOBODY.pw_gid)]
    # Of all that root may do, only the ports below 1024 are left.
    assert {int(facts[name], 16) for name in ("CapEff", "CapPrm")} == {1 << CAP_NET_BIND_SERVICE}
    assert {int(facts[name], 16) for name in ("CapInh", "CapAmb")} == {0}
    with Client((host, 80)) as client:
        assert client.echo(b"hello") == b"hello"
    # Whom root's scripts send a signal is not for the user to say.
    assert (log.stat().st_uid, pid_file.stat().st_uid) == (NOBODY.pw_uid, 0)
    assert daemon.stop() == 0
    assert not pid_file.exists()  # the folder is nobody's
    assert log.read_text().count("\n") == 2


def test_every_thread_becomes_the_user(oinetd: Start, folder: Path) -> None:
    daemon = oinetd(f"logfile {folder}/log\n127.0.0.1 0 UPSTREAM\n", "-u", "nobody").ready()
    with Client(daemon.address) as client:
        client.echo(b"hello")
    for task in Path(f"/proc/{daemon.pid}/task").iterdir():
        assert re.search(rf"(?m)^Uid:\s+{NOBODY.pw_uid}\s", (task / "status").read_text())
    assert daemon.stop() == 0


def test_afterwards_it_can_still_reopen_and_reload(oinetd: Start, echo: EchoServer, folder: Path) -> None:
    first, second, log = own_address(), own_address(), folder / "log"
    conf = folder / "oinetd.conf"
    text = f"logfile {log}\n{first} 80 {echo.host} {echo.port}\n"
    conf.write_text(text)
    daemon = oinetd("", "-c", str(conf), "-u", "nobody").ready()
    daemon.conf = conf
    log.rename(folder / "log.1")
    daemon.signal(signal.SIGUSR1)
    until(log.exists, "the new log")
    assert log.stat().st_uid == NOBODY.pw_uid
    assert "reloaded" in daemon.reload(text + f"{second} 80 {echo.host} {echo.port}\n")
    for host in (first, second):
        with Client((host, 80)) as client:
            assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_a_configuration_that_the_user_cannot_read(oinetd: Start) -> None:
    daemon = oinetd("127.0.0.1 0 UPSTREAM\n", "-u", "nobody").ready()
    assert "Permission denied" in daemon.reload()  # the test's own folder is closed to nobody
    with Client(daemon.address) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_user_and_group(oinetd: Start, folder: Path) -> None:
    daemon = oinetd("127.0.0.1 0 UPSTREAM\n", "-u", "nobody:daemon").ready()
    facts = status(daemon.pid)
    daemons = str(grp.getgrnam("daemon").gr_gid)
    assert (facts["Uid"].split()[0], facts["Gid"].split()[0]) == (str(NOBODY.pw_uid), daemons)
    assert daemons in facts["Groups"].split()
    assert daemon.stop() == 0


def test_numbers_that_have_no_name(oinetd: Start) -> None:
    daemon = oinetd("127.0.0.1 0 UPSTREAM\n", "-u", "54321:54322").ready()
    facts = status(daemon.pid)
    assert (facts["Uid"].split()[0], facts["Gid"].split()[0], facts["Groups"].strip()) == ("54321", "54322", "54322")
    assert daemon.stop() == 0


def test_in_the_background(background: Callable[..., Background], folder: Path) -> None:
    daemon = background("127.0.0.1 0 UPSTREAM\n", "-u", "nobody", "-p", str(folder / "pid"))
    assert daemon.answer.returncode == 0
    pid = int((folder / "pid").read_text())
    assert status(pid)["Uid"].split()[0] == str(NOBODY.pw_uid)
    os.kill(pid, signal.SIGTERM)
    assert os.waitpid(pid, 0)[1] == 0
    assert not (folder / "pid").exists()


def test_a_pid_file_that_cannot_be_removed_any_more_is_empty(oinetd: Start, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"  # in root's folder
    daemon = oinetd(f"pidlogfile {pid_file}\n127.0.0.1 0 UPSTREAM\n", "-u", "nobody").ready()
    assert pid_file.read_text() == f"{daemon.pid}\n"
    assert daemon.stop() == 0
    assert pid_file.read_text() == ""
