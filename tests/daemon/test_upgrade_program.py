"""The program that an upgrade starts: which may be started, what it is given, what becomes of one that is no good."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oinetd.lanes.native.plane import available
from oinetd.upgrade.give import child_environment, is_trusted
from tests.daemon.process import Client, Oinetd, call, text_of, until
from tests.daemon.upgrading import group_lives, pid_of, successors, upgrade
from tests.peers import free_port

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

Start = Callable[..., Oinetd]

OINETD = f'exec {sys.executable} -I -m oinetd "$@"\n'

WAITS = "until test -e {folder}/go; do sleep 0.01; done\n"
"""A shell that waits for the test."""


def script(folder: Path, text: str) -> str:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def asked(tmp_path: Path, environ: dict[str, str]) -> Iterator[Callable[..., Callable[[], object]]]:
    """Begins an upgrade; what it returns waits for the end and answers what the command said."""
    asking: list[threading.Thread] = []

    def begin(*words: str) -> Callable[[], object]:
        done: list[object] = []
        thread = threading.Thread(target=lambda: done.append(upgrade(tmp_path, environ, *words)))
        asking.append(thread)
        thread.start()

        def end() -> object:
            thread.join()
            return done[0]

        return end

    yield begin
    (tmp_path / "go").touch()
    for each in asking:
        each.join()


def test_it_gets_the_words_user_group_and_capabilities_and_no_variable_that_changes_programs(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    told = tmp_path / "told"
    says = 'pwd; echo "$@"; cat /proc/self/cgroup; grep -E "^(Uid|Gid|Groups|Cap)" /proc/self/status; env'
    program = script(tmp_path, f"{{ {says}; }} >{told}\n")
    environ |= {"LD_HINT": "x", "PYTHONHINT": "x", "WATCHDOG_USEC": "9000000"}
    daemon = start(f"127.0.0.1 {free_port()} UPSTREAM\n")
    assert upgrade(tmp_path, environ, "--to", program).returncode == 75
    said = told.read_text().splitlines()
    assert said[:2] == ["/", f"-f -c {daemon.conf}"]
    for path, pattern in (
        ("cgroup", ""),
        ("status", "Uid"),
        ("status", "Gid"),
        ("status", "Groups"),
        ("status", "Cap"),
    ):
        own = Path(f"/proc/{daemon.pid}/{path}").read_text().splitlines()
        assert all(line in said for line in own if line.startswith(pattern))
    variables = [line.partition("=")[0] for line in said if "=" in line]
    assert "OINETD_UPGRADE" in variables
    assert "NOTIFY_SOCKET" in variables
    assert not [name for name in variables if name.startswith(("PYTHON", "LD_", "WATCHDOG_PID"))]


def test_variables_that_change_what_is_loaded_are_dropped() -> None:
    kept = {"PATH": "/bin", "LANG": "C", "MY_PYTHON": "x"}
    dropped = {"PYTHONPATH": "x", "PYTHONHOME": "x", "PYTHONSTARTUP": "x", "LD_PRELOAD": "x", "LD_LIBRARY_PATH": "x"}
    assert child_environment({**kept, **dropped}) == kept


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_a_program_that_others_could_replace_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    path = Path(script(inner, ""))
    trusted = str(path)
    assert not is_trusted(trusted, 0)
    for each in (path, inner, tmp_path / "a"):
        mode = each.stat().st_mode & 0o7777
        for more in (0o020, 0o002):
            each.chmod(mode | more)
            assert f"other users can write to {each}" in is_trusted(trusted, 0)
        each.chmod(mode)
        os.chown(each, 12345, 0)
        assert f"{each} belongs to user 12345" in is_trusted(trusted, 0)
        assert not is_trusted(trusted, 12345)
        os.chown(each, 0, 0)
    (tmp_path / "a").chmod(0o1777)  # as /tmp: nobody can rename what is another user's
    assert not is_trusted(trusted, 0)
    link = tmp_path / "link"
    link.symlink_to(path)
    inner.chmod(0o777)
    assert "other users can write" in is_trusted(str(link), 0)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    plain.chmod(0o644)
    assert is_trusted(str(plain), os.geteuid()) == "cannot be executed"
    assert is_trusted(str(tmp_path), os.geteuid()) == "is not a file"
    assert is_trusted(str(tmp_path / "none"), os.geteuid()) == "there is no such file"
    assert is_trusted("oinetd", os.geteuid()) == "is not an absolute path"


def test_a_file_that_the_kernel_cannot_execute_changes_nothing(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    port = free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    path = tmp_path / "noise"
    path.write_bytes(b"\x7fELF and nothing more")
    path.chmod(0o755)
    assert upgrade(tmp_path, environ, "--to", str(path)).returncode == 75
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
    assert pid_of(tmp_path, environ) == daemon.pid


def test_another_program_takes_over(start: Start, tmp_path: Path, environ: dict[str, str]) -> None:
    port = free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
        assert upgrade(tmp_path, environ, "--to", script(tmp_path, OINETD)).returncode == 0, daemon.said
        assert client.echo(b"y") == b"y"
    assert successors(daemon) == [pid_of(tmp_path, environ)]


def test_one_that_says_nothing_is_ended(start: Start, tmp_path: Path, environ: dict[str, str]) -> None:
    port, told = free_port(), tmp_path / "told"
    daemon = start(f"upgrade-timeout 0.2s\n127.0.0.1 {port} UPSTREAM\n")
    done = upgrade(tmp_path, environ, "--to", script(tmp_path, f"echo $$ >{told}\nexec sleep 1000\n"))
    assert (done.returncode, "timed out" in done.stderr) == (75, True), done
    until(lambda: not Path(f"/proc/{int(told.read_text())}/root").exists(), "its end")
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
    assert pid_of(tmp_path, environ) == daemon.pid


def test_a_second_upgrade_meanwhile_is_refused(
    start: Start, tmp_path: Path, environ: dict[str, str], asked: Callable[..., Callable[[], object]]
) -> None:
    port, told = free_port(), tmp_path / "told"
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    end = asked("--to", script(tmp_path, f"echo here >{told}\n{WAITS.format(folder=tmp_path)}{OINETD}"))
    until(lambda: text_of(told), "the first program")
    for words in ((), ("--dry-run",)):
        second = upgrade(tmp_path, environ, *words)
        assert (second.returncode, "another upgrade is under way" in second.stderr) == (75, True), second
    (tmp_path / "go").touch()
    done = end()
    assert done.returncode == 0, daemon.said  # type: ignore[attr-defined]
    assert len(successors(daemon)) == 1


def test_a_stop_before_the_new_process_is_ready_ends_both(
    start: Start, tmp_path: Path, environ: dict[str, str], asked: Callable[..., Callable[[], object]]
) -> None:
    told = tmp_path / "told"
    daemon = start(f"127.0.0.1 {free_port()} UPSTREAM\n")
    asked("--to", script(tmp_path, f"echo here >{told}\n{WAITS.format(folder=tmp_path)}{OINETD}"))
    until(lambda: text_of(told), "the program")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not successors(daemon)
    until(lambda: not group_lives(daemon.pid), "the end of the program")
    assert daemon.manager.count("STOPPING=1") == 1
    assert not list((tmp_path / "run").iterdir())


def test_a_configuration_that_cannot_be_opened_any_more_is_the_answer(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    daemon = start(f"127.0.0.1 {free_port()} UPSTREAM\n")
    text = daemon.conf.read_text()
    daemon.conf.unlink()
    done = upgrade(tmp_path, environ)
    assert f"oinetd: no configuration file found: {daemon.conf}\n" in done.stderr
    assert "the running process goes on" in done.stderr
    daemon.conf.write_text(text)
    assert upgrade(tmp_path, environ).returncode == 0


def test_a_second_start_names_the_process_that_has_taken_over(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    daemon = start(f"127.0.0.1 {free_port()} UPSTREAM\n")
    assert upgrade(tmp_path, environ).returncode == 0
    again = call(tmp_path, "-f", "-c", str(daemon.conf), **environ)
    assert again.returncode == 71
    assert f"in use by another oinetd (pid {pid_of(tmp_path, environ)});" in again.stderr
    assert pid_of(tmp_path, environ) != daemon.pid


def test_without_descriptors_it_fails_and_says_so(start: Start, tmp_path: Path, environ: dict[str, str]) -> None:
    daemon = start(f"127.0.0.1 {free_port()} UPSTREAM\n")
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    used = {int(each) for each in os.listdir(f"/proc/{daemon.pid}/fd")}
    free = (number for number in range(before[0]) if number not in used)
    next(free)  # for the connection of the command
    codes = set()
    for _ in range(8):
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (next(free), before[1]))
        done = upgrade(tmp_path, environ)
        codes.add(done.returncode)
        assert done.returncode == 0 or "Too many open files" in done.stderr
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
    assert 75 in codes
    assert codes <= {0, 75}
    assert "Traceback" not in daemon.said
