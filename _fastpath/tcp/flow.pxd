"""One direction of a connection: read, write what was read, and know when to stop.

The invariants this stands on, checked as asserts:
  1. `moved_in == moved_out + pend`: what was read is written or still pending.
  2. Reading only when nothing is pending, and the mode changes only then. So EAGAIN on input can only mean an empty
     socket (or an urgent byte in the way of splice), never a full pipe.
  3. `rd` and `wr` are cleared by EAGAIN on that descriptor, or `rd` by a short recv if no RDHUP, HUP, ERR or PRI was
     seen. A short read tells nothing when a FIN or a reset came in the same event, nothing with splice, and nothing of
     a unix socket, if descriptors that the peer passes end a read early.
  4. End of file is a recv that returned 0. A splice that returned 0 is asked again by recv: with a FIN behind an
     urgent byte splice says 0 while bytes are waiting.

The answer of a turn is one of WAITS (for an edge), AGAIN (its budget is used up: no new edge will come), TURNED (FIN
or error: `ending.settle` decides), THROTTLED (a bucket has nothing for it: it waits for a time; nothing is pending,
and it holds no buffer).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from base.atomic cimport oi_get, oi_put
from base.socket cimport set_nodelay
from base.linux cimport (
    EAGAIN, ECONNRESET, EINTR, EINVAL, EIO, ENOMEM, ENOSYS, EPERM, EPIPE, IPPROTO_TCP, MSG_NOSIGNAL, SPLICE_F_MOVE,
    SPLICE_F_NONBLOCK, TCP_MAXSEG, c_assert, c_getsockopt, c_read, c_recv, c_send, c_splice, errno, socklen_t,
)
from shared.policy cimport RELAY_AUTO, RELAY_SPLICE, Policy
from shared.throttle cimport throttle_credit, throttle_used
from tcp.connect cimport watch_reads
from state.pool cimport block_bytes, block_give, block_take, holder_release, pipe_destroy, pipe_take
from state.connection_slab cimport (
    HOLDS_BLOCK, HOLDS_NOTHING, HOLDS_PIPE, MODE_COPY, MODE_SPLICE, MOVED_BY_COPY, MOVED_BY_SPLICE, Conn, Dir, Side,
)
from state.reactor cimport Block, Pipe, Reactor

cdef enum:
    WAITS = 0
    AGAIN = 1
    TURNED = 2
    THROTTLED = 3

    PUMP_BYTES = 196608         # a turn: then others get theirs; the read that crosses it makes it about 256 KiB
    PUMP_READS = 32             # a turn, too: small segments cost as much as large ones
    SCRATCH_BYTES = 1048576     # the largest `buffersize`; pages that no rule uses are never touched
    BURST_SEND_BYTES = 65215    # of segments, handed to a device at once: 64 KiB less what is kept for headers
    MSS_NOT_TCP = 1             # stands for a destination without segments

    SMALL_BYTES = 8192          # a move below that gains nothing from a pipe
    SMALL_RUN = 3               # this many in a row, and the direction copies again
    FULL_RUN = 2                # this many full buffers in a row, and it splices
    BURST_BYTES = 262144        # or so much within a second ...
    BURST_MS = 1000
    BURST_READ_BYTES = 16384    # ... with the last read at least so large


cdef inline void side_fail(Side *self, int error) noexcept nogil:
    """Latch the first errno; the kernel tells it once, and afterwards a reset looks like a FIN.

    EPIPE is the kernel's word for a reset that came after the peer's FIN: a reset all the same.
    """
    if self.error == 0:
        self.error = ECONNRESET if error == EPIPE else error


cdef inline void undelay(Side *target) noexcept nogil:
    """Set TCP_NODELAY on the upstream leg, which was made without.

    It waits for the second write: the kernel holds a short segment back only as long as an earlier short one is not
    acknowledged, and of a first write there is none. So most short connections are spared the call. A FIN is never
    held back.
    """
    target.delays = 0
    set_nodelay(target.fd)


cdef inline void flow_check(const Dir *self) noexcept nogil:
    c_assert(self.moved_in == self.moved_out + self.pend)
    c_assert(self.pend == 0 or self.holding != HOLDS_NOTHING)


cdef inline void flow_keep(Reactor *reactor, Dir *self, const uint8_t *bytes, uint32_t size) noexcept nogil:
    """Keep what the destination did not take in a block; `pend` is `size` then, or 0 if there is no memory."""
    cdef Block *block = block_take(&reactor.pool, size)
    if block == NULL:
        return
    memcpy(block_bytes(block), bytes, size)
    self.holder = block
    self.holding = HOLDS_BLOCK
    self.offset = 0
    self.pend = size


cdef inline int64_t flow_write(Reactor *reactor, Dir *self, Side *target) noexcept nogil:
    """Write pending bytes once; the number taken or -errno."""
    cdef int64_t taken
    if target.delays and (self.moved_out or self.holding == HOLDS_PIPE):     # a pipe may be written in several sends
        undelay(target)
    if self.holding == HOLDS_PIPE:
        taken = c_splice((<Pipe *> self.holder).read_fd, NULL, target.fd, NULL, self.pend,
                         SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
    else:
        taken = c_send(target.fd, block_bytes(<Block *> self.holder) + self.offset, self.pend, MSG_NOSIGNAL)
    if taken < 0:
        return -errno
    self.pend -= <uint32_t> taken
    self.offset += <uint32_t> taken
    self.moved_out += <uint64_t> taken
    if taken:
        self.progress_ms = reactor.now_ms
    return taken


cdef inline int flow_unpipe(Reactor *reactor, Dir *self) noexcept nogil:
    """Splice is refused while bytes are in the pipe: take them out and go on as a copy. 0 or -errno."""
    cdef Pipe *pipe = <Pipe *> self.holder
    cdef Block *block = block_take(&reactor.pool, self.pend)
    cdef uint32_t got = 0
    cdef int64_t part
    if block == NULL:
        return -ENOMEM
    while got < self.pend:      # bounded: the pipe holds exactly these bytes
        part = c_read(pipe.read_fd, block_bytes(block) + got, self.pend - got)
        if part <= 0:
            block_give(&reactor.pool, block)
            return -EINVAL
        got += <uint32_t> part
    pipe_destroy(reactor, pipe)
    self.holder = block
    self.holding = HOLDS_BLOCK
    self.offset = 0
    return 0


cdef inline bint splice_is_refused(int error) noexcept nogil:
    return error == EINVAL or error == ENOSYS or error == EPERM


cdef inline void flow_choose(Reactor *reactor, Dir *self, const Policy *policy) noexcept nogil:
    """Copy or splice for the next read; what this depends on was counted by `flow_count`."""
    c_assert(self.pend == 0)
    if oi_get(&reactor.hub.splice_refused):
        self.mode = MODE_COPY
    elif policy.flip_bytes:
        self.mode = MODE_COPY if self.mode == MODE_SPLICE else MODE_SPLICE
    elif policy.relay != RELAY_AUTO:
        self.mode = MODE_SPLICE if policy.relay == RELAY_SPLICE else MODE_COPY
    elif self.mode == MODE_COPY:
        if self.full_run >= FULL_RUN:
            self.mode = MODE_SPLICE
            self.small_run = 0
            oi_put(&reactor.stats.promoted, oi_get(&reactor.stats.promoted) + 1)
    elif self.small_run >= SMALL_RUN or reactor.now_ms - self.progress_ms >= BURST_MS:
        self.mode = MODE_COPY
        self.full_run = 0
        self.burst_bytes = 0
        oi_put(&reactor.stats.demoted, oi_get(&reactor.stats.demoted) + 1)
    if self.mode == MODE_SPLICE and self.holding != HOLDS_PIPE:
        holder_release(reactor, self)
        self.holder = pipe_take(reactor, <int> policy.pipe_bytes, self)
        if self.holder != NULL:
            self.holding = HOLDS_PIPE
        else:
            self.mode = MODE_COPY
    elif self.mode == MODE_COPY and self.holding != HOLDS_NOTHING:
        holder_release(reactor, self)


cdef inline void flow_count(Reactor *reactor, Dir *self, uint32_t size, bint full) noexcept nogil:
    """Remember what the last read was like."""
    self.bulk = size >= SMALL_BYTES
    if self.mode == MODE_SPLICE:
        self.small_run = <uint8_t> (self.small_run + 1) if size < SMALL_BYTES and self.small_run < 255 else 0
        return
    self.full_run = <uint8_t> (self.full_run + 1) if full and self.full_run < 255 else 0
    if reactor.now_ms - self.burst_ms >= BURST_MS:
        self.burst_ms = reactor.now_ms
        self.burst_bytes = 0
    self.burst_bytes += size
    if self.burst_bytes >= BURST_BYTES and size >= BURST_READ_BYTES:
        self.full_run = FULL_RUN


cdef inline uint32_t flow_read_bytes(Dir *self, const Side *target, uint32_t room) noexcept nogil:
    """How much of `room` to read at once: whole bursts of segments, whole segments if there is no room for one.

    TCP sends a write as bursts of as many segments as 64 KiB hold, and what is left over at once as a burst of its
    own, which costs nearly as much as a full one (5 and 6 us). 256 KiB are four bursts of 65,160 bytes and one of
    1,504, 64 KiB are one and one of 376. Ending reads at a burst: 16,200 packets a gigabyte and not 19,100 by splice,
    15,500 and not 30,000 by copy; 0.107 s of processor time a gigabyte and not 0.116 by splice, 0.26 and not 0.28 by
    copy (one stream; eight: 0.108 and 0.109, 0.27 and 0.34; Linux 6.18, veth). SPLICE_F_MORE is no help: it holds back
    less than one segment. If the last burst of what has come is short, it goes out short.

    The segment is asked for once, when a direction shows that it fills what it is given.
    """
    cdef int mss = 0
    cdef socklen_t size = sizeof(mss)
    cdef uint32_t burst
    if self.mss == 0:
        if c_getsockopt(target.fd, IPPROTO_TCP, TCP_MAXSEG, &mss, &size) != 0 or mss < 1 or mss > 65535:
            mss = MSS_NOT_TCP
        self.mss = <uint16_t> mss
    burst = BURST_SEND_BYTES // self.mss * self.mss
    if burst == 0 or room < burst:
        burst = self.mss
    return room // burst * burst if room >= burst else room


cdef inline int64_t flow_copy(
    Reactor *reactor, Dir *self, Side *source, Side *target, const Policy *policy, uint32_t most
) noexcept nogil:
    """Read at most `most` bytes into the scratch buffer and write at once; what is left over gets a buffer of its own.

    The number read, 0 for the end of file, or -errno of the source; an error of the target is latched there.
    """
    cdef uint32_t size = policy.flip_bytes if policy.flip_bytes else policy.buffer_bytes
    cdef int64_t got, taken
    if size > most:
        size = most
    if (self.full_run or self.mss) and not policy.flip_bytes:
        size = flow_read_bytes(self, target, size)
    got = c_recv(source.fd, reactor.scratch, size, 0)
    if got <= 0:
        return -errno if got < 0 else 0
    if <uint32_t> got < size and not source.short_read_inconclusive:
        source.rd = 0
    self.moved_by |= MOVED_BY_COPY
    self.moved_in += <uint64_t> got
    # What a bucket cuts short to a small piece is not bulk.
    flow_count(reactor, self, <uint32_t> got, got >= size and (size < most or size >= SMALL_BYTES))
    self.progress_ms = reactor.now_ms
    if target.delays and self.moved_out:
        undelay(target)
    taken = c_send(target.fd, reactor.scratch, <size_t> got, MSG_NOSIGNAL)
    if taken < 0:
        if errno != EAGAIN and errno != EINTR:
            self.moved_in -= <uint64_t> got
            side_fail(target, errno)
            return got
        if errno == EAGAIN:
            target.wr = 0
        taken = 0
    self.moved_out += <uint64_t> taken
    if taken < got:
        flow_keep(reactor, self, reactor.scratch + taken, <uint32_t> (got - taken))
        if self.pend == 0:
            self.moved_in -= <uint64_t> (got - taken)
            side_fail(target, ENOMEM)
    return got


cdef inline int64_t flow_splice(
    Reactor *reactor, Dir *self, Side *source, Side *target, const Policy *policy, uint32_t most
) noexcept nogil:
    """Read at most `most` bytes into the pipe; the pump writes it out. The answers are those of `flow_copy`."""
    cdef Pipe *pipe = <Pipe *> self.holder
    cdef uint32_t room = pipe.bytes if pipe.bytes < most else most
    cdef uint32_t size = min(policy.flip_bytes, most) if policy.flip_bytes else flow_read_bytes(self, target, room)
    cdef int64_t got = c_splice(source.fd, NULL, pipe.write_fd, NULL, size, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
    if got > 0:
        self.moved_by |= MOVED_BY_SPLICE
        self.moved_in += <uint64_t> got
        self.pend = <uint32_t> got
        flow_count(reactor, self, self.pend, False)
        self.progress_ms = reactor.now_ms
        return got
    if got < 0 and splice_is_refused(errno):
        oi_put(&reactor.hub.splice_refused, <uint64_t> errno)
    elif got < 0 and (errno != EAGAIN or not source.urgent):
        return -errno
    # Refused, an urgent byte in the way, or perhaps the end: recv knows.
    self.mode = MODE_COPY
    self.full_run = 0
    self.burst_bytes = 0
    holder_release(reactor, self)
    return flow_copy(reactor, self, source, target, policy, most)


cdef inline int flow_pump(Reactor *reactor, Conn *conn, int way) noexcept nogil:
    """One turn."""
    cdef Dir *self = &conn.dir[way]
    cdef Side *source = &conn.side[way]
    cdef Side *target = &conn.side[1 - way]
    cdef int64_t moved
    cdef uint64_t spent = 0
    cdef int reads = 0
    cdef uint32_t most = <uint32_t> -1
    while True:     # bounded by the budget: each round moves bytes, waits or leaves
        flow_check(self)
        if target.error:
            return TURNED
        if self.pend:
            if not target.wr:
                return WAITS
            moved = flow_write(reactor, self, target)
            if moved > 0:
                continue
            if moved == 0:      # no kernel should say so of bytes that are there; asking again might never end
                side_fail(target, EIO)
                continue
            if moved == -EAGAIN:
                target.wr = 0
                return WAITS
            if self.holding == HOLDS_PIPE and splice_is_refused(<int> -moved):
                oi_put(&reactor.hub.splice_refused, <uint64_t> -moved)
                moved = flow_unpipe(reactor, self)
                if moved == 0:
                    continue
            if moved != -EINTR:
                side_fail(target, <int> -moved)
            continue
        if self.eof:
            return TURNED
        if not source.rd:
            holder_release(reactor, self)
            if source.unwatched and watch_reads(reactor, conn, way, True) != 0:
                side_fail(source, errno)
                self.eof = 1
                return TURNED
            return WAITS
        if spent >= PUMP_BYTES or reads >= PUMP_READS:
            return AGAIN
        if conn.throttle != NULL:
            most = throttle_credit(conn.throttle, conn.policy, way, reactor.now_us)
            if most == 0:
                holder_release(reactor, self)
                return THROTTLED
        reads += 1
        flow_choose(reactor, self, conn.policy)
        if self.mode == MODE_SPLICE:
            moved = flow_splice(reactor, self, source, target, conn.policy, most)
        else:
            moved = flow_copy(reactor, self, source, target, conn.policy, most)
        if moved > 0:
            spent += <uint64_t> moved
            if conn.throttle != NULL:
                throttle_used(conn.throttle, way, <uint64_t> moved)
        elif moved == 0:
            self.eof = 1
            source.rd = 0
            if source.failing:      # a reset behind a FIN: recv tells only the FIN, and ERR was seen
                side_fail(source, ECONNRESET)
        elif moved == -EAGAIN:
            source.rd = 0
            source.short_read_inconclusive = source.local
            source.urgent = 0
            if source.error:        # seen on a write: what came before it has been read, and no event may follow
                self.eof = 1
        elif moved != -EINTR:
            side_fail(source, <int> -moved)
            self.eof = 1
            source.rd = 0
