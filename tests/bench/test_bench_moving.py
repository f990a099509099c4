"""The experiments about threads and about replacement: what their figures are made of."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.experiments.scaling import Threaded, imbalance
from bench.identity import RunName
from bench.programs import ROOT
from bench.subjects import Route, Setup
from bench.subjects.peers import Haproxy
from bench.subjects.replaceable import replaceable_subjects
from bench.topology import Loopback
from oinetd.config import parse_config
from tests.peers import free_port

ROUTE = Route("127.0.0.1", 5001, "127.0.0.1", 5002)


def test_the_imbalance_is_the_busiest_by_the_mean() -> None:
    assert imbalance([2.0, 2.0, 0.0], 2) == (1.0, 2)
    assert imbalance([3.0, 1.0], 2) == (1.5, 2)
    assert imbalance([4.0, 0.1], 2) == (pytest.approx(8 / 4.1), 1)
    assert imbalance([4.0], 4) == (4.0, 1)
    assert imbalance([], 2) == (None, 0)


def test_each_has_its_number_of_threads(tmp_path: Path) -> None:
    subject = Threaded(Haproxy(splice=False), 3)
    assert subject.name == "haproxy×3"
    subject.commands(Setup(Loopback(RunName.new()), (ROUTE,), tmp_path))
    assert "nbthread 3" in (tmp_path / "haproxy.cfg").read_text()


def test_those_that_can_be_replaced_say_how(tmp_path: Path) -> None:
    for number, subject in enumerate(replaceable_subjects()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (command,) = subject.commands(Setup(Loopback(RunName.new()), (ROUTE,), folder))
        text = next(folder.glob("*.c*f*")).read_text()
        if "oinetd" in subject.name:
            assert len(parse_config(text).rules) == 2
        elif "haproxy" in subject.name:
            assert "expose-fd listeners" in text
            assert command[0] == "sh"
        else:
            assert "listen 127.0.0.1:5001 udp;" in text
            assert text.count("{") == text.count("}")


def test_the_load_counts_what_fails() -> None:
    """Through nothing at all: the server itself, and a port where nobody is."""
    port = free_port()
    words = [sys.executable, "-m", "bench.continuity"]
    server = subprocess.Popen([*words, "serve", "127.0.0.1", str(port)], cwd=ROOT)
    try:
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
        many = ["--idle", "3", "--half", "1", "--half-s", "0", "--round-trips", "2", "--bulk", "1", "--datagrams", "2"]
        good = load(port, "--rate", "100", *many)
        assert good["counts"]["lasting"] == 9
        assert good["counts"]["blocks"] > 0
        assert (good["faults"], good["counts"]["new_ports"]) == ({}, 0)
    finally:
        server.kill()
        server.wait()
    bad = load(port, "--rate", "100")
    assert bad["counts"]["new_failed"] > 0
    assert "new" not in bad["counts"]


def load(port: int, *words: str) -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "bench.continuity", "load", "127.0.0.1", str(port), *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(0.3)  # it does not end by itself
        said, _ = program.communicate("\n")
        found: dict[str, dict[str, int]] = json.loads(said)
        return found
