"""What can only be seen in a process of its own: the interpreter's lock held, splice forbidden, signals, limits."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import ctypes, hashlib, os, resource, signal, socket, struct, sys, threading, time
from tests.engine.native.plane import Plane, read_all, read_exactly, reset

def check(plane, size=3_000_000, times=3, **said):
    block = os.urandom(size)
    for _ in range(times):
        client, upstream, token = plane.wire(**said)
        sender = threading.Thread(target=lambda: (client.sendall(block), client.shutdown(socket.SHUT_WR)))
        sender.start()
        assert read_all(upstream) == block
        sender.join()
        upstream.close()
        assert client.recv(1) == b""
        assert plane.result(token)[:2] == (0, size), plane.result(token)
        client.close()
"""

FORBID_SPLICE = """
def forbid_splice(error, everywhere=False):
    # A classic filter on the number of the system call: splice answers `error`, everything else is allowed.
    # It holds for this thread and those to come; `everywhere`, for all threads that run.
    number = {"x86_64": 275, "aarch64": 76}[os.uname().machine]
    code = b"".join(struct.pack("HBBI", *line) for line in (
        (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000)))
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    seccomp = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
    assert libc.syscall(seccomp, 1, int(everywhere), program) == 0, ctypes.get_errno()
"""


def in_child(*parts: str) -> str:
    source = "\n".join(textwrap.dedent(part) for part in parts)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("error", [1, 38])
@pytest.mark.parametrize("relay", [0, 2])
def test_splice_forbidden_by_a_filter(error: int, relay: int) -> None:
    in_child(
        PRELUDE,
        FORBID_SPLICE,
        f"""
        forbid_splice({error})
        plane = Plane(relay={relay})
        check(plane)
        assert plane.hub.stats()["splice_errno"] == {error}
        plane.close()
        """,
    )


def test_splice_forbidden_while_bytes_are_in_a_pipe() -> None:
    """They are taken out by read and go on as a copy."""
    in_child(
        PRELUDE,
        FORBID_SPLICE,
        """
        plane = Plane(relay=2)
        client, upstream, token = plane.wire(upstream={"receive_bytes": 4096})
        block = os.urandom(8_000_000)
        sender = threading.Thread(target=lambda: (client.sendall(block), client.shutdown(socket.SHUT_WR)))
        sender.start()
        before = -1
        while (now := plane.hub.snapshot()[0][11]) != before:  # until the pipe is stuck
            before = now
            time.sleep(0.2)
        forbid_splice(1, everywhere=True)
        assert read_all(upstream) == block
        sender.join()
        assert plane.hub.stats()["splice_errno"] == 1
        plane.close()
        """,
    )


def test_no_pipe_to_be_had() -> None:
    in_child(
        PRELUDE,
        """
        plane = Plane(relay=2)
        wires = [plane.wire() for _ in range(3)]
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, 4096))
        plugs = []
        while True:
            try:
                plugs.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        block = os.urandom(2_000_000)
        for client, upstream, token in wires:
            sender = threading.Thread(target=lambda: (client.sendall(block), client.shutdown(socket.SHUT_WR)))
            sender.start()
            assert read_all(upstream) == block
            sender.join()
        assert plane.hub.stats()["pipes"] == 0
        for plug in plugs:
            os.close(plug)
        plane.close()
        """,
    )


def test_the_users_pages_are_used_up() -> None:
    """Beyond the soft limit an unprivileged user gets pipes of a page or two: then it copies."""
    in_child(
        PRELUDE,
        """
        os.setgid(65534); os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        import fcntl
        hogs = []
        for _ in range(1500):
            hogs.append(os.pipe())
        small = fcntl.fcntl(hogs[-1][1], 1032)
        plane = Plane(relay=2)
        check(plane)
        if small < 65536:
            assert plane.hub.stats()["pipes"] == 0
        plane.close()
        """,
    )


def test_sigpipe_at_its_default() -> None:
    in_child(
        PRELUDE,
        """
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for relay in (1, 2):
            plane = Plane(relay=relay)
            for _ in range(50):
                client, upstream, token = plane.wire(upstream={"receive_bytes": 4096})
                client.setblocking(False)
                try:
                    while True:
                        client.send(bytes(65536))
                except BlockingIOError:
                    pass
                reset(upstream)
                plane.result(token)
                client.close()
            plane.close()
        """,
    )


def test_a_storm_of_signals() -> None:
    in_child(
        PRELUDE,
        """
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        plane = Plane(relay=0)
        check(plane, times=10)
        signal.setitimer(signal.ITIMER_REAL, 0)
        plane.close()
        """,
    )


def test_traffic_flows_while_python_holds_its_lock() -> None:
    """A child makes round trips while this process sits in C with the lock for two seconds."""
    in_child(
        PRELUDE,
        """
        plane = Plane(relay=0, threads=2)
        server = socket.create_server(("127.0.0.1", 0))
        listening = plane.listen(server.getsockname())
        ready, go, told = os.pipe(), os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            trips = 0
            begin = time.monotonic()
            while trips < 2000:
                near = socket.create_connection(listening.sock.getsockname(), 20)
                far, _ = server.accept()
                for _ in range(100):
                    near.send(b"x" * 64)
                    assert read_exactly(far, 64) == b"x" * 64
                    trips += 1
                near.close()
                assert far.recv(1) == b""
                far.close()
            os.write(told[1], struct.pack("d", time.monotonic()))
            os._exit(0)
        os.read(ready[0], 1)
        os.write(go[1], b"x")
        ctypes.PyDLL(None).usleep(2_000_000)
        released = time.monotonic()
        finished, = struct.unpack("d", os.read(told[0], 8))
        assert os.waitpid(child, 0)[1] == 0
        assert finished < released, (finished, released)
        server.close()
        plane.close()
        """,
    )


def test_the_process_may_end_without_closing() -> None:
    in_child(
        PRELUDE,
        """
        plane = Plane(relay=0, threads=2)
        client, upstream, token = plane.wire()
        client.send(b"x")
        assert upstream.recv(1) == b"x"
        """,
    )
