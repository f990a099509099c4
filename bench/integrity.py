"""Whether a subject delivers what it is given, and passes a half-close on: once for each, before it is timed.

`python -m bench.integrity serve HOST PORT` answers, `python -m bench.integrity verify HOST PORT` asks and writes JSON.
Two conversations, both with a hash at either end:

- both ways at once: a length, then as many random bytes up, while the same number of other bytes comes down;
- half-close: bytes up, a FIN, and only then the answer.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import sys
import threading

__all__ = ["SIZE_BYTES", "verify"]

SIZE_BYTES = 8 << 20
PATIENCE_S = 5.0
_HEADER = struct.Struct("!cQ")
_BOTH_WAYS, _HALF_CLOSE = b"B", b"H"
_PIECES = (1, 7, 1460, 4096, 65537)
_DOWN_SEED, _UP_SEED = 20221, 61403


def payload(seed: int, size: int = SIZE_BYTES) -> bytes:
    return random.Random(seed).randbytes(size)


def send_in_pieces(sock: socket.socket, data: bytes) -> None:
    """In segments of very different sizes, so that a relay changes its mind on the way."""
    view, start, turn = memoryview(data), 0, 0
    while start < len(view):
        piece = _PIECES[turn % len(_PIECES)]
        sock.sendall(view[start : start + piece])
        start, turn = start + piece, turn + 1


def receive(sock: socket.socket, size: int) -> bytes:
    """`size` bytes, fewer if the peer ends before."""
    parts, missing = [], size
    while missing and (part := sock.recv(min(missing, 1 << 18))):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def receive_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 18), b""))


def serve_one(sock: socket.socket) -> None:
    with sock:
        sock.settimeout(PATIENCE_S)
        try:
            kind, size = _HEADER.unpack(receive(sock, _HEADER.size))
            down = payload(_DOWN_SEED)
            if kind == _HALF_CLOSE:
                got = receive_all(sock)
                sock.sendall(hashlib.sha256(got).digest() + down)
            else:
                sender = threading.Thread(target=send_in_pieces, args=(sock, down))
                sender.start()
                got = receive(sock, size)
                sender.join()
                sock.sendall(hashlib.sha256(got).digest())
            sock.shutdown(socket.SHUT_WR)
            receive_all(sock)  # closing with bytes unread would reset what was sent
        except (OSError, struct.error):
            return  # the subject broke off, and the client's half of the check says so


def serve(host: str, port: int) -> None:
    with socket.create_server((host, port)) as listener:
        while True:  # until the process is ended
            sock, _ = listener.accept()
            threading.Thread(target=serve_one, args=(sock,), daemon=True).start()


def both_ways(host: str, port: int) -> str:
    """Empty if all is well, else what is wrong."""
    up, down = payload(_UP_SEED), payload(_DOWN_SEED)
    with socket.create_connection((host, port), timeout=PATIENCE_S) as sock:
        sock.sendall(_HEADER.pack(_BOTH_WAYS, len(up)))
        failed: list[OSError] = []

        def send() -> None:
            try:
                send_in_pieces(sock, up)
            except OSError as error:
                failed.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        got = receive(sock, len(down))
        sender.join()
        digest = receive(sock, hashlib.sha256().digest_size)
        if failed:
            return f"sending: {failed[0]}"
    return judge(up, down, got, digest)


def half_close(host: str, port: int) -> str:
    """As `both_ways`."""
    up, down = payload(_UP_SEED, SIZE_BYTES // 8), payload(_DOWN_SEED)
    with socket.create_connection((host, port), timeout=PATIENCE_S) as sock:
        sock.sendall(_HEADER.pack(_HALF_CLOSE, len(up)) + up)
        sock.shutdown(socket.SHUT_WR)
        answer = receive_all(sock)
    size = hashlib.sha256().digest_size
    return judge(up, down, answer[size:], answer[:size]) if answer else "no answer after the client's FIN"


def judge(up: bytes, down: bytes, got: bytes, digest: bytes) -> str:
    if got != down:
        what = "are wrong" if len(got) == len(down) else f"of {len(down)} arrived"
        return f"{len(got)} bytes down {what}"
    if digest != hashlib.sha256(up).digest():
        return "the bytes up did not arrive as they were sent"
    return ""


def verify(host: str, port: int) -> dict[str, str]:
    """What is wrong with either conversation; empty words if nothing is."""
    verdicts = {}
    for name, check in (("integrity", both_ways), ("half_close", half_close)):
        try:
            verdicts[name] = check(host, port)
        except OSError as error:
            verdicts[name] = str(error)
    return verdicts


def main() -> None:
    what, host, port = sys.argv[1:]
    if what == "serve":
        serve(host, int(port))
    print(json.dumps(verify(host, int(port))))


if __name__ == "__main__":
    main()
