# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""The measuring tools of the bench: its load client, and the reader of packet rings.

What runs without Python is in the `.pxd` files: `load*` for the client, `capture`, `segment`, `interval`, `stream` and
`pcap` for the ring. The data plane uses nothing of it. The stub `bench/_native.pyi` says what everything is for.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

cimport cython

cimport capture
cimport load
cimport load_connect
cimport load_datagram
cimport load_server
cimport pcap as pcap_file
from stream cimport HEAD_BYTES, NOBODY, Stream, Streams, streams_free


# The load client of the bench: see load.pxd, load_connect.pxd, load_datagram.pxd and load_server.pxd.


cdef list histogram_pairs(const uint64_t *histogram):
    return [(index, histogram[index]) for index in range(load.HISTOGRAM_BUCKETS) if histogram[index]]


def load_round_trips(fds, size_t request_bytes, size_t answer_bytes, double duration_s, bytes request=b""):
    cdef int count = len(fds)
    cdef load.LoadTotals totals
    cdef int *descriptors = <int *>calloc(count, sizeof(int))
    cdef uint64_t *histogram = <uint64_t *>calloc(load.HISTOGRAM_BUCKETS, sizeof(uint64_t))
    cdef uint64_t duration_ns = <uint64_t>(duration_s * 1e9)
    cdef bytes payload = request or bytes(request_bytes)
    cdef const char *data = payload
    cdef int status
    if descriptors == NULL or histogram == NULL:
        free(descriptors)
        free(histogram)
        raise MemoryError
    totals = load.LoadTotals(0, 0, 0, 0)
    try:
        for index in range(count):
            descriptors[index] = fds[index]
        with nogil:
            status = load.load_round_trips(
                descriptors, count, data, request_bytes, answer_bytes, duration_ns, histogram, &totals)
        if status < 0:
            raise OSError(-status, "a round trip failed")
        return totals.operations, totals.elapsed_ns, histogram_pairs(histogram)
    finally:
        free(descriptors)
        free(histogram)


def load_connections(bytes address, int count, size_t size, double duration_s):
    cdef load.LoadTotals totals
    cdef uint64_t *histogram = <uint64_t *>calloc(load.HISTOGRAM_BUCKETS, sizeof(uint64_t))
    cdef uint64_t duration_ns = <uint64_t>(duration_s * 1e9)
    cdef const char *name = address
    cdef load_connect.socklen_t length = len(address)
    cdef bytes payload = bytes(size)
    cdef const char *data = payload
    cdef int status
    if histogram == NULL:
        raise MemoryError
    totals = load.LoadTotals(0, 0, 0, 0)
    try:
        with nogil:
            status = load_connect.load_connections(
                <const load_connect.sockaddr *>name, length, count, data, size, duration_ns, histogram, &totals)
        if status < 0:
            raise OSError(-status, "the connections failed")
        return totals.operations, totals.failures, totals.first_errno, totals.elapsed_ns, histogram_pairs(histogram)
    finally:
        free(histogram)


def load_downloads(bytes address, int count, uint64_t size):
    cdef load.LoadTotals totals
    cdef load_connect.LoadTimes *times = <load_connect.LoadTimes *>calloc(count, sizeof(load_connect.LoadTimes))
    cdef const char *name = address
    cdef load_connect.socklen_t length = len(address)
    cdef int status
    if times == NULL:
        raise MemoryError
    totals = load.LoadTotals(0, 0, 0, 0)
    try:
        with nogil:
            status = load_connect.load_downloads(
                <const load_connect.sockaddr *>name, length, count, size, times, &totals)
        if status < 0:
            raise OSError(-status, "a download failed")
        return totals.elapsed_ns, [
            (times[index].socket_ns, times[index].setup_ns, times[index].download_ns) for index in range(count)]
    finally:
        free(times)


def load_serve(int listener, int stop_fd, bint source):
    cdef uint64_t accepted = 0
    cdef int status
    with nogil:
        status = load_server.load_serve(
            listener, stop_fd, load_server.LOAD_SOURCE if source else load_server.LOAD_ECHO, &accepted)
    if status < 0:
        raise OSError(-status, "the server failed")
    return accepted


cdef int *descriptors_of(fds) except NULL:
    cdef int *descriptors = <int *>calloc(len(fds) or 1, sizeof(int))
    if descriptors == NULL:
        raise MemoryError
    try:
        for index in range(len(fds)):
            descriptors[index] = fds[index]
    except BaseException:
        free(descriptors)
        raise
    return descriptors


cdef int datagrams_fit(int count, size_t size) except -1:
    if count < 1 or not load_datagram.HEAD_BYTES <= size <= load_datagram.DATAGRAM_BYTES_MAX:
        raise ValueError("there is a socket at least, and a datagram has 16 to 9216 bytes")
    return 0


def datagram_serve(int fd):
    cdef int status
    with nogil:
        status = load_datagram.datagram_serve(fd)
    raise OSError(-status, "the far end failed")


def datagram_round_trips(fds, int depth, size_t size, double duration_s):
    cdef load_datagram.DatagramTotals totals = load_datagram.DatagramTotals(0, 0, 0, 0, 0)
    cdef int count = len(fds)
    cdef uint64_t duration_ns = <uint64_t>(duration_s * 1e9)
    cdef int *descriptors
    cdef uint64_t *histogram
    cdef int status = -load_datagram.ENOMEM
    datagrams_fit(count, size)
    if not 1 <= depth <= load_datagram.BATCH:
        raise ValueError("a window has 1 to 64 places")
    descriptors = descriptors_of(fds)
    histogram = <uint64_t *>calloc(load.HISTOGRAM_BUCKETS, sizeof(uint64_t))
    try:
        if histogram != NULL:
            with nogil:
                status = load_datagram.datagram_round_trips(
                    descriptors, count, depth, size, duration_ns, histogram, &totals)
        if status < 0:
            raise OSError(-status, "the round trips failed")
        return totals.operations, totals.lost, totals.strays, totals.elapsed_ns, histogram_pairs(histogram)
    finally:
        free(descriptors)
        free(histogram)


def datagram_offer(fds, size_t size, uint64_t per_second, double duration_s):
    cdef load_datagram.DatagramTotals totals = load_datagram.DatagramTotals(0, 0, 0, 0, 0)
    cdef int count = len(fds)
    cdef uint64_t duration_ns = <uint64_t>(duration_s * 1e9)
    cdef int *descriptors
    cdef int status
    datagrams_fit(count, size)
    descriptors = descriptors_of(fds)
    try:
        with nogil:
            status = load_datagram.datagram_offer(descriptors, count, size, per_second, duration_ns, &totals)
        if status < 0:
            raise OSError(-status, "the offer failed")
        return totals.operations, totals.refused, totals.elapsed_ns
    finally:
        free(descriptors)


# The capture of packets: see capture.pxd.


@cython.final
cdef class Capture:
    cdef Streams streams
    cdef pcap_file.Pcap pcap
    cdef capture.Tally tally
    cdef uint32_t next_block

    def __cinit__(self, int pcap_fd=-1, uint32_t snaplen=0):
        self.pcap.fd = pcap_fd
        if pcap_fd >= 0:
            self.pcap.buffer = <uint8_t *> malloc(pcap_file.PCAP_BUFFER_BYTES)
            if self.pcap.buffer == NULL:
                raise MemoryError
            pcap_file.pcap_begin(&self.pcap, snaplen)

    def __dealloc__(self):
        streams_free(&self.streams)
        free(self.pcap.buffer)

    def walk(self, const uint8_t[::1] block not None):
        cdef size_t size = <size_t> block.shape[0]
        cdef const uint8_t *start = &block[0] if size else NULL
        with nogil:
            capture.block_walk(start, size, &self.streams, &self.pcap, &self.tally)

    def drain(self, uint8_t[::1] ring not None, uint32_t block_bytes):
        cdef capture.Ring view
        cdef uint32_t blocks
        if block_bytes < sizeof(capture.tpacket_block_desc) or ring.shape[0] < block_bytes:
            raise ValueError("a ring has at least one block")
        view.map = &ring[0]
        view.block_bytes = block_bytes
        view.block_count = <uint32_t> (ring.shape[0] // block_bytes)
        view.next = self.next_block % view.block_count
        with nogil:
            blocks = capture.ring_drain(&view, &self.streams, &self.pcap, &self.tally)
        self.next_block = view.next
        return blocks

    def read_pcap(self, const uint8_t[::1] file not None):
        cdef size_t size = <size_t> file.shape[0]
        cdef int64_t packets = -1
        if size:
            with nogil:
                packets = pcap_file.pcap_read(&file[0], size, &self.streams)
        if packets < 0:
            raise ValueError("not a pcap file, or one of another kind of link")
        return packets

    def flush(self):
        if self.pcap.fd >= 0:
            with nogil:
                pcap_file.pcap_flush(&self.pcap)
            if self.pcap.error:
                raise OSError(self.pcap.error, "the pcap file could not be written")

    def counts(self):
        return {
            "blocks": self.tally.blocks, "packets": self.tally.packets, "others": self.tally.others,
            "malformed": self.tally.malformed, "losing": self.tally.losing, "segments": self.streams.segments,
            "refused": self.streams.refused, "pcap_bytes": self.pcap.written,
        }

    def streams_seen(self):
        return [self._stream(&self.streams.items[i]) for i in range(self.streams.count)]

    cdef dict _stream(self, Stream *stream):
        cdef int i
        head = 0
        while head < HEAD_BYTES and stream.head_seen >> head & 1:
            head += 1
        return {
            "source": stream.ends.source[:16], "source_port": stream.ends.source_port,
            "target": stream.ends.target[:16], "target_port": stream.ends.target_port,
            "base": stream.base, "opposite": None if stream.opposite == NOBODY else stream.opposite,
            "begun": stream.begun, "ended": stream.ended, "reset": stream.reset,
            "length": stream.fin if stream.ended else None,
            "acknowledged": stream.acknowledged if stream.answered else None,
            "intervals": [(stream.seen.items[i].start, stream.seen.items[i].end) for i in range(stream.seen.count)],
            "covered": stream.seen.covered, "packets": stream.packets, "payload": stream.payload,
            "repeated": stream.repeated, "spilled": stream.spilled,
            "first_ns": stream.first_ns, "last_ns": stream.last_ns, "head": stream.head[:head],
        }
