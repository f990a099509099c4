"""The datagram load of the bench: its far end, round trips in a window, and an offered rate; times in nanoseconds.

Every datagram begins with a head of 16 bytes: what is to be done with it, its place in the window, and when it was
sent. The far end sends a LOAD_ECHO back, counts a LOAD_COUNT, and answers a LOAD_TELL with the count in place of the
time. All of them go in batches, a recvmmsg or sendmmsg each. Functions return 0 or -errno; sockets are blocking ones.
"""

from libc.errno cimport EAGAIN, ECONNREFUSED, EINTR, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, timespec
from posix.unistd cimport close

from load cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, MSG_DONTWAIT, epoll_create1, epoll_ctl, epoll_event, epoll_wait,
    histogram_add, load_now_ns,
)


cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <time.h>
    """
    int MSG_WAITFORONE
    ctypedef unsigned int socklen_t
    cdef struct sockaddr_storage:
        pass
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    cdef struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        int msg_flags
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int clock_nanosleep(int clock, int flags, const timespec *request, timespec *remain)


cdef enum:
    LOAD_ECHO_DATAGRAM = 0
    LOAD_COUNT_DATAGRAM = 1
    LOAD_TELL_DATAGRAM = 2
    HEAD_BYTES = 16
    BATCH = 64  # datagrams of one system call; also the widest window of one socket
    DATAGRAM_BYTES_MAX = 9216  # of a jumbo frame: more than any load sends
    LOST_NS = 250000000  # an answer that takes longer counts as lost
    SWEEP_NS = 50000000  # how often the window is searched for lost ones; the sockets' receive timeout is no longer
    TICK_NS = 100000  # between two batches of an offered rate
    ARREARS_NS = 10000000  # what cannot be sent within this time of its turn is not offered at all


cdef struct DatagramHead:
    uint32_t kind
    uint32_t slot
    uint64_t stamp  # when it was sent, or the count that LOAD_TELL asks for


cdef struct DatagramTotals:
    uint64_t operations  # answers in time, or datagrams sent
    uint64_t lost
    uint64_t strays  # answers that were late, there twice, or another socket's
    uint64_t refused  # sends that an ICMP message or a full queue made fail
    uint64_t elapsed_ns


cdef struct Batch:
    mmsghdr messages[BATCH]
    iovec vectors[BATCH]
    sockaddr_storage names[BATCH]
    char data[BATCH][DATAGRAM_BYTES_MAX]


cdef struct Window:  # round trips of some sockets, `depth` datagrams under way on each
    int *fds
    int count
    int depth
    size_t size
    uint64_t *sent_ns  # by slot, `depth` for each socket in turn; 0 when the slot is at rest
    uint64_t *histogram
    DatagramTotals *totals
    Batch *coming
    Batch *going


cdef inline Batch *batch_new(bint named) noexcept nogil:
    cdef Batch *batch = <Batch *>calloc(1, sizeof(Batch))
    cdef int i
    if batch != NULL:
        for i in range(BATCH):
            batch.vectors[i].iov_base = &batch.data[i][0]
            batch.vectors[i].iov_len = DATAGRAM_BYTES_MAX
            batch.messages[i].msg_hdr.msg_iov = &batch.vectors[i]
            batch.messages[i].msg_hdr.msg_iovlen = 1
            if named:
                batch.messages[i].msg_hdr.msg_name = &batch.names[i]
    return batch


cdef inline int batch_send(int fd, Batch *batch, int count, uint64_t *refused) noexcept nogil:
    """Send the first `count`. One that is refused is counted and left: its answer will be missed."""
    cdef int done = 0
    cdef int sent
    while done < count:
        sent = sendmmsg(fd, &batch.messages[done], <unsigned int>(count - done), 0)
        if sent > 0:
            done += sent
        elif errno == ECONNREFUSED or errno == ENOBUFS or errno == EAGAIN:
            refused[0] += 1
            done += 1
        elif errno != EINTR:
            return -errno
    return 0


cdef inline int datagram_serve(int fd) noexcept nogil:
    """The far end, on a bound socket: until the process is ended, or a system call fails."""
    cdef Batch *batch = batch_new(True)
    cdef DatagramHead head
    cdef uint64_t counted = 0
    cdef uint64_t refused = 0
    cdef mmsghdr kept
    cdef int status = 0 if batch != NULL else -ENOMEM
    cdef int i, got, echoed
    while status == 0:
        for i in range(BATCH):
            batch.messages[i].msg_hdr.msg_iov.iov_len = DATAGRAM_BYTES_MAX
            batch.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
        got = recvmmsg(fd, batch.messages, BATCH, MSG_WAITFORONE, NULL)
        if got < 0 and errno != EINTR and errno != EAGAIN:
            status = -errno
        echoed = 0
        for i in range(got):
            if batch.messages[i].msg_len < HEAD_BYTES:
                continue
            memcpy(&head, batch.messages[i].msg_hdr.msg_iov.iov_base, HEAD_BYTES)
            if head.kind == LOAD_COUNT_DATAGRAM:
                counted += 1
                continue
            if head.kind == LOAD_TELL_DATAGRAM:
                head.stamp = counted
                memcpy(batch.messages[i].msg_hdr.msg_iov.iov_base, &head, HEAD_BYTES)
            batch.messages[i].msg_hdr.msg_iov.iov_len = batch.messages[i].msg_len
            # Those that go back come to the front; the headers are exchanged, so that none is lost or there twice.
            kept = batch.messages[echoed]
            batch.messages[echoed] = batch.messages[i]
            batch.messages[i] = kept
            echoed += 1
        if status == 0 and echoed > 0:
            status = batch_send(fd, batch, echoed, &refused)
    free(batch)
    return status


cdef inline void window_put(Window *window, int place, uint32_t slot, uint64_t now) noexcept nogil:
    """Write the datagram of `slot` at `place` of what goes."""
    cdef DatagramHead head
    head.kind = LOAD_ECHO_DATAGRAM
    head.slot = slot
    head.stamp = now
    memcpy(&window.going.data[place][0], &head, HEAD_BYTES)
    window.going.vectors[place].iov_len = window.size
    window.sent_ns[slot] = now


cdef inline int window_turn(Window *window, int index, int flags, uint64_t until_ns) noexcept nogil:
    """Take what has come for one socket, and send as much again; after `until_ns` the slots come to rest."""
    cdef DatagramHead head
    cdef int going = 0
    cdef int fd = window.fds[index]
    cdef int i
    cdef uint64_t now
    cdef int got = recvmmsg(fd, window.coming.messages, <unsigned int>window.depth, flags, NULL)
    if got < 0:
        return 0 if errno == EAGAIN or errno == EINTR or errno == ECONNREFUSED else -errno
    now = load_now_ns()
    for i in range(got):
        if window.coming.messages[i].msg_len != window.size:
            window.totals.strays += 1
            continue
        memcpy(&head, &window.coming.data[i][0], HEAD_BYTES)
        # An answer that was given up, and one that is there twice, have another time than the slot.
        if head.slot // <uint32_t>window.depth != <uint32_t>index or window.sent_ns[head.slot] != head.stamp:
            window.totals.strays += 1
            continue
        histogram_add(window.histogram, now - head.stamp)
        window.totals.operations += 1
        window.sent_ns[head.slot] = 0
        if now < until_ns:
            window_put(window, going, head.slot, now)
            going += 1
    return batch_send(fd, window.going, going, &window.totals.refused)


cdef inline int window_sweep(Window *window, uint64_t until_ns, int *busy) noexcept nogil:
    """Give up what is not answered in time, and send anew; `busy` is the number of slots that are under way."""
    cdef uint64_t now = load_now_ns()
    cdef int i, j, going, status
    cdef uint32_t slot
    busy[0] = 0
    for i in range(window.count):
        going = 0
        for j in range(window.depth):
            slot = <uint32_t>(i * window.depth + j)
            if window.sent_ns[slot] and now - window.sent_ns[slot] > LOST_NS:
                window.totals.lost += 1
                window.sent_ns[slot] = 0
                if now < until_ns:
                    window_put(window, going, slot, now)
                    going += 1
            busy[0] += window.sent_ns[slot] != 0
        status = batch_send(window.fds[i], window.going, going, &window.totals.refused)
        if status < 0:
            return status
    return 0


cdef inline int window_run(Window *window, int epfd, uint64_t duration_ns) noexcept nogil:
    """One socket is waited for in recvmmsg itself, several of them with epoll (`epfd` -1 where there is one)."""
    cdef epoll_event events[BATCH]
    cdef uint64_t begin = load_now_ns()
    cdef uint64_t until_ns = begin + duration_ns
    cdef uint64_t swept = begin
    cdef uint64_t now = begin
    cdef int i, j, ready
    cdef int busy = 1
    cdef int status = 0
    for i in range(window.count):
        now = load_now_ns()
        for j in range(window.depth):
            window_put(window, j, <uint32_t>(i * window.depth + j), now)
        status = batch_send(window.fds[i], window.going, window.depth, &window.totals.refused)
        if status < 0:
            return status
    # Ends at the latest LOST_NS after `until_ns`, when the last datagram has come or is given up.
    while busy and status == 0:
        if epfd < 0:
            status = window_turn(window, 0, MSG_WAITFORONE, until_ns)
        else:
            ready = epoll_wait(epfd, events, BATCH, SWEEP_NS // 1000000)
            for i in range(ready):
                if status == 0:
                    status = window_turn(window, <int>events[i].data.u64, MSG_DONTWAIT, until_ns)
        now = load_now_ns()
        if status == 0 and (now >= until_ns or now - swept >= SWEEP_NS):
            swept = now
            status = window_sweep(window, until_ns, &busy)
    # Waiting for lost ones at the end is no part of the load.
    now = load_now_ns()
    window.totals.elapsed_ns = (now if now < until_ns else until_ns) - begin
    return status


cdef inline int datagram_round_trips(
    int *fds, int count, int depth, size_t size, uint64_t duration_ns, uint64_t *histogram, DatagramTotals *totals
) noexcept nogil:
    """Keep `depth` datagrams of `size` bytes under way on each of the connected sockets, for `duration_ns`.

    The sockets need a receive timeout of no more than SWEEP_NS.
    """
    cdef Window window
    cdef epoll_event event
    cdef int epfd = -1
    cdef int i
    cdef int status = -ENOMEM
    memset(&window, 0, sizeof(window))
    window.fds = fds
    window.count = count
    window.depth = depth
    window.size = size
    window.histogram = histogram
    window.totals = totals
    window.sent_ns = <uint64_t *>calloc(<size_t>count * <size_t>depth, sizeof(uint64_t))
    window.coming = batch_new(False)
    window.going = batch_new(False)
    if window.sent_ns != NULL and window.coming != NULL and window.going != NULL:
        status = 0
        if count > 1:
            epfd = epoll_create1(EPOLL_CLOEXEC)
            status = -errno if epfd < 0 else 0
            for i in range(count):
                event.events = EPOLLIN
                event.data.u64 = <uint64_t>i
                if status == 0 and epoll_ctl(epfd, EPOLL_CTL_ADD, fds[i], &event) < 0:
                    status = -errno
        if status == 0:
            status = window_run(&window, epfd, duration_ns)
    if epfd >= 0:
        close(epfd)
    free(window.going)
    free(window.coming)
    free(window.sent_ns)
    return status


cdef inline int datagram_offer(
    int *fds, int count, size_t size, uint64_t per_second, uint64_t duration_ns, DatagramTotals *totals
) noexcept nogil:
    """Send datagrams to be counted at a rate, whatever becomes of them, over the connected sockets in turn.

    What the kernel keeps from being sent in time is left out, so that `operations` is what was really offered.
    """
    cdef Batch *batch = batch_new(False)
    cdef DatagramHead head = DatagramHead(LOAD_COUNT_DATAGRAM, 0, 0)
    cdef timespec tick = timespec(0, TICK_NS)
    cdef uint64_t begin = load_now_ns()
    cdef uint64_t now = begin
    cdef uint64_t taken = 0  # turns that were used or let go
    cdef uint64_t due, owed, refused
    cdef uint64_t arrears = per_second * ARREARS_NS // 1000000000 + 1
    cdef int turn = 0
    cdef int status = 0 if batch != NULL else -ENOMEM
    cdef int i, share
    if status == 0:
        for i in range(BATCH):
            memcpy(&batch.data[i][0], &head, HEAD_BYTES)
            batch.vectors[i].iov_len = size
    while status == 0 and now - begin < duration_ns:
        due = <uint64_t>(<double>(now - begin) * <double>per_second / 1e9)
        owed = due - taken if due > taken else 0
        if owed > arrears:
            taken += owed - arrears
            owed = arrears
        if owed == 0:
            clock_nanosleep(CLOCK_MONOTONIC, 0, &tick, NULL)
        else:
            # Several senders take turns evenly, but a system call for each datagram is not what is to be measured.
            share = <int>(owed // <uint64_t>count) + 1
            share = <int>owed if <uint64_t>share > owed else share
            share = BATCH if share > BATCH else share
            refused = 0
            status = batch_send(fds[turn], batch, share, &refused)
            turn = (turn + 1) % count
            taken += <uint64_t>share
            totals.operations += <uint64_t>share - refused
            totals.refused += refused
        now = load_now_ns()
    totals.elapsed_ns = now - begin
    free(batch)
    return status
