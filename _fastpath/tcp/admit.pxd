"""How a client whose preamble is complete goes on: by what is in force then, also if a reload came meanwhile.

Whoever comes above the rate of a rule that a TLS hello has chosen waits for its turn here.
"""

from libc.stdint cimport uint32_t, uint64_t

from base.address cimport Address, address_is_unix
from base.atomic cimport oi_add, oi_get
from base.clock cimport monotonic_us
from base.linux cimport ENOMEM, pthread_mutex_lock, pthread_mutex_unlock
from shared.access cimport access_decide, access_denies_all, access_trusts
from shared.admission cimport sources_enter
from shared.bucket cimport bucket_book, bucket_give
from shared.ending cimport (
    ENDING_DENIED, ENDING_LIMITED, ENDING_NOT_TRUSTED, ENDING_RESOLVE_FAILED, ENDING_SOCKET_FAILED,
)
from shared.gate cimport gate_enter, gate_force, gate_leave
from shared.policy cimport ACCEPT_OPTIONAL, Policy, policy_drop, policy_hold
from shared.target cimport targets_begin
from shared.throttle cimport throttle_is_wanted, throttle_new
from state.connection_slab cimport CLIENT, CONN_CONNECTING, STAGE_RATE, Conn
from state.reactor cimport Listener, Reactor
from state.report cimport report_full
from state.wheel cimport wheel_arm, wheel_disarm
from tcp.deadline cimport left_of
from tcp.ending cimport finish, listeners_wake, preamble_over, report
from tcp.search cimport dial_go


cdef inline int peer_judge(const Policy *policy, const Address *peer, bint *headed) noexcept nogil:
    """The ending of a peer that is refused before a byte is read, or 0; and whether it has to send a header."""
    headed[0] = False
    if address_is_unix(peer):       # mode and owner of the socket decide who they are
        headed[0] = True
        return 0
    if access_denies_all(&policy.access, peer):
        return ENDING_DENIED
    if access_trusts(&policy.trust, peer):
        headed[0] = True
        return 0
    return 0 if policy.accept_proxy == ACCEPT_OPTIONAL else ENDING_NOT_TRUSTED


# What is in force

cdef inline bint policy_change(Reactor *reactor, Conn *conn, Policy *policy) noexcept nogil:
    """Go by another policy, whose reference is the connection's from here; false if its rule has no place for it: then
    it is counted there until it ends, which is now. No source is counted meanwhile.
    """
    cdef bint placed = True
    if policy.gate != conn.policy.gate:
        placed = gate_enter(policy.gate)
        if not placed:
            report_full(reactor, policy, policy.gate)
            gate_force(policy.gate)
        if gate_leave(conn.policy.gate):
            reactor.accept_again = True
            listeners_wake(reactor)
    policy_drop(conn.policy)
    conn.policy = policy
    return placed


cdef inline Policy *policy_in_force(Reactor *reactor, const Conn *conn) noexcept nogil:
    """What is in force for the listener now, with a reference for who asks; NULL if the listener has gone."""
    cdef Listener *listener = reactor.hub.listeners[(<uint32_t> conn.told) >> 2]
    cdef Policy *policy = NULL
    pthread_mutex_lock(&reactor.hub.lock)
    if not listener.dead and listener.generation == conn.told >> 32:
        policy = listener.policy
        policy_hold(policy)
    pthread_mutex_unlock(&reactor.hub.lock)
    return policy


cdef inline int proxy_judge(const Policy *policy, const Conn *conn) noexcept nogil:
    """Judge the peer that has sent a header by a policy that came later: its ending, or 0."""
    cdef bint headed = False
    if policy.accept_proxy and conn.facts != NULL and conn.facts.headed:
        return peer_judge(policy, &conn.facts.peer, &headed)
    return 0


cdef inline int policy_renew(Reactor *reactor, Conn *conn) noexcept nogil:
    """Go by what is in force for the listener now; 0, or the ending. If the listener has gone, nothing changes."""
    cdef Policy *policy = policy_in_force(reactor, conn)
    cdef int refusal
    if policy == NULL:
        return 0
    if policy == conn.policy:
        policy_drop(policy)
        return 0
    refusal = proxy_judge(policy, conn)
    if not policy_change(reactor, conn, policy):
        return ENDING_LIMITED
    return refusal


# The end of the stage

cdef inline void preamble_admit(Reactor *reactor, Conn *conn) noexcept nogil:
    """The preamble is complete: decide on the client. `conn` may be gone afterwards."""
    cdef Policy *policy = conn.policy
    cdef int refusal = access_decide(&policy.access, &conn.client)
    cdef int counted
    wheel_disarm(&reactor.wheel, conn)
    if refusal == 0:
        counted = sources_enter(reactor.hub.gate, policy, &conn.client, False)
        if counted < 0:
            refusal = ENDING_LIMITED
        else:
            conn.counted = <unsigned char> counted
    if refusal:
        finish(reactor, conn, refusal, 0, False)
        return
    if throttle_is_wanted(policy):
        conn.throttle = throttle_new(policy, &conn.client)
        if conn.throttle == NULL:
            finish(reactor, conn, ENDING_SOCKET_FAILED, ENOMEM, True)
            return
    if conn.stage != STAGE_RATE:
        preamble_over(reactor)
    conn.state = CONN_CONNECTING
    conn.told = 0
    conn.ending = ENDING_RESOLVE_FAILED     # should the policy have no address at all
    conn.turn = <uint32_t> targets_begin(policy.targets)
    oi_add(&policy.gate.admitted, 1)
    conn.limit_ms = policy.connect_ms
    conn.waited_ms = <uint32_t> ((reactor.now_us - conn.started_us) // 1000)
    if oi_get(&reactor.hub.totals_only) == 0:
        conn.opened_due = 1
        report(reactor, conn)
    dial_go(reactor, conn)


cdef inline uint64_t peek_left_ms(const Reactor *reactor, const Conn *conn) noexcept nogil:
    """How much is left of the time for the hello, and for the turn by the rate of its rule."""
    return left_of(conn.dial_ms, conn.policy.peek_ms, reactor.now_ms)


cdef inline void turn_await(Reactor *reactor, Conn *conn) noexcept nogil:
    """The rule is chosen: admit the client in its turn by the rate, or refuse it if it has no time left then.

    While it waits for its turn, nothing more is awaited of the client: its place is one of its rule. `conn` may be
    gone afterwards.
    """
    cdef uint64_t connect_ns = oi_get(&conn.policy.gate.rates.connect_ns)
    cdef uint64_t depth_ns = oi_get(&conn.policy.gate.rates.connect_depth_ns)
    cdef uint64_t now_ns, wait_ms
    if connect_ns:
        now_ns = monotonic_us() * 1000
        wait_ms = (bucket_book(&conn.policy.gate.connect_bucket, connect_ns, depth_ns, now_ns) - now_ns) // 1000000
        if wait_ms:
            oi_add(&conn.policy.gate.rate_waits, 1)
            if conn.policy.peek_ms and wait_ms > peek_left_ms(reactor, conn):
                bucket_give(&conn.policy.gate.connect_bucket, connect_ns)
                finish(reactor, conn, ENDING_LIMITED, 0, True)
                return
            if conn.stage != STAGE_RATE:
                preamble_over(reactor)
            conn.stage = STAGE_RATE
            conn.flush_ms = reactor.now_ms + wait_ms
            wheel_arm(&reactor.wheel, conn, reactor.now_ms, wait_ms)
            return
    preamble_admit(reactor, conn)
