"""From an accepted client to a relay: the addresses of the destination, one after the other.

The client is registered but not read: its bytes and its FIN wait in the kernel, its reset cancels the connect.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from base.socket cimport close_with_reset, socket_error
from base.address cimport Address, SocketAddress, address_read
from base.atomic cimport oi_add, oi_get, oi_put
from tcp.backoff cimport accept_pause, is_shortage
from tcp.deadline cimport relay_arm
from tcp.ending cimport (
    ENDING_BIND_FAILED, ENDING_CLIENT_RESET, ENDING_CONNECT_FAILED, ENDING_CONNECT_TIMEOUT, ENDING_RESOLVE_FAILED,
    ENDING_SOCKET_FAILED, finish, record_slot, settle,
)
from tcp.flow cimport side_fail
from tcp.loop cimport came_back, leads_back
from base.linux cimport (
    AF_INET, EAFNOSUPPORT, ECONNREFUSED, ECONNRESET, EINPROGRESS, ELOOP, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN,
    EPOLLOUT, EPOLLPRI, EPOLLRDHUP, EPOLL_CTL_ADD, ETIMEDOUT, IPPROTO_IP, IPPROTO_TCP, IP_BIND_ADDRESS_NO_PORT,
    SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, SO_OOBINLINE, TCP_NODELAY, TCP_QUICKACK,
    c_bind, c_close, c_connect, c_epoll_ctl, c_getsockname, c_setsockopt, c_socket, epoll_event, errno, sockaddr,
    sockaddr_storage, socklen_t,
)
from shared.policy cimport Policy
from state.queue cimport ready_add
from shared.ring cimport RECORD_UNREACHABLE, Record, ring_push
from state.connection_slab cimport CLIENT, CONN_RELAY, DOWN, KIND_CLIENT, UP, UPSTREAM, Conn, event_data
from state.reactor cimport Reactor
from shared.target cimport targets_pick
from tcp.target_report cimport note_failed, note_worked
from state.wheel cimport wheel_arm

cdef enum:
    SHORT_WAIT_MS = 100         # between two tries to get a descriptor
    SHORT_MAX_MS = 10000        # the longest wait for one where there is no connect-timeout
    FAILURES_TOLD = 3           # connects that failed in a row before the control plane resolves the name again


cdef inline int watch(Reactor *reactor, Conn *conn, int side) noexcept nogil:
    """Register a side, once and for everything."""
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | <uint32_t> EPOLLET
    event.data.u64 = event_data(KIND_CLIENT + side, conn.index, conn.generation)
    return c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_ADD, conn.side[side].fd, &event)


cdef inline void dial_end(Reactor *reactor, Conn *conn) noexcept nogil:
    """Every address was tried."""
    cdef Policy *policy = conn.policy
    cdef Record *record
    if oi_add(&policy.failures, 1) + 1 >= FAILURES_TOLD:
        record = record_slot(reactor)
        if record != NULL:
            record.kind = RECORD_UNREACHABLE
            record.tag = policy.tag
            record.error = conn.error
            ring_push(&reactor.ring, &reactor.hub.bell)
            oi_put(&policy.failures, 0)
    finish(reactor, conn, conn.ending, conn.error, True)


cdef inline const SocketAddress *source_for(const Policy *policy, const SocketAddress *target) noexcept nogil:
    """The address of ours from which to connect to `target`; of size 0 where there is none."""
    return &policy.sources[0 if target.place.sin6_family == AF_INET else 1]


cdef inline int dial_open(Reactor *reactor, Conn *conn, const SocketAddress *target) noexcept nogil:
    """A socket on its way to `target`; its connect may be in progress. -1: `ending` and `error` say why not."""
    cdef const SocketAddress *source = source_for(conn.policy, target)
    cdef int off = 0
    cdef int on = 1
    cdef int fd = c_socket(target.place.sin6_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        conn.ending = ENDING_SOCKET_FAILED
        conn.error = errno
        if is_shortage(conn.error):
            accept_pause(reactor, conn.error)
        return -1
    c_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
    c_setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on))
    c_setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof(off))
    if source.size:
        # The port is chosen by connect, which can use one again towards another destination; bind could not.
        c_setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on))
        conn.ending = ENDING_BIND_FAILED
        if c_bind(fd, <const sockaddr *> &source.place, source.size) != 0:
            conn.error = errno
            c_close(fd)
            return -1
    if c_connect(fd, <const sockaddr *> &target.place, target.size) != 0 and errno != EINPROGRESS:
        conn.ending = ENDING_CONNECT_FAILED
        conn.error = errno
        c_close(fd)
        return -1
    return fd


cdef inline bint dial_wait(Reactor *reactor, Conn *conn) noexcept nogil:
    """No descriptor is left: the client waits for one as long as it may wait for its destination."""
    cdef uint64_t longest_ms = conn.policy.connect_ms if conn.policy.connect_ms else SHORT_MAX_MS
    if conn.ending != ENDING_SOCKET_FAILED or not is_shortage(conn.error):
        return False
    if conn.short_ms == 0:
        conn.short_ms = reactor.now_ms
    if reactor.now_ms - conn.short_ms >= longest_ms:
        return False
    conn.tried &= ~(<uint32_t> 1 << conn.address)
    wheel_arm(&reactor.wheel, conn, reactor.now_ms, SHORT_WAIT_MS)
    return True


cdef inline void dial_next(Reactor *reactor, Conn *conn) noexcept nogil:
    """Try the next address, or end. `conn` may be gone afterwards."""
    cdef Policy *policy = conn.policy
    cdef SocketAddress *target
    cdef int fd, at
    while True:     # bounded: each address is picked once
        at = targets_pick(policy.targets, conn.tried, conn.turn, reactor.now_ms)
        if at < 0:
            break
        target = &policy.targets.items[at].place
        conn.address = <uint8_t> at
        conn.tried |= <uint32_t> 1 << at
        if policy.has_source and source_for(policy, target).size == 0:
            if conn.ending == ENDING_RESOLVE_FAILED:    # no other address has anything to tell
                conn.ending = ENDING_BIND_FAILED
                conn.error = EAFNOSUPPORT
            continue
        address_read(&conn.upstream, &target.place)
        if leads_back(reactor, policy, at, &conn.upstream):
            conn.ending = ENDING_CONNECT_FAILED
            conn.error = ELOOP
            continue
        fd = dial_open(reactor, conn, target)
        if fd < 0:
            if dial_wait(reactor, conn):
                return
            if conn.ending == ENDING_CONNECT_FAILED:
                note_failed(reactor, policy, at, conn.error)
            continue
        if came_back(reactor, policy, at, fd, &conn.upstream):
            conn.ending = ENDING_CONNECT_FAILED
            conn.error = ELOOP
            close_with_reset(fd)
            continue
        conn.short_ms = 0
        conn.side[UPSTREAM].fd = fd
        if watch(reactor, conn, UPSTREAM) != 0:
            conn.ending = ENDING_SOCKET_FAILED
            conn.error = errno
            break
        conn.dial_ms = reactor.now_ms
        if policy.connect_ms:
            wheel_arm(&reactor.wheel, conn, reactor.now_ms, policy.connect_ms)
        return
    dial_end(reactor, conn)


cdef inline void dial_failed(Reactor *reactor, Conn *conn, int ending, int error) noexcept nogil:
    """This address did not take it."""
    conn.ending = ending
    conn.error = error
    note_failed(reactor, conn.policy, conn.address, error)
    close_with_reset(conn.side[UPSTREAM].fd)    # one that met itself would keep the port in TIME_WAIT
    conn.side[UPSTREAM].fd = -1
    conn.side[UPSTREAM].rd = 0
    conn.side[UPSTREAM].wr = 0
    conn.side[UPSTREAM].short_read_inconclusive = 0
    dial_next(reactor, conn)


cdef inline void relay_begin(Reactor *reactor, Conn *conn) noexcept nogil:
    """Both legs stand."""
    conn.state = CONN_RELAY
    conn.error = 0
    conn.ending = 0
    conn.connected_us = reactor.now_us
    conn.side[CLIENT].wr = 1
    conn.side[UPSTREAM].wr = 1
    conn.dir[UP].progress_ms = reactor.now_ms
    conn.dir[DOWN].progress_ms = reactor.now_ms
    if not conn.handed_over:
        note_worked(reactor, conn.policy, conn.address)
        if oi_get(&conn.policy.failures):
            oi_put(&conn.policy.failures, 0)
    oi_put(&reactor.stats.opened, oi_get(&reactor.stats.opened) + 1)
    relay_arm(reactor, conn)
    if conn.side[CLIENT].rd:
        ready_add(reactor, &conn.dir[UP])
    if conn.side[UPSTREAM].rd:
        ready_add(reactor, &conn.dir[DOWN])


cdef inline bint self_connected(const Conn *conn) noexcept nogil:
    """Whether the connect came back to its own socket: nobody listens on a port of this machine, and the kernel chose
    that port for the outgoing end."""
    cdef sockaddr_storage place
    cdef socklen_t size = sizeof(place)
    cdef Address local
    if c_getsockname(conn.side[UPSTREAM].fd, <sockaddr *> &place, &size) != 0:
        return False
    address_read(&local, &place)
    return local.port == conn.upstream.port and memcmp(local.ip, conn.upstream.ip, sizeof(local.ip)) == 0


cdef inline void acknowledge(const Conn *conn) noexcept nogil:
    """Say the last word of the upstream's handshake, where no bytes of the client are here to carry it.

    It was held back when the connect began: a packet less for each connection whose client speaks first.
    """
    cdef int on = 1
    if not conn.side[CLIENT].rd:
        c_setsockopt(conn.side[UPSTREAM].fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on))


cdef inline void dial_event(Reactor *reactor, Conn *conn, int side, uint32_t events) noexcept nogil:
    """An event while connecting. `conn` may be gone afterwards."""
    cdef int error
    if side == CLIENT:
        if events & (EPOLLERR | EPOLLHUP):
            finish(reactor, conn, ENDING_CLIENT_RESET, socket_error(conn.side[CLIENT].fd, ECONNRESET), True)
        return
    if events & (EPOLLERR | EPOLLHUP):
        error = socket_error(conn.side[UPSTREAM].fd, ECONNREFUSED)
        if error != ECONNRESET:
            dial_failed(reactor, conn, ENDING_CONNECT_TIMEOUT if error == ETIMEDOUT else ENDING_CONNECT_FAILED, error)
            return
        # The upstream took the connection and reset it before it was looked at; what it sent first is delivered.
        relay_begin(reactor, conn)
        side_fail(&conn.side[UPSTREAM], error)
        settle(reactor, conn)
    elif events & EPOLLOUT:
        if conn.policy.may_self_connect and self_connected(conn):
            dial_failed(reactor, conn, ENDING_CONNECT_FAILED, ECONNREFUSED)
        else:
            acknowledge(conn)
            relay_begin(reactor, conn)


cdef inline void dial_due(Reactor *reactor, Conn *conn) noexcept nogil:
    """The timer fired while connecting."""
    cdef uint64_t waited_ms = reactor.now_ms - conn.dial_ms
    if conn.side[UPSTREAM].fd < 0:
        dial_next(reactor, conn)
        return
    if waited_ms >= conn.policy.connect_ms:
        dial_failed(reactor, conn, ENDING_CONNECT_TIMEOUT, ETIMEDOUT)
    else:
        wheel_arm(&reactor.wheel, conn, reactor.now_ms, conn.policy.connect_ms - waited_ms)
