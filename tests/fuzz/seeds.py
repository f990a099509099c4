"""Writes the samples of the tests as inputs for the fuzzer: `python -m tests.fuzz.seeds FOLDER`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.preamble.samples import records
from tests.preamble.test_proxy_protocol import INVALID, VALID
from tests.preamble.test_tls_hello import BROKEN
from tests.preamble.test_tls_hello import VALID as HELLOS


def seeds() -> Iterator[bytes]:
    """The inputs: which parser, where to cut, the bytes."""
    for data in (*(data for data, *_ in VALID), *(data for data, *_ in INVALID)):
        yield b"\0\x80" + data
        yield b"\1\0" + data
    for message, *_ in (*HELLOS, *BROKEN):
        if len(message) < 2000:
            yield b"\2\x80" + records(message)
            yield b"\2\x40" + records(message, 16)


if __name__ == "__main__":
    for seed in seeds():
        (Path(sys.argv[1]) / hashlib.sha1(seed).hexdigest()[:16]).write_bytes(seed)
