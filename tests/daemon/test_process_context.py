"""What a process inherits from whoever starts it: nothing of it keeps oinetd from serving and from ending."""

from __future__ import annotations

import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from tests.daemon.process import Background, Client, Oinetd, call, listening, surroundings, text_of, through, until

RULE = "127.0.0.1 0 UPSTREAM\n"
CLOSED = [group for count in (1, 2, 3) for group in combinations((0, 1, 2), count)]

Start = Callable[..., Oinetd]
StartBackground = Callable[..., Background]


def serves(pid: int) -> bool:
    """Whether the first address of the process forwards."""
    with Client(listening(pid)[0]) as client:
        return client.echo(b"hello") == b"hello"


def standard(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)]


def status(pid: int) -> dict[str, str]:
    return dict(re.findall(r"(?m)^(\w+):\s*(.*)$", Path(f"/proc/{pid}/status").read_text()))


def has(pid: int, field: str, number: int) -> bool:
    return bool(int(status(pid)[field], 16) >> (number - 1) & 1)


def closing(numbers: tuple[int, ...]) -> tuple[str, ...]:
    return through(f"for number in {numbers}: os.close(number)")


def test_nothing_takes_the_number_of_a_closed_stream_before_it_is_filled() -> None:
    """libffi 3.5 opens a file when ctypes is imported, and keeps it."""
    code = "import sys, oinetd.process.cli; sys.exit('ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("numbers", CLOSED, ids=str)
def test_closed_streams_in_the_foreground(oinetd: Start, tmp_path: Path, numbers: tuple[int, ...]) -> None:
    daemon = oinetd(f"logfile {tmp_path}/log\n" + RULE, command=closing(numbers)).ready()
    links = standard(daemon.pid)
    assert all((links[number] == "/dev/null") for number in numbers)
    assert serves(daemon.pid)
    daemon.signal(signal.SIGUSR2)
    assert daemon.stop() == 0
    assert text_of(tmp_path / "log").count("\n") == 2
    if 2 not in numbers:
        assert "stopping" in daemon.said


@pytest.mark.parametrize("numbers", CLOSED, ids=str)
def test_closed_streams_of_a_daemon(background: StartBackground, tmp_path: Path, numbers: tuple[int, ...]) -> None:
    daemon = background(f"logfile {tmp_path}/log\n" + RULE, command=closing(numbers))
    assert daemon.answer.returncode == 0
    assert standard(daemon.pid) == ["/dev/null"] * 3
    assert serves(daemon.pid)
    assert daemon.stop() == 0
    assert text_of(tmp_path / "log").count("\n") == 2


def test_a_connection_log_on_a_closed_standard_output(oinetd: Start) -> None:
    daemon = oinetd("logfile -\n" + RULE, command=closing((1,))).ready()
    assert serves(daemon.pid)
    assert daemon.stop() == 0


@pytest.mark.parametrize("words", [("-t",), ("-T",), ("-v",), ("-h",), ("--nonsense",), ("-c", "none.conf")], ids=str)
def test_closed_streams_of_a_command(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "x.conf").write_text("127.0.0.1 0 127.0.0.1 9\n")
    answer = call(tmp_path, "-c", "x.conf", *words)
    assert "Traceback" not in answer.stderr
    closed = call(tmp_path, "-c", "x.conf", *words, command=closing((0, 1, 2)))
    assert closed.returncode == answer.returncode


IGNORED = "for number in signal.valid_signals() - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)"
BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"


@pytest.mark.parametrize("code", [IGNORED, BLOCKED, f"{IGNORED}\n{BLOCKED}"], ids=["ignored", "blocked", "both"])
def test_signals_in_the_foreground(oinetd: Start, code: str) -> None:
    daemon = oinetd(RULE, command=through(code)).ready()
    assert int(status(daemon.pid)["SigBlk"], 16) == 0
    assert "reloaded" in daemon.reload()
    daemon.signal(signal.SIGUSR2)
    daemon.wait_said("1 rule, ")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        assert has(daemon.pid, "SigCgt", number)
    assert not has(daemon.pid, "SigIgn", signal.SIGCHLD)
    assert daemon.stop() == 0


@pytest.mark.parametrize("code", [IGNORED, BLOCKED, f"{IGNORED}\n{BLOCKED}"], ids=["ignored", "blocked", "both"])
def test_signals_of_a_daemon(background: StartBackground, code: str) -> None:
    # The command waits for its child, which an ignored SIGCHLD would take away from it.
    daemon = background(RULE, command=through(code))
    assert (daemon.answer.returncode, "Traceback" in daemon.answer.stderr) == (0, False)
    assert int(status(daemon.pid)["SigBlk"], 16) == 0
    assert serves(daemon.pid)
    assert daemon.stop() == 0


GONE = "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"


def test_a_working_directory_that_was_removed(oinetd: Start, background: StartBackground, tmp_path: Path) -> None:
    first = oinetd(f"logfile {tmp_path}/log\n" + RULE, command=through(GONE)).ready()
    assert "reloaded" in first.reload()
    assert first.stop() == 0
    second = background(RULE, "-c", str(tmp_path / "oinetd.conf"), command=through(GONE))
    assert second.answer.returncode == 0
    assert serves(second.pid)
    assert second.stop() == 0


@pytest.mark.parametrize("line", ["logfile log", "pidlogfile pid"])
@pytest.mark.parametrize("words", [("-f",), ()])
def test_a_relative_name_in_a_directory_that_was_removed(tmp_path: Path, line: str, words: tuple[str, ...]) -> None:
    (tmp_path / "x.conf").write_text(f"{line}\n127.0.0.1 0 127.0.0.1 9\n")
    answer = call(tmp_path, "-c", f"{tmp_path}/x.conf", *words, command=through(GONE))
    assert answer.returncode == 78
    assert "the working directory has been removed\n    hint: " in answer.stderr


@pytest.mark.parametrize(("umask", "log_mode"), [(0, 0o640), (0o027, 0o640), (0o077, 0o600), (0o777, 0o600)])
def test_the_umask(oinetd: Start, tmp_path: Path, umask: int, log_mode: int) -> None:
    text = f"logfile {tmp_path}/log\npidlogfile {tmp_path}/pid\n" + RULE
    daemon = oinetd(text, command=through(f"os.umask({umask})")).ready()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == log_mode
    assert stat.S_IMODE((tmp_path / "pid").stat().st_mode) == 0o644
    assert daemon.stop() == 0


def test_few_descriptors(oinetd: Start) -> None:
    code = "resource.setrlimit(resource.RLIMIT_NOFILE, (20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))"
    daemon = oinetd(RULE, command=through(code)).ready()
    soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    assert soft == min(hard, 1_048_576)
    assert serves(daemon.pid)
    assert daemon.stop() == 0


@pytest.mark.parametrize("size", ["131072", "8 << 30", "resource.RLIM_INFINITY"])
def test_the_size_of_stacks(oinetd: Start, size: str) -> None:
    code = f"resource.setrlimit(resource.RLIMIT_STACK, ({size}, resource.getrlimit(resource.RLIMIT_STACK)[1]))"
    daemon = oinetd(RULE, command=through(code)).ready()
    assert "native lane" in daemon.wait_said("listening on .*").group()
    assert serves(daemon.pid)
    assert daemon.stop() == 0


def test_a_limit_of_file_sizes_is_a_full_disk(oinetd: Start, tmp_path: Path) -> None:
    code = "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))"
    log = tmp_path / "log"
    daemon = oinetd(f"logfile {log}\npidlogfile {tmp_path}/pid\n" + RULE, command=through(code))
    until(lambda: daemon.manager.count("READY=1"), "its readiness")
    assert serves(daemon.pid)
    until(lambda: log.stat().st_size == 10, "what the limit allows")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


def test_variables_that_are_empty(oinetd: Start) -> None:
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "TZ")
    daemon = oinetd(RULE, environ=dict.fromkeys((*names, "INVOCATION_ID", "LANG", "LC_ALL"), "")).ready()
    assert "reloaded" in daemon.reload()
    assert daemon.stop() == 0


def test_a_notify_socket_that_is_empty(oinetd: Start) -> None:
    daemon = oinetd(RULE, environ={"NOTIFY_SOCKET": ""})
    assert serves(daemon.pid if daemon.wait_said("listening on .*,") else 0)
    assert daemon.stop() == 0


@pytest.mark.parametrize("count", ["9" * 9, "9" * 30])
def test_a_number_of_passed_descriptors_that_makes_no_sense(oinetd: Start, count: str) -> None:
    code = f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS={count!r})"
    daemon = oinetd(RULE, command=through(code)).ready()
    assert daemon.said.count("warning: ") < 30
    assert serves(daemon.pid)
    assert daemon.stop() == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict"])
def test_a_configuration_is_printed_as_it_was_read(tmp_path: Path, encoding: str) -> None:
    line = "logfile /tmp/\u00fc\udcfc\u20ac.log".encode("utf-8", "surrogateescape")
    (tmp_path / "x.conf").write_bytes(line + b"\n")
    answer = subprocess.run(
        [sys.executable, "-m", "oinetd", "-T", "-c", "x.conf"],
        cwd=tmp_path,
        env=surroundings(PYTHONIOENCODING=encoding),
        capture_output=True,
    )
    assert line in answer.stdout.splitlines()


@pytest.mark.parametrize("words", ["-t", "-T"])
def test_a_standard_output_that_takes_nothing(tmp_path: Path, words: str) -> None:
    (tmp_path / "x.conf").write_text("127.0.0.1 0 127.0.0.1 9\n")
    full = call(tmp_path, words, "-c", "x.conf", command=through("os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"))
    assert (full.returncode, full.stderr) == (71, "oinetd: standard output: No space left on device\n")
    code = "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)"
    broken = call(tmp_path, words, "-c", "x.conf", command=through(code))
    assert (broken.returncode, broken.stderr) == (71, "oinetd: standard output: Broken pipe\n")


def test_a_user_that_may_have_no_threads(oinetd: Start) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give it up: root has as many threads as it wants")
    code = "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))"
    daemon = oinetd(RULE, "-u", "54321:54321", command=through(code))
    until(lambda: daemon.manager.count("READY=1") or daemon.process.poll() is not None, "its start")
    if daemon.process.poll() is None:
        daemon.signal(signal.SIGTERM)
    daemon.wait()
    assert "Traceback" not in daemon.said


def test_a_daemon_holds_nothing_of_what_its_starter_had_open(
    background: StartBackground, oinetd: Start, tmp_path: Path
) -> None:
    code = "for number in (3, 7, 200): os.dup2(os.open('lock', os.O_RDWR | os.O_CREAT), number)"
    daemon = background(RULE, command=through(code))
    lock = str(tmp_path / "lock")
    held = [os.readlink(entry) for entry in Path(f"/proc/{daemon.pid}/fd").iterdir()]
    assert lock not in held
    assert serves(daemon.pid)
    assert daemon.stop() == 0
    # In the foreground a supervisor's descriptors are its own affair.
    supervised = oinetd(RULE, command=through(code)).ready()
    assert lock in [os.readlink(entry) for entry in Path(f"/proc/{supervised.pid}/fd").iterdir()]
    assert supervised.stop() == 0
