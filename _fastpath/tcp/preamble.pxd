"""The preamble stage: the PROXY header of a client is read before the client is admitted.

It is looked at where it is (MSG_PEEK) and taken when it is whole. Nothing is kept meanwhile: the scratch of the reactor
serves each look, and the low-water mark of the socket grows to what the parser needs, so that few looks are enough. The
kernel keeps the mark below the receive buffer.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from base.address cimport Address, address_is_unix
from base.atomic cimport oi_add, oi_get
from base.linux cimport (
    EAGAIN, ECONNRESET, EINTR, ENOMEM, EPOLLERR, EPOLLHUP, EPOLLRDHUP, MSG_PEEK, SOL_SOCKET, SO_RCVLOWAT, c_recv,
    c_setsockopt, errno,
)
from base.socket cimport socket_error
from preamble.fault cimport FOUND_INVALID, FOUND_MORE
from preamble.proxy cimport HEADER_BYTES_MAX, ProxyHeader, proxy_read
from shared.access cimport access_decide, access_denies_all, access_trusts
from shared.admission cimport sources_enter, sources_leave
from shared.ending cimport (
    ENDING_BAD_PROXY_HEADER, ENDING_CLIENT_CLOSED, ENDING_CLIENT_RESET, ENDING_DENIED, ENDING_LIMITED,
    ENDING_NOT_TRUSTED, ENDING_PROXY_TIMEOUT, ENDING_SOCKET_FAILED,
)
from shared.facts cimport Facts, facts_new
from shared.policy cimport ACCEPT_OPTIONAL, PROXY_PASS, Policy
from state.connection_slab cimport CLIENT, CONN_CONNECTING, Conn
from state.reactor cimport Reactor
from state.wheel cimport wheel_arm, wheel_disarm
from tcp.deadline cimport left_of
from tcp.ending cimport finish, preamble_over, report
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


cdef inline void low_water(Conn *conn, uint32_t size) noexcept nogil:
    """Have the kernel tell of bytes when there are so many, or the end."""
    cdef int mark = <int> size
    if conn.low_water != size:
        conn.low_water = size
        c_setsockopt(conn.side[CLIENT].fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof(mark))


cdef inline bint header_take(Reactor *reactor, Conn *conn, const ProxyHeader *header) noexcept nogil:
    """Take the header out of the socket; from now on the client is the one in it. False without memory."""
    cdef bint passes = conn.policy.proxy_tlv & PROXY_PASS
    cdef Facts *facts = facts_new(reactor.scratch + header.tlvs, header.length - header.tlvs if passes else 0)
    if facts == NULL:
        return False
    c_recv(conn.side[CLIENT].fd, reactor.scratch, header.length, 0)
    facts.peer = conn.client
    facts.unknown = not header.named
    if header.named:
        facts.reached = header.destination
        conn.client = header.source
    conn.facts = facts
    return True


cdef inline void preamble_admit(Reactor *reactor, Conn *conn) noexcept nogil:
    """The header is there: decide on the client. `conn` may be gone afterwards."""
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
    preamble_over(reactor)
    conn.state = CONN_CONNECTING
    oi_add(&policy.gate.admitted, 1)
    if conn.limit_ms:       # which is counted from the accept
        conn.limit_ms += <uint32_t> ((reactor.now_us - conn.started_us) // 1000)
    if oi_get(&reactor.hub.totals_only) == 0:
        conn.opened_due = 1
        report(reactor, conn)
    dial_go(reactor, conn)


cdef inline void preamble_look(Reactor *reactor, Conn *conn, bint ended) noexcept nogil:
    """Look at what has come; `ended` if nothing follows it. `conn` may be gone afterwards."""
    cdef ProxyHeader header
    cdef int64_t got = c_recv(conn.side[CLIENT].fd, reactor.scratch, HEADER_BYTES_MAX + 1, MSG_PEEK)
    cdef int found
    if got < 0:
        if errno != EAGAIN and errno != EINTR:
            finish(reactor, conn, ENDING_CLIENT_RESET, errno, True)
        return
    found = proxy_read(&header, reactor.scratch, <uint32_t> got) if got else FOUND_MORE
    if found == FOUND_MORE:
        if ended or got == 0:
            finish(reactor, conn, ENDING_CLIENT_CLOSED, 0, True)
        else:
            low_water(conn, header.need)
        return
    if found == FOUND_INVALID:
        conn.token = (<uint64_t> header.fault << 32) | header.at
        finish(reactor, conn, ENDING_BAD_PROXY_HEADER, 0, True)
        return
    sources_leave(reactor.hub.gate, conn.policy, &conn.client, conn.counted)
    conn.counted = 0
    if not header_take(reactor, conn, &header):
        finish(reactor, conn, ENDING_SOCKET_FAILED, ENOMEM, True)
        return
    low_water(conn, 1)
    # What is behind the header has had its event.
    conn.side[CLIENT].rd = got > header.length or ended
    preamble_admit(reactor, conn)


cdef inline void preamble_event(Reactor *reactor, Conn *conn, uint32_t events) noexcept nogil:
    """An event of a client whose preamble is awaited. `conn` may be gone afterwards."""
    if events & EPOLLERR or (events & EPOLLHUP and not conn.side[CLIENT].local):
        finish(reactor, conn, ENDING_CLIENT_RESET, socket_error(conn.side[CLIENT].fd, ECONNRESET), True)
    else:
        preamble_look(reactor, conn, events & (EPOLLRDHUP | EPOLLHUP) != 0)


cdef inline void preamble_begin(Reactor *reactor, Conn *conn) noexcept nogil:
    """A client that has to send a header was accepted. `conn` may be gone afterwards."""
    conn.low_water = 1
    if conn.policy.proxy_ms:
        wheel_arm(&reactor.wheel, conn, reactor.now_ms, conn.policy.proxy_ms)
    preamble_look(reactor, conn, False)


cdef inline void preamble_due(Reactor *reactor, Conn *conn) noexcept nogil:
    """Its timer fired. `conn` may be gone afterwards."""
    cdef uint64_t left_ms = left_of(conn.started_us // 1000, conn.policy.proxy_ms, reactor.now_ms)
    if left_ms:
        wheel_arm(&reactor.wheel, conn, reactor.now_ms, left_ms)
    else:
        finish(reactor, conn, ENDING_PROXY_TIMEOUT, 0, True)
