"""Root, until everything is open."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.process import (
    ROOT,
    Background,
    Client,
    EchoServer,
    Oinetd,
    call,
    own_address,
    text_of,
    through,
    until,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")

NOBODY = pwd.getpwnam("nobody")
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW = 10, 12, 13
PR_CAPBSET_DROP = 24

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
    return status_of(Path(f"/proc/{pid}/status"))


def status_of(path: Path) -> dict[str, str]:
    return dict(re.findall(r"(?m)^(\w+):\s*(.*)$", path.read_text()))


def test_it_becomes_the_user_after_it_has_bound(oinetd: Start, folder: Path) -> None:
    host, log, pid_file = own_address(), folder / "log", folder / "pid"
    text = f"logfile {log}\npidlogfile {pid_file}\n{host} 80 UPSTREAM\n"
    daemon = oinetd(text, "-u", "nobody").ready()
    with Client((host, 80)) as client:  # the threads of log and reactors are there
        client.echo(b"hello")
    for task in Path(f"/proc/{daemon.pid}/task").iterdir():
        facts = status_of(task / "status")
        assert facts["Uid"].split() == [str(NOBODY.pw_uid)] * 4
        assert facts["Gid"].split() == [str(NOBODY.pw_gid)] * 4
        assert facts["Groups"].split() == [str(NOBODY.pw_gid)]
        # Of all that root may do, only the ports below 1024 are left, and no other program gets even that.
        assert {int(facts[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {1 << CAP_NET_BIND_SERVICE}
        assert {int(facts[name], 16) for name in ("CapInh", "CapAmb")} == {0}
        assert facts["NoNewPrivs"] == "1"
    with Client((host, 80)) as client:
        assert client.echo(b"hello") == b"hello"
    # Whom root's scripts send a signal is not for the user to say.
    assert (log.stat().st_uid, pid_file.stat().st_uid) == (NOBODY.pw_uid, 0)
    assert daemon.stop() == 0
    assert not pid_file.exists()  # the folder is nobody's
    assert log.read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        ("mark=0x10", {CAP_NET_ADMIN}),
        ("src=client", {CAP_NET_RAW}),
        ("src=client, mark=1, engine=python", {CAP_NET_ADMIN, CAP_NET_RAW}),
    ],
)
def test_what_a_rule_needs_for_each_connection_is_kept(oinetd: Start, option: str, kept: set[int]) -> None:
    """Just that, and it works. All threads have it: they share their memory anyway."""
    daemon = oinetd(f"127.0.0.1 0 UPSTREAM [{option}]\n", "-u", "nobody").ready()
    with Client(daemon.address) as client:
        assert client.echo(b"hello") == b"hello"
        wanted = sum(1 << number for number in {CAP_NET_BIND_SERVICE, *kept})
        for task in Path(f"/proc/{daemon.pid}/task").iterdir():
            facts = status_of(task / "status")
            assert {int(facts[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {wanted}
            assert facts["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    assert daemon.stop() == 0


def test_capabilities_that_are_missing_are_errors(oinetd: Start) -> None:
    """With the place of each rule, the option, and the remedy."""
    libc = ctypes.CDLL(None)

    def drop() -> None:
        for number in (CAP_NET_ADMIN, CAP_NET_RAW):
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)

    options = {"mark=0x10": "CAP_NET_ADMIN", "src=client": "CAP_NET_RAW", "transparent": "CAP_NET_RAW"}
    daemon = oinetd("".join(f"127.0.0.1 0 UPSTREAM [{option}]\n" for option in options), before=drop)
    assert daemon.wait() == 78
    for number, (option, remedy) in enumerate(options.items(), 1):
        name = re.escape(option.removesuffix("=0x10"))
        said = rf"oinetd.conf:{number}: {name}: the kernel refuses it \(EPERM[^\n]*\n[^\n]*{remedy}"
        assert re.search(said, daemon.said), daemon.said


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


WATCH = """
import os, sys
import oinetd.process.privileges

def assume(self, *kept, real=oinetd.process.privileges.Identity.assume):
    entries = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
    sockets = sum("socket:" in os.readlink(each) for each in entries if os.path.lexists(each))
    print("threads", len(os.listdir("/proc/self/task")), "sockets", sockets, file=sys.stderr)
    real(self, *kept)
    sys.meta_path.insert(0, Late())

class Late:
    def find_spec(self, name, path=None, target=None):
        print("late import of", name, file=sys.stderr)

oinetd.process.privileges.Identity.assume = assume
"""


def test_rights_go_before_there_is_a_thread_or_a_socket(oinetd: Start, folder: Path, tmp_path: Path) -> None:
    """And all that may be imported later is there: the user may not be able to read the interpreter's files."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    host, conf = own_address(), folder / "oinetd.conf"
    text = (
        f"logfile {folder}/log\nlogformat json\n{host} 80 UPSTREAM\n{host} 81 UPSTREAM [engine=python]\n"
        f"{host} 80/udp UPSTREAM/udp\n{host} 81/udp UPSTREAM\n"
    )
    daemon = oinetd(text, "-u", "nobody", environ={"PYTHONPATH": f"{tmp_path}:{ROOT}"}).ready()
    conf.write_text(daemon.conf.read_text())
    daemon.wait_said("threads 1 sockets 1")  # that of the admin interface, whose folder is root's
    for port in (80, 81):
        with Client((host, port)) as client:
            assert client.echo(b"hello") == b"hello"
    daemon.reload()
    daemon.signal(signal.SIGUSR1)
    daemon.signal(signal.SIGUSR2)
    daemon.wait_said("rules?, ")
    assert daemon.stop() == 0
    assert "late import" not in daemon.said


def test_a_log_of_another_kind_than_a_new_file_keeps_its_owner(oinetd: Start, folder: Path) -> None:
    log = folder / "log"
    log.write_text("of before\n")
    daemon = oinetd(f"logfile {log}\n127.0.0.1 0 UPSTREAM\n", "-u", "nobody").ready()
    with Client(daemon.address) as client:
        client.echo(b"hello")
    assert daemon.stop() == 0
    assert log.stat().st_uid == 0
    assert log.read_text().count("\n") == 3


@pytest.mark.parametrize("words", [("-f",), ()])
def test_root_follows_no_link_that_the_user_has_made(folder: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (folder / "log").symlink_to(victim)
    os.chown(folder / "log", NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
    (tmp_path / "x.conf").write_text(f"logfile {folder}/log\n127.0.0.1 0 127.0.0.1 9\n")
    answer = call(tmp_path, "-c", "x.conf", "-u", "nobody", *words)
    assert answer.returncode == 78
    assert f"logfile {folder}/log: log is a symbolic link that another user made" in answer.stderr
    assert (victim.read_text(), victim.stat().st_uid) == ("precious\n", 0)


def opened_lines(log: Path) -> int:
    return text_of(log).count("opened")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_link_to_a_log_that_only_root_may_open(
    oinetd: Start, echo: EchoServer, folder: Path, tmp_path: Path, number: int
) -> None:
    host, conf, real = own_address(), folder / "oinetd.conf", tmp_path / "real"
    real.write_text("of before\n")
    (folder / "log").symlink_to(real)
    conf.write_text(f"logfile {folder}/log\n{host} 80 {echo.host} {echo.port}\n")
    daemon = oinetd("", "-c", str(conf), "-u", "nobody").ready()
    for count in (1, 2, 3):
        with Client((host, 80)) as client:
            client.echo(b"hello")
        until(lambda count=count: opened_lines(real) == count, "the line")
        daemon.signal(number)
        if number == signal.SIGHUP:
            until(lambda count=count: daemon.said.count("reloaded") == count, "the reload")
    assert daemon.stop() == 0
    assert "failed" not in daemon.said
    assert real.read_text().count("\n") == 7


@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/stderr", "-", "link"])
def test_a_log_on_standard_output(oinetd: Start, echo: EchoServer, folder: Path, name: str, kind: str) -> None:
    """It belongs to root, and a socket could not be opened at all: the descriptor is used as it is."""
    host, conf = own_address(), folder / "oinetd.conf"
    if name == "link":
        (folder / "link").symlink_to("/dev/stdout")
        name = f"{folder}/link"
    conf.write_text(f"logfile {name}\n{host} 80 {echo.host} {echo.port}\n")
    # A reader in between, for a descriptor that is no file.
    make = {
        "pipe": "pair = os.pipe()",
        "socket": "import socket; pair = [each.detach() for each in socket.socketpair()]",
        "file": "pair = None",
    }[kind]
    number = 2 if "stderr" in name else 1
    code = f"""{make}
if pair and os.fork() == 0:
    os.setsid()  # it ends with the last writer, and is nobody's concern until then
    os.close(pair[1])
    while piece := os.read(pair[0], 65536):
        os.write({number}, piece)
    os._exit(0)
if pair:
    os.dup2(pair[1], {number})
    os.closerange(3, 16)"""
    daemon = oinetd("", "-c", str(conf), "-u", "nobody", command=through(code)).ready()
    out = (lambda: daemon.said) if number == 2 else (lambda: daemon.out)
    for count in (1, 2, 3):
        with Client((host, 80)) as client:
            client.echo(b"hello")
        until(lambda count=count: out().count("\topened") == count, "the line")
        daemon.signal(signal.SIGUSR1)
        daemon.signal(signal.SIGHUP)
        until(lambda count=count: daemon.said.count("reloaded") == count, "the reload")
    assert daemon.stop() == 0
    until(lambda: out().count("\tdone-remote-closed") == 3, "the last lines")
    assert "failed" not in daemon.said


def test_no_log_and_a_working_directory_that_the_user_may_not_write(oinetd: Start, folder: Path) -> None:
    conf = folder / "oinetd.conf"
    conf.write_text("127.0.0.1 0 127.0.0.1 9\n")
    daemon = oinetd("", "-c", str(conf), "-u", "nobody", command=through("os.chdir('/')")).ready()
    assert "reloaded" in daemon.reload()
    assert daemon.stop() == 0


# Root without the capability to go where the modes of files do not let it: an ordinary user in this respect.
ORDINARY = "import ctypes\nfor number in (1, 2): ctypes.CDLL(None).prctl(24, number, 0, 0, 0)"


def test_no_log_in_a_directory_that_may_not_be_written(
    oinetd: Start, background: Callable[..., Background], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    code = f"{ORDINARY}\nos.chdir({str(place)!r})"
    (tmp_path / "x.conf").write_text("127.0.0.1 0 127.0.0.1 9\n")
    assert call(tmp_path, "-t", "-c", f"{tmp_path}/x.conf", command=through(code)).stdout == "OK\n"
    first = oinetd("127.0.0.1 0 UPSTREAM\n", command=through(code)).ready()
    assert "reloaded" in first.reload()
    assert first.stop() == 0
    second = background("127.0.0.1 0 UPSTREAM\n", "-c", f"{tmp_path}/oinetd.conf", command=through(code))
    assert second.answer.returncode == 0
    assert second.stop() == 0


def test_the_program_of_an_upgrade_has_the_capabilities_and_gives_them_to_no_other(
    reaper: None, oinetd: Start, folder: Path, tmp_path: Path
) -> None:
    """It binds ports below 1024, too. The user is one that can run nothing but a shell here."""
    told, program = folder / "told", folder / "program"
    program.write_text(f"#!/bin/sh\ncat /proc/$$/status >{told}\n")
    program.chmod(0o755)
    environ = {"RUNTIME_DIRECTORY": str(folder / "run")}
    daemon = oinetd("127.0.0.1 0 UPSTREAM\n", "-u", "nobody", environ=environ).ready()
    done = call(tmp_path, "upgrade", "--to", str(program), "--admin", f"{folder}/run/oinetd.sock", **environ)
    assert done.returncode == 75, done
    facts = status_of(told)
    assert {int(facts[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {1 << CAP_NET_BIND_SERVICE}
    assert facts["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    assert facts["NoNewPrivs"] == "1"
    for task in Path(f"/proc/{daemon.pid}/task").iterdir():  # those of the process that goes on are as they were
        facts = status_of(task / "status")
        assert {int(facts[name], 16) for name in ("CapInh", "CapAmb")} == {0}
    assert daemon.stop() == 0


KEEPS = """
from oinetd.process.privileges import Identity, has_ambient, keep_to_oneself, passed_on

def sets():
    lines = open("/proc/thread-self/status").read().splitlines()
    return {line[3:6]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}

Identity.parse("nobody").assume()
own = sets()
assert own["Prm"] == 1 << 10 and not has_ambient()
with passed_on():
    assert sets() == {**own, "Inh": own["Prm"], "Amb": own["Prm"]}
    keep_to_oneself()  # as the program does that was started so
    assert sets() == own and not has_ambient()
assert sets() == own
print("kept", end="")
"""


def test_capabilities_are_passed_on_for_a_moment_only() -> None:
    done = subprocess.run([sys.executable, "-c", KEEPS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("kept", "")
