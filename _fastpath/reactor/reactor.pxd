"""The reactor: a thread, an epoll, and the connections that belong to it.

The facts it stands on:

- Every descriptor is registered for IN, OUT, RDHUP and PRI, edge-triggered. An event says "try", nothing more; whether
  there is something is what the call then says. `rd` and `wr` remember that an event came and no EAGAIN since, so no
  edge is ever needed twice.
- Each packet that comes is an edge. While a direction waits for its destination or for a bucket, it would wake the
  reactor for nothing; so IN is taken out at the first such edge, and put back before the next wait for bytes. PRI goes
  with it, because the kernel wakes for both at once, and tells what else holds (OUT) if IN is not wanted. (One stream,
  the reactor alone on its core: 10,500 and 2,100 sleeps a second, 0.166 and 0.117 s of processor time a gigabyte;
  haproxy 3.0 with splice 2,300 and 0.121.)
- A direction that may move is on a ready list, or waits for an edge of one of its two descriptors, or for a time
  because a bucket has nothing for it. A turn that ends
  because its budget is used up puts it back on the list: no edge will come for what is there already.
- EAGAIN on a write registers the interest of the kernel in telling of room again (SOCK_NOSPACE); a short write does
  not promise it. So every short write is tried once more.
- The kernel tells an error once. recv returns queued bytes before the error, then the error, then 0, which looks
  like a FIN. Hence the first errno is latched, SO_ERROR is not read while bytes may be waiting, and a 0 after a
  latched error is no FIN.
- After a FIN recv says 0 for ever, also if a reset came behind it; so a 0 if ERR was seen is a failure, and
  ERR after the 0 is answered by SO_ERROR.
- splice into a pipe needs a slot for each fragment, however small: a pipe is full after 16 or 64 of them. splice out
  of the socket stops at an urgent byte with EAGAIN, or with 0 when a FIN follows; recv gets past it.
- splice may raise SIGPIPE, for which it has no flag: all signals are blocked in reactor threads.
- Events are numbered by slot and generation, not by descriptor. One that belongs to a connection that ended earlier
  in the batch finds another generation and is left alone.
- UDP sockets are registered for IN alone: room comes with every datagram that leaves, and would be an event each
  time. A recvmmsg that takes fewer than it might have has seen the queue empty, so that the next one is an edge.
- A reactor never touches a Python object and never waits for one. What Python must learn goes through the ring, what
  Python wants through the inbox.
"""

from libc.stdint cimport uint32_t, uint64_t

from shared.access cimport access_decide
from base.clock cimport monotonic_us
from base.socket cimport close_with_reset, socket_error, socket_is_unix
from base.atomic cimport oi_add, oi_get, oi_give, oi_put, oi_swap
from tcp.backoff cimport accept_calm
from tcp.deadline cimport relay_due
from shared.attempt cimport attempts_copy
from shared.facts cimport facts_copy
from tcp.preamble cimport preamble_due, preamble_event
from tcp.connect cimport watch, watch_reads
from shared.ending cimport ENDING_ABORTED, ENDING_REVOKED
from state.report cimport record_begin, record_push
from tcp.ending cimport (
    FLUSH_MS, abort, finish, finish_failed, flush_look, listeners_wake, record_fill, report_rest, settle,
)
from tcp.flow cimport AGAIN, THROTTLED, TURNED, flow_pump, side_fail
from shared.gate cimport Gate
from shared.inbox cimport (
    INBOX_MAX, MESSAGE_ABORT_ALL, MESSAGE_ACCEPTED, MESSAGE_KILL, MESSAGE_PAIR, MESSAGE_RETRY, MESSAGE_SNAPSHOT,
    MESSAGE_JUDGE, MESSAGE_LEAVE, MESSAGE_MOVED, MESSAGE_PIPES, MESSAGE_SHED, MESSAGE_STOP, MESSAGE_TAKE_OUT,
    MESSAGE_UDP, MESSAGE_UDP_ROOM, Message, inbox_return, inbox_take,
)
from base.linux cimport (
    ECONNRESET, ENOMEM, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, c_assert, errno, gettid,
    pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock,
)
from tcp.listener cimport conn_begin, listener_serve, listeners_serve
from tcp.passport cimport (
    Departure, conn_move, conn_put_in, depart, may_leave, moving_begin, moving_end, shed, work_add,
)
from tcp.outcome cimport beside_event, dial_due, dial_event, relay_begin
from reactor.busy_poll cimport wait_for_events
from shared.policy cimport Policy, policy_drop, policy_server_tag
from state.load cimport LOAD_WINDOW_US, load_measure
from state.pool cimport pool_due
from state.queue cimport ready_add, ready_remove
from tcp.reclaim cimport pipes_reclaim
from shared.ring cimport RECORD_RELAYED, Record
from state.connection_slab cimport (
    CLIENT, CONN_CLOSED, CONN_CONNECTING, CONN_FLUSH, CONN_FREE, CONN_PREAMBLE, CONN_RELAY, DOWN, KIND_ATTEMPT,
    KIND_BITS, KIND_INBOX,
    KIND_LISTENER, KIND_UDP_LISTENER, QUEUED_THROTTLED, UP, UPSTREAM, Conn, Dir, Side, conn_at, conn_take,
)
from state.slab cimport slab_slots
from state.reactor cimport Listener, Reactor, Snapshot, TICK_MS, WHEEL_TICKS
from udp.end cimport give_room, report_closed_rest
from udp.message cimport udp_message_read
from udp.turn cimport udp_each, udp_event, udp_leave, udp_next_ms, udp_turn, udp_waits
from state.throttled cimport throttled_add, throttled_next_ms, throttled_turn
from state.wheel cimport wheel_arm, wheel_disarm, wheel_next

cdef enum:
    PUMPS_MAX = 32              # bulk turns between two looks at epoll


cdef inline void clock_look(Reactor *self) noexcept nogil:
    self.now_us = monotonic_us()
    self.now_ms = self.now_us // 1000


cdef inline bint waits_elsewhere(const Conn *conn, int way) noexcept nogil:
    """Whether a direction waits for its destination, or for a bucket: bytes that come do not move it."""
    return (conn.dir[way].pend and not conn.side[1 - way].wr) or conn.dir[way].queued == QUEUED_THROTTLED


cdef inline void conn_event(Reactor *self, Conn *conn, int which, uint32_t events) noexcept nogil:
    """Take down what an event says. `conn` may be gone afterwards."""
    cdef Side *side = &conn.side[which]
    if events & EPOLLIN and side.rd and conn.state == CONN_RELAY and waits_elsewhere(conn, which):
        watch_reads(self, conn, which, False)   # if it fails, it is as it was
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI):
        side.rd = 1
        if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI):
            side.short_read_inconclusive = 1
            if events & EPOLLPRI:
                side.urgent = 1
    if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
        side.wr = 1
    if conn.state == CONN_RELAY:
        if events & EPOLLERR:
            if conn.dir[which].eof and side.error == 0:
                side_fail(side, socket_error(side.fd, ECONNRESET))
                settle(self, conn)
                return
            if not side.failing:
                side.failing = 1
                wheel_arm(&self.wheel, conn, self.now_ms, FLUSH_MS)
        if side.rd and not conn.dir[which].eof:
            ready_add(self, &conn.dir[which])
        if side.wr and conn.dir[1 - which].pend:
            ready_add(self, &conn.dir[1 - which])
    elif conn.state == CONN_CONNECTING:
        dial_event(self, conn, which, events)
    elif conn.state == CONN_PREAMBLE:
        preamble_event(self, conn, events)
    elif conn.state == CONN_FLUSH:
        if events & (EPOLLERR | EPOLLHUP) and side.error == 0:
            finish_failed(self, conn)


cdef inline void conn_due(Reactor *self, Conn *conn) noexcept nogil:
    """Its timer fired. `conn` may be gone afterwards."""
    if conn.state == CONN_RELAY:
        relay_due(self, conn)
    elif conn.state == CONN_CONNECTING:
        dial_due(self, conn)
    elif conn.state == CONN_PREAMBLE:
        preamble_due(self, conn)
    elif conn.state == CONN_FLUSH:
        flush_look(self, conn)


cdef inline void wheel_turn(Reactor *self) noexcept nogil:
    """Serve the buckets whose time has come."""
    cdef uint64_t target = self.now_ms // TICK_MS
    cdef uint64_t place
    cdef Conn *conn
    if target > self.wheel.tick + WHEEL_TICKS:      # a machine that slept: one round serves all
        self.wheel.tick = target - WHEEL_TICKS
    while self.wheel.tick < target:
        self.wheel.tick += 1
        place = self.wheel.tick & (WHEEL_TICKS - 1)
        # Bounded: a connection that is armed again goes into a later bucket.
        while self.wheel.buckets[place] != NULL:
            conn = self.wheel.buckets[place]
            wheel_disarm(&self.wheel, conn)
            conn_due(self, conn)


cdef inline void move_along(Reactor *self, Conn *conn) noexcept nogil:
    """For tests: let the next reactor go on with it, if it may leave and its timer does not fire at the next tick.

    A timer fires at the next tick at the earliest, so that one which moved at each turn would never fire.
    """
    cdef Reactor *to = self.hub.reactors[(self.index + 1) % self.hub.reactor_count]
    if to != self and conn.timer_tick > self.wheel.tick + 1 and may_leave(self, conn) and moving_begin(self):
        conn_move(self, conn, to)
        moving_end(self)


cdef inline void pump(Reactor *self, Dir *flow) noexcept nogil:
    """Give a direction its turn."""
    cdef Conn *conn = flow.conn
    cdef uint64_t moved = flow.moved_out
    cdef int answer
    ready_remove(self, flow)
    c_assert(conn.state == CONN_RELAY)
    answer = flow_pump(self, conn, flow.way)
    if flow.moved_out != moved and not conn.handed_over:
        oi_add(&conn.policy.gate.bytes[flow.way], flow.moved_out - moved)
    work_add(self, conn, flow.moved_out - moved)
    if flow.bulk:
        self.bulk_us = self.now_us
    self.moved_way = flow.way
    if answer == AGAIN:
        flow.bulk = 1
        ready_add(self, flow)
    elif answer == THROTTLED:
        throttled_add(self, flow)
    elif answer == TURNED:
        settle(self, conn)
        return
    if conn.policy.move_turns and conn.work % conn.policy.move_turns == 0:
        move_along(self, conn)


cdef inline void pump_ready(Reactor *self) noexcept nogil:
    """Turns: small ones first, then bulk, until it is time to look at epoll again."""
    cdef int turns = 0
    while turns < PUMPS_MAX:
        # Bounded: a small direction gets on this list again only by an event or by becoming bulk.
        while self.quick.first != NULL:
            pump(self, self.quick.first)
        if self.bulk.first == NULL:
            return
        pump(self, self.bulk.first)
        turns += 1


cdef inline bint pair_refuse(Reactor *self, const Message *message) noexcept nogil:
    """End a pair for which there is no memory; false if the ring has no room for its record."""
    cdef Record *record = record_begin(self, RECORD_RELAYED, message.policy)
    if record == NULL:
        return False
    close_with_reset(message.fd)
    close_with_reset(message.upstream_fd)
    record.ending = ENDING_ABORTED
    record.error = ENOMEM
    record.id = message.id
    record.token = message.token
    record.started_s = message.started_s
    record_push(self)
    policy_drop(message.policy)
    return True


cdef inline bint pair_begin(Reactor *self, const Message *message) noexcept nogil:
    """Relay between two connected sockets that Python handed over; false if the message has to wait."""
    cdef Conn *conn = conn_take(&self.slab, message)
    cdef bint watched
    if conn == NULL:
        return pair_refuse(self, message)
    conn.handed_over = 1
    conn.kept_alive = 1
    conn.started_us = self.now_us
    conn.side[UPSTREAM].fd = message.upstream_fd
    conn.side[CLIENT].local = socket_is_unix(message.fd)
    conn.side[UPSTREAM].local = socket_is_unix(message.upstream_fd)
    oi_put(&self.live, oi_get(&self.live) + 1)
    watched = watch(self, conn, CLIENT) == 0 and watch(self, conn, UPSTREAM) == 0
    if not watched:
        finish(self, conn, ENDING_ABORTED, errno, True)
        return True
    relay_begin(self, conn)
    return True


cdef inline bint moved_in(Reactor *self, const Message *message) noexcept nogil:
    """Go on with a connection of another reactor; false if there is no memory, and then the message waits."""
    return conn_put_in(self, <Conn *> message.answer)


cdef inline uint64_t idle_us(const Reactor *self, const Conn *conn) noexcept nogil:
    """How long ago a byte moved; before the first one it is the connection's age."""
    cdef uint64_t moved_us = 1000 * conn.dir[UP].progress_ms
    if conn.dir[DOWN].progress_ms > conn.dir[UP].progress_ms:
        moved_us = 1000 * conn.dir[DOWN].progress_ms
    if moved_us < conn.started_us:
        moved_us = conn.started_us
    return self.now_us - moved_us if self.now_us > moved_us else 0


cdef inline void each_conn(Reactor *self, int kind, uint64_t id, Snapshot *snapshot) noexcept nogil:
    """Abort all, kill one, or write all down: the three things that look at every slot."""
    cdef uint32_t i
    cdef Conn *conn
    for i in range(slab_slots(&self.slab)):
        conn = conn_at(&self.slab, i)
        if conn.state == CONN_FREE or conn.state == CONN_CLOSED:
            continue
        if kind == MESSAGE_SNAPSHOT:
            if snapshot.count < snapshot.capacity:
                record_fill(&snapshot.records[snapshot.count], conn, self.now_us)
                snapshot.records[snapshot.count].idle_us = idle_us(self, conn)
                if conn.connected_us:
                    snapshot.records[snapshot.count].tries = attempts_copy(conn.attempts)
                snapshot.records[snapshot.count].facts = facts_copy(conn.facts)
            snapshot.count += 1
        elif kind == MESSAGE_ABORT_ALL or conn.id == id:
            abort(self, conn, ENDING_ABORTED, 0)
    udp_each(self, kind == MESSAGE_ABORT_ALL, id, snapshot)


cdef inline void conns_judge(Reactor *self) noexcept nogil:
    """Put the connections of rules whose access has changed to it: count those that it refuses, end them if asked."""
    cdef uint32_t i
    cdef Conn *conn
    cdef Gate *gate
    for i in range(slab_slots(&self.slab)):
        conn = conn_at(&self.slab, i)
        if conn.state == CONN_FREE or conn.state == CONN_CLOSED or conn.state == CONN_PREAMBLE or conn.handed_over:
            continue
        gate = conn.policy.gate
        if gate.judge == NULL or access_decide(&(<Policy *> gate.judge).access, &conn.client) == 0:
            continue
        oi_add(&gate.judged, 1)
        if gate.judge_ends:
            abort(self, conn, ENDING_REVOKED, 0)


cdef inline void sessions_leave(Reactor *self, const Message *message) noexcept nogil:
    """End the sessions of a server, or a part of them: those whose number leaves the remainder `id` by `fd`."""
    cdef Conn *conn
    cdef uint32_t i
    for i in range(slab_slots(&self.slab)):
        conn = conn_at(&self.slab, i)
        if conn.state == CONN_FREE or conn.state == CONN_CLOSED or conn.member == 0 or conn.handed_over:
            continue
        if conn.id % <uint64_t> message.fd != message.id:
            continue
        if policy_server_tag(conn.policy, conn.member) == message.token:
            abort(self, conn, message.counted, 0)
    udp_leave(self, message.token, message.id, <uint64_t> message.fd, message.counted)


cdef inline bint message_read(Reactor *self, const Message *message) noexcept nogil:
    """Do what it says; false if there is neither memory for that nor room in the ring to say so."""
    cdef Snapshot *snapshot = <Snapshot *> message.answer
    if message.kind == MESSAGE_ACCEPTED:
        return conn_begin(self, message)
    if message.kind == MESSAGE_PAIR:
        return pair_begin(self, message)
    if message.kind == MESSAGE_KILL or message.kind == MESSAGE_ABORT_ALL:
        each_conn(self, message.kind, message.id, NULL)
    elif message.kind == MESSAGE_TAKE_OUT:
        depart(self, <Departure *> message.answer)
    elif message.kind == MESSAGE_MOVED:
        return moved_in(self, message)
    elif message.kind == MESSAGE_SHED:
        return self.stopping or shed(self, self.hub.reactors[message.fd], message.token) >= 0
    elif message.kind == MESSAGE_SNAPSHOT:
        pthread_mutex_lock(&snapshot.lock)
        each_conn(self, MESSAGE_SNAPSHOT, 0, snapshot)
        snapshot.missing -= 1
        pthread_cond_broadcast(&snapshot.done)
        pthread_mutex_unlock(&snapshot.lock)
    elif message.kind == MESSAGE_JUDGE:
        conns_judge(self)
        pthread_mutex_lock(&snapshot.lock)
        snapshot.missing -= 1
        pthread_cond_broadcast(&snapshot.done)
        pthread_mutex_unlock(&snapshot.lock)
    elif message.kind == MESSAGE_RETRY:
        report_rest(self)
        report_closed_rest(self)
        listeners_wake(self)
        self.accept_again = True
    elif message.kind >= MESSAGE_UDP:
        udp_message_read(self, message)
    elif message.kind == MESSAGE_UDP_ROOM:
        give_room(self)
    elif message.kind == MESSAGE_LEAVE:
        sessions_leave(self, message)
    elif message.kind == MESSAGE_PIPES:
        pipes_reclaim(self, self.hub.gate.cost)
    elif message.kind == MESSAGE_STOP:
        self.stopping = True
    return True


cdef inline void messages_read(Reactor *self) noexcept nogil:
    cdef Message message
    cdef int _turn
    oi_swap(&self.inbox.rung, 0)
    for _turn in range(INBOX_MAX):
        if not inbox_take(&self.inbox, &message):
            return
        if not message_read(self, &message):
            inbox_return(&self.inbox, &message)
            return
    oi_swap(&self.inbox.rung, 1)    # there may be more: look again without being rung for


cdef inline int sleep_ms(Reactor *self) noexcept nogil:
    """How long epoll may wait: until the next timer, -1 for ever."""
    cdef uint64_t tick, due_ms
    cdef uint64_t until_ms = 0
    if self.quick.first != NULL or self.bulk.first != NULL or oi_get(&self.inbox.rung) or udp_waits(self):
        return 0
    if self.accept_retry_ms:
        until_ms = self.accept_retry_ms
    elif self.accept_again:
        return 0
    if self.calm_ms and (until_ms == 0 or self.calm_ms < until_ms):
        until_ms = self.calm_ms
    if self.pool.trim_ms and (until_ms == 0 or self.pool.trim_ms < until_ms):
        until_ms = self.pool.trim_ms
    if self.throttled_count:
        due_ms = throttled_next_ms(self)
        if until_ms == 0 or due_ms < until_ms:
            until_ms = due_ms
    if self.connect_us:
        due_ms = (self.connect_us + 999) // 1000
        if until_ms == 0 or due_ms < until_ms:
            until_ms = due_ms
    tick = wheel_next(&self.wheel)
    if tick:
        due_ms = tick * TICK_MS
        if until_ms == 0 or due_ms < until_ms:
            until_ms = due_ms
    until_ms = udp_next_ms(self, until_ms)
    if until_ms == 0:
        return -1
    return <int> (until_ms - self.now_ms) if until_ms > self.now_ms else 0


cdef inline void event_take(Reactor *self, uint64_t data, uint32_t events) noexcept nogil:
    cdef uint32_t kind = <uint32_t> (data & ((1 << KIND_BITS) - 1))
    cdef uint32_t index = (<uint32_t> data) >> KIND_BITS
    cdef uint32_t generation = <uint32_t> (data >> 32)
    cdef Conn *conn
    cdef Listener *listener
    if kind == KIND_INBOX:
        return      # `rung` says it
    if kind == KIND_LISTENER:
        listener = self.hub.listeners[index]
        oi_put(&listener.ready[self.index], 1)
        if self.accept_retry_ms == 0:
            listener_serve(self, listener, generation)
        return
    if kind == KIND_ATTEMPT:
        beside_event(self, index, generation, events)
        return
    if kind >= KIND_UDP_LISTENER:
        udp_event(self, kind, index, generation, events)
        return
    conn = conn_at(&self.slab, index)
    if conn == NULL or conn.slot.generation != generation:
        return      # it ended earlier in this batch
    conn_event(self, conn, <int> kind, events)


cdef inline bint has_work(const Reactor *self) noexcept nogil:
    """Whether a reactor that was told to stop has something left to end or to report."""
    if oi_get(&self.live) or self.unreported.first != NULL or oi_get(&self.inbox.rung):
        return True
    return self.udp != NULL and (self.udp.count != 0 or self.udp.unreported.first != NULL)


cdef inline void reactor_loop(Reactor *self) noexcept nogil:
    """Until Python says stop; then what lives is aborted and every record written."""
    cdef int count, i
    clock_look(self)
    oi_put(&self.thread_id, <uint64_t> gettid())
    self.window_us = self.now_us
    self.wheel.tick = self.now_ms // TICK_MS
    while not self.stopping or has_work(self):
        count = wait_for_events(self, sleep_ms(self))
        clock_look(self)
        for i in range(count):
            event_take(self, self.events[i].data.u64, self.events[i].events)
        if oi_get(&self.inbox.rung):
            messages_read(self)
        if not self.stopping:
            udp_turn(self)
        if self.throttled_count:
            throttled_turn(self)
        pump_ready(self)
        wheel_turn(self)
        if self.accept_retry_ms and self.now_ms >= self.accept_retry_ms:
            self.accept_retry_ms = 0
            self.accept_again = True
        if self.connect_us and self.now_us >= self.connect_us:
            self.connect_us = 0
            self.accept_again = True
        if self.calm_ms and self.now_ms >= self.calm_ms:
            accept_calm(self)
        if self.pool.trim_ms and self.now_ms >= self.pool.trim_ms:
            pool_due(self)
        if self.room_made:
            self.room_made = False
            self.accept_again = True
            listeners_wake(self)
        if self.accept_again and self.accept_retry_ms == 0 and not self.stopping:
            listeners_serve(self)
        oi_put(&self.stats.loops, oi_get(&self.stats.loops) + 1)
        if self.now_us - self.window_us >= LOAD_WINDOW_US:
            load_measure(self)
        if self.stopping:
            each_conn(self, MESSAGE_ABORT_ALL, 0, NULL)
    oi_give(&self.exited, 1)
