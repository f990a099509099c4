"""The far end of the bench's own loads as a process: `python -m bench.server echo|source HOST PORT [THREADS]`.

Each thread has a listening socket of its own on the port, and the kernel spreads connections over them.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from bench.extension import native

BACKLOG = 16384


def main() -> None:
    mode, host, port, *threads = sys.argv[1:]
    count = int(threads[0]) if threads else 1
    never = os.eventfd(0)
    listeners = [socket.create_server((host, int(port)), backlog=BACKLOG, reuse_port=count > 1) for _ in range(count)]
    for listener in listeners:
        listener.setblocking(False)
    serving = [
        threading.Thread(target=native().load_serve, args=(listener.fileno(), never, mode == "source"), daemon=True)
        for listener in listeners[1:]
    ]
    for thread in serving:
        thread.start()
    native().load_serve(listeners[0].fileno(), never, mode == "source")  # until the process is ended


if __name__ == "__main__":
    main()
