"""The far end of the bench's own loads as a process: `python -m bench.server HOST PORT [THREADS [EXPECTED]]`.

HOST may be `unix:PATH`. EXPECTED is what comes before the hello of a connection: `exact:` and bytes, or `proxy:` and
what the native server is told of a PROXY header, in hexadecimal digits.

On each line of its standard input it answers with a line of JSON: what it has counted since it began, and the processor
time of its threads. A forwarder has no way to that.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path

from bench.extension import native
from bench.key import run_key

__all__ = ["main", "thread_cpu_s"]

BACKLOG = 16384


def thread_cpu_s(thread: int | None) -> float:
    """Processor seconds of a thread of this process, from the scheduler's own account."""
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9


def listening(host: str, port: int) -> socket.socket:
    if not host.startswith("unix:"):
        return socket.create_server((host, port), backlog=BACKLOG)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(host.removeprefix("unix:"))
    listener.listen(BACKLOG)
    return listener


def main() -> None:
    host, port, *more = sys.argv[1:]
    count = int(more[0]) if more else 1
    kind, _, digits = more[1].partition(":") if len(more) > 1 else ("", "", "")
    expected = {kind: bytes.fromhex(digits)} if kind else {}
    stop = os.eventfd(0)
    with listening(host, int(port)) as listener:
        listener.setblocking(False)
        server = native().Server(run_key(), listener.fileno(), stop, count, **expected)
        serving = [threading.Thread(target=server.serve, args=(index,), daemon=True) for index in range(count)]
        for thread in serving:
            thread.start()
        for _ in sys.stdin:  # until the bench ends it
            cpu_s = [thread_cpu_s(thread.native_id) for thread in serving]
            print(json.dumps({**server.counts(), "cpu_s": cpu_s}), flush=True)
        os.eventfd_write(stop, 1)
        for thread in serving:
            thread.join()


if __name__ == "__main__":
    main()
