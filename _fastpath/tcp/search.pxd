"""The search for a server: from one to the next before the client notices.

A server that refuses, cannot be reached or says nothing is followed by the next choice at once; the client has not been
read by then. The whole search ends with connect-timeout. While another server could be tried, each one gets half of
the time that is left, and no more than SILENT_MS. Only a few wait that long for a server that says nothing, as many as
would eject it: the others go on as soon as the connect is overdue (`shared/server.pxd`). No server is tried twice, no
more than TRIES_MAX are, and only so many sessions of a group may be at a second try. A client for which only full
servers are left waits for room.

Selection counts in the server's `live`. A session leaves its server when it goes on to the next one, and at its end.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from base.atomic cimport oi_raise_by
from base.linux cimport ETIMEDOUT
from shared.attempt cimport attempts_new, attempts_of_next
from shared.ending cimport (
    ENDING_CONNECT_FAILED, ENDING_CONNECT_TIMEOUT, ENDING_LIMITED, ENDING_NO_SERVER, ENDING_RESOLVE_FAILED,
    ENDING_SOCKET_FAILED,
)
from shared.group cimport (
    BALANCE_RANDOM, PICKED_FULL, PICKED_NONE, TRIES_MAX, Group, Search, group_may_retry, group_members, group_pick,
    group_select,
)
from shared.policy cimport MEMBER_WAITS, policy_member
from shared.server cimport server_leave, server_wait
from shared.target cimport targets_begin
from state.connection_slab cimport OVERDUE_STAYS, Conn, conn_targets
from state.reactor cimport Reactor
from state.wheel cimport wheel_arm
from tcp.dial cimport (
    DIAL_FAILED, DIAL_OVER, DIAL_WAITS, SHORT_MAX_MS, SHORT_WAIT_MS, STAGGER_MS, dial_began_ms, dial_left_ms, dial_next,
)
from tcp.ending cimport attempt_note, finish, listeners_wake, overdue_end
from tcp.target_report cimport note_server_failed, unreachable

cdef enum:
    SILENT_MS = 1500            # as SILENT_S in `oinetd.lanes.python.search`: by then the kernel has asked twice


cdef inline uint64_t draw_next(Reactor *reactor) noexcept nogil:
    """64 random bits (xorshift64*): no secret, only different for each reactor."""
    reactor.draw ^= reactor.draw >> 12
    reactor.draw ^= reactor.draw << 25
    reactor.draw ^= reactor.draw >> 27
    return reactor.draw * <uint64_t> 0x2545f4914f6cdd1d


cdef inline bint search_is_late(const Conn *conn, uint64_t now_ms) noexcept nogil:
    """Whether connect-timeout is over for the whole search."""
    cdef uint64_t longest_ms = conn.policy.connect_ms if conn.policy.connect_ms else SHORT_MAX_MS
    return dial_left_ms(conn, longest_ms, now_ms) == 0


cdef inline void search_fill(Reactor *reactor, const Conn *conn, Search *search) noexcept nogil:
    search.ip = <const uint8_t *> conn.client.ip
    search.tried = NULL
    search.tried_count = 0
    if conn.attempts != NULL:
        search.tried = conn.attempts.tried
        search.tried_count = conn.attempts.tried_count
    search.now_ms = reactor.now_ms
    search.draw = draw_next(reactor) if conn.policy.group.balance == BALANCE_RANDOM else 0
    search.answering = False


cdef inline uint64_t server_whole_ms(const Conn *conn, uint64_t passed_ms) noexcept nogil:
    """How long after the begin of the search the selected server has if it is the last one: up to connect-timeout, the
    rule's or its own, which began `passed_ms` after that; 0 is no limit."""
    cdef uint64_t own_ms = policy_member(conn.policy, conn.member).connect_ms
    cdef uint64_t limit_ms = conn.policy.connect_ms
    if own_ms and (limit_ms == 0 or passed_ms + own_ms < limit_ms):
        limit_ms = passed_ms + own_ms
    return limit_ms


cdef inline uint32_t server_limit_ms(const Conn *conn, uint64_t now_ms) noexcept nogil:
    """How long after the begin of the search the server that was just selected has while another one could be tried."""
    cdef uint64_t passed_ms = now_ms - dial_began_ms(conn)
    cdef uint64_t limit_ms = server_whole_ms(conn, passed_ms)
    cdef uint64_t share_ms = SILENT_MS
    if conn.policy.group.count == 1:
        return <uint32_t> limit_ms
    if conn.policy.connect_ms:
        share_ms = min(share_ms, dial_left_ms(conn, conn.policy.connect_ms, now_ms) // 2)
    if limit_ms == 0 or passed_ms + share_ms < limit_ms:
        limit_ms = passed_ms + share_ms
    return <uint32_t> limit_ms


cdef inline int search_other(Reactor *reactor, const Conn *conn, bint answering) noexcept nogil:
    """The server that would be tried after the present one; below 0 if there is none. With `answering`, one that says
    nothing at present is none."""
    cdef uint16_t tried[TRIES_MAX]
    cdef Search search
    cdef uint64_t seen = 0
    cdef int i
    search_fill(reactor, conn, &search)
    if search.tried_count + 1 >= TRIES_MAX:
        return PICKED_NONE
    for i in range(search.tried_count):
        tried[i] = search.tried[i]
    tried[search.tried_count] = <uint16_t> (conn.member - 1)
    search.tried = tried
    search.tried_count += 1
    search.answering = answering
    return group_pick(conn.policy.group, &search, &seen)


cdef inline bint search_goes_on(Reactor *reactor, Conn *conn) noexcept nogil:
    """The present server has said nothing for so long that the connect is overdue. Only as many as would eject it wait
    on; whether this one goes on to another server, which is no backup if this is none, and the right to that is taken.
    """
    cdef Group *group = conn.policy.group
    cdef int other
    conn.overdue = server_wait(policy_member(conn.policy, conn.member).server, group.failures_told)
    if conn.overdue:
        return False
    conn.overdue = OVERDUE_STAYS
    other = search_other(reactor, conn, True)
    if other < 0 or group_members(group)[other].backup != group_members(group)[conn.member - 1].backup:
        return False
    if attempt_note(conn, conn.address) == NULL or search_is_late(conn, reactor.now_ms):
        return False
    if not conn.attempts.retrying:
        conn.attempts.retrying = group_may_retry(group)
        if not conn.attempts.retrying:
            conn.overdue = 0        # others have the rights now, and soon give them back: asked again at the next tick
    return conn.attempts.retrying


cdef inline bint search_extend(Reactor *reactor, Conn *conn) noexcept nogil:
    """The share of the server is used up: without another one to try, it has all that is left. Whether that is more."""
    cdef uint64_t limit_ms
    if conn.member == 0 or conn.member == MEMBER_WAITS:
        return False
    limit_ms = server_whole_ms(conn, conn.dial_ms - dial_began_ms(conn))
    if limit_ms and limit_ms <= conn.limit_ms:
        return False
    if search_other(reactor, conn, False) >= 0:
        return False
    conn.limit_ms = <uint32_t> limit_ms
    return True


cdef inline bint server_give_up(Reactor *reactor, Conn *conn) noexcept nogil:
    """The selected server did not take the connection: count that, and leave it. Whether another one may be tried."""
    cdef Group *group = conn.policy.group
    cdef bint silent = conn.ending == ENDING_CONNECT_TIMEOUT and conn.error == ETIMEDOUT
    cdef uint64_t enough_ms = conn.policy.connect_ms // 4 if conn.policy.connect_ms // 4 < STAGGER_MS else STAGGER_MS
    cdef bint shortage = conn.ending == ENDING_SOCKET_FAILED
    # One that had little time has not failed by that.
    if conn.ending == ENDING_CONNECT_FAILED or (silent and reactor.now_ms - conn.dial_ms >= enough_ms):
        note_server_failed(reactor, conn.policy, conn.member, conn.error, 0)
    overdue_end(conn)
    if conn.attempts == NULL:
        conn.attempts = attempts_new(0)
    if conn.attempts == NULL or shortage or search_is_late(conn, reactor.now_ms):
        return False
    conn.attempts.tried[conn.attempts.tried_count] = <uint16_t> (conn.member - 1)
    conn.attempts.tried_count += 1
    if conn.attempts.tried_count == TRIES_MAX:
        return False
    if not conn.attempts.retrying:
        conn.attempts.retrying = group_may_retry(group)
        if not conn.attempts.retrying:
            return False
    if server_leave(policy_member(conn.policy, conn.member).server):
        reactor.accept_again = True
        listeners_wake(reactor)
    conn.member = 0
    return True


cdef inline int search_wait(Reactor *reactor, Conn *conn) noexcept nogil:
    """Every server that could be tried is full: wait for room in one, for as long as for a connect."""
    if search_is_late(conn, reactor.now_ms):
        finish(reactor, conn, ENDING_LIMITED, 0, True)
        return DIAL_OVER
    if conn.member != MEMBER_WAITS:
        conn.member = MEMBER_WAITS
        oi_raise_by(&conn.policy.group.waiters, 1)
    wheel_arm(&reactor.wheel, conn, reactor.now_ms, SHORT_WAIT_MS)
    return DIAL_WAITS


cdef inline int search_next(Reactor *reactor, Conn *conn) noexcept nogil:
    """Select the next server, and begin with its addresses. DIAL_OVER: `conn` is gone."""
    cdef Group *group = conn.policy.group
    cdef Search search
    cdef int at
    if conn.member != 0 and conn.member != MEMBER_WAITS and not server_give_up(reactor, conn):
        finish(reactor, conn, conn.ending, conn.error, True)
        return DIAL_OVER
    search_fill(reactor, conn, &search)
    at = group_select(group, &search)
    if at == PICKED_FULL:
        return search_wait(reactor, conn)
    if conn.member == MEMBER_WAITS:
        conn.member = 0
        oi_raise_by(&group.waiters, <uint64_t> -1)
    if at < 0:
        if search.tried_count == 0:
            finish(reactor, conn, ENDING_NO_SERVER, 0, True)
        else:
            finish(reactor, conn, conn.ending, conn.error, True)
        return DIAL_OVER
    conn.member = <uint16_t> (at + 1)
    conn.tried = 0
    conn.turn = <uint32_t> targets_begin(conn_targets(conn))
    conn.dial_ms = reactor.now_ms
    conn.limit_ms = server_limit_ms(conn, reactor.now_ms)
    if conn.attempts != NULL:
        attempts = attempts_of_next(conn.attempts, conn_targets(conn).count)
        if attempts == NULL:
            finish(reactor, conn, conn.ending, conn.error, True)
            return DIAL_OVER
        conn.attempts = attempts
    conn.ending = ENDING_RESOLVE_FAILED
    return dial_next(reactor, conn)


cdef inline int dial_fail(Reactor *reactor, Conn *conn) noexcept nogil:
    """No address of the destination, or of the server, is left. DIAL_OVER: `conn` is gone."""
    cdef int answer
    if conn.policy.group == NULL:
        unreachable(reactor, conn.policy, conn.error)
        finish(reactor, conn, conn.ending, conn.error, True)
        return DIAL_OVER
    while True:     # bounded by TRIES_MAX
        answer = search_next(reactor, conn)
        if answer != DIAL_FAILED:
            return answer


cdef inline int dial_go(Reactor *reactor, Conn *conn) noexcept nogil:
    """Begin with addresses, and with servers, until one more connect is under way. DIAL_OVER: `conn` is gone."""
    cdef int answer = DIAL_FAILED
    if conn.policy.group == NULL or (conn.member != 0 and conn.member != MEMBER_WAITS):
        answer = dial_next(reactor, conn)
    return answer if answer != DIAL_FAILED else dial_fail(reactor, conn)
