"""From an accepted client to its destination: its addresses, or those of one server, staggered (RFC 8305).

A second address is tried when the first has failed or has said nothing for STAGGER_MS; then both are under way, and so
on. The first that takes the connection is used, the others are closed without a trace. The connect of the upstream side
costs nothing beyond the connection; each one beside it takes a descriptor of the budget, and is not begun if none is
left. What comes of connects is in `outcome`,
and which server of a group is next in `search`.

The client is registered but not read: its bytes and its FIN wait in the kernel, its reset cancels the connects.
"""

from libc.stdint cimport uint32_t, uint64_t

from base.socket cimport close_with_reset, is_shortage
from base.address cimport (
    Address, SocketAddress, address_is_four, address_is_unix, address_place, address_read,
)
from base.atomic cimport oi_get
from shared.attempt cimport Attempt
from tcp.backoff cimport accept_pause
from tcp.connect cimport connect_begin, watch_as
from tcp.deadline cimport left_of
from shared.ending cimport (
    ENDING_BIND_FAILED, ENDING_CONNECT_FAILED, ENDING_CONNECT_TIMEOUT, ENDING_RESOLVE_FAILED, ENDING_SOCKET_FAILED,
)
from tcp.ending cimport attempt_add, attempt_note
from shared.gate cimport budget_give, budget_take
from tcp.loop cimport came_back, leads_back
from tcp.original cimport original_find
from base.linux cimport (
    AF_INET, AF_UNIX, EAFNOSUPPORT, EAGAIN, ELOOP, EPOLL_CTL_ADD, errno,
)
from shared.group cimport Group
from shared.policy cimport Policy, policy_member, source_for
from shared.server cimport server_patience_ms
from state.connection_slab cimport KIND_ATTEMPT, KIND_UPSTREAM, UPSTREAM, Conn, conn_targets, event_data
from state.reactor cimport Reactor
from shared.target cimport ADDRESS_BITS, Target, targets_pick
from tcp.target_report cimport note_failed
from state.wheel cimport wheel_arm

cdef extern from *:
    """
    #define oi_count_bits(word) __builtin_popcount(word)
    """
    int count_bits "oi_count_bits"(uint32_t word) nogil

cdef enum:
    STAGGER_MS = 250            # how long an address may be silent before the next one is tried beside it: RFC 8305
    SHORT_WAIT_MS = 100         # between two tries to get a descriptor, or into the accept queue of a unix socket
    SHORT_MAX_MS = 10000        # the longest wait for one if there is no connect-timeout

    TRY_FAILED = -1             # no errno of a shortage
    DIAL_OVER = 0               # the connection has ended
    DIAL_BEGUN = 1              # one more address is tried
    DIAL_WAITS = 2              # for a descriptor, for room in a server, or for those under way
    DIAL_FAILED = 3             # no address is left


# Time

cdef inline int dial_untried(const Conn *conn) noexcept nogil:
    return conn_targets(conn).count - count_bits(conn.tried)


cdef inline uint64_t dial_began_ms(const Conn *conn) noexcept nogil:
    """When the search for the destination began: what a client takes for its preamble is no time of the servers."""
    return conn.started_us // 1000 + conn.waited_ms


cdef inline uint64_t dial_left_ms(const Conn *conn, uint64_t longest_ms, uint64_t now_ms) noexcept nogil:
    """How much is left of `longest_ms`, which began with the search."""
    return left_of(dial_began_ms(conn), longest_ms, now_ms)


cdef inline bint dial_is_late(const Conn *conn, uint64_t now_ms) noexcept nogil:
    """Whether the time of the present server is over, or connect-timeout."""
    return conn.limit_ms != 0 and dial_left_ms(conn, conn.limit_ms, now_ms) == 0


cdef inline uint64_t stagger_ms(const Conn *conn, uint64_t now_ms) noexcept nogil:
    """How long those under way may be silent before the next address is tried: all get a chance before the deadline."""
    cdef uint64_t share_ms
    if conn.limit_ms == 0:
        return STAGGER_MS
    share_ms = dial_left_ms(conn, conn.limit_ms, now_ms) // <uint64_t> (dial_untried(conn) + 1)
    return share_ms if share_ms < STAGGER_MS else STAGGER_MS


cdef inline uint64_t dial_next_ms(const Conn *conn) noexcept nogil:
    """When the next address is to be tried beside those under way."""
    return conn.attempts.next_ms if conn.attempts != NULL else conn.dial_ms + stagger_ms(conn, conn.dial_ms)


cdef inline bint may_go_overdue(const Conn *conn) noexcept nogil:
    """Whether it is of interest if the present server says nothing: another one could be tried."""
    cdef const Group *group = conn.policy.group
    return group != NULL and conn.overdue == 0 and group.ejects and group.count > 1


cdef inline uint64_t overdue_left_ms(const Conn *conn, uint64_t now_ms) noexcept nogil:
    """The time until the connect to the present server is overdue: each of its addresses has had a chance by then."""
    cdef uint64_t patience_ms = server_patience_ms(policy_member(conn.policy, conn.member).server)
    return left_of(conn.dial_ms, patience_ms + <uint64_t> (conn_targets(conn).count - 1) * STAGGER_MS, now_ms)


cdef inline void dial_arm(Reactor *reactor, Conn *conn) noexcept nogil:
    """Let the timer fire when the next address is due, the server is overdue, or the time is over."""
    cdef bint more = dial_untried(conn) != 0
    cdef uint64_t next_ms
    cdef uint64_t delay_ms = <uint64_t> -1
    if conn.limit_ms:
        delay_ms = dial_left_ms(conn, conn.limit_ms, reactor.now_ms)
    elif not more:
        return
    if more:
        next_ms = left_of(dial_next_ms(conn), 0, reactor.now_ms)
        delay_ms = next_ms if next_ms < delay_ms else delay_ms
    if may_go_overdue(conn):
        delay_ms = min(delay_ms, overdue_left_ms(conn, reactor.now_ms))
    wheel_arm(&reactor.wheel, conn, reactor.now_ms, delay_ms)


# The addresses

cdef inline void dial_note(Reactor *reactor, Conn *conn, int at, int ending, int error) noexcept nogil:
    """Address number `at` failed: how it ends if that was the last, and what the record will tell of it."""
    cdef Attempt *attempt = NULL
    # With totals only, no record tells it.
    if conn.attempts != NULL or oi_get(&reactor.hub.totals_only) == 0:
        attempt = attempt_note(conn, at)
    conn.ending = <unsigned char> ending
    conn.error = error
    if attempt != NULL:
        attempt.error = error


cdef inline void client_source(const Conn *conn, int family, SocketAddress *source) noexcept nogil:
    """The client's address as the source of a connection to this family; of size 0 if it has none."""
    cdef Address address = conn.client
    source.size = 0
    if address_is_unix(&address) or (conn.facts != NULL and conn.facts.unknown):
        return
    if address_is_four(&address) == (family == AF_INET):
        address.port = 0
        address_place(&address, source)


cdef inline int dial_try(Reactor *reactor, Conn *conn, int at) noexcept nogil:
    """A socket on its way to address number `at`. TRY_FAILED: that is noted. -errno: no descriptor is left, or with
    EAGAIN the accept queue of a unix socket is full."""
    cdef Policy *policy = conn.policy
    cdef Target *target = &conn_targets(conn).items[at]
    cdef const SocketAddress *place = &target.place
    cdef bint from_source = False
    cdef const SocketAddress *source
    cdef SocketAddress wanted, own
    cdef Address address
    cdef int ending = ENDING_CONNECT_FAILED
    cdef int fd
    if policy.to_original:
        original_find(conn, &wanted)
        place = &wanted
    address_read(&address, &place.place)
    source = source_for(policy, conn.member, place, &from_source)
    if policy.from_client and not from_source and place.place.six.sin6_family != AF_UNIX:
        client_source(conn, place.place.six.sin6_family, &own)
        source = &own
        from_source = True
    if from_source and source.size == 0:
        if conn.ending == ENDING_RESOLVE_FAILED:    # no other address has anything to tell
            conn.ending = ENDING_BIND_FAILED
            conn.error = EAFNOSUPPORT
        return TRY_FAILED
    fd = leads_back(reactor, policy, target, &address, from_source)
    if fd < 0:
        return fd
    if fd:
        dial_note(reactor, conn, at, ENDING_CONNECT_FAILED, ELOOP)
        return TRY_FAILED
    fd = connect_begin(policy, source, place, &ending)
    if fd < 0:
        if (ending == ENDING_SOCKET_FAILED and is_shortage(-fd)) or fd == -EAGAIN:
            return fd
        dial_note(reactor, conn, at, ending, -fd)
        if ending == ENDING_CONNECT_FAILED:
            note_failed(reactor, policy, conn.member, at, -fd)
        return TRY_FAILED
    if came_back(reactor, policy, target, fd, &address, from_source):
        close_with_reset(fd)
        dial_note(reactor, conn, at, ENDING_CONNECT_FAILED, ELOOP)
        return TRY_FAILED
    return fd


cdef inline bint dial_watch(Reactor *reactor, Conn *conn, int at, int fd, bint beside) noexcept nogil:
    """Have events of a connect under way; False if there is no room to watch it, and then it has failed."""
    cdef Attempt *attempt = NULL
    cdef uint64_t data = event_data(KIND_UPSTREAM, conn.slot.index, conn.slot.generation)
    cdef int error
    if conn.attempts != NULL:
        attempt = attempt_add(conn, at, reactor.now_ms)
    if beside:
        data = event_data(KIND_ATTEMPT, conn.slot.index, (conn.slot.generation << ADDRESS_BITS) | <uint32_t> at)
    if watch_as(reactor, EPOLL_CTL_ADD, fd, data) != 0:
        error = errno
        close_with_reset(fd)
        dial_note(reactor, conn, at, ENDING_SOCKET_FAILED, error)
        return False
    if beside:
        attempt.fd = fd
        conn.attempts.beside += 1
    else:
        conn.side[UPSTREAM].fd = fd
        conn.address = <unsigned char> at
        conn.dial_ms = reactor.now_ms
    if conn.attempts != NULL:
        conn.attempts.next_ms = reactor.now_ms + stagger_ms(conn, reactor.now_ms)
    return True


cdef inline bint beside_take(Reactor *reactor, Conn *conn) noexcept nogil:
    """Take what a connect beside that of the upstream side needs: a list of both, and a descriptor of the budget of
    which the next client leaves it one."""
    if attempt_note(conn, conn.address) == NULL:
        return False
    return budget_take(reactor.hub.gate.budget, 1, reactor.hub.gate.cost)


cdef inline void beside_give(Reactor *reactor) noexcept nogil:
    if budget_give(reactor.hub.gate.budget, 1):
        reactor.room_made = True


cdef inline bint dial_may_wait(Reactor *reactor, const Conn *conn) noexcept nogil:
    """Whether the client may still wait for a descriptor or an accept queue: as long as for its destination."""
    cdef uint64_t longest_ms = conn.policy.connect_ms if conn.policy.connect_ms else SHORT_MAX_MS
    return dial_left_ms(conn, longest_ms, reactor.now_ms) != 0


cdef inline bint dial_under_way(const Conn *conn) noexcept nogil:
    return conn.side[UPSTREAM].fd >= 0 or (conn.attempts != NULL and conn.attempts.beside != 0)


cdef inline int dial_next(Reactor *reactor, Conn *conn) noexcept nogil:
    """Begin with addresses of the server or destination until one more is under way. DIAL_FAILED: none is."""
    cdef bint beside = conn.side[UPSTREAM].fd >= 0
    cdef int at, fd
    if beside and not beside_take(reactor, conn):
        wheel_arm(&reactor.wheel, conn, reactor.now_ms, SHORT_WAIT_MS)
        return DIAL_WAITS
    while True:     # bounded: each address is picked once
        at = targets_pick(conn_targets(conn), conn.tried, conn.turn, reactor.now_ms)
        if at < 0:
            break
        conn.tried |= <uint32_t> 1 << at
        fd = dial_try(reactor, conn, at)
        if fd < TRY_FAILED:
            if not beside and fd != -EAGAIN:
                accept_pause(reactor, -fd)
            if dial_may_wait(reactor, conn):
                conn.tried &= ~(<uint32_t> 1 << at)
                if beside:
                    beside_give(reactor)
                wheel_arm(&reactor.wheel, conn, reactor.now_ms, SHORT_WAIT_MS)
                return DIAL_WAITS
            dial_note(reactor, conn, at, ENDING_SOCKET_FAILED if fd != -EAGAIN else ENDING_CONNECT_TIMEOUT, -fd)
        elif fd >= 0 and dial_watch(reactor, conn, at, fd, beside):
            dial_arm(reactor, conn)
            return DIAL_BEGUN
    if beside:
        beside_give(reactor)
    if dial_under_way(conn):
        dial_arm(reactor, conn)
        return DIAL_WAITS
    return DIAL_FAILED
