"""oinetd as the driver starts it: its connections may change their reactor all the time, and plants sit in it."""

import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path

from oinetd.lanes.native import plane
from oinetd.process.cli import main

__all__: list[str] = []

MOVES, LEAK = "FAULTS_MOVES", "FAULTS_LEAK"
"""The file with the number of turns after which a connection changes its reactor, 0 for never; what is leaked."""
PIECE_BYTES = 1 << 20


def leak(what: str) -> None:
    """A planted fault: nothing of it is given back."""
    kept: list[object] = []
    while True:
        kept.append(socket.socket() if what == "descriptor" else bytearray(b"\1") * PIECE_BYTES)
        time.sleep(0.02)


if __name__ == "__main__":
    faulthandler.enable()  # a library that aborts says nothing itself
    if not plane.available() and (defaults := plane.Hub.__new__.__kwdefaults__) is not None:
        defaults["move_turns"] = int(Path(os.environ[MOVES]).read_text())
    if os.environ.get(LEAK):
        threading.Thread(target=leak, args=(os.environ[LEAK],), daemon=True).start()
    sys.exit(main(sys.argv[1:]))
