"""The datagram load of the bench: its far end, round trips in a window, and an offered rate; times in nanoseconds.

Every datagram begins with a head of 32 bytes: what is to be done with it, its place in the window, when it was sent,
its number, and a tag; the rest follows from the key of the run and the number, as in `content.pxd`. So either end sees
what is changed, what is there twice, and what is not of the other end. The far end answers a LOAD_ECHO with content of
its own and counts a LOAD_COUNT. All of them go in batches, a recvmmsg or sendmmsg each. Functions return 0 or -errno;
sockets are blocking ones.
"""

from libc.errno cimport EAGAIN, ECONNREFUSED, EINTR, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport timespec
from posix.unistd cimport close

from content cimport DOWN, UP, Secret, bench_fill, bench_same, keyed
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


cdef enum:
    LOAD_ECHO_DATAGRAM = 0
    LOAD_COUNT_DATAGRAM = 1
    HEAD_BYTES = 32
    BATCH = 64  # datagrams of one system call; also the widest window of one socket
    DATAGRAM_BYTES_MAX = 9216  # of a jumbo frame: more than any load sends
    LOST_NS = 250000000  # an answer that takes longer counts as lost
    SWEEP_NS = 50000000  # how often the window is searched for lost ones; the sockets' receive timeout is no longer
    NUMBERS = 67108864  # of one load that are told apart; beyond that they begin anew
    NUMBER_WORDS = 1048576  # of 64 of them


cdef struct DatagramHead:
    uint32_t kind
    uint32_t slot
    uint64_t stamp  # when it was sent
    uint64_t number  # of the load in the upper half, of the datagram in the lower
    uint64_t tag  # of the rest and the direction


cdef struct Seen:  # which numbers of one load have been there
    uint64_t load
    uint64_t bits[NUMBER_WORDS]


cdef struct DatagramTotals:
    uint64_t operations  # answers in time, or datagrams sent
    uint64_t lost
    uint64_t strays  # answers that were late, or another socket's
    uint64_t doubled  # there twice
    uint64_t wrong  # with content that the other end has not sent
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
    const Secret *secret
    uint64_t number  # of the next datagram
    uint64_t *numbers  # by slot
    Seen *answered


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


cdef inline bint seen_add(Seen *seen, uint64_t number) noexcept nogil:
    """False where this number of this load has been there. A new load begins a new list."""
    cdef uint64_t place = number % NUMBERS
    cdef uint64_t bit = <uint64_t>1 << (place % 64)
    if seen.load != number >> 32:
        memset(seen, 0, sizeof(Seen))
        seen.load = number >> 32
    if seen.bits[place // 64] & bit:
        return False
    seen.bits[place // 64] |= bit
    if place == NUMBERS // 2 or place == 0:  # the other half is free again
        memset(&seen.bits[0 if place else NUMBERS // 128], 0, NUMBERS // 16)
    return True


cdef inline uint64_t datagram_tag(const Secret *secret, const DatagramHead *head, int direction) noexcept nogil:
    cdef uint64_t words[4]
    words[0] = <uint64_t>direction << 32 | head.kind
    words[1] = head.slot
    words[2] = head.stamp
    words[3] = head.number
    return keyed(secret, words, 4)


cdef inline void datagram_make(
    const Secret *secret, DatagramHead *head, int direction, char *data, size_t size
) noexcept nogil:
    """Tag the head, and write the whole datagram. Sizes that are no multiple of 8 end in zeros."""
    head.tag = datagram_tag(secret, head, direction)
    memcpy(data, head, HEAD_BYTES)
    bench_fill(data + HEAD_BYTES, secret.table, head.tag, (size - HEAD_BYTES) // 8)


cdef inline bint datagram_right(
    const Secret *secret, const DatagramHead *head, int direction, const char *data, size_t size
) noexcept nogil:
    return head.tag == datagram_tag(secret, head, direction) and bench_same(
        data + HEAD_BYTES, secret.table, head.tag, (size - HEAD_BYTES) // 8)


cdef inline void window_put(Window *window, int place, uint32_t slot, uint64_t now) noexcept nogil:
    """Write the datagram of `slot` at `place` of what goes."""
    cdef DatagramHead head
    head.kind = LOAD_ECHO_DATAGRAM
    head.slot = slot
    head.stamp = now
    head.number = window.number
    window.numbers[slot] = window.number
    window.number += 1
    datagram_make(window.secret, &head, UP, &window.going.data[place][0], window.size)
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
        memcpy(&head, &window.coming.data[i][0], HEAD_BYTES)
        if window.coming.messages[i].msg_len != window.size or not datagram_right(
            window.secret, &head, DOWN, &window.coming.data[i][0], window.size
        ):
            window.totals.wrong += 1
            continue
        if head.number >> 32 == window.number >> 32 and not seen_add(window.answered, head.number):
            window.totals.doubled += 1
            continue
        # An answer that was given up is of an earlier number than the slot's.
        if head.slot // <uint32_t>window.depth != <uint32_t>index or window.numbers[head.slot] != head.number or (
            window.sent_ns[head.slot] == 0
        ):
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
    const Secret *secret, int *fds, int count, int depth, size_t size, uint64_t load, uint64_t duration_ns,
    uint64_t *histogram, DatagramTotals *totals
) noexcept nogil:
    """Keep `depth` datagrams of `size` bytes under way on each of the connected sockets, for `duration_ns`.

    The sockets need a receive timeout of no more than SWEEP_NS.
    """
    cdef Window window
    cdef epoll_event event
    cdef bint ready
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
    window.secret = secret
    window.number = load << 32
    window.numbers = <uint64_t *>calloc(<size_t>count * <size_t>depth, sizeof(uint64_t))
    window.answered = <Seen *>calloc(1, sizeof(Seen))
    window.coming = batch_new(False)
    window.going = batch_new(False)
    ready = window.numbers != NULL and window.answered != NULL and window.sent_ns != NULL
    if ready and window.coming != NULL and window.going != NULL:
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
    free(window.numbers)
    free(window.answered)
    return status
