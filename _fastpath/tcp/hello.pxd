"""The TLS hello of a client, which chooses among the rules that share a listener. It is looked at and stays there."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from base.linux cimport EAGAIN, EINTR, ENOMEM, MSG_PEEK, c_recv, errno
from preamble.fault cimport FOUND_INVALID, FOUND_MORE
from preamble.hello cimport HELLO_WIRE_BYTES_MAX, Hello, hello_read
from shared.admission cimport sources_leave
from shared.ending cimport (
    ENDING_BAD_TLS_HELLO, ENDING_CLIENT_CLOSED, ENDING_CLIENT_RESET, ENDING_LIMITED, ENDING_NO_SNI_RULE,
    ENDING_SOCKET_FAILED,
)
from shared.facts cimport Facts, facts_named
from shared.names cimport names_choose
from shared.policy cimport Policy, policy_hold
from state.connection_slab cimport CLIENT, STAGE_HELLO, Conn
from state.reactor cimport Reactor
from state.wheel cimport wheel_arm, wheel_disarm
from tcp.admit cimport low_water, policy_change, policy_renew, preamble_admit, turn_await
from tcp.ending cimport finish


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


cdef inline void hello_choose(Reactor *reactor, Conn *conn, const Hello *hello) noexcept nogil:
    """Let the hello choose the rule that serves the client. `conn` may be gone afterwards."""
    cdef Policy *policy
    cdef int refusal, rule
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
    rule = names_choose(conn.policy.names, <const uint8_t *> hello.name, hello.name_size, hello.protocols,
                        hello.protocols_size)
    if rule < 0:
        finish(reactor, conn, ENDING_NO_SNI_RULE, 0, True)
        return
    policy = <Policy *> conn.policy.names.policies[rule]
    policy_hold(policy)
    if policy_change(reactor, conn, policy):
        turn_await(reactor, conn)
    else:
        finish(reactor, conn, ENDING_LIMITED, 0, True)


cdef inline void hello_look(Reactor *reactor, Conn *conn, bint ended) noexcept nogil:
    """Look at what has come of a hello; `ended` if nothing follows it. `conn` may be gone afterwards."""
    cdef Hello hello
    cdef uint8_t *message = reactor.scratch + HELLO_WIRE_BYTES_MAX
    cdef int64_t got = c_recv(conn.side[CLIENT].fd, reactor.scratch, HELLO_WIRE_BYTES_MAX, MSG_PEEK)
    cdef int found
    if got < 0:
        if errno != EAGAIN and errno != EINTR:
            finish(reactor, conn, ENDING_CLIENT_RESET, errno, True)
        return
    found = hello_read(&hello, reactor.scratch, <uint32_t> got, message) if got else FOUND_MORE
    if found == FOUND_MORE:
        if ended or got == 0:
            finish(reactor, conn, ENDING_CLIENT_CLOSED, 0, True)
        else:
            low_water(conn, hello.need)
        return
    if found == FOUND_INVALID:
        conn.token = (<uint64_t> hello.fault << 32) | hello.at
        finish(reactor, conn, ENDING_BAD_TLS_HELLO, 0, True)
        return
    low_water(conn, 1)
    conn.side[CLIENT].rd = 1        # its bytes have had their event
    hello_choose(reactor, conn, &hello)


cdef inline void hello_begin(Reactor *reactor, Conn *conn, bint ended) noexcept nogil:
    """The hello is what comes next. `conn` may be gone afterwards."""
    conn.stage = STAGE_HELLO
    conn.dial_ms = reactor.now_ms
    wheel_disarm(&reactor.wheel, conn)
    if conn.policy.peek_ms:
        wheel_arm(&reactor.wheel, conn, reactor.now_ms, conn.policy.peek_ms)
    hello_look(reactor, conn, ended)
