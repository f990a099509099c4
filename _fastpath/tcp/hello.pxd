"""The TLS hello of a client, which chooses among the rules that share a listener. It is looked at and stays there."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free

from base.linux cimport ENOMEM
from preamble.hello cimport Hello
from shared.admission cimport sources_leave
from shared.ending cimport (
    ENDING_LIMITED, ENDING_NO_SNI_RULE, ENDING_SOCKET_FAILED,
)
from shared.facts cimport Facts, facts_named
from shared.names cimport names_choose
from shared.policy cimport Policy, policy_drop, policy_hold
from state.connection_slab cimport CLIENT, STAGE_HELLO, Conn
from state.reactor cimport Reactor
from state.wheel cimport wheel_arm, wheel_disarm
from tcp.admit cimport policy_change, policy_in_force, policy_renew, preamble_admit, proxy_judge, turn_await
from tcp.ending cimport finish
from tcp.peek cimport peek


cdef inline bint hello_keep(Conn *conn, const Hello *hello) noexcept nogil:
    """Keep what the hello wants; false without memory."""
    cdef Facts *facts
    if hello.name_size == 0 and hello.protocols_size == 0:
        return True
    facts = facts_named(
        conn.facts, <const uint8_t *> hello.name, hello.name_size, hello.protocols, hello.protocols_size)
    if facts == NULL:
        return False
    free(conn.facts)
    conn.facts = facts
    return True


cdef inline Policy *policy_chosen(Policy *policy, const Hello *hello) noexcept nogil:
    """The policy of the rule that a hello chooses, `policy` itself if it is that of one rule; NULL if there is none."""
    cdef int rule
    if policy.names == NULL:
        return policy
    rule = names_choose(policy.names, <const uint8_t *> hello.name, hello.name_size, hello.protocols,
                        hello.protocols_size)
    return NULL if rule < 0 else <Policy *> policy.names.policies[rule]


cdef inline void hello_choose(Reactor *reactor, Conn *conn, const Hello *hello) noexcept nogil:
    """Let the hello choose the rule that serves the client. `conn` may be gone afterwards."""
    cdef Policy *policy
    cdef int refusal
    sources_leave(reactor.hub.gate, conn.policy, &conn.client, conn.counted)
    conn.counted = 0
    if not hello_keep(conn, hello):
        finish(reactor, conn, ENDING_SOCKET_FAILED, ENOMEM, True)
        return
    refusal = policy_renew(reactor, conn)
    if refusal:
        finish(reactor, conn, refusal, 0, True)
        return
    if conn.policy.names == NULL:
        preamble_admit(reactor, conn)
        return
    policy = policy_chosen(conn.policy, hello)
    if policy == NULL:
        finish(reactor, conn, ENDING_NO_SNI_RULE, 0, True)
        return
    policy_hold(policy)
    if policy_change(reactor, conn, policy):
        turn_await(reactor, conn)
    else:
        finish(reactor, conn, ENDING_LIMITED, 0, True)


cdef inline void hello_look(Reactor *reactor, Conn *conn, bint ended) noexcept nogil:
    """Look at what has come of a hello; `ended` if nothing follows it. `conn` may be gone afterwards."""
    cdef Hello hello
    if peek(reactor, conn, ended, NULL, &hello) == 0:
        return
    conn.side[CLIENT].rd = 1        # its bytes have had their event
    hello_choose(reactor, conn, &hello)


cdef inline void turn_come(Reactor *reactor, Conn *conn) noexcept nogil:
    """Its turn by the rate of its rule has come: go on by what is in force now for its hello, which is still there.

    If that is another rule, it is that one's rate that counts. `conn` may be gone afterwards.
    """
    cdef Policy *policy = policy_in_force(reactor, conn)
    cdef Policy *chosen = NULL
    cdef bint known, same
    cdef int refusal = 0
    cdef Hello hello
    if policy == NULL:
        preamble_admit(reactor, conn)
        return
    if peek(reactor, conn, False, NULL, &hello) == 0:      # it has reset the connection
        policy_drop(policy)
        return
    chosen = policy_chosen(policy, &hello)
    if chosen == NULL:
        policy_drop(policy)
        finish(reactor, conn, ENDING_NO_SNI_RULE, 0, True)
        return
    known = chosen == conn.policy
    same = chosen.gate == conn.policy.gate or policy.names == NULL
    if not known:
        refusal = proxy_judge(policy, conn)
        policy_hold(chosen)
        if not policy_change(reactor, conn, chosen):
            refusal = ENDING_LIMITED
    policy_drop(policy)
    if refusal:
        finish(reactor, conn, refusal, 0, True)
    elif same:
        preamble_admit(reactor, conn)
    else:
        turn_await(reactor, conn)


cdef inline void hello_begin(Reactor *reactor, Conn *conn, bint ended) noexcept nogil:
    """The hello is what comes next. `conn` may be gone afterwards."""
    conn.stage = STAGE_HELLO
    conn.dial_ms = reactor.now_ms
    wheel_disarm(&reactor.wheel, conn)
    if conn.policy.peek_ms:
        wheel_arm(&reactor.wheel, conn, reactor.now_ms, conn.policy.peek_ms)
    hello_look(reactor, conn, ended)
