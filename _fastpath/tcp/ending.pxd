"""How connections end, and how Python learns of it.

A FIN is passed on when every byte before it was written; both passed is the normal end. A side that failed is told to
the other by a reset, after the bytes that came before it: first what is pending, then what is in the other's send
queue. Every other end (a timeout, a stall, a kill) is a reset to both.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from base.socket cimport close_with_reset
from base.atomic cimport oi_add, oi_get, oi_put, oi_raise_by, oi_see
from shared.attempt cimport Attempt, attempts_add, attempts_items, attempts_new
from shared.admission cimport sources_leave
from shared.ending cimport (
    ENDING_BAD_PROXY_HEADER, ENDING_BAD_TLS_HELLO, ENDING_CLIENT_CLOSED, ENDING_CLIENT_RESET, ENDING_DENIED,
    ENDING_LIMITED,
    ENDING_NOT_ALLOWED, ENDING_NOT_TRUSTED, ENDING_PEEK_TIMEOUT, ENDING_UPSTREAM_CLOSED, ENDING_UPSTREAM_RESET,
)
from shared.facts cimport facts_copy
from shared.gate cimport budget_give, gate_leave, preamble_leave
from shared.histogram cimport histogram_add, oi_connect_bounds, oi_duration_bounds
from base.linux cimport ECONNRESET, SHUT_WR, SIOCOUTQ, c_assert, c_close, c_ioctl, c_shutdown
from shared.group cimport group_retried
from shared.policy cimport MEMBER_WAITS, policy_drop, policy_member, policy_server_tag
from shared.server cimport server_leave, server_wait_over
from shared.throttle cimport throttle_end
from state.pool cimport holder_drop
from state.queue cimport ready_add, ready_remove
from tcp.flow cimport side_fail
from shared.ring cimport RECORD_CLOSED, RECORD_LIVE, RECORD_OPENED, RECORD_RELAYED, Record
from state.connection_slab cimport (
    CLIENT, CONN_CLOSED, CONN_CONNECTING, CONN_FLUSH, CONN_FREE, CONN_PREAMBLE, DOWN, STAGE_RATE, UP, UPSTREAM, Conn,
    Dir, conn_give, conn_targets,
)
from state.reactor cimport Hub, Reactor
from state.report cimport record_push, record_slot
from state.slab cimport Slot, slots_append
from state.wheel cimport wheel_arm, wheel_disarm

cdef enum:
    FLUSH_MS = 1000             # a peer that acknowledges nothing for so long gets its reset at once


cdef inline void record_fill(Record *record, const Conn *conn, uint64_t now_us) noexcept nogil:
    memset(record, 0, sizeof(Record))
    record.kind = RECORD_LIVE
    record.id = conn.id
    record.tag = conn.policy.tag
    record.token = conn.token
    record.started_s = conn.started_s
    record.duration_us = (conn.ended_us if conn.ended_us else now_us) - conn.started_us
    record.up = conn.dir[UP].moved_out
    record.down = conn.dir[DOWN].moved_out
    record.client = conn.client
    if conn.connected_us:
        record.connect_us = conn.connected_us - conn.started_us
        record.upstream = conn.upstream
        record.server = policy_server_tag(conn.policy, conn.member)
    record.error = conn.error
    record.ending = conn.ending
    record.moved_by = conn.dir[UP].moved_by | conn.dir[DOWN].moved_by


cdef inline bint report_try(Reactor *reactor, Conn *conn) noexcept nogil:
    """Write the records that are due; false if the ring is full. Afterwards an ended connection is no more."""
    cdef Record *record
    if conn.opened_due:
        record = record_slot(reactor)
        if record == NULL:
            return False
        record_fill(record, conn, reactor.now_us)
        record.kind = RECORD_OPENED
        record.facts = facts_copy(conn.facts)
        record_push(reactor)
        conn.opened_due = 0
        conn.told = oi_get(&reactor.ring.head)
    if conn.state == CONN_CLOSED:
        record = record_slot(reactor)
        if record == NULL:
            return False
        record_fill(record, conn, reactor.now_us)
        record.kind = RECORD_RELAYED if conn.handed_over else RECORD_CLOSED
        record.tries = conn.attempts    # the reader of the record frees them
        record.facts = conn.facts
        if conn.ending == ENDING_BAD_PROXY_HEADER or conn.ending == ENDING_BAD_TLS_HELLO:
            record.server = record.token
            record.token = 0
        conn.attempts = NULL
        conn.facts = NULL
        record_push(reactor)
        policy_drop(conn.policy)
        conn_give(&reactor.slab, conn)
    return True


cdef inline void report(Reactor *reactor, Conn *conn) noexcept nogil:
    """Tell Python, now or as soon as there is room."""
    if conn.unreported or report_try(reactor, conn):
        return
    conn.unreported = 1
    slots_append(&reactor.unreported, &conn.slot)


cdef inline void report_rest(Reactor *reactor) noexcept nogil:
    """Python made room: write what waited for it."""
    cdef Conn *conn
    cdef Slot *rest
    while reactor.unreported.first != NULL:     # bounded: each round takes one from the list or leaves
        conn = <Conn *> reactor.unreported.first
        rest = conn.slot.next
        conn.unreported = 0
        if not report_try(reactor, conn):
            conn.unreported = 1
            return
        reactor.unreported.first = rest
        if rest == NULL:
            reactor.unreported.last = NULL


cdef inline void retry_end(Conn *conn) noexcept nogil:
    """It looks for no other server any more."""
    if conn.attempts != NULL and conn.attempts.retrying:
        conn.attempts.retrying = False
        group_retried(conn.policy.group)


cdef inline void overdue_end(Conn *conn) noexcept nogil:
    """Its connect to the present server has ended, or its time there."""
    if conn.overdue:
        server_wait_over(policy_member(conn.policy, conn.member).server, conn.overdue)
        conn.overdue = 0


cdef inline bint search_end(Conn *conn) noexcept nogil:
    """The session leaves its server, or waits no more for room in one; true if a reactor waited for that."""
    retry_end(conn)
    overdue_end(conn)
    if conn.member == MEMBER_WAITS:
        oi_raise_by(&conn.policy.group.waiters, <uint64_t> -1)
        return True     # room that was for it is for a client in the queue
    return conn.member != 0 and server_leave(policy_member(conn.policy, conn.member).server)


cdef inline void preamble_over(Reactor *reactor) noexcept nogil:
    """The preamble of a client is awaited no more; a client that waited for that is served by this reactor."""
    if preamble_leave(reactor.hub.gate):
        reactor.accept_again = True
        listeners_wake(reactor)


cdef inline void preamble_end(Reactor *reactor, Conn *conn, int ending) noexcept nogil:
    """A connection ends in the preamble: it was refused, or counts as one that was let in."""
    if conn.stage != STAGE_RATE:
        preamble_over(reactor)
    if (
        ending in (ENDING_NOT_ALLOWED, ENDING_DENIED, ENDING_LIMITED)
        or ENDING_NOT_TRUSTED <= ending <= ENDING_PEEK_TIMEOUT
    ):
        conn.refused = 1
        oi_put(&reactor.stats.refused, oi_get(&reactor.stats.refused) + 1)
        return
    oi_add(&conn.policy.gate.admitted, 1)
    conn.opened_due = oi_get(&reactor.hub.totals_only) == 0


cdef inline void permits_leave(Reactor *reactor, Conn *conn) noexcept nogil:
    """Leave both gates; a client that waited for that is served by this reactor."""
    cdef bint wanted = False
    if conn.handed_over:
        return
    sources_leave(reactor.hub.gate, conn.policy, &conn.client, conn.counted)
    if not conn.refused:
        oi_raise_by(&conn.policy.gate.ended, 1)
        histogram_add(&conn.policy.gate.durations, oi_duration_bounds, conn.ended_us - conn.started_us)
    if conn.connected_us:
        histogram_add(&conn.policy.gate.connects, oi_connect_bounds, conn.connected_us - conn.started_us)
    if conn.policy.group != NULL:
        wanted = search_end(conn)
    if gate_leave(conn.policy.gate):
        wanted = True
    if gate_leave(reactor.hub.gate) or wanted:
        reactor.accept_again = True
        listeners_wake(reactor)


cdef inline void listeners_wake(Reactor *reactor) noexcept nogil:
    """Look at every listener again, whether an event came or not."""
    cdef Hub *hub = reactor.hub
    cdef uint64_t i
    for i in range(oi_see(&hub.listener_count)):
        oi_put(&hub.listeners[i].ready[reactor.index], 1)


cdef inline Attempt *attempt_add(Conn *conn, int at, uint64_t began_ms) noexcept nogil:
    cdef uint64_t server = policy_server_tag(conn.policy, conn.member)
    cdef Attempt *attempt = attempts_add(conn.attempts, conn_targets(conn), server, at, began_ms)
    if conn.policy.to_original:
        attempt.place = conn.upstream
    return attempt


cdef inline Attempt *attempt_note(Conn *conn, int at) noexcept nogil:
    """The note of the attempt at address number `at`, a new one if there was none; NULL if there is no memory."""
    if conn.attempts == NULL:
        conn.attempts = attempts_new(conn_targets(conn).count)
        if conn.attempts == NULL:
            return NULL
        if conn.side[UPSTREAM].fd >= 0:
            attempt_add(conn, conn.address, conn.dial_ms)
    return attempt_add(conn, at, conn.dial_ms)


cdef inline void attempt_ends(Reactor *reactor, Conn *conn, Attempt *attempt) noexcept nogil:
    """A connect beside is none any more: what it took from the budget is given back."""
    attempt.fd = -1
    conn.attempts.beside -= 1
    if budget_give(reactor.hub.gate.budget, 1):
        reactor.room_made = True


cdef inline void attempt_close(Reactor *reactor, Conn *conn, Attempt *attempt) noexcept nogil:
    close_with_reset(attempt.fd)
    attempt_ends(reactor, conn, attempt)


cdef inline void attempts_end(Reactor *reactor, Conn *conn) noexcept nogil:
    """The connection ends: whatever is under way is closed, and noted as that."""
    cdef Attempt *item
    cdef int i
    cdef bint dialling = conn.state == CONN_CONNECTING and conn.side[UPSTREAM].fd >= 0 and not conn.handed_over
    if dialling and oi_get(&reactor.hub.totals_only) == 0:
        attempt_note(conn, conn.address)
    if conn.attempts == NULL or conn.attempts.beside == 0:
        return
    item = attempts_items(conn.attempts)
    for i in range(conn.attempts.count):
        if item[i].fd >= 0:
            attempt_close(reactor, conn, &item[i])


cdef inline void finish(Reactor *reactor, Conn *conn, int ending, int error, bint reset) noexcept nogil:
    """The end: close, give everything back, report. `conn` must not be used afterwards."""
    cdef int i
    c_assert(conn.state != CONN_FREE and conn.state != CONN_CLOSED)
    for i in range(2):
        ready_remove(reactor, &conn.dir[i])
        holder_drop(reactor, &conn.dir[i])
        c_assert(conn.dir[i].moved_in == conn.dir[i].moved_out)
    wheel_disarm(&reactor.wheel, conn)
    if conn.attempts != NULL or conn.state == CONN_CONNECTING:
        attempts_end(reactor, conn)
    if conn.state == CONN_PREAMBLE:
        preamble_end(reactor, conn, ending)
    for i in range(2):
        if conn.side[i].fd >= 0:
            if reset:
                close_with_reset(conn.side[i].fd)
            else:
                c_close(conn.side[i].fd)
            conn.side[i].fd = -1
    conn.slot.generation += 1
    conn.state = CONN_CLOSED
    conn.ending = ending
    conn.error = error
    conn.ended_us = reactor.now_us
    if conn.throttle != NULL:
        throttle_end(conn.throttle, conn.policy)
        conn.throttle = NULL
    permits_leave(reactor, conn)
    oi_put(&reactor.live, oi_get(&reactor.live) - 1)
    oi_put(&reactor.stats.closed, oi_get(&reactor.stats.closed) + 1)
    oi_put(&reactor.stats.bytes_up, oi_get(&reactor.stats.bytes_up) + conn.dir[UP].moved_out)
    oi_put(&reactor.stats.bytes_down, oi_get(&reactor.stats.bytes_down) + conn.dir[DOWN].moved_out)
    report(reactor, conn)


cdef inline void finish_failed(Reactor *reactor, Conn *conn) noexcept nogil:
    """The end after a side failed."""
    cdef int side = conn.first_failed - 1
    finish(reactor, conn, ENDING_CLIENT_RESET if side == CLIENT else ENDING_UPSTREAM_RESET,
           conn.side[side].error, True)


cdef inline void flush_look(Reactor *reactor, Conn *conn) noexcept nogil:
    """Reset the side that lives once its peer has acknowledged every byte, or acknowledges none for a second."""
    cdef int living = UPSTREAM if conn.side[CLIENT].error else CLIENT
    cdef int left = 0
    if conn.side[living].local or c_ioctl(conn.side[living].fd, SIOCOUTQ, &left) != 0 or left == 0:
        finish_failed(reactor, conn)
        return
    if conn.state != CONN_FLUSH or left < conn.flush_left:
        conn.flush_ms = reactor.now_ms
    elif reactor.now_ms - conn.flush_ms >= FLUSH_MS:
        finish_failed(reactor, conn)
        return
    conn.state = CONN_FLUSH
    conn.flush_left = left
    wheel_arm(&reactor.wheel, conn, reactor.now_ms, 0)


cdef inline void settle_failed(Reactor *reactor, Conn *conn) noexcept nogil:
    """A side failed: drop what was meant for it, deliver what came from it, then reset the other."""
    cdef int failed = CLIENT if conn.side[CLIENT].error else UPSTREAM
    cdef Dir *into = &conn.dir[1 - failed]
    cdef Dir *from_ = &conn.dir[failed]
    if conn.first_failed == 0:
        conn.first_failed = 1 + failed
        # Within a second without progress the other side is told, however much is pending.
        wheel_arm(&reactor.wheel, conn, reactor.now_ms, FLUSH_MS)
    if conn.side[1 - failed].error:
        finish_failed(reactor, conn)
        return
    ready_remove(reactor, into)
    holder_drop(reactor, into)
    into.eof = 1
    if not from_.eof:
        # The error was seen on a write: the receive queue may still hold what was sent before the reset.
        conn.side[failed].rd = 1
        ready_add(reactor, from_)
    elif from_.pend == 0:
        ready_remove(reactor, from_)
        flush_look(reactor, conn)


cdef inline void settle(Reactor *reactor, Conn *conn) noexcept nogil:
    """After a FIN or an error: pass it on, or end. `conn` may be gone afterwards."""
    cdef Dir *flow
    cdef int way
    if conn.side[CLIENT].error == 0 and conn.side[UPSTREAM].error == 0:
        for way in range(2):
            flow = &conn.dir[way]
            if flow.eof and conn.first_eof == 0:
                conn.first_eof = 1 + way
            if not flow.eof or flow.pend or flow.fin_sent:
                continue
            flow.fin_sent = 1
            if conn.dir[1 - way].fin_sent:
                # Closing sends this FIN too, and nothing unread is left that would turn it into a reset.
                finish(reactor, conn, ENDING_CLIENT_CLOSED if conn.first_eof == 1 + CLIENT
                       else ENDING_UPSTREAM_CLOSED, 0, False)
                return
            if c_shutdown(conn.side[1 - way].fd, SHUT_WR) != 0:
                side_fail(&conn.side[1 - way], ECONNRESET)
                break
    if conn.side[CLIENT].error or conn.side[UPSTREAM].error:
        settle_failed(reactor, conn)


cdef inline void abort(Reactor *reactor, Conn *conn, int ending, int error) noexcept nogil:
    """An end that no peer asked for: both see a reset. One that is over but for its flush keeps its own ending."""
    if conn.state == CONN_FLUSH:
        finish_failed(reactor, conn)
    elif conn.state != CONN_FREE and conn.state != CONN_CLOSED:
        finish(reactor, conn, ending, error, True)
