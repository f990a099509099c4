"""The load client of the bench: what its loads share; times in nanoseconds.

It must never be what a bench measures, so it is native, holds no lock and keeps its latencies in a histogram:
128 steps per power of two, an error of at most 0.8 %. What a peer does is no error of the load: it is noted for the
connection, and the others go on. Functions return 0 or -errno for what the machine refuses.
"""

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EPROTO, ETIMEDOUT, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close

from content cimport HELLO_BYTES, WORD_BYTES, WORD_FIN, WORDS, Hello, Secret, hello_make, keyed_word
from preamble cimport PREAMBLE_BYTES_MAX, Preamble


cdef extern from * nogil:
    """
    #include <sys/socket.h>
    #include <sys/time.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <time.h>
    """
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        unsigned short sa_family
    cdef struct timeval:
        long tv_sec
        long tv_usec
    int SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_RCVTIMEO, SO_SNDTIMEO, IPPROTO_TCP, TCP_NODELAY
    int MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR
    int CLOCK_THREAD_CPUTIME_ID
    int socket(int domain, int type, int protocol)
    int connect(int fd, const sockaddr *address, socklen_t length)
    int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
    int shutdown(int fd, int how)
    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN, EPOLLOUT, EPOLLET
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
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
    LOAD_PATIENCE_MS = 3000  # how long a silent peer is waited for
    LOAD_SLICES = 128  # of warm-up and timed load together; what is beyond counts as the last


cdef struct LoadPlan:  # when what is to happen, of the monotonic clock
    uint64_t begin_ns
    uint64_t go_ns  # the warm-up ends
    uint64_t end_ns  # nothing is begun any more
    uint64_t slice_ns


cdef struct LoadTotals:
    uint64_t operations  # begun after the warm-up, and finished
    uint64_t every  # those of the warm-up too
    uint64_t begun  # of every operation, finished or not
    uint64_t wrong  # operations with an answer that was not the server's
    uint64_t late  # open loop: due, and not begun when the time was over
    uint64_t failures  # connections that ended in an error
    uint64_t first_ns  # when the timed part began, and when its last operation ended
    uint64_t last_ns
    uint64_t cpu_ns  # of this thread between them
    int first_errno  # of the first failure
    uint64_t slices[LOAD_SLICES]  # operations or bytes


cdef inline uint64_t load_clock(int clock) noexcept nogil:
    cdef timespec moment
    clock_gettime(clock, &moment)
    return <uint64_t>moment.tv_sec * 1000000000 + <uint64_t>moment.tv_nsec


cdef inline uint64_t load_now_ns() noexcept nogil:
    return load_clock(CLOCK_MONOTONIC)


cdef inline void histogram_add(uint64_t *histogram, uint64_t value_ns) noexcept nogil:
    cdef int shift = 0
    cdef uint64_t index = value_ns
    if value_ns >= 256:
        shift = 63 - clz(value_ns) - 7
        index = <uint64_t>shift * 128 + (value_ns >> shift)
    histogram[index if index < HISTOGRAM_BUCKETS else HISTOGRAM_BUCKETS - 1] += 1


cdef inline void load_slice(const LoadPlan *plan, LoadTotals *totals, uint64_t now, uint64_t amount) noexcept nogil:
    cdef uint64_t index = (now - plan.begin_ns) // plan.slice_ns if now > plan.begin_ns else 0
    totals.slices[index if index < LOAD_SLICES else LOAD_SLICES - 1] += amount


cdef inline void load_timed(const LoadPlan *plan, LoadTotals *totals, uint64_t now) noexcept nogil:
    """To be called often: notes when the timed part begins, and its processor time so far."""
    if totals.first_ns == 0 and now >= plan.go_ns:
        totals.first_ns = now
        totals.cpu_ns = load_clock(CLOCK_THREAD_CPUTIME_ID)


cdef inline void load_over(LoadTotals *totals, uint64_t now) noexcept nogil:
    if totals.first_ns == 0:
        totals.first_ns = now
    elif totals.cpu_ns:
        totals.cpu_ns = load_clock(CLOCK_THREAD_CPUTIME_ID) - totals.cpu_ns
    totals.last_ns = now


cdef inline int load_watch(int epfd, int operation, int fd, uint64_t index, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u64 = index
    return -errno if epoll_ctl(epfd, operation, fd, &event) < 0 else 0


cdef inline int load_wait(int epfd, epoll_event *events, int timeout_ms) noexcept nogil:
    """How many of at most LOAD_EVENTS events came within the time, or -errno."""
    cdef int ready
    while True:  # bounded: only a signal begins the wait anew
        ready = epoll_wait(epfd, events, LOAD_EVENTS, timeout_ms)
        if ready >= 0:
            return ready
        if errno != EINTR:
            return -errno


cdef inline int send_all(int fd, const char *data, size_t length) noexcept nogil:
    """Blocking. -ETIMEDOUT where the peer takes nothing in time."""
    cdef size_t done = 0
    cdef ssize_t count
    while done < length:
        count = send(fd, data + done, length - done, MSG_NOSIGNAL)
        if count >= 0:
            done += <size_t>count
        elif errno == EAGAIN:
            return -ETIMEDOUT
        elif errno != EINTR:
            return -errno
    return 0


cdef inline int recv_all(int fd, char *data, size_t length) noexcept nogil:
    """Blocking; `data` holds `length` bytes. -ECONNRESET where the peer ends before, -ETIMEDOUT where nothing comes."""
    cdef size_t done = 0
    cdef ssize_t count
    while done < length:
        count = recv(fd, data + done, length - done, 0)
        if count > 0:
            done += <size_t>count
        elif count == 0:
            return -ECONNRESET
        elif errno == EAGAIN:
            return -ETIMEDOUT
        elif errno != EINTR:
            return -errno
    return 0


cdef inline ssize_t send_some(int fd, const char *data, size_t length) noexcept nogil:
    """Without waiting: how many bytes went out, 0 where none does now, or -errno."""
    cdef ssize_t count
    while True:  # bounded: only a signal begins the call anew
        count = send(fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL)
        if count >= 0:
            return count
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            return -errno


cdef inline ssize_t recv_some(int fd, char *data, size_t length) noexcept nogil:
    """Without waiting: how many bytes came, 0 where none is here, -ECONNRESET where the peer ended, or -errno."""
    cdef ssize_t count
    while True:  # bounded: only a signal begins the call anew
        count = recv(fd, data, length, MSG_DONTWAIT)
        if count > 0:
            return count
        if count == 0:
            return -ECONNRESET
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            return -errno


cdef inline void load_patience(int fd, uint64_t milliseconds) noexcept nogil:
    """How long a blocking call on this socket waits."""
    cdef timeval limit
    limit.tv_sec = <long>(milliseconds // 1000)
    limit.tv_usec = <long>(milliseconds % 1000) * 1000
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit))
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit))


cdef inline int load_open(
    const Secret *secret, const sockaddr *address, socklen_t length, const Preamble *preamble, uint64_t kind,
    uint64_t connection, uint64_t up_bytes, uint64_t down_bytes, uint64_t *connect_ns
) noexcept nogil:
    """A connected, blocking socket that has said hello, or -errno. `connect_ns` is what socket() and connect() took."""
    cdef Hello hello
    cdef char request[PREAMBLE_BYTES_MAX + HELLO_BYTES]
    cdef int on = 1
    cdef int status
    cdef uint64_t start = load_now_ns()
    cdef int fd = socket(address.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -errno
    load_patience(fd, LOAD_PATIENCE_MS)
    status = connect(fd, address, length)
    connect_ns[0] = load_now_ns() - start
    if status == 0:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
        hello_make(secret, &hello, kind, connection, up_bytes, down_bytes, start)
        memcpy(request, preamble.data, preamble.length)
        memcpy(&request[preamble.length], &hello, HELLO_BYTES)
        status = send_all(fd, request, preamble.length + HELLO_BYTES)
    else:
        status = -ETIMEDOUT if errno == EAGAIN else -errno
    if status < 0:
        close(fd)
        return status
    return fd


cdef inline int word_expect(const Secret *secret, int fd, uint64_t connection, uint64_t number) noexcept nogil:
    """Blocking: the next word from the server is this one; -EPROTO where it is another."""
    cdef uint64_t word
    cdef int status = recv_all(fd, <char *>&word, WORD_BYTES)
    if status == 0 and word != keyed_word(secret, connection, WORDS, number):
        status = -EPROTO
    return status


cdef inline int load_close(const Secret *secret, int fd, uint64_t connection, uint64_t milliseconds) noexcept nogil:
    """End a connection on which everything is answered: a FIN, and the server's word for it. 0 where that came."""
    load_patience(fd, milliseconds)
    if shutdown(fd, SHUT_WR) < 0:
        return -errno
    return word_expect(secret, fd, connection, WORD_FIN)
