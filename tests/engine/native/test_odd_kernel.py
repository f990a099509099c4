"""A kernel that answers what none should: the session ends, the process does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("oinetd._fastpath")

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

ssize_t send(int fd, const void *data, size_t size, int flags) {
    ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");
    if (size >= 4 && memcmp(data, "ZERO", 4) == 0)
        return 0;
    return real(fd, data, size, flags);
}

ssize_t splice(int in, off_t *at_in, int out, off_t *at_out, size_t size, unsigned flags) {
    ssize_t (*real)(int, off_t *, int, off_t *, size_t, unsigned) = dlsym(RTLD_NEXT, "splice");
    struct stat what;
    if (size == 4 && fstat(out, &what) == 0 && S_ISSOCK(what.st_mode))
        return 0;
    return real(in, at_in, out, at_out, size, flags);
}
"""

SCRIPT = """
import asyncio, socket, sys
from oinetd import Forwarder, parse_config

async def main():
    closed = []
    upstream = socket.create_server(("127.0.0.1", 0))
    text = f"engine native\\nrelay {sys.argv[1]}\\n127.0.0.1 0 127.0.0.1 {upstream.getsockname()[1]}\\n"
    async with Forwarder(parse_config(text), on_close=closed.append) as forwarder:
        def connect():
            client = socket.create_connection(("127.0.0.1", forwarder.addresses[0].port))
            server, _ = upstream.accept()
            return client, server

        client, server = await asyncio.to_thread(connect)
        client.sendmsg([b"ZERO"])
        while not closed:
            await asyncio.sleep(0.01)
        other, there = await asyncio.to_thread(connect)
        other.sendmsg([b"served"])
        print(await asyncio.to_thread(there.recv, 100), closed[0].ending.value, closed[0].errno)

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["copy", "splice"])
def test_a_write_that_takes_nothing_ends_the_session(mode: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a library that stands in for the kernel needs a C compiler")
    source, library = tmp_path / "odd.c", tmp_path / "odd.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode],
        # A sanitizer's library, if there is one, has to be the first.
        env={**os.environ, "LD_PRELOAD": " ".join(filter(None, (os.environ.get("LD_PRELOAD"), str(library))))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.stdout == "b'served' upstream-reset 5\n", answer.stderr
