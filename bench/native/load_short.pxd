"""The load client: short connections. Each says hello, which is its request, gets an answer of that size, closes."""

from libc.errno cimport EINPROGRESS, ENOMEM, ETIMEDOUT, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport close

from content cimport DOWN, HELLO_BYTES, HELLO_SHORT, Hello, Secret, Stream, hello_make, stream_begin, stream_check
from load cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, EPOLLOUT, EPOLLET, LOAD_EVENTS, LOAD_PATIENCE_MS, SOCK_CLOEXEC,
    SOCK_NONBLOCK, SOCK_STREAM, LoadPlan, LoadTotals, connect, epoll_create1, epoll_event, histogram_add, load_now_ns,
    load_over, load_patience, load_slice, load_timed, load_wait, load_watch, recv_all, recv_some, send_all, send_some,
    sockaddr, socket, socklen_t,
)
from preamble cimport PREAMBLE_BYTES_MAX, Preamble


cdef struct Caller:  # one connection after the other
    int fd
    Hello hello
    char request[PREAMBLE_BYTES_MAX + HELLO_BYTES]  # the preamble, and the hello
    size_t length
    size_t sent
    size_t received
    char answer[HELLO_BYTES]


cdef struct Calling:  # what one thread does
    const Secret *secret
    const sockaddr *address
    socklen_t length
    Preamble preamble
    Caller *callers
    int count
    uint64_t connection  # the next one's number
    LoadPlan plan
    LoadTotals *totals
    uint64_t *histogram


cdef inline void call_failed(Calling *calling, int status) noexcept nogil:
    calling.totals.failures += 1
    if calling.totals.first_errno == 0:
        calling.totals.first_errno = -status


cdef inline void call_answered(Calling *calling, Caller *caller, uint64_t now) noexcept nogil:
    cdef Stream down
    cdef LoadTotals *totals = calling.totals
    stream_begin(calling.secret, &down, caller.hello.connection, DOWN)
    if not stream_check(calling.secret, &down, caller.answer, HELLO_BYTES):
        totals.wrong += 1
    totals.every += 1
    if caller.hello.started_ns >= calling.plan.go_ns:
        totals.operations += 1
        histogram_add(calling.histogram, now - caller.hello.started_ns)
    load_slice(&calling.plan, totals, now, 1)
    load_timed(&calling.plan, totals, now)


cdef inline void call_prepare(Calling *calling, Caller *caller, uint64_t now) noexcept nogil:
    hello_make(calling.secret, &caller.hello, HELLO_SHORT, calling.connection, HELLO_BYTES, HELLO_BYTES, now)
    memcpy(&caller.request[calling.preamble.length], &caller.hello, HELLO_BYTES)
    calling.connection += 1
    calling.totals.begun += 1
    caller.sent = caller.received = 0


cdef inline int call_step(Caller *caller) noexcept nogil:
    """Go on without waiting: 1 when the answer is complete, 0 when it is not yet, or -errno."""
    cdef ssize_t count
    while caller.sent < caller.length:
        count = send_some(caller.fd, caller.request + caller.sent, caller.length - caller.sent)
        if count <= 0:
            return <int>count
        caller.sent += <size_t>count
    while caller.received < HELLO_BYTES:
        count = recv_some(caller.fd, caller.answer + caller.received, HELLO_BYTES - caller.received)
        if count <= 0:
            return <int>count
        caller.received += <size_t>count
    return 1


cdef inline int call_begin(Calling *calling, Caller *caller, int index, int epfd) noexcept nogil:
    """Begin a connection without waiting for it; 0 or -errno."""
    cdef int status
    call_prepare(calling, caller, load_now_ns())
    caller.fd = socket(calling.address.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if caller.fd < 0:
        return -errno
    status = 0
    if connect(caller.fd, calling.address, calling.length) < 0 and errno != EINPROGRESS:
        status = -errno
    if status == 0:
        status = load_watch(epfd, EPOLL_CTL_ADD, caller.fd, <uint64_t>index, EPOLLIN | EPOLLOUT | EPOLLET)
    if status < 0:
        close(caller.fd)
        caller.fd = -1
    return status


cdef inline int call_many(Calling *calling, int epfd) noexcept nogil:
    """`count` of them under way at any time; those that nothing has come from for LOAD_PATIENCE_MS are given up."""
    cdef epoll_event events[LOAD_EVENTS]
    cdef int active = 0
    cdef int i, index, ready, status
    cdef uint64_t now
    cdef Caller *caller
    for index in range(calling.count):
        status = call_begin(calling, &calling.callers[index], index, epfd)
        if status == 0:
            active += 1
        else:
            call_failed(calling, status)
    while active > 0:
        ready = load_wait(epfd, events, LOAD_PATIENCE_MS)
        if ready < 0:
            return ready
        if ready == 0:
            for index in range(calling.count):
                if calling.callers[index].fd >= 0:
                    call_failed(calling, -ETIMEDOUT)
            return 0
        for i in range(ready):
            index = <int>events[i].data.u64
            caller = &calling.callers[index]
            status = call_step(caller)
            if status == 0:
                continue
            now = load_now_ns()
            close(caller.fd)  # which takes it out of epoll: no other descriptor refers to it
            caller.fd = -1
            if status == 1:
                call_answered(calling, caller, now)
            else:
                call_failed(calling, status)
            status = call_begin(calling, caller, index, epfd) if now < calling.plan.end_ns else 1
            if status < 0:
                call_failed(calling, status)
            if status != 0:
                active -= 1
    return 0


cdef inline int call_alone(Calling *calling) noexcept nogil:
    """One at a time, blocking."""
    cdef Caller *caller = &calling.callers[0]
    cdef uint64_t now = load_now_ns()
    cdef int status
    while now < calling.plan.end_ns:
        call_prepare(calling, caller, now)
        caller.fd = socket(calling.address.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0)
        if caller.fd < 0:
            return -errno
        load_patience(caller.fd, LOAD_PATIENCE_MS)
        status = -errno if connect(caller.fd, calling.address, calling.length) < 0 else 0
        if status == 0:
            status = send_all(caller.fd, caller.request, caller.length)
        if status == 0:
            status = recv_all(caller.fd, caller.answer, HELLO_BYTES)
        now = load_now_ns()
        close(caller.fd)
        caller.fd = -1
        if status == 0:
            call_answered(calling, caller, now)
        else:
            call_failed(calling, status)
            if calling.totals.every == 0 and status == -ETIMEDOUT:
                return 0  # silent from the first on: it would be the same with each
        now = load_now_ns()
    return 0


cdef inline int calling_run(Calling *calling) noexcept nogil:
    """0 or -errno for what the machine refuses; connections that fail are counted."""
    cdef int epfd = -1
    cdef int i
    cdef int status = -ENOMEM
    calling.callers = <Caller *>calloc(<size_t>calling.count, sizeof(Caller))
    if calling.callers != NULL:
        for i in range(calling.count):
            calling.callers[i].fd = -1
            calling.callers[i].length = calling.preamble.length + HELLO_BYTES
            memcpy(calling.callers[i].request, calling.preamble.data, calling.preamble.length)
        if calling.count == 1:
            status = call_alone(calling)
        else:
            epfd = epoll_create1(EPOLL_CLOEXEC)
            status = -errno if epfd < 0 else call_many(calling, epfd)
        for i in range(calling.count):
            if calling.callers[i].fd >= 0:
                close(calling.callers[i].fd)
    load_over(calling.totals, load_now_ns())
    if epfd >= 0:
        close(epfd)
    free(calling.callers)
    return status
