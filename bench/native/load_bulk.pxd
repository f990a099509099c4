"""The load client: streams of blocks, up or down, whose every byte is checked by the end that gets it.

An upload ends with the server's receipt: how many bytes it got, all of them right. A download ends with the server's
word that no block follows. So what was lost on the way is known to the byte, and the time until then is part of the
load. After that the client sends its FIN, and the server's word for it shows that the FIN was passed on.
"""

from libc.errno cimport EAGAIN, EBADMSG, ECONNRESET, EINTR, ENOMEM, EPROTO, ETIMEDOUT, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from posix.unistd cimport close

from content cimport (
    BLOCK_BYTES, WORD_BYTES, WORD_RECEIPT, WORD_START, WORD_STOP, WORD_WRONG, WORDS, Reading, Secret, Stream,
    block_make, keyed_word, reading_take, stream_fill,
)
from load cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, LOAD_EVENTS, LOAD_PATIENCE_MS,
    LOAD_SCRATCH_BYTES, MSG_DONTWAIT, MSG_NOSIGNAL, LoadPlan, LoadTotals, epoll_create1, epoll_ctl, epoll_event,
    load_now_ns, load_over, load_slice, load_timed, load_wait, load_watch, recv, send,
)


cdef enum:
    FLOW_SEND_BYTES = 131072  # two blocks
    FLOW_SENDING = 0
    FLOW_ENDING = 1  # the word that ends the stream is to be sent, or has been asked for
    FLOW_RECEIPT = 2  # an upload: the receipt is waited for
    FLOW_OVER = 3


cdef struct Flow:
    int fd
    int fault  # -errno where it did not come to its end
    int stage
    uint64_t connection
    uint64_t blocks  # of a download of a fixed size; 0: until the time is over
    Stream up
    Reading down
    char receipt[2 * WORD_BYTES]
    size_t have
    uint64_t at_go  # bytes moved when the timed part began
    uint64_t moved  # bytes sent, or received
    uint64_t vouched  # bytes that the end which got them has found right, from the first to the last
    uint64_t begun_ns
    uint64_t ended_ns


cdef struct Moving:  # what one thread does
    const Secret *secret
    Flow *flows
    int count
    bint up
    bint going  # the timed part has begun
    int active
    char *scratch
    LoadPlan plan
    LoadTotals *totals


cdef inline void flow_done(Moving *moving, Flow *flow, int epfd, int status) noexcept nogil:
    flow.fault = status
    flow.stage = FLOW_OVER
    flow.ended_ns = load_now_ns()
    moving.active -= 1
    epoll_ctl(epfd, EPOLL_CTL_DEL, flow.fd, NULL)


cdef inline int flow_send(Moving *moving, Flow *flow, bint last) noexcept nogil:
    """Send two blocks, or the rest of one, or the word that ends them: 1 where that has gone out, 0 or -errno."""
    cdef Stream before = flow.up
    cdef size_t inside = flow.up.at % BLOCK_BYTES
    cdef size_t length = 0
    cdef ssize_t sent
    if inside:
        length = BLOCK_BYTES - inside
        stream_fill(moving.secret, &flow.up, moving.scratch, length)
        last = False
    elif last:
        length = block_make(moving.secret, &flow.up, moving.scratch, True)
    while not last and length <= FLOW_SEND_BYTES - BLOCK_BYTES and flow.stage == FLOW_SENDING:
        length += block_make(moving.secret, &flow.up, moving.scratch + length, False)
    sent = send(flow.fd, moving.scratch, length, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        flow.up = before
        return 0 if errno == EAGAIN or errno == EINTR else -errno
    if <size_t>sent < length:
        flow.up.at = before.at + <uint64_t>sent
        flow.up.mask = keyed_word(
            moving.secret, flow.connection, before.direction, flow.up.at // BLOCK_BYTES)
        last = False
    flow.moved += <uint64_t>sent
    load_slice(&moving.plan, moving.totals, load_now_ns(), <uint64_t>sent)
    return last


cdef inline int flow_receipt(Moving *moving, Flow *flow) noexcept nogil:
    """Take the server's receipt: 1 where it is for all that was sent, 0 where it is not complete, or -errno."""
    cdef uint64_t *words = <uint64_t *>flow.receipt
    cdef ssize_t got = recv(flow.fd, flow.receipt + flow.have, 2 * WORD_BYTES - flow.have, MSG_DONTWAIT)
    if got < 0:
        return 0 if errno == EAGAIN or errno == EINTR else -errno
    if got == 0:
        return -ECONNRESET
    flow.have += <size_t>got
    if flow.have < 2 * WORD_BYTES:
        return 0
    if words[0] == keyed_word(moving.secret, flow.connection, WORDS, WORD_WRONG):
        return -EBADMSG
    if words[0] != keyed_word(moving.secret, flow.connection, WORDS, WORD_RECEIPT):
        return -EPROTO
    flow.vouched = words[1] ^ keyed_word(moving.secret, flow.connection, WORDS, WORD_RECEIPT + 16)
    return 1 if flow.vouched == flow.moved else -EPROTO


cdef inline int flow_receive(Moving *moving, Flow *flow) noexcept nogil:
    """Take and check what is here: 1 where the stream has ended, 0 where it has not, or -errno."""
    cdef ssize_t got = recv(flow.fd, moving.scratch, LOAD_SCRATCH_BYTES, MSG_DONTWAIT)
    if got < 0:
        return 0 if errno == EAGAIN or errno == EINTR else -errno
    if got == 0:
        return -ECONNRESET
    reading_take(moving.secret, &flow.down, moving.scratch, <size_t>got)
    flow.moved += <uint64_t>got
    if not flow.down.wrong_at:
        flow.vouched = flow.moved
    elif flow.stage == FLOW_ENDING:
        return -EBADMSG
    load_slice(&moving.plan, moving.totals, load_now_ns(), <uint64_t>got)
    return flow.down.ended and not flow.down.wrong_at


cdef inline int flow_word(Moving *moving, Flow *flow, uint64_t number) noexcept nogil:
    cdef uint64_t word = keyed_word(moving.secret, flow.connection, WORDS, number)
    return 0 if send(flow.fd, &word, WORD_BYTES, MSG_DONTWAIT | MSG_NOSIGNAL) == WORD_BYTES else -errno


cdef inline void flow_turn(Moving *moving, Flow *flow, int index, int epfd) noexcept nogil:
    """Its socket takes more, or has something."""
    cdef int status
    if flow.stage == FLOW_OVER:
        return
    if not moving.up:
        status = flow_receive(moving, flow)
    elif flow.stage == FLOW_RECEIPT:
        status = flow_receipt(moving, flow)
    else:
        status = flow_send(moving, flow, flow.stage == FLOW_ENDING)
        if status == 1:
            flow.stage = FLOW_RECEIPT
            status = load_watch(epfd, EPOLL_CTL_MOD, flow.fd, <uint64_t>index, EPOLLIN)
    if status:
        flow_done(moving, flow, epfd, 0 if status == 1 else status)


cdef inline void moving_clock(Moving *moving, uint64_t now, int epfd) noexcept nogil:
    """Where the timed part begins, and where it ends, something is to be done on every connection."""
    cdef int i, status
    cdef Flow *flow
    load_timed(&moving.plan, moving.totals, now)
    if not moving.going and now >= moving.plan.go_ns:
        moving.going = True
        for i in range(moving.count):
            moving.flows[i].at_go = moving.flows[i].moved
    if now < moving.plan.end_ns:
        return
    for i in range(moving.count):
        flow = &moving.flows[i]
        if flow.stage != FLOW_SENDING or flow.blocks:
            continue
        flow.stage = FLOW_ENDING
        if not moving.up:
            # The end of a stream that is out of step would never be seen.
            status = -EBADMSG if flow.down.wrong_at else flow_word(moving, flow, WORD_STOP)
            if status < 0:
                flow_done(moving, flow, epfd, status)


cdef inline int moving_loop(Moving *moving, int epfd) noexcept nogil:
    """Until every stream has come to its end, or nothing has moved for LOAD_PATIENCE_MS."""
    cdef epoll_event events[LOAD_EVENTS]
    cdef int i, ready, status
    cdef uint64_t now = load_now_ns()
    cdef uint64_t moved_ns = now
    for i in range(moving.count):
        if moving.flows[i].fault:
            moving.flows[i].stage = FLOW_OVER
            continue
        moving.active += 1
        moving.flows[i].begun_ns = load_now_ns()
        status = load_watch(epfd, EPOLL_CTL_ADD, moving.flows[i].fd, <uint64_t>i, EPOLLOUT if moving.up else EPOLLIN)
        if status < 0:
            return status
        if not moving.up:
            status = flow_word(moving, &moving.flows[i], WORD_START)
            if status < 0:
                flow_done(moving, &moving.flows[i], epfd, status)
    while moving.active:
        # Short waits: the end of the time has to be seen where nothing moves.
        ready = load_wait(epfd, events, 10)
        if ready < 0:
            return ready
        for i in range(ready):
            flow_turn(moving, &moving.flows[events[i].data.u64], <int>events[i].data.u64, epfd)
        now = load_now_ns()
        if ready:
            moved_ns = now
        moving_clock(moving, now, epfd)
        if now - moved_ns > <uint64_t>LOAD_PATIENCE_MS * 1000000:
            for i in range(moving.count):
                if moving.flows[i].stage != FLOW_OVER:
                    flow_done(moving, &moving.flows[i], epfd, -ETIMEDOUT)
    return 0


cdef inline int moving_run(Moving *moving) noexcept nogil:
    """0 or -errno; the connections stay open."""
    cdef int epfd = epoll_create1(EPOLL_CLOEXEC)
    cdef int status = -errno if epfd < 0 else 0
    moving.scratch = <char *>malloc(LOAD_SCRATCH_BYTES)
    if moving.scratch == NULL:
        status = -ENOMEM
    if status == 0:
        status = moving_loop(moving, epfd)
    load_over(moving.totals, load_now_ns())
    if epfd >= 0:
        close(epfd)
    free(moving.scratch)
    return status
