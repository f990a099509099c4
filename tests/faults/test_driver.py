"""The driver: a short run holds every invariant, and each planted fault is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest

from tests.daemon.process import ROOT
from tests.faults.invariants import Broken, Done, check_log, check_said
from tests.faults.plants import PLANTS


def drive(*words: str) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program, package in (("nft", "nftables"), ("tc", "iproute2"), ("unshare", "util-linux")):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"{program} is missing (Debian: apt install {package})")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--minutes", "0", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    if done.returncode not in (0, 1) and "Operation not permitted" in done.stdout:
        pytest.skip("there are no namespaces here")
    return done


def test_a_short_run_holds() -> None:
    done = drive("--seed", "1", "--round", "1.5")
    assert "every invariant held" in done.stdout, done.stdout
    assert done.returncode == 0


def test_two_connections_of_one_port_have_their_own_lines() -> None:
    """The first was reset by oinetd after its client had ended, and the line of the second is not its."""
    first, second = Done(50896, 508, 0, whole=False), Done(50896, 508, 0)
    lines = []
    for number, up in ((1, 8), (2, 508)):
        said = {"event": "opened", "id": number}
        closed = {
            "event": "closed",
            "duration_s": 0,
            "client_port": 50896,
            "bind_port": 7001,
            "bytes_up": up,
            "bytes_down": 0,
        }
        lines += [json.dumps(said), json.dumps(said | closed)]
    assert check_log(lines, [first, second], whole=True) == (2, {7001: 516}, {7001: 0})
    with pytest.raises(Broken, match="no closing line"):
        check_log(lines, [replace(first, whole=True), second], whole=True)
    with pytest.raises(Broken, match="no closing line"):
        check_log(lines, [first, first, first], whole=True)


@pytest.mark.parametrize("ending", ["client-closed", "drained"])
def test_an_operator_may_cut_off_what_a_client_that_has_gone_had_sent(ending: str) -> None:
    said = {"id": 1, "duration_s": 0, "client_port": 5, "bind_port": 7001, "bytes_up": 64, "bytes_down": 0}
    lines = [json.dumps({"event": "opened", **said}), json.dumps({"event": "closed", "ending": ending, **said})]
    with nullcontext() if ending == "drained" else pytest.raises(Broken, match="no closing line"):
        check_log(lines, [Done(5, 300, 0)], whole=True)


STARTS = """\
Error processing line 1 of /venv/lib/python3.11/site-packages/oinetd.pth:

2026-11-27 02:45:25 warning: cannot accept
  Traceback (most recent call last):
    File "<frozen site>", line 186, in addpackage
    File "<string>", line 1, in <module>
    File "{root}/oinetd/model.py", line 7, in {where}
    File "/usr/lib/python3.11/pathlib.py", line 1, in <module>
      import fnma2026-11-27 02:45:26 warning: cannot accept
tch
  {error}

Remainder of file ignored
"""


LOST = """\
Exception ignored when trying to write to the signal wakeup fd:
Traceback (most recent call last):
  File "{root}/oinetd/net/file_watch.py", line 124, in _on_events
    def _on_events(self) -> None:
{blank}
OSError: [Errno {number}] No buffer space available
"""


def test_a_signal_that_the_interpreter_cannot_tell_of_is_no_fault() -> None:
    check_said(LOST.format(root=ROOT, blank="", number=105))
    with pytest.raises(Broken, match="a traceback"):
        check_said(LOST.format(root=ROOT, blank="", number=9))


def test_an_interpreter_that_finds_no_memory_as_it_starts_is_no_fault() -> None:
    for error in ("OSError: [Errno 12] Cannot allocate memory: 'a.py'", "OSError: [Errno 14] Bad address"):
        check_said(STARTS.format(root=ROOT, where="<module>", error=error))
    with pytest.raises(Broken, match="a traceback"):
        check_said(STARTS.format(root=ROOT, where="<module>", error="OSError: [Errno 24] Too many open files"))
    with pytest.raises(Broken, match="a traceback"):
        check_said(STARTS.format(root=ROOT, where="load", error="MemoryError"))


FOUND = {
    "lost-byte": "BROKEN .* bytes: .*the first wrong one",
    "doubled-byte": "BROKEN .* bytes: .*the first wrong one",
    "invented-fin": "BROKEN .* a FIN after",
    "leaked-descriptor": "BROKEN .* descriptors leaked",
    "leaked-memory": "BROKEN .* memory leaked",
    "missing-line": "BROKEN .* without a closing line",
    "second-line": "BROKEN .* has two closing lines",
    "wrong-counter": "BROKEN .* bytes_up of all is",
    "wrong-counter-of-a-rule": "BROKEN .* bytes down more than the counters",
    "live-count": "BROKEN .* are counted as live",
    "traceback": "BROKEN .* a traceback",
    "lasting-session": "BROKEN .* sessions do not end",
    "foreign-datagram": "BROKEN .* a datagram of another client",
    "uncounted-datagram": "BROKEN .* datagrams by",
    "wrong-client": "BROKEN .* its header names",
}


@pytest.mark.skipif(not os.environ.get("OINETD_PACKAGE_TESTS"), reason="takes long: `make package-test` runs it")
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_is_found(plant: str) -> None:

    done = drive("--seed", "2", "--round", "0.7", "--plant", plant)
    assert re.search(FOUND[plant], done.stdout), done.stdout
    assert done.returncode == 1
