"""A program that ends, or loses its forwarder, without stopping it: its threads end before what they use is freed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, socket, threading
from oinetd import Forwarder
from oinetd.config import parse_config

def load(address):
    while True:
        try:
            with socket.create_connection(address) as sock:
                sock.sendall(bytes(1000))
        except OSError:
            pass

async def main():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    forwarder = Forwarder(parse_config(f"engine native\\nthreads 2\\n127.0.0.1 0 127.0.0.1 {port}\\n"))
    await forwarder.start()
    (address,) = forwarder.addresses
    for _ in range(3):
        threading.Thread(target=load, args=((address.host, address.port),), daemon=True).start()
    while forwarder.stats().accepted < 300:
        await asyncio.sleep(0.01)
    raise SystemExit("a fault of the program")

asyncio.run(main())
"""


def test_a_program_that_ends_without_a_stop_does_not_crash() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, "a fault of the program" in done.stderr) == (1, True), done.stderr[-2000:]
