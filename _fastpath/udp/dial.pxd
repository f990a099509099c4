"""The upstream socket of a UDP session: connected to an address of the destination, with a port of its own."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from base.address cimport Address, SocketAddress, address_read
from shared.ending cimport (
    ENDING_BIND_FAILED, ENDING_CONNECT_FAILED, ENDING_LIMITED, ENDING_NO_SERVER, ENDING_RESOLVE_FAILED,
    ENDING_SOCKET_FAILED,
)
from state.datagram cimport take_trains
from tcp.connect cimport options_set
from tcp.search cimport draw_next
from base.linux cimport (
    EACCES, EAFNOSUPPORT, ELOOP, EMFILE, ENFILE, EPOLLET, EPOLLIN, EPOLL_CTL_ADD, SOCK_CLOEXEC, SOCK_DGRAM,
    SOCK_NONBLOCK, SOL_SOCKET, SO_BROADCAST, SO_RCVBUF, c_bind, c_close, c_connect, c_epoll_ctl, c_setsockopt, c_socket,
    epoll_event, errno, sockaddr,
)
from tcp.loop cimport came_back, leads_back
from shared.group cimport BALANCE_RANDOM, PICKED_FULL, TRIES_MAX, Search, group_members, group_select
from shared.policy cimport Policy, policy_member, policy_targets, source_for
from shared.server cimport server_leave
from state.connection_slab cimport KIND_UDP_SESSION, event_data
from state.reactor cimport Reactor
from shared.target cimport Target, Targets, targets_begin, targets_pick
from tcp.target_report cimport group_found_full, note_failed, note_server_failed, unreachable
from udp.end cimport displace
from udp.silence cimport trail_return
from state.udp_state cimport Session

cdef enum:
    QUEUE_BYTES = 1048576       # as UPSTREAM_QUEUE_BYTES in `oinetd.net.sockets`
    REFUSALS_MIN = 2            # sessions that saw a refusal before it counts against a server: ICMP can be forged


cdef inline int udp_socket(Reactor *reactor, int family) noexcept nogil:
    """A socket, or -errno. If no descriptor is left, the session that was silent for longest gives its own."""
    cdef int bytes = QUEUE_BYTES
    cdef int fd = c_socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0 and (errno == EMFILE or errno == ENFILE) and displace(reactor, NULL):
        fd = c_socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -errno
    c_setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes))
    take_trains(fd)
    return fd


cdef inline int udp_watch(Reactor *reactor, Session *session, int fd) noexcept nogil:
    """Have events of the socket. Room for sending is no event: what has none is lost, as it would be in a network."""
    cdef epoll_event event
    event.events = EPOLLIN | <unsigned int> EPOLLET
    event.data.u64 = event_data(KIND_UDP_SESSION, session.slot.index, session.slot.generation)
    return c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_ADD, fd, &event)


cdef inline int udp_connect(const Targets *targets, int fd, const SocketAddress *target) noexcept nogil:
    """As connect(2). A broadcast address has to be asked for, and is only if the configuration names it: an answer
    of the name system must not make clients write to a whole network."""
    cdef int on = 1
    cdef int failed = c_connect(fd, <const sockaddr *> &target.place, target.size)
    if failed and errno == EACCES and targets.may_broadcast:
        if c_setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof(on)) == 0:
            failed = c_connect(fd, <const sockaddr *> &target.place, target.size)
    return failed


cdef inline bint udp_dial_targets(Reactor *reactor, Session *session) noexcept nogil:
    """Connect `session.fd`, which sends nothing, so that any address with a route will do; one that refused
    datagrams is tried last, and one that its client has just left after all others. False: `ending` and `error` say
    why not."""
    cdef Policy *policy = session.policy
    cdef Targets *targets = policy_targets(policy, session.member)
    cdef uint64_t turn = targets_begin(targets)
    cdef uint64_t tried = 0 if session.member else session.trail.left
    cdef bint from_source = False
    cdef const SocketAddress *source
    cdef Target *target
    cdef Address address
    cdef int at, fd, error
    session.ending = ENDING_RESOLVE_FAILED
    session.error = 0
    while True:     # bounded: each address is picked once
        at = targets_pick(targets, tried, turn, reactor.now_ms)
        if at < 0 and session.member == 0:
            at = trail_return(&session.trail, targets, turn, reactor.now_ms, &tried)
        if at < 0:
            return False
        tried |= <uint64_t> 1 << at
        target = &targets.items[at]
        source = source_for(policy, session.member, &target.place, &from_source)
        if from_source and source.size == 0:
            if session.error == 0:
                session.ending = ENDING_BIND_FAILED
                session.error = EAFNOSUPPORT
            continue
        address_read(&address, &target.place.place)
        if leads_back(reactor, policy, target, &address, from_source):
            session.ending = ENDING_CONNECT_FAILED
            session.error = ELOOP
            continue
        fd = udp_socket(reactor, target.place.place.six.sin6_family)
        if fd < 0:
            session.ending = ENDING_SOCKET_FAILED
            session.error = -fd
            return False
        error = options_set(policy, fd, target.place.place.six.sin6_family, False) if policy.option_count else 0
        if error:
            session.ending = ENDING_SOCKET_FAILED
            session.error = error
            c_close(fd)
            return False
        if source.size and c_bind(fd, <const sockaddr *> &source.place, source.size) != 0:
            session.ending = ENDING_BIND_FAILED
        elif udp_connect(targets, fd, &target.place) != 0:
            session.ending = ENDING_CONNECT_FAILED
        elif came_back(reactor, policy, target, fd, &address, from_source):
            session.ending = ENDING_CONNECT_FAILED
            session.error = ELOOP
            c_close(fd)
            continue
        elif udp_watch(reactor, session, fd) != 0:
            session.ending = ENDING_SOCKET_FAILED
        else:
            session.fd = fd
            session.address = <unsigned char> at
            session.ending = 0
            session.error = 0
            return True
        session.error = errno
        if session.ending == ENDING_CONNECT_FAILED:
            note_failed(reactor, policy, session.member, at, session.error)
        c_close(fd)


cdef inline void server_left(Reactor *reactor, Session *session) noexcept nogil:
    """The session leaves its server."""
    if session.member and server_leave(policy_member(session.policy, session.member).server):
        reactor.room_made = True


cdef inline bint udp_dial_group(Reactor *reactor, Session *session, const Address *client) noexcept nogil:
    """Select a server and connect to an address of it; the one that its client has just left comes last."""
    cdef Policy *policy = session.policy
    cdef uint16_t tried[TRIES_MAX]
    cdef Search search
    cdef int at
    cdef bint again = False
    search.ip = <const uint8_t *> client.ip
    search.tried = tried
    search.tried_count = 0
    search.now_ms = reactor.now_ms
    search.answering = False
    session.ending = ENDING_NO_SERVER
    session.error = 0
    if session.trail.server:
        for at in range(policy.group.count):
            if group_members(policy.group)[at].server.tag == session.trail.server:
                tried[0] = <uint16_t> at
                search.tried_count = 1
                again = True
    while search.tried_count < TRIES_MAX:
        search.draw = draw_next(reactor) if policy.group.balance == BALANCE_RANDOM else 0
        at = group_select(policy.group, &search)
        if at < 0 and again:
            again = False
            search.tried_count = 0      # no other server: the first one again
            continue
        if at < 0:
            if at == PICKED_FULL:
                group_found_full(reactor, policy)
                session.ending = ENDING_LIMITED
            return False
        again = False
        session.member = <uint16_t> (at + 1)
        if udp_dial_targets(reactor, session):
            return True
        if session.ending == ENDING_CONNECT_FAILED:
            note_server_failed(reactor, policy, session.member, session.error, REFUSALS_MIN)
        server_left(reactor, session)
        session.member = 0
        if session.ending == ENDING_SOCKET_FAILED:
            return False
        tried[search.tried_count] = <uint16_t> at
        search.tried_count += 1
    return False


cdef inline bint udp_dial(Reactor *reactor, Session *session, const Address *client) noexcept nogil:
    """Connect the session to an address of its destination, or of a server. False: `ending` and `error` say why not."""
    if session.policy.group != NULL:
        return udp_dial_group(reactor, session, client)
    if udp_dial_targets(reactor, session):
        return True
    if session.ending != ENDING_SOCKET_FAILED:
        unreachable(reactor, session.policy, session.error)
    return False
