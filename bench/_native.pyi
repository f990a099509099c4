"""The measuring tools of the bench: its load client, and the reader of packet rings (see `native/`).

Only the bench imports this. A refused system call is an `OSError`.
"""

from collections.abc import Sequence
from mmap import mmap
from typing import Any, NoReturn, final

_Bytes = bytes | bytearray | memoryview | mmap

@final
class Key:
    """What the content of a run follows from: see `native/content.pxd`. Raises ValueError without 16 bytes."""

    def __new__(cls, key: bytes) -> Key: ...
    def hello(self, kind: int, connection: int, up_bytes: int, down_bytes: int) -> bytes:
        """The first 64 bytes of a connection."""

    def stream(self, connection: int, direction: int, at: int, count: int) -> bytes:
        """Bytes of a stream; `direction` is 1 from client to server, 2 back."""

    def check(self, connection: int, direction: int, at: int, data: bytes) -> bool: ...
    def cost(self, seconds: float) -> tuple[float, float]:
        """GB of content made, and checked, in a second by one core."""

def load_open(
    key: Key, address: bytes, kind: int, connection: int, up_bytes: int, down_bytes: int, preamble: bytes = b""
) -> tuple[int, int]:
    """A connection that has said hello: its descriptor or -errno, and the ns that connecting took.

    `address` is a `struct sockaddr`; `preamble` is sent before the hello, in one piece with it.
    """

def load_greeting(key: Key, fd: int, connection: int, milliseconds: int) -> int:
    """Wait for the server's greeting: 0 or -errno, EPROTO for what is not the server's."""

def load_close(key: Key, fd: int, connection: int, milliseconds: int) -> int:
    """Send a FIN and wait for the server's word for it: 0, or -errno where it was not passed on."""

def load_exchange(
    key: Key,
    fds: Sequence[int],
    connections: Sequence[int],
    up_bytes: int,
    down_bytes: int,
    per_second: float,
    begin_ns: int,
    warm_up_s: float,
    duration_s: float,
) -> dict[str, Any]:
    """Requests and answers on greeted connections: counts, a histogram, and of each connection operations and -errno.

    `per_second` 0 is a closed loop. Times are of the monotonic clock.
    """

def load_bulk(
    key: Key,
    fds: Sequence[int],
    connections: Sequence[int],
    up: bool,
    blocks: int,
    begin_ns: int,
    warm_up_s: float,
    duration_s: float,
) -> dict[str, Any]:
    """Streams of blocks on greeted connections: counts, and of each stream what was moved, found right, and when.

    `blocks` is for downloads: 0 is until the time is over.
    """

def load_short(
    key: Key,
    address: bytes,
    count: int,
    first: int,
    begin_ns: int,
    warm_up_s: float,
    duration_s: float,
    preamble: bytes = b"",
) -> dict[str, Any]:
    """Short connections, `count` at a time, numbered from `first`: counts and a histogram."""

@final
class Server:
    """The far end of these loads, on a listening, non-blocking socket; `stop_fd` ends it when it is readable.

    Before the hello of each connection it wants the bytes `exact`, or a PROXY header: `proxy` is the four bytes of the
    client's IPv4 address, and the beginning of a header of version 1 with it.
    """

    def __new__(
        cls,
        key: Key,
        listener: int,
        stop_fd: int,
        threads: int,
        exact: bytes | None = None,
        proxy: bytes | None = None,
    ) -> Server: ...
    def serve(self, index: int) -> None:
        """Be one of the threads; returns when `stop_fd` is readable."""

    def counts(self) -> dict[str, int]: ...

@final
class DatagramServer:
    """The far end of datagram loads."""

    def __new__(cls, key: Key) -> DatagramServer: ...
    def serve(self, fd: int) -> NoReturn:
        """Serve a bound UDP socket until the process is ended."""

    def counts(self) -> dict[str, int]: ...

def datagram_round_trips(
    key: Key, fds: Sequence[int], depth: int, size: int, number: int, duration_s: float
) -> dict[str, Any]:
    """Keep `depth` datagrams of `size` bytes under way on each connected UDP socket; `number` names the load.

    Answers, lost ones (no answer within 250 ms), strays (late, or another socket's), doubled and wrong ones, a
    histogram. A lone socket blocks: its receive timeout has to be 50 ms or less.
    Raises ValueError where `depth` is not 1 to 64, or `size` not 32 to 9216.
    """

def datagram_offer(
    key: Key, fds: Sequence[int], size: int, number: int, per_second: int, duration_s: float
) -> dict[str, Any]:
    """Send datagrams to be counted, at a rate, over the connected UDP sockets in turn: sent, refused, elapsed s."""

@final
class Capture:
    """What a packet capture has seen: TCP streams by their sequence numbers, and optionally a pcap file.

    `pcap_fd` is written to and stays the caller's; `snaplen` is what its header tells. Not safe for use from several
    threads at once.
    """

    def __new__(cls, pcap_fd: int = -1, snaplen: int = 0) -> Capture: ...
    def walk(self, block: _Bytes) -> None:
        """Take the packets of one TPACKET_V3 block; a block that contradicts itself is counted as malformed."""

    def drain(self, ring: _Bytes, block_bytes: int) -> int:
        """Take the blocks of a mapped ring that the kernel has handed over, and give them back; how many they were."""

    def read_pcap(self, file: _Bytes) -> int:
        """Take the packets of a pcap file, and say how many. Raises ValueError where it is none."""

    def flush(self) -> None:
        """Write what is buffered for the pcap file. Raises OSError where that failed, now or before."""

    def counts(self) -> dict[str, int]: ...
    def streams_seen(self) -> list[dict[str, Any]]:
        """One dictionary for each direction of each connection, in the order of their first packets."""
