"""What comes of connects under way: one takes the connection, one fails, time is over, or the client has gone."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from base.socket cimport close_with_reset, set_nodelay, socket_error
from base.address cimport address_is_unix, address_read
from base.atomic cimport oi_get, oi_put
from shared.attempt cimport Attempt, Attempts, attempts_find, attempts_items
from tcp.connect cimport acknowledge, self_connected, watch_as
from tcp.deadline cimport relay_arm
from tcp.dial cimport (
    DIAL_BEGUN, DIAL_OVER, STAGGER_MS, dial_arm, dial_is_late, dial_next_ms, dial_note, dial_under_way, dial_untried,
    may_go_overdue, overdue_left_ms,
)
from shared.ending cimport (
    ENDING_CLIENT_RESET, ENDING_CONNECT_FAILED, ENDING_CONNECT_TIMEOUT, ENDING_SOCKET_FAILED, ENDING_UPSTREAM_RESET,
)
from tcp.ending cimport attempt_close, attempt_ends, finish, overdue_end, retry_end, settle
from tcp.flow cimport side_fail
from tcp.header cimport header_send
from tcp.search cimport dial_fail, dial_go, search_extend, search_goes_on
from base.linux cimport (
    AF_UNIX, ECONNREFUSED, ECONNRESET, EINPROGRESS, EPOLLERR, EPOLLHUP, EPOLLOUT, EPOLL_CTL_MOD, ETIMEDOUT, errno,
)
from state.queue cimport ready_add
from state.connection_slab cimport (
    CLIENT, CONN_CONNECTING, CONN_RELAY, DOWN, KIND_CLIENT, UP, UPSTREAM, Conn, conn_at, conn_targets, event_data,
)
from state.reactor cimport Reactor
from shared.policy cimport policy_member, policy_proxy_version
from shared.server cimport server_took
from shared.target cimport ADDRESSES_MAX, ADDRESS_BITS
from tcp.target_report cimport note_failed, note_server_worked, note_worked


cdef inline bint is_first(const Conn *conn, int at) noexcept nogil:
    """Whether the connect to address number `at` is under way on the upstream side."""
    return conn.side[UPSTREAM].fd >= 0 and conn.address == at


cdef inline void dial_close(Reactor *reactor, Conn *conn, int at) noexcept nogil:
    """Close a connect that is under way."""
    if not is_first(conn, at):
        attempt_close(reactor, conn, attempts_find(conn.attempts, at))
        return
    close_with_reset(conn.side[UPSTREAM].fd)    # one that met itself would keep the port in TIME_WAIT
    conn.side[UPSTREAM].fd = -1
    conn.side[UPSTREAM].rd = 0
    conn.side[UPSTREAM].wr = 0
    conn.side[UPSTREAM].short_read_inconclusive = 0


cdef inline void dial_failed(Reactor *reactor, Conn *conn, int at, int ending, int error) noexcept nogil:
    """This address did not take it: the next one is tried at once. `conn` may be gone afterwards."""
    dial_note(reactor, conn, at, ending, error)
    note_failed(reactor, conn.policy, conn.member, at, error)
    dial_close(reactor, conn, at)
    dial_go(reactor, conn)


cdef inline void dial_give_up(
    Reactor *reactor, Conn *conn, int at, int error, uint64_t began_ms, uint64_t enough_ms
) noexcept nogil:
    """A connect under way has no time left. One that had little time has not failed by that."""
    dial_note(reactor, conn, at, ENDING_CONNECT_TIMEOUT, error)
    if error == ETIMEDOUT and reactor.now_ms - began_ms >= enough_ms:
        note_failed(reactor, conn.policy, conn.member, at, error)
    dial_close(reactor, conn, at)


cdef inline void dial_give_all_up(Reactor *reactor, Conn *conn, int error) noexcept nogil:
    """The time is over for all that is under way: with ETIMEDOUT all that there is for it, with EINPROGRESS only its
    time beside another server that answers, which is no failure."""
    cdef uint64_t half_ms = conn.policy.connect_ms // 2
    cdef uint64_t enough_ms = half_ms if half_ms < STAGGER_MS else STAGGER_MS
    cdef Attempt *item
    cdef int i
    if conn.side[UPSTREAM].fd >= 0:
        dial_give_up(reactor, conn, conn.address, error, conn.dial_ms, enough_ms)
    if conn.attempts != NULL:
        item = attempts_items(conn.attempts)
        for i in range(conn.attempts.count):
            if item[i].fd >= 0:
                dial_give_up(reactor, conn, item[i].address, error, item[i].began_ms, enough_ms)
    dial_fail(reactor, conn)


cdef inline bint side_replace(Reactor *reactor, Conn *conn, Attempt *winner) noexcept nogil:
    """Let the connect beside be the upstream side; False if there is no room to watch it.

    Events of the side that is closed may be in this batch. With a new generation they are not taken for the winner's;
    those of the client come again, as every registration that is modified looks at what is there.
    """
    cdef uint64_t data
    cdef uint32_t side
    conn.side[UPSTREAM].fd = winner.fd
    conn.address = winner.address
    attempt_ends(reactor, conn, winner)
    conn.slot.generation += 1
    for side in range(2):
        data = event_data(KIND_CLIENT + side, conn.slot.index, conn.slot.generation)
        if watch_as(reactor, EPOLL_CTL_MOD, conn.side[side].fd, data) != 0:
            return False
    return True


cdef inline bint dial_won(Reactor *reactor, Conn *conn, int at) noexcept nogil:
    """Address number `at` took the connection, and the others are closed. False: `conn` is gone."""
    cdef Attempts *attempts = conn.attempts
    cdef Attempt *winner
    cdef Attempt *item
    cdef int i
    if not conn.policy.to_original:
        address_read(&conn.upstream, &conn_targets(conn).items[at].place.place)
    if address_is_unix(&conn.upstream):
        conn.upstream.port = <uint16_t> at
        conn.side[UPSTREAM].local = 1
    if attempts == NULL:
        return True
    winner = attempts_find(attempts, at)
    item = attempts_items(attempts)
    for i in range(attempts.first, attempts.count):
        if &item[i] == winner or not (item[i].fd >= 0 or is_first(conn, item[i].address)):
            continue
        if reactor.now_ms - item[i].began_ms >= STAGGER_MS:
            note_failed(reactor, conn.policy, conn.member, item[i].address, EINPROGRESS)
        dial_close(reactor, conn, item[i].address)
    if winner != NULL:
        winner.error = 0
        if winner.fd >= 0 and not side_replace(reactor, conn, winner):
            finish(reactor, conn, ENDING_SOCKET_FAILED, errno, True)
            return False
    return True


cdef inline void relay_begin(Reactor *reactor, Conn *conn) noexcept nogil:
    """Both legs stand."""
    conn.state = CONN_RELAY
    conn.error = 0
    conn.ending = 0
    conn.connected_us = reactor.now_us
    conn.side[CLIENT].wr = 1
    conn.side[UPSTREAM].wr = 1
    conn.side[CLIENT].short_read_inconclusive |= conn.side[CLIENT].local
    conn.side[UPSTREAM].short_read_inconclusive |= conn.side[UPSTREAM].local
    conn.dir[UP].progress_ms = reactor.now_ms
    conn.dir[DOWN].progress_ms = reactor.now_ms
    if not conn.handed_over:
        note_worked(reactor, conn.policy, conn.member, conn.address)
        if conn.member:
            server_took(policy_member(conn.policy, conn.member).server, reactor.now_ms - conn.dial_ms)
            note_server_worked(reactor, conn.policy, conn.member)
            retry_end(conn)
            overdue_end(conn)
        if oi_get(&conn.policy.failures):
            oi_put(&conn.policy.failures, 0)
    oi_put(&reactor.stats.opened, oi_get(&reactor.stats.opened) + 1)
    relay_arm(reactor, conn)
    if conn.side[CLIENT].rd:
        ready_add(reactor, &conn.dir[UP])
    if conn.side[UPSTREAM].rd:
        ready_add(reactor, &conn.dir[DOWN])


cdef inline bint has_failed(uint32_t events, bint local) noexcept nogil:
    """Whether a connection is gone. HUP of a unix socket is only that its peer has closed: its bytes are there."""
    return events & EPOLLERR or (events & EPOLLHUP and not local)


cdef inline bint introduce(Reactor *reactor, Conn *conn) noexcept nogil:
    """Tell the server who the client is, if that is asked for. False: it reset the connection, and `conn` is gone."""
    cdef int error
    if policy_proxy_version(conn.policy, conn.member) == 0:
        acknowledge(conn)
        # Of several subflows nothing is said in `undelay`.
        if conn.policy.protocol == 0:
            conn.side[UPSTREAM].delays = not conn.side[UPSTREAM].local
        elif not conn.side[UPSTREAM].local:
            set_nodelay(conn.side[UPSTREAM].fd)
        return True
    if not conn.side[UPSTREAM].local:
        set_nodelay(conn.side[UPSTREAM].fd)     # now: behind the header it would push that out alone
    error = header_send(conn)
    if error:
        conn.state = CONN_RELAY
        conn.connected_us = reactor.now_us
        finish(reactor, conn, ENDING_UPSTREAM_RESET, error, True)
    return error == 0


cdef inline void dial_answered(Reactor *reactor, Conn *conn, int at, int fd, uint32_t events) noexcept nogil:
    """An event of the connect to address number `at`. `conn` may be gone afterwards."""
    cdef int error
    if has_failed(events, conn_targets(conn).items[at].place.place.six.sin6_family == AF_UNIX):
        error = socket_error(fd, ECONNREFUSED)
        if error != ECONNRESET:
            dial_failed(reactor, conn, at, ENDING_CONNECT_TIMEOUT if error == ETIMEDOUT else ENDING_CONNECT_FAILED,
                        error)
        elif dial_won(reactor, conn, at):
            # The upstream took the connection and reset it before it was looked at; what it sent first is delivered.
            relay_begin(reactor, conn)
            side_fail(&conn.side[UPSTREAM], error)
            settle(reactor, conn)
    elif events & (EPOLLOUT | EPOLLHUP):
        if conn_targets(conn).may_self_connect and self_connected(fd, &conn_targets(conn).items[at].place):
            dial_failed(reactor, conn, at, ENDING_CONNECT_FAILED, ECONNREFUSED)
        elif dial_won(reactor, conn, at) and introduce(reactor, conn):
            relay_begin(reactor, conn)


cdef inline void dial_event(Reactor *reactor, Conn *conn, int side, uint32_t events) noexcept nogil:
    """An event of a side while connecting. `conn` may be gone afterwards."""
    if side == UPSTREAM:
        dial_answered(reactor, conn, conn.address, conn.side[UPSTREAM].fd, events)
    elif has_failed(events, conn.side[CLIENT].local):
        finish(reactor, conn, ENDING_CLIENT_RESET, socket_error(conn.side[CLIENT].fd, ECONNRESET), True)


cdef inline void beside_event(Reactor *reactor, uint32_t index, uint32_t tag, uint32_t events) noexcept nogil:
    """An event of a connect beside that of the upstream side; `tag` is the generation and the number of the address."""
    cdef Conn *conn = conn_at(&reactor.slab, index)
    cdef Attempt *attempt
    cdef int at = <int> (tag & (ADDRESSES_MAX - 1))
    if conn == NULL or conn.state != CONN_CONNECTING or conn.attempts == NULL:
        return
    if tag >> ADDRESS_BITS != (conn.slot.generation << ADDRESS_BITS) >> ADDRESS_BITS:
        return
    attempt = attempts_find(conn.attempts, at)
    if attempt != NULL and attempt.fd >= 0:     # else it was closed earlier in this batch
        dial_answered(reactor, conn, at, attempt.fd, events)


cdef inline void dial_due(Reactor *reactor, Conn *conn) noexcept nogil:
    """The timer fired while connecting. `conn` may be gone afterwards."""
    cdef bint late = dial_is_late(conn, reactor.now_ms)
    cdef int answer
    if not dial_under_way(conn):    # it waits for a descriptor, or for room in a server
        dial_go(reactor, conn)
        return
    if not late and may_go_overdue(conn) and overdue_left_ms(conn, reactor.now_ms) == 0:
        if search_goes_on(reactor, conn):
            dial_give_all_up(reactor, conn, EINPROGRESS)
            return
    if late and conn.member and search_extend(reactor, conn):
        late = False
    if dial_untried(conn) and (late or reactor.now_ms >= dial_next_ms(conn)):
        answer = dial_go(reactor, conn)
        while answer == DIAL_BEGUN and late and dial_untried(conn):     # a short connect-timeout has few ticks
            answer = dial_go(reactor, conn)
        if answer == DIAL_OVER or answer == DIAL_BEGUN or not late:
            return
    if late:
        dial_give_all_up(reactor, conn, ETIMEDOUT)
    else:
        dial_arm(reactor, conn)
