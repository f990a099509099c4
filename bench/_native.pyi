"""The measuring tools of the bench: its load client, and the reader of packet rings (see `native/`).

Only the bench imports this. A refused system call is an `OSError`.
"""

from collections.abc import Sequence
from mmap import mmap
from typing import Any, NoReturn, final

_Bytes = bytes | bytearray | memoryview | mmap

def load_round_trips(
    fds: Sequence[int], request_bytes: int, answer_bytes: int, duration_s: float, request: bytes = b""
) -> tuple[int, int, list[tuple[int, int]]]:
    """Round trips on connected, blocking sockets: operations, elapsed ns, `(bucket, count)` of the latencies.

    `request` is what is sent, `request_bytes` long; zeros where it is empty. The sockets stay open.
    """

def load_connections(
    address: bytes, count: int, size: int, duration_s: float
) -> tuple[int, int, int, int, list[tuple[int, int]]]:
    """Short connections, `count` at a time: operations, failures, first errno, elapsed ns, `(bucket, count)`.

    `address` is a `struct sockaddr`; each connection carries `size` bytes each way.
    """

def load_downloads(address: bytes, count: int, size: int) -> tuple[int, list[tuple[int, int, int]]]:
    """`count` connections download `size` bytes each: elapsed ns; ns to connect, to a first byte, to the last."""

def load_serve(listener: int, stop_fd: int, source: bool) -> int:
    """Echo, or be a source, on a listening non-blocking socket until `stop_fd` is readable; the number served."""

def datagram_serve(fd: int) -> NoReturn:
    """The far end of datagram loads, on a bound UDP socket: until the process is ended.

    A datagram's first four bytes say what is done with it: 0 is sent back, 1 counted; 2 comes back with the count at
    its bytes 8 to 15. Numbers are in the machine's byte order; a head has 16 bytes.
    """

def datagram_round_trips(
    fds: Sequence[int], depth: int, size: int, duration_s: float
) -> tuple[int, int, int, int, list[tuple[int, int]]]:
    """Keep `depth` datagrams of `size` bytes under way on each connected UDP socket.

    Answers, lost ones (no answer within 250 ms), strays (answers that were late, there twice, or another socket's),
    elapsed ns, `(bucket, count)` of the latencies. A lone socket blocks: its receive timeout has to be 50 ms or less.
    Raises ValueError where `depth` is not 1 to 64, or `size` not 16 to 9216.
    """

def datagram_offer(fds: Sequence[int], size: int, per_second: int, duration_s: float) -> tuple[int, int, int]:
    """Send datagrams to be counted, at a rate, over the connected UDP sockets in turn: sent, refused, elapsed ns."""

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
