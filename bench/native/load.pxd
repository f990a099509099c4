"""The load client of the bench: its parts, and round trips; times in nanoseconds.

It must never be what a bench measures, so it is native, holds no lock and keeps its latencies in a histogram:
128 steps per power of two, an error of at most 0.8 %. Functions return 0 or -errno; a peer that closes early is
-ECONNRESET, one that does not answer in time -ETIMEDOUT.
"""

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, ENOMEM, ETIMEDOUT, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close


cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN, EPOLLOUT, EPOLLET
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout_ms)

cdef extern from *:
    int clz "__builtin_clzll"(unsigned long long value) nogil


cdef enum:
    HISTOGRAM_BUCKETS = 4096  # up to 2**38 ns, more than four minutes; later ones count as that
    LOAD_EVENTS = 256  # taken from epoll at once
    LOAD_SCRATCH_BYTES = 262144  # what one recv takes at most
    LOAD_BLOCKING_BYTES = 16384  # a message up to this fits any socket buffer, so a blocking client cannot deadlock
    LOAD_PATIENCE_MS = 5000  # how long a silent peer is waited for


cdef struct LoadTotals:
    uint64_t operations  # finished ones
    uint64_t failures  # connections that ended in an error
    uint64_t elapsed_ns
    int first_errno  # of the first failure


cdef struct LoadPeer:
    int fd
    size_t sent  # of the request under way
    size_t received  # of its answer
    uint64_t started_ns


cdef inline uint64_t load_now_ns() noexcept nogil:
    cdef timespec moment
    clock_gettime(CLOCK_MONOTONIC, &moment)
    return <uint64_t>moment.tv_sec * 1000000000 + <uint64_t>moment.tv_nsec


cdef inline void histogram_add(uint64_t *histogram, uint64_t value_ns) noexcept nogil:
    cdef int shift = 0
    cdef uint64_t index = value_ns
    if value_ns >= 256:
        shift = 63 - clz(value_ns) - 7
        index = <uint64_t>shift * 128 + (value_ns >> shift)
    histogram[index if index < HISTOGRAM_BUCKETS else HISTOGRAM_BUCKETS - 1] += 1


cdef inline int load_watch(int epfd, int fd, uint64_t index, bint unsent) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLET
    if unsent:
        event.events |= EPOLLOUT
    event.data.u64 = index
    return -errno if epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event) < 0 else 0


cdef inline int send_all(int fd, const char *data, size_t length) noexcept nogil:
    """Blocking."""
    cdef size_t done = 0
    cdef ssize_t count
    while done < length:
        count = send(fd, data + done, length - done, MSG_NOSIGNAL)
        if count >= 0:
            done += <size_t>count
        elif errno != EINTR:
            return -errno
    return 0


cdef inline int recv_all(int fd, char *data, size_t length) noexcept nogil:
    """Blocking; `data` holds `length` bytes."""
    cdef size_t done = 0
    cdef ssize_t count
    while done < length:
        count = recv(fd, data + done, length - done, 0)
        if count > 0:
            done += <size_t>count
        elif count == 0:
            return -ECONNRESET
        elif errno != EINTR:
            return -errno
    return 0


cdef inline int exchange(
    LoadPeer *peer, const char *request, size_t request_bytes, char *scratch, size_t answer_bytes
) noexcept nogil:
    """Move one exchange on as far as it goes without waiting: 1 when the answer is complete, 0 when it is not yet."""
    cdef ssize_t count
    cdef size_t want
    cdef bint fresh = peer.sent == 0
    while peer.sent < request_bytes:
        count = send(peer.fd, request + peer.sent, request_bytes - peer.sent, MSG_DONTWAIT | MSG_NOSIGNAL)
        if count >= 0:
            peer.sent += <size_t>count
        elif errno == EAGAIN:
            break
        elif errno != EINTR:
            return -errno
    if fresh and peer.sent == request_bytes:
        return 0  # the answer to what has just gone out makes an edge of its own
    while peer.received < answer_bytes:
        want = answer_bytes - peer.received
        count = recv(peer.fd, scratch, want if want < LOAD_SCRATCH_BYTES else LOAD_SCRATCH_BYTES, MSG_DONTWAIT)
        if count > 0:
            peer.received += <size_t>count
        elif count == 0:
            return -ECONNRESET
        elif errno == EAGAIN:
            return 0
        elif errno != EINTR:
            return -errno
    return 1


cdef inline int ping_one(
    int fd, const char *request, size_t request_bytes, char *scratch, size_t answer_bytes,
    uint64_t duration_ns, uint64_t *histogram, LoadTotals *totals
) noexcept nogil:
    """Round trips on one blocking connection: two system calls each, as few as there can be."""
    cdef uint64_t begin = load_now_ns()
    cdef uint64_t start = begin
    cdef uint64_t now = begin
    cdef int status
    while now - begin < duration_ns:
        start = now
        status = send_all(fd, request, request_bytes)
        if status == 0:
            status = recv_all(fd, scratch, answer_bytes)
        if status < 0:
            return status
        now = load_now_ns()
        histogram_add(histogram, now - start)
        totals.operations += 1
    totals.elapsed_ns = now - begin
    return 0


cdef inline int load_wait(int epfd, epoll_event *events) noexcept nogil:
    """Wait for at most LOAD_EVENTS events; how many came, or -errno: ETIMEDOUT where none did for LOAD_PATIENCE_MS."""
    cdef int ready
    while True:     # bounded: only a signal begins the wait anew
        ready = epoll_wait(epfd, events, LOAD_EVENTS, LOAD_PATIENCE_MS)
        if ready > 0:
            return ready
        if ready == 0:
            return -ETIMEDOUT
        if errno != EINTR:
            return -errno


cdef inline int ping_many(
    int epfd, LoadPeer *peers, int count, const char *request, size_t request_bytes, char *scratch,
    size_t answer_bytes, uint64_t duration_ns, uint64_t *histogram, LoadTotals *totals
) noexcept nogil:
    """Round trips on many connections, each with one exchange under way; ends when the last answer is here."""
    cdef epoll_event events[LOAD_EVENTS]
    cdef int active = count
    cdef int i, ready, status
    cdef uint64_t begin = load_now_ns()
    cdef uint64_t now
    cdef LoadPeer *peer
    for i in range(count):
        peers[i].started_ns = load_now_ns()
        status = exchange(&peers[i], request, request_bytes, scratch, 0)
        if status >= 0:
            status = load_watch(epfd, peers[i].fd, <uint64_t>i, True)
        if status < 0:
            return status
    while active > 0:
        ready = load_wait(epfd, events)
        if ready < 0:
            return ready
        for i in range(ready):
            peer = &peers[events[i].data.u64]
            if peer.started_ns == 0:
                continue
            status = exchange(peer, request, request_bytes, scratch, answer_bytes)
            if status < 0:
                return status
            if status == 0:
                continue
            now = load_now_ns()
            histogram_add(histogram, now - peer.started_ns)
            totals.operations += 1
            peer.sent = peer.received = 0
            peer.started_ns = now
            if now - begin >= duration_ns:
                peer.started_ns = 0
                active -= 1
            else:
                status = exchange(peer, request, request_bytes, scratch, 0)
                if status < 0:
                    return status
    totals.elapsed_ns = load_now_ns() - begin
    return 0


cdef inline int load_round_trips(
    int *fds, int count, const char *request, size_t request_bytes, size_t answer_bytes,
    uint64_t duration_ns, uint64_t *histogram, LoadTotals *totals
) noexcept nogil:
    """Round trips on connected, blocking sockets for `duration_ns`; the sockets stay open and can be used again."""
    cdef char *scratch = <char *>malloc(LOAD_SCRATCH_BYTES)
    cdef LoadPeer *peers = <LoadPeer *>calloc(<size_t>count, sizeof(LoadPeer))
    cdef int epfd = -1
    cdef int i
    cdef int status = -ENOMEM
    if scratch != NULL and peers != NULL:
        if count == 1 and request_bytes <= LOAD_BLOCKING_BYTES and answer_bytes <= LOAD_BLOCKING_BYTES:
            status = ping_one(fds[0], request, request_bytes, scratch, answer_bytes, duration_ns, histogram, totals)
        else:
            for i in range(count):
                peers[i].fd = fds[i]
            epfd = epoll_create1(EPOLL_CLOEXEC)
            status = -errno if epfd < 0 else ping_many(
                epfd, peers, count, request, request_bytes, scratch, answer_bytes, duration_ns, histogram, totals)
    if epfd >= 0:
        close(epfd)
    free(peers)
    free(scratch)
    return status
