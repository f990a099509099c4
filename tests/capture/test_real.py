"""Short real runs of the capture, as root: a ring on this machine's network, in namespaces, beside tcpdump."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.capture.judgement import judge
from bench.capture.sniffer import sniffer_arguments
from bench.capture.streams import Stream
from bench.capture.tcpdump import read_pcap
from bench.capture.traffic import RECEIVE_QUEUE, SEND_QUEUE, Sent, queue_seq
from bench.programs import listening_ports, wait_until
from tests.peers import free_port

pytest.importorskip("bench._native")
output = pytest.importorskip("bench.capture.output", reason="the bench extra is not installed")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a packet capture needs root")


@contextmanager
def sniffing(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.capture.sniffer", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "go\n"
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> dict[str, object]:
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    told: dict[str, object] = json.loads(process.stdout.read())
    return told


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


def test_every_byte_on_loopback_is_seen_once(tmp_path: Path) -> None:
    port, pcap = free_port(), tmp_path / "talk.pcap"
    with sniffing(*sniffer_arguments([port], 1 << 20, pcap=str(pcap))) as process:
        with socket.create_server(("127.0.0.1", port)) as listener:
            client = socket.create_connection(("127.0.0.1", port))
            server, _ = listener.accept()
        with client, server:
            first = queue_seq(client, SEND_QUEUE)
            client.sendall(b"x" * 100_000)
            client.shutdown(socket.SHUT_WR)
            count = 0
            while got := server.recv(65536):
                count += len(got)
            assert count == 100_000
            last = queue_seq(server, RECEIVE_QUEUE)
            sent = Sent(client.getsockname()[1], port, first, 100_000)
            assert (last - 1 - count) % 2**32 == first
        told = ended(process)
    streams = [Stream.load(stream) for stream in told["streams"]]  # type: ignore[attr-defined]
    leg = judge([sent], streams)
    assert (leg.missed, leg.gaps) == (0, 0)
    assert streams[0].length == 100_000
    assert streams[0].base == first
    # Seen going out and coming in, it would have been there twice.
    assert streams[0].repeated == 0
    assert told["kernel"]["packets"] == told["counts"]["packets"]  # type: ignore[index]
    again = read_pcap(pcap)
    assert [stream.as_dict() for stream in again] == [stream.as_dict() for stream in streams]


def test_the_last_block_is_waited_for() -> None:
    """One small packet lies in a block that is far from full when the capture is told to end."""
    port = free_port()
    with sniffing(*sniffer_arguments([port], 1 << 20)) as process:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0  # nobody listens: a SYN and a reset
        told = ended(process)
    assert told["counts"]["packets"] == 2  # type: ignore[index]


def test_sequence_numbers_come_from_the_kernel() -> None:
    with connected() as (client, server):
        first = queue_seq(client, SEND_QUEUE)
        assert queue_seq(server, RECEIVE_QUEUE) == first
        client.sendall(b"x" * 1000)
        received = b""
        while len(received) < 1000:
            received += server.recv(1000)
        assert queue_seq(client, SEND_QUEUE) == (first + 1000) % 2**32
        client.sendall(b"after repair")
        assert server.recv(100) == b"after repair"


def test_no_ring_without_permission() -> None:
    command = [sys.executable, "-m", "bench.capture.sniffer", "--ports", "80"]
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups", *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "No module named" in done.stderr or "ermission denied" in done.stderr:
        pytest.skip("this tree is not readable for others")
    assert done.returncode == 1
    assert "needs root" in done.stderr


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *words], capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
def test_the_trial(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ("--subject", "python", "--payloads", "512", "--seconds", "0.3", "--rounds", "1", "--topology", "netns")
    done = bench("capture", *words, "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loss is seen" in " ".join(done.stdout.split())
    (directory,) = tmp_path.iterdir()
    assert {path.name for path in directory.iterdir()} == {"capture.csv", "capture.json", "capture.svg"}
    rows = output.read_csv(directory / "capture.csv")
    assert {(row.mode, row.tool, row.leg) for row in rows} >= {
        ("nothing", "", "client"), ("ring", "ring", "upstream"), ("tcpdump", "tcpdump", "client"),
        ("together", "ring", "client"), ("together", "tcpdump", "upstream"), ("tiny ring", "ring", "client"),
    }  # fmt: skip
    for row in rows:
        assert row.sent_bytes > 0
        if row.tool:
            assert row.captured_bytes is not None
            assert row.missed_bytes == row.sent_bytes - row.captured_bytes
            # What is missing was dropped by the kernel, and it said so.
            assert row.drops or not row.missed_bytes
    tiny = [row for row in rows if row.mode == "tiny ring"]
    assert all(row.drops for row in tiny)
    assert sum(row.missed_bytes or 0 for row in tiny) > 0


def test_live(tmp_path: Path) -> None:
    port, upstream = free_port(), free_port()
    config = tmp_path / "oinetd.conf"
    config.write_text(f"engine python\n127.0.0.1 {port} 127.0.0.1 {upstream}\n")
    with socket.create_server(("127.0.0.1", upstream)) as server:
        forwarder = subprocess.Popen([sys.executable, "-m", "oinetd", "-f", "-c", config], stderr=subprocess.DEVNULL)
        kept = tmp_path / "sessions.json"
        words = ["capture", "--live", "--pid", str(forwarder.pid), "--json", str(kept)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        watcher = subprocess.Popen(
            [sys.executable, "-m", "bench", *words], stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            assert watcher.stdout is not None
            assert "watching" in watcher.stdout.readline()
            wait_until(lambda: port in listening_ports(forwarder.pid), 10.0, "the forwarder")
            for number in range(3):
                talk(port, server, b"q" * (1000 * number), b"a" * 5000)
            watcher.send_signal(signal.SIGINT)
            shown, _ = watcher.communicate(timeout=30)
        finally:
            for process in (watcher, forwarder):
                process.kill()
                process.wait()
    assert watcher.returncode == 0
    assert "3 sessions: 3 agree; 0 packets dropped" in shown
    sessions = json.loads(kept.read_text())["sessions"]
    assert sorted(session["client_leg"]["up"] for session in sessions) == [0, 1000, 2000]
    for session in sessions:
        assert session["client_leg"] == session["upstream_leg"]
        assert session["client_leg"]["down"] == 5000
        assert session["upstream"] == f"127.0.0.1:{upstream}"


def talk(port: int, server: socket.socket, question: bytes, answer: bytes) -> None:
    """One session, closed in order by both ends."""

    def serve() -> None:
        peer, _ = server.accept()
        with peer:
            while peer.recv(65536):
                pass
            peer.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
    thread.join()
