# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""The measuring tools of the bench: its load client, and the reader of packet rings.

What runs without Python is in the `.pxd` files: `load*` for the client, `capture`, `segment`, `interval`, `stream` and
`pcap` for the ring. The data plane uses nothing of it. The stub `bench/_native.pyi` says what everything is for.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cimport cython

cimport capture
cimport content
cimport load
cimport load_bulk as load_bulk_
cimport load_datagram
cimport load_exchange as load_exchange_
cimport load_offer
cimport load_server
cimport load_serving
cimport load_short as load_short_
cimport pcap as pcap_file
cimport preamble as preamble_
from stream cimport HEAD_BYTES, NOBODY, Stream, Streams, streams_free


# The content of loads: see content.pxd.


@cython.final
cdef class Key:
    cdef content.Secret *secret

    def __cinit__(self, bytes key not None):
        if len(key) != 16:
            raise ValueError("a key has 16 bytes")
        self.secret = <content.Secret *>malloc(sizeof(content.Secret))
        if self.secret == NULL:
            raise MemoryError
        content.secret_begin(self.secret, key)

    def __dealloc__(self):
        free(self.secret)

    def hello(self, int kind, uint64_t connection, uint64_t up_bytes, uint64_t down_bytes):
        cdef content.Hello hello
        content.hello_make(self.secret, &hello, kind, connection, up_bytes, down_bytes, load.load_now_ns())
        return (<char *>&hello)[:content.HELLO_BYTES]

    def stream(self, uint64_t connection, int direction, uint64_t at, size_t count):
        cdef content.Stream stream
        cdef bytes data = bytes(count)
        content.stream_begin(self.secret, &stream, connection, direction)
        stream.at = at
        stream.mask = content.keyed_word(self.secret, connection, direction, at // content.BLOCK_BYTES)
        content.stream_fill(self.secret, &stream, <char *>data, count)
        return data

    def check(self, uint64_t connection, int direction, uint64_t at, bytes data not None):
        cdef content.Stream stream
        content.stream_begin(self.secret, &stream, connection, direction)
        stream.at = at
        stream.mask = content.keyed_word(self.secret, connection, direction, at // content.BLOCK_BYTES)
        return content.stream_check(self.secret, &stream, data, len(data))

    def cost(self, double seconds):
        cdef content.Stream stream, other
        cdef char *block = <char *>malloc(content.BLOCK_BYTES)
        cdef uint64_t made = 0
        cdef uint64_t checked = 0
        cdef uint64_t duration = <uint64_t>(seconds * 1e9)
        cdef uint64_t begin, middle, end
        cdef bint right = True
        if block == NULL:
            raise MemoryError
        content.stream_begin(self.secret, &stream, 1, content.UP)
        begin = middle = load.load_now_ns()
        with nogil:
            while middle - begin < duration:
                content.stream_fill(self.secret, &stream, block, content.BLOCK_BYTES)
                made += content.BLOCK_BYTES
                middle = load.load_now_ns()
            content.stream_begin(self.secret, &other, 1, content.UP)
            content.stream_fill(self.secret, &other, block, content.BLOCK_BYTES)
            end = middle
            while end - middle < duration:
                content.stream_begin(self.secret, &stream, 1, content.UP)
                right = content.stream_check(self.secret, &stream, block, content.BLOCK_BYTES) and right
                checked += content.BLOCK_BYTES
                end = load.load_now_ns()
        free(block)
        assert right
        return <double>made / <double>(middle - begin), <double>checked / <double>(end - middle)


# The load client of the bench: see load.pxd, load_exchange.pxd, load_bulk.pxd, load_short.pxd.


cdef list histogram_pairs(const uint64_t *histogram):
    return [(index, histogram[index]) for index in range(load.HISTOGRAM_BUCKETS) if histogram[index]]


cdef load.LoadPlan plan_of(uint64_t begin_ns, double warm_up_s, double duration_s):
    cdef load.LoadPlan plan
    plan.begin_ns = begin_ns
    plan.go_ns = begin_ns + <uint64_t>(warm_up_s * 1e9)
    plan.end_ns = plan.go_ns + <uint64_t>(duration_s * 1e9)
    # Slices of one length; the last ones are for what comes after the time is over.
    plan.slice_ns = (plan.end_ns - plan.begin_ns) // (load.LOAD_SLICES - 8) + 1
    return plan


cdef dict totals_of(const load.LoadPlan *plan, const load.LoadTotals *totals):
    return {
        "operations": totals.operations, "every": totals.every, "begun": totals.begun, "wrong": totals.wrong,
        "late": totals.late, "failures": totals.failures, "errno": totals.first_errno,
        "first_ns": totals.first_ns, "last_ns": totals.last_ns, "cpu_ns": totals.cpu_ns,
        "slices": [totals.slices[index] for index in range(load.LOAD_SLICES)], "slice_ns": plan.slice_ns,
    }


cdef int preamble_of(preamble_.Preamble *made, int kind, bytes data) except -1:
    if not preamble_.preamble_set(made, kind, <const char *>data, <size_t>len(data)):
        raise ValueError("a preamble has at most 4096 bytes, and that of PROXY an address and a beginning")
    return 0


def load_open(
    Key key not None, bytes address not None, int kind, uint64_t connection, uint64_t up_bytes, uint64_t down_bytes,
    bytes preamble not None=b""
):
    cdef preamble_.Preamble before
    cdef const char *name = address
    cdef load.socklen_t length = len(address)
    cdef uint64_t connect_ns = 0
    cdef int status
    preamble_of(&before, preamble_.PREAMBLE_EXACT, preamble)
    with nogil:
        status = load.load_open(
            key.secret, <const load.sockaddr *>name, length, &before, kind, connection, up_bytes, down_bytes,
            &connect_ns)
    return status, connect_ns


def load_greeting(Key key not None, int fd, uint64_t connection, uint64_t milliseconds):
    cdef int status
    with nogil:
        load.load_patience(fd, milliseconds)
        status = load.word_expect(key.secret, fd, connection, content.WORD_GREETING)
        load.load_patience(fd, load.LOAD_PATIENCE_MS)
    return status


def load_close(Key key not None, int fd, uint64_t connection, uint64_t milliseconds):
    cdef int status
    with nogil:
        status = load.load_close(key.secret, fd, connection, milliseconds)
    return status


def load_exchange(
    Key key not None, fds, connections, size_t up_bytes, size_t down_bytes, double per_second, uint64_t begin_ns,
    double warm_up_s, double duration_s
):
    cdef load_exchange_.Asking asking
    cdef load.LoadTotals totals
    cdef int count = len(fds)
    cdef int status, i
    memset(&asking, 0, sizeof(asking))
    memset(&totals, 0, sizeof(totals))
    asking.secret = key.secret
    asking.count = count
    asking.up_bytes = up_bytes
    asking.down_bytes = down_bytes
    asking.interval_ns = 1e9 / per_second if per_second > 0 else 0
    asking.plan = plan_of(begin_ns, warm_up_s, duration_s)
    asking.totals = &totals
    asking.askers = <load_exchange_.Asker *>calloc(count, sizeof(load_exchange_.Asker))
    asking.histogram = <uint64_t *>calloc(load.HISTOGRAM_BUCKETS, sizeof(uint64_t))
    try:
        if asking.askers == NULL or asking.histogram == NULL:
            raise MemoryError
        for i in range(count):
            asking.askers[i].fd = fds[i]
            asking.askers[i].connection = connections[i]
            content.stream_begin(key.secret, &asking.askers[i].up, connections[i], content.UP)
            content.stream_begin(key.secret, &asking.askers[i].down, connections[i], content.DOWN)
        with nogil:
            status = load_exchange_.asking_run(&asking)
        if status < 0:
            raise OSError(-status, "the load failed")
        return {
            **totals_of(&asking.plan, &totals), "histogram": histogram_pairs(asking.histogram),
            "each": [(asking.askers[i].operations, asking.askers[i].fault) for i in range(count)],
        }
    finally:
        free(asking.askers)
        free(asking.histogram)


def load_bulk(
    Key key not None, fds, connections, bint up, uint64_t blocks, uint64_t begin_ns, double warm_up_s, double duration_s
):
    cdef load_bulk_.Moving moving
    cdef load.LoadTotals totals
    cdef load_bulk_.Flow *flow
    cdef int count = len(fds)
    cdef int status, i
    memset(&moving, 0, sizeof(moving))
    memset(&totals, 0, sizeof(totals))
    moving.secret = key.secret
    moving.count = count
    moving.up = up
    moving.plan = plan_of(begin_ns, warm_up_s, duration_s)
    moving.totals = &totals
    moving.flows = <load_bulk_.Flow *>calloc(count, sizeof(load_bulk_.Flow))
    try:
        if moving.flows == NULL:
            raise MemoryError
        for i in range(count):
            flow = &moving.flows[i]
            flow.fd = fds[i]
            flow.connection = connections[i]
            flow.blocks = blocks
            content.stream_begin(key.secret, &flow.up, connections[i], content.UP)
            content.stream_begin(key.secret, &flow.down.stream, connections[i], content.DOWN)
        with nogil:
            status = load_bulk_.moving_run(&moving)
        if status < 0:
            raise OSError(-status, "the load failed")
        return {
            **totals_of(&moving.plan, &totals),
            "each": [
                {
                    "moved": moving.flows[i].moved, "vouched": moving.flows[i].vouched, "at_go": moving.flows[i].at_go,
                    "wrong_at": moving.flows[i].down.wrong_at - 1 if moving.flows[i].down.wrong_at else None,
                    "fault": moving.flows[i].fault, "begun_ns": moving.flows[i].begun_ns,
                    "ended_ns": moving.flows[i].ended_ns,
                }
                for i in range(count)
            ],
        }
    finally:
        free(moving.flows)


def load_short(
    Key key not None, bytes address not None, int count, uint64_t first, uint64_t begin_ns, double warm_up_s,
    double duration_s, bytes preamble not None=b""
):
    cdef load_short_.Calling calling
    cdef load.LoadTotals totals
    cdef const char *name = address
    cdef int status
    memset(&calling, 0, sizeof(calling))
    memset(&totals, 0, sizeof(totals))
    calling.secret = key.secret
    calling.address = <const load.sockaddr *>name
    calling.length = len(address)
    calling.count = count
    calling.connection = first
    preamble_of(&calling.preamble, preamble_.PREAMBLE_EXACT, preamble)
    calling.plan = plan_of(begin_ns, warm_up_s, duration_s)
    calling.totals = &totals
    calling.histogram = <uint64_t *>calloc(load.HISTOGRAM_BUCKETS, sizeof(uint64_t))
    try:
        if calling.histogram == NULL:
            raise MemoryError
        with nogil:
            status = load_short_.calling_run(&calling)
        if status < 0:
            raise OSError(-status, "the load failed")
        return {**totals_of(&calling.plan, &totals), "histogram": histogram_pairs(calling.histogram)}
    finally:
        free(calling.histogram)


# The far end: see load_server.pxd and load_serving.pxd.


_COUNTS = (
    "accepted", "hellos", "foreign", "repeated", "reused", "early", "requests", "answers", "wrong", "bytes_in",
    "bytes_out", "fins", "broken",
)


@cython.final
cdef class Server:
    cdef Key key
    cdef load_server.Server *server
    cdef int stop_fd

    def __cinit__(
        self, Key key not None, int listener, int stop_fd, int threads, bytes exact=None, bytes proxy=None
    ):
        cdef int status
        self.key = key
        self.stop_fd = stop_fd
        if not 1 <= threads <= load_server.SERVER_THREADS_MAX:
            raise ValueError("1 to 64 threads")
        self.server = <load_server.Server *>calloc(1, sizeof(load_server.Server))
        if self.server == NULL:
            raise MemoryError
        memcpy(&self.server.secret, key.secret, sizeof(content.Secret))
        if exact is not None:
            preamble_of(&self.server.preamble, preamble_.PREAMBLE_EXACT, exact)
        elif proxy is not None:
            preamble_of(&self.server.preamble, preamble_.PREAMBLE_PROXY, proxy)
        load_server.pthread_mutex_init(&self.server.seen.lock, NULL)
        status = load_serving.server_begin(self.server, listener, stop_fd, threads)
        if status < 0:
            raise OSError(-status, "the server failed")

    def __dealloc__(self):
        if self.server != NULL:
            load_serving.server_end(self.server)
            free(self.server)

    def serve(self, int index):
        cdef int status
        if not 0 <= index < self.server.threads:
            raise ValueError("no such thread")
        with nogil:
            status = load_serving.server_loop(self.server, &self.server.each[index], self.stop_fd)
        if status < 0:
            raise OSError(-status, "the server failed")

    def counts(self):
        cdef int i, j
        values = [0] * load_server.COUNTS
        for i in range(self.server.threads):
            for j in range(load_server.COUNTS):
                values[j] += self.server.each[i].counts[j]
        return dict(zip(_COUNTS, values, strict=True))


# The load of datagrams: see load_datagram.pxd.


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
        raise ValueError("there is a socket at least, and a datagram has 32 to 9216 bytes")
    return 0


@cython.final
cdef class DatagramServer:
    cdef Key key
    cdef load_offer.DatagramServer *server

    def __cinit__(self, Key key not None):
        self.key = key
        self.server = <load_offer.DatagramServer *>calloc(1, sizeof(load_offer.DatagramServer))
        if self.server == NULL:
            raise MemoryError
        self.server.secret = key.secret
        self.server.batch = load_datagram.batch_new(True)
        if self.server.batch == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.server != NULL:
            free(self.server.batch)
            free(self.server)

    def serve(self, int fd):
        cdef int status
        with nogil:
            status = load_offer.datagram_serve(self.server, fd)
        raise OSError(-status, "the far end failed")

    def counts(self):
        names = ("echoed", "counted", "doubled", "wrong")
        return {names[i]: self.server.counts[i] for i in range(load_offer.DATAGRAM_COUNTS)}


def datagram_round_trips(Key key not None, fds, int depth, size_t size, uint64_t number, double duration_s):
    cdef load_datagram.DatagramTotals totals
    cdef int count = len(fds)
    cdef uint64_t duration_ns = <uint64_t>(duration_s * 1e9)
    cdef int *descriptors
    cdef uint64_t *histogram
    cdef int status = -load_datagram.ENOMEM
    datagrams_fit(count, size)
    if not 1 <= depth <= load_datagram.BATCH:
        raise ValueError("a window has 1 to 64 places")
    memset(&totals, 0, sizeof(totals))
    descriptors = descriptors_of(fds)
    histogram = <uint64_t *>calloc(load.HISTOGRAM_BUCKETS, sizeof(uint64_t))
    try:
        if histogram != NULL:
            with nogil:
                status = load_datagram.datagram_round_trips(
                    key.secret, descriptors, count, depth, size, number, duration_ns, histogram, &totals)
        if status < 0:
            raise OSError(-status, "the round trips failed")
        return {
            "operations": totals.operations, "lost": totals.lost, "strays": totals.strays, "doubled": totals.doubled,
            "wrong": totals.wrong, "elapsed_s": totals.elapsed_ns / 1e9, "histogram": histogram_pairs(histogram),
        }
    finally:
        free(descriptors)
        free(histogram)


def datagram_offer(Key key not None, fds, size_t size, uint64_t number, uint64_t per_second, double duration_s):
    cdef load_datagram.DatagramTotals totals
    cdef int count = len(fds)
    cdef uint64_t duration_ns = <uint64_t>(duration_s * 1e9)
    cdef int *descriptors
    cdef int status
    datagrams_fit(count, size)
    memset(&totals, 0, sizeof(totals))
    descriptors = descriptors_of(fds)
    try:
        with nogil:
            status = load_offer.datagram_offer(
                key.secret, descriptors, count, size, number, per_second, duration_ns, &totals)
        if status < 0:
            raise OSError(-status, "the offer failed")
        return {"sent": totals.operations, "refused": totals.refused, "elapsed_s": totals.elapsed_ns / 1e9}
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
