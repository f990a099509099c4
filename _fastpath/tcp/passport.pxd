"""A connection on its way to another reactor or process: everything that one knows of it, taken out between two reads.

A relay reads only while nothing is pending, and what is pending sits in a block or a pipe. So between two turns a
connection is two descriptors and this: counters, times, what is pending, the places that it has under the limits.
Whoever puts it in registers both descriptors, which the kernel answers with an event for whatever is ready by then;
so no edge is lost on the way. Nobody reads or writes them meanwhile.

The control plane's words to all reactors (kill, abort, write down, judge) must meet each connection once. They are
posted while `hub.moving` is held, and a connection moves while it is held, by a reactor that has read all of
these: what is posted later finds it behind its move, in the inbox of the other.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from base.address cimport Address, address_read
from base.atomic cimport oi_add, oi_get, oi_put, oi_raise_by, oi_take
from base.linux cimport (
    EPOLL_CTL_DEL, c_assert, c_close, c_epoll_ctl, errno, pthread_cond_broadcast, pthread_cond_t, pthread_mutex_lock,
    pthread_mutex_t, pthread_mutex_trylock, pthread_mutex_unlock,
)
from shared.admission cimport sources_enter, sources_leave
from shared.gate cimport Gate, gate_force, gate_leave
from shared.group cimport Group, group_members
from shared.policy cimport Policy, policy_drop, policy_hold
from shared.target cimport Targets
from shared.throttle cimport throttle_end, throttle_is_wanted, throttle_new
from shared.inbox cimport MESSAGE_MOVED, Message, inbox_has_words_to_all, inbox_post
from state.connection_slab cimport (
    CLIENT, CONN_CLOSED, CONN_FLUSH, CONN_FREE, CONN_RELAY, DOWN, HOLDS_BLOCK, HOLDS_PIPE, UP, UPSTREAM, Conn, Dir,
    conn_at, conn_give,
)
from state.slab cimport Slot, slab_slots, slab_take
from state.pool cimport block_bytes, holder_release, pipe_enters, pipe_leaves
from state.queue cimport ready_add, ready_remove
from state.reactor cimport Block, Pipe, Reactor, TICK_MS
from state.wheel cimport wheel_arm, wheel_disarm
from tcp.connect cimport watch
from shared.ending cimport ENDING_ABORTED
from tcp.ending cimport finish, search_end
from tcp.flow cimport flow_unpipe, undelay

cdef enum:
    WINDOW_SHIFT = 7            # work is counted in windows of 128 ms, and halves with each
    WORK_BYTES_SHIFT = 16       # a turn counts as one, and one more for each 64 KiB that it moved
    WORK_CLASSES = 16           # of connections by their work: powers of two
    SHED_MOST = 256             # connections moved at one word, some microseconds each

cdef struct Departure:          # what one reactor takes out for another process
    pthread_mutex_t lock
    pthread_cond_t done
    bint answered
    bint pairs                  # those that Python handed over, instead of those that were accepted here
    Conn **items
    int room
    int count
    int left                    # connections that are still here


cdef inline uint32_t work_window(uint64_t now_ms) noexcept nogil:
    return <uint32_t> (now_ms >> WINDOW_SHIFT)


cdef inline uint32_t work_now(const Conn *conn, uint32_t window) noexcept nogil:
    """The connection's work of late."""
    cdef uint32_t age = window - conn.work_window
    return conn.work >> age if age < 32 else 0


cdef inline void work_add(Reactor *reactor, Conn *conn, uint64_t moved) noexcept nogil:
    """Count a turn that moved so many bytes."""
    cdef uint32_t window = work_window(reactor.now_ms)
    if conn.work_window != window:
        conn.work = work_now(conn, window)
        conn.work_window = window
    conn.work += 1 + <uint32_t> (moved >> WORK_BYTES_SHIFT)


cdef inline bint may_leave(Reactor *reactor, const Conn *conn) noexcept nogil:
    """Whether a connection can be taken out: it relays, nothing has failed, and Python has read that it was opened.

    Records of another reactor are read from another ring: its end must not be read before its beginning.
    """
    return (
        conn.state == CONN_RELAY and not conn.unreported and not conn.opened_due and conn.first_failed == 0
        and conn.side[CLIENT].error == 0 and conn.side[UPSTREAM].error == 0
        and not conn.side[CLIENT].failing and not conn.side[UPSTREAM].failing
        and oi_take(&reactor.ring.tail) >= conn.told
    )


cdef inline Conn *conn_take_out(Reactor *reactor, Conn *conn) noexcept nogil:
    """Take a connection out of its reactor, which forgets it; NULL, and nothing is done, if there is no memory."""
    cdef Conn *passport = <Conn *> malloc(sizeof(Conn))
    cdef Dir *flow
    cdef int way
    if passport == NULL:
        return NULL
    for way in range(2):
        c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_DEL, conn.side[way].fd, NULL)
        flow = &conn.dir[way]
        ready_remove(reactor, flow)
        c_assert(flow.moved_in == flow.moved_out + flow.pend)
        if flow.pend == 0:
            holder_release(reactor, flow)
        elif flow.holding == HOLDS_PIPE:
            pipe_leaves(&reactor.pool, <Pipe *> flow.holder)
            reactor.pool.pipe_count -= 1
    passport[0] = conn[0]
    wheel_disarm(&reactor.wheel, conn)
    passport.dir[UP].conn = passport
    passport.dir[DOWN].conn = passport
    conn.slot.generation += 1   # events of this batch are for nobody
    conn.policy = NULL
    conn.attempts = NULL
    conn.facts = NULL
    conn_give(&reactor.slab, conn)
    oi_put(&reactor.live, oi_get(&reactor.live) - 1)
    return passport


cdef inline bint conn_put_in(Reactor *reactor, Conn *passport) noexcept nogil:
    """Go on with a connection that was taken out, and free the passport; false if there is no memory for it."""
    cdef Conn *conn = <Conn *> slab_take(&reactor.slab)
    cdef Slot slot
    cdef uint64_t due_ms
    cdef Dir *flow
    cdef int way
    if conn == NULL:
        return False
    slot = conn.slot
    conn[0] = passport[0]
    free(passport)
    conn.slot = slot
    conn.told = 0               # of another ring; Python has read it
    due_ms = (conn.timer_tick - 1) * TICK_MS if conn.timer_tick else 0
    conn.timer_tick = 0
    conn.timer_next = NULL
    conn.timer_prev = NULL
    oi_put(&reactor.live, oi_get(&reactor.live) + 1)
    for way in range(2):
        flow = &conn.dir[way]
        flow.conn = conn
        conn.side[way].unwatched = 0
        if flow.holding == HOLDS_PIPE:
            reactor.pool.pipe_count += 1
            pipe_enters(&reactor.pool, <Pipe *> flow.holder, flow)
    if watch(reactor, conn, CLIENT) != 0 or watch(reactor, conn, UPSTREAM) != 0:
        finish(reactor, conn, ENDING_ABORTED, errno, True)
        return True
    # At the tick that it had: one that moves often would never be looked at.
    wheel_arm(&reactor.wheel, conn, reactor.now_ms, due_ms - reactor.now_ms if due_ms > reactor.now_ms else 0)
    for way in range(2):
        flow = &conn.dir[way]
        if (flow.pend and conn.side[1 - way].wr) or (not flow.eof and conn.side[way].rd):
            ready_add(reactor, flow)
    return True


cdef inline bint moving_begin(Reactor *reactor) noexcept nogil:
    """Whether connections may leave now: nobody talks to all reactors, and nothing was said that is not read."""
    if reactor.stopping:
        return False
    if pthread_mutex_trylock(&reactor.hub.moving) != 0:
        return False
    if not inbox_has_words_to_all(&reactor.inbox):
        return True
    pthread_mutex_unlock(&reactor.hub.moving)
    return False


cdef inline void moving_end(Reactor *reactor) noexcept nogil:
    pthread_mutex_unlock(&reactor.hub.moving)


cdef inline bint conn_move(Reactor *reactor, Conn *conn, Reactor *to) noexcept nogil:
    """Move a connection, between `moving_begin` and `moving_end`; false if it stays, for want of memory or room."""
    cdef Conn *passport = conn_take_out(reactor, conn)
    cdef Message message
    cdef bint kept
    if passport == NULL:
        return False
    memset(&message, 0, sizeof(message))
    message.kind = MESSAGE_MOVED
    message.answer = passport
    if inbox_post(&to.inbox, &message):
        oi_put(&reactor.stats.moved, oi_get(&reactor.stats.moved) + 1)
        return True
    kept = conn_put_in(reactor, passport)
    c_assert(kept)              # into the slot that it left
    return False


cdef inline int work_class(uint32_t work) noexcept nogil:
    cdef int order = 0
    while work > 1 and order < WORK_CLASSES - 1:
        work >>= 1
        order += 1
    return order


cdef inline int shed(Reactor *reactor, Reactor *to, uint64_t share) noexcept nogil:
    """Move connections that do `share` thousandths of the work here, busiest first; -1 if that has to wait.

    One that does more than what is to go stays: the other reactor would be the one with too much.
    """
    cdef uint64_t work = 0
    cdef uint64_t wanted
    cdef uint32_t window = work_window(reactor.now_ms)
    cdef uint32_t classes = 0
    cdef uint32_t i, own
    cdef int order
    cdef int moved = 0
    cdef Conn *conn
    if not moving_begin(reactor):
        return -1
    for i in range(slab_slots(&reactor.slab)):
        conn = conn_at(&reactor.slab, i)
        if conn.state == CONN_RELAY:
            own = work_now(conn, window)
            work += own
            classes |= <uint32_t> 1 << work_class(own)
    wanted = work * share // 1000
    for order in range(WORK_CLASSES - 1, -1, -1):
        if not classes & (<uint32_t> 1 << order):
            continue
        for i in range(slab_slots(&reactor.slab)):
            conn = conn_at(&reactor.slab, i)
            if moved == SHED_MOST or (wanted == 0 and share < 1000):
                break
            if conn.state != CONN_RELAY or not may_leave(reactor, conn):
                continue
            own = work_now(conn, window)
            if work_class(own) != order or (own > wanted and share < 1000):
                continue
            if conn_move(reactor, conn, to):
                moved += 1
                wanted -= own if own < wanted else wanted
    moving_end(reactor)
    return moved


cdef inline void depart(Reactor *reactor, Departure *departure) noexcept nogil:
    """Take out what may leave, as far as there is room. What a pipe holds goes into a block, so that it can be sent."""
    cdef Conn *conn
    cdef Conn *passport
    cdef Dir *flow
    cdef bint ready
    cdef uint32_t i
    cdef int way
    pthread_mutex_lock(&departure.lock)
    for i in range(slab_slots(&reactor.slab)):
        conn = conn_at(&reactor.slab, i)
        if conn.state == CONN_FREE or conn.state == CONN_CLOSED:
            continue
        if conn.handed_over != departure.pairs:
            continue
        ready = departure.count < departure.room and may_leave(reactor, conn)
        for way in range(2):
            flow = &conn.dir[way]
            if ready and flow.pend and flow.holding == HOLDS_PIPE:
                ready = flow_unpipe(reactor, flow) == 0
        if ready and conn.side[UPSTREAM].delays:
            undelay(&conn.side[UPSTREAM])   # the other process need not know
        passport = conn_take_out(reactor, conn) if ready else NULL
        if passport == NULL:
            departure.left += conn.state != CONN_FLUSH     # that one ends by itself
            continue
        departure.items[departure.count] = passport
        departure.count += 1
    departure.answered = True
    pthread_cond_broadcast(&departure.done)
    pthread_mutex_unlock(&departure.lock)


cdef inline Conn *passport_new(
    Gate *process, Policy *policy, const Address *client, const uint8_t *up, uint32_t up_size, const uint8_t *down,
    uint32_t down_size, bint pair,
) noexcept nogil:
    """A connection that another process had, in the places that it has here, limits or not; NULL without memory.

    Python counts for a `pair` of its own.

    The caller fills in what that process said of it; `up` and `down` are the bytes that are pending.
    """
    cdef Conn *conn = <Conn *> calloc(1, sizeof(Conn))
    cdef const uint8_t *pending[2]
    cdef uint32_t sizes[2]
    cdef Block *block
    cdef int way
    if conn == NULL:
        return NULL
    pending[UP] = up
    pending[DOWN] = down
    sizes[UP] = up_size
    sizes[DOWN] = down_size
    for way in range(2):
        conn.side[way].rd = 1
        conn.dir[way].conn = conn
        conn.dir[way].way = <uint8_t> way
        if sizes[way] == 0:
            continue
        block = <Block *> malloc(sizeof(Block) + sizes[way])
        if block == NULL:
            blocks_free(conn)
            free(conn)
            return NULL
        block.size_class = -1
        memcpy(block_bytes(block), pending[way], sizes[way])
        conn.dir[way].holder = block
        conn.dir[way].holding = HOLDS_BLOCK
        conn.dir[way].pend = sizes[way]
    conn.state = CONN_RELAY
    conn.client = client[0]
    if throttle_is_wanted(policy):
        conn.throttle = throttle_new(policy, client)
        if conn.throttle == NULL:
            blocks_free(conn)
            free(conn)
            return NULL
    policy_hold(policy)
    conn.policy = policy
    conn.handed_over = pair
    if pair:
        return conn
    gate_force(process)
    gate_force(policy.gate)
    conn.counted = <uint8_t> max(sources_enter(process, policy, client, True), 0)
    oi_add(&policy.gate.admitted, 1)
    return conn


cdef inline int address_number(const Targets *targets, const Address *upstream) noexcept nogil:
    """The number that an address has among those of a destination; -1 if it is none of them."""
    cdef Address found
    cdef int i
    if targets == NULL:
        return -1
    for i in range(targets.count):
        address_read(&found, &targets.items[i].place.place)
        if found.port == upstream.port and memcmp(found.ip, upstream.ip, sizeof(found.ip)) == 0:
            return i
    return -1


cdef inline uint16_t member_force(Policy *policy, const Address *upstream, uint64_t tag) noexcept nogil:
    """Let a session be one of the server with this tag, full or not, or if that is 0 of the one that has its address.
    0 if the group has none such."""
    cdef Group *group = policy.group
    cdef bint found
    cdef int i
    for i in range(group.count):
        if tag:
            found = group_members(group)[i].server.tag == tag
        else:
            found = address_number(group_members(group)[i].targets, upstream) >= 0
        if found:
            oi_raise_by(&group_members(group)[i].server.live, 1)
            return <uint16_t> (i + 1)
    return 0


cdef inline void blocks_free(Conn *conn) noexcept nogil:
    cdef int way
    for way in range(2):
        if conn.dir[way].holding == HOLDS_BLOCK:
            free(conn.dir[way].holder)


cdef inline void passport_free(Gate *process, Conn *passport) noexcept nogil:
    """Another process has the connection: let go of it, without a word to its peers, and of its places."""
    c_close(passport.side[CLIENT].fd)
    c_close(passport.side[UPSTREAM].fd)
    if passport.policy.group != NULL:
        search_end(passport)
    if passport.throttle != NULL:
        throttle_end(passport.throttle, passport.policy)
    if not passport.handed_over:
        sources_leave(process, passport.policy, &passport.client, passport.counted)
        oi_raise_by(&passport.policy.gate.ended, 1)
        gate_leave(passport.policy.gate)
        gate_leave(process)
    policy_drop(passport.policy)
    blocks_free(passport)
    free(passport.attempts)
    free(passport.facts)
    free(passport)
