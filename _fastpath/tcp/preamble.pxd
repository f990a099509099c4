"""The preamble stage: what a client sends before it is admitted, which is the header of a proxy, and then a TLS hello.

It is looked at where it is (MSG_PEEK); a header is taken when it is whole, a hello stays. Nothing is kept meanwhile:
the scratch of the reactor serves each look, and the low-water mark of the socket grows to what the parser needs, so
that few looks are enough. The kernel keeps the mark below the receive buffer.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free

from base.linux cimport (
    ECONNRESET, ENOMEM, EPOLLERR, EPOLLHUP, EPOLLRDHUP, c_recv, errno,
)
from base.socket cimport socket_error
from preamble.proxy cimport ProxyHeader
from shared.access cimport access_decide
from shared.admission cimport sources_enter, sources_leave
from shared.ending cimport (
    ENDING_CLIENT_RESET, ENDING_LIMITED, ENDING_PEEK_TIMEOUT, ENDING_PROXY_TIMEOUT, ENDING_SOCKET_FAILED,
)
from shared.facts cimport Facts, facts_new
from shared.policy cimport PROXY_PASS
from state.connection_slab cimport CLIENT, STAGE_HEADER, STAGE_HELLO, STAGE_RATE, Conn
from state.reactor cimport Reactor
from state.wheel cimport wheel_arm
from tcp.admit cimport peek_left_ms, policy_renew, preamble_admit
from tcp.deadline cimport left_of
from tcp.ending cimport finish
from tcp.hello cimport hello_begin, hello_look, turn_come
from tcp.peek cimport peek


cdef inline int header_take(Reactor *reactor, Conn *conn, const ProxyHeader *header) noexcept nogil:
    """Take the header out of the socket; from now on the client is the one in it. 0 or an errno: what would be left of
    the header is not for the server."""
    cdef bint passes = conn.policy.proxy_tlv & PROXY_PASS or conn.policy.names != NULL
    cdef Facts *facts = facts_new(reactor.scratch + header.tlvs, header.length - header.tlvs if passes else 0)
    if facts == NULL:
        return ENOMEM
    cdef long taken = c_recv(conn.side[CLIENT].fd, reactor.scratch, header.length, 0)
    if taken != header.length:
        free(facts)
        return ECONNRESET if taken >= 0 else errno
    facts.peer = conn.client
    facts.unknown = not header.named
    if header.named:
        facts.reached = header.destination
        conn.client = header.source
    conn.facts = facts
    return 0


cdef inline void header_over(Reactor *reactor, Conn *conn, bint ended) noexcept nogil:
    """The header was taken: the hello is next if rules share the listener. `conn` may be gone afterwards."""
    cdef int counted
    cdef int refusal = policy_renew(reactor, conn)
    if refusal == 0 and conn.policy.names != NULL:
        refusal = access_decide(&conn.policy.access, &conn.client)
        if refusal == 0:
            counted = sources_enter(reactor.hub.gate, conn.policy, &conn.client, False)
            if counted >= 0:
                conn.counted = <unsigned char> counted
                hello_begin(reactor, conn, ended)
                return
            refusal = ENDING_LIMITED
    if refusal:
        finish(reactor, conn, refusal, 0, True)
        return
    preamble_admit(reactor, conn)


cdef inline void header_look(Reactor *reactor, Conn *conn, bint ended) noexcept nogil:
    """Look at what has come of a header; `ended` if nothing follows it. `conn` may be gone afterwards."""
    cdef ProxyHeader header
    cdef int64_t got = peek(reactor, conn, ended, &header, NULL)
    if got == 0:
        return
    sources_leave(reactor.hub.gate, conn.policy, &conn.client, conn.counted)
    conn.counted = 0
    cdef int error = header_take(reactor, conn, &header)
    if error:
        finish(reactor, conn, ENDING_CLIENT_RESET if error == ECONNRESET else ENDING_SOCKET_FAILED, error, True)
        return
    # What is behind the header has had its event.
    conn.side[CLIENT].rd = got > header.length or ended
    header_over(reactor, conn, ended)


# The stage

cdef inline void preamble_event(Reactor *reactor, Conn *conn, uint32_t events) noexcept nogil:
    """An event of a client whose preamble is awaited. `conn` may be gone afterwards."""
    cdef bint ended = events & (EPOLLRDHUP | EPOLLHUP) != 0
    if events & EPOLLERR or (events & EPOLLHUP and not conn.side[CLIENT].local):
        finish(reactor, conn, ENDING_CLIENT_RESET, socket_error(conn.side[CLIENT].fd, ECONNRESET), True)
    elif conn.stage == STAGE_HEADER:
        header_look(reactor, conn, ended)
    elif conn.stage == STAGE_HELLO:
        hello_look(reactor, conn, ended)


cdef inline void preamble_begin(Reactor *reactor, Conn *conn, uint64_t awaited) noexcept nogil:
    """A client that has to send something first was accepted. `conn` may be gone afterwards.

    `awaited` is the stage, behind the number and the generation of its listener.
    """
    conn.low_water = 1
    conn.told = awaited
    if conn.stage == STAGE_HELLO:
        hello_begin(reactor, conn, False)
        return
    if conn.policy.proxy_ms:
        wheel_arm(&reactor.wheel, conn, reactor.now_ms, conn.policy.proxy_ms)
    header_look(reactor, conn, False)


cdef inline void preamble_due(Reactor *reactor, Conn *conn) noexcept nogil:
    """Its timer fired. `conn` may be gone afterwards."""
    cdef uint64_t left_ms
    if conn.stage == STAGE_RATE and reactor.now_ms >= conn.flush_ms:
        turn_come(reactor, conn)
        return
    if conn.stage == STAGE_HEADER:
        left_ms = left_of(conn.started_us // 1000, conn.policy.proxy_ms, reactor.now_ms)
    elif conn.stage == STAGE_RATE:
        left_ms = left_of(conn.flush_ms, 0, reactor.now_ms)
    else:
        left_ms = peek_left_ms(reactor, conn)
    if left_ms:
        wheel_arm(&reactor.wheel, conn, reactor.now_ms, left_ms)
    else:
        finish(reactor, conn, ENDING_PROXY_TIMEOUT if conn.stage == STAGE_HEADER else ENDING_PEEK_TIMEOUT, 0, True)
