"""The datagram load: an offered rate, and the far end of both datagram loads; times in nanoseconds."""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, timespec

from content cimport DOWN, UP, Secret
from load cimport load_now_ns
from load_datagram cimport (
    BATCH, DATAGRAM_BYTES_MAX, HEAD_BYTES, LOAD_COUNT_DATAGRAM, LOAD_ECHO_DATAGRAM, MSG_WAITFORONE, Batch, DatagramHead,
    DatagramTotals, Seen, batch_new, batch_send, datagram_make, datagram_right, mmsghdr, recvmmsg, seen_add,
    sockaddr_storage,
)


cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec *request, timespec *remain)


cdef enum:
    TICK_NS = 100000  # between two batches of an offered rate
    ARREARS_NS = 10000000  # what cannot be sent within this time of its turn is not offered at all

    ECHOED = 0  # what the far end counts; each datagram once
    COUNTED = 1
    DOUBLED = 2
    WRONG_DATAGRAMS = 3
    DATAGRAM_COUNTS = 4


cdef struct DatagramServer:
    const Secret *secret
    Batch *batch
    Seen seen
    uint64_t counts[DATAGRAM_COUNTS]


cdef inline bint datagram_take(DatagramServer *server, mmsghdr *message) noexcept nogil:
    """Count one that came; whether it is to be answered: then the answer stands in its place."""
    cdef DatagramHead head
    cdef char *data = <char *>message.msg_hdr.msg_iov.iov_base
    cdef size_t size = message.msg_len
    if size < HEAD_BYTES:
        server.counts[WRONG_DATAGRAMS] += 1
        return False
    memcpy(&head, data, HEAD_BYTES)
    if not datagram_right(server.secret, &head, UP, data, size):
        server.counts[WRONG_DATAGRAMS] += 1
        return False
    if not seen_add(&server.seen, head.number):
        server.counts[DOUBLED] += 1
    elif head.kind == LOAD_COUNT_DATAGRAM:
        server.counts[COUNTED] += 1
    else:
        server.counts[ECHOED] += 1
    if head.kind != LOAD_ECHO_DATAGRAM:
        return False
    datagram_make(server.secret, &head, DOWN, data, size)
    message.msg_hdr.msg_iov.iov_len = size
    return True


cdef inline int datagram_serve(DatagramServer *server, int fd) noexcept nogil:
    """On a bound socket, until the process is ended or a system call fails."""
    cdef Batch *batch = server.batch
    cdef uint64_t refused = 0
    cdef mmsghdr kept
    cdef int status = 0
    cdef int i, got, answered
    while status == 0:
        for i in range(BATCH):
            batch.messages[i].msg_hdr.msg_iov.iov_len = DATAGRAM_BYTES_MAX
            batch.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
        got = recvmmsg(fd, batch.messages, BATCH, MSG_WAITFORONE, NULL)
        if got < 0 and errno != EINTR and errno != EAGAIN:
            status = -errno
        answered = 0
        for i in range(got):
            if datagram_take(server, &batch.messages[i]):
                # Answers come to the front; the headers are exchanged, so that none is lost or there twice.
                kept = batch.messages[answered]
                batch.messages[answered] = batch.messages[i]
                batch.messages[i] = kept
                answered += 1
        if status == 0 and answered > 0:
            status = batch_send(fd, batch, answered, &refused)
    return status


cdef inline int datagram_offer(
    const Secret *secret, int *fds, int count, size_t size, uint64_t load, uint64_t per_second, uint64_t duration_ns,
    DatagramTotals *totals
) noexcept nogil:
    """Send datagrams to be counted at a rate, whatever becomes of them, over the connected sockets in turn.

    What the kernel keeps from being sent in time is left out, so that `operations` is what was really offered.
    """
    cdef Batch *batch = batch_new(False)
    cdef DatagramHead head = DatagramHead(LOAD_COUNT_DATAGRAM, 0, 0, load << 32, 0)
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
            for i in range(share):
                datagram_make(secret, &head, UP, &batch.data[i][0], size)
                head.number += 1
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
