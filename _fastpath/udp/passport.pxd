"""A UDP session on its way to another process: its socket, its client, what it has counted, its places.

Its listener is not read meanwhile: datagrams of the client wait in the queue of the listening socket, which both
processes have, and answers in that of the upstream socket. So no client gets a new port towards its server.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc

from base.address cimport Address
from base.atomic cimport oi_add, oi_put, oi_raise_by
from base.linux cimport (
    ENOMEM, EPOLLET, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, c_assert, c_close, c_epoll_ctl, epoll_event, errno,
)
from shared.admission cimport sources_enter, sources_leave
from shared.gate cimport Gate, gate_force, gate_leave
from shared.policy cimport Policy, policy_drop, policy_hold, policy_member, policy_targets
from shared.server cimport server_leave
from shared.throttle cimport throttle_end, throttle_is_wanted, throttle_new
from state.connection_slab cimport KIND_UDP_LISTENER, event_data
from state.reactor cimport Reactor
from state.return_address cimport ReturnAddress, mix, return_address_hash
from state.slab cimport Slot, slab_slots
from state.udp_client cimport heading_drop, heading_hash, heading_keep, session_client
from state.udp_state cimport BY_QUEUE, SESSION_LIVE, Datagrams, Heading, Line, Session, UdpListener
from state.udp_table cimport (
    line_append, line_cut, queue_drop, queue_hold, session_at, session_give, session_not_ready, session_ready,
    session_take, table_cut, table_put, table_room,
)
from tcp.passport cimport address_number, member_force
from udp.dial cimport udp_watch
from udp.end cimport due_by
from udp.header cimport head_drop
from udp.listener cimport listener_not_ready
from udp.shares cimport share_enter, share_leave

cdef struct Leaving:            # sessions of one listener that are taken out
    Session **items
    int room
    int count


cdef inline void udp_listener_pause(Reactor *reactor, UdpListener *listener) noexcept nogil:
    """Read it no more; its sessions go on."""
    listener_not_ready(reactor.udp, listener)
    if not listener.paused:
        c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_DEL, listener.fd, NULL)
    listener.paused = True


cdef inline int udp_listener_resume(Reactor *reactor, UdpListener *listener) noexcept nogil:
    """Read it again; 0 or -errno. What is in its queue already is the first event."""
    cdef epoll_event event
    if not listener.paused:
        return 0
    event.events = EPOLLIN | <unsigned int> EPOLLET
    event.data.u64 = event_data(KIND_UDP_LISTENER, listener.index, listener.generation)
    if c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_ADD, listener.fd, &event) != 0:
        return -errno
    listener.paused = False
    return 0


cdef inline long sessions_take_out(Reactor *reactor, UdpListener *listener, Leaving *leaving) noexcept nogil:
    """Take out sessions of a listener that is not read, as far as there is room; how many it still has."""
    cdef Session *session
    cdef Session *passport
    cdef uint32_t i
    c_assert(listener.paused)
    for i in range(slab_slots(&reactor.udp.slab)):
        if listener.sessions == 0 or leaving.count == leaving.room:
            break
        session = session_at(reactor.udp, i)
        if session.state != SESSION_LIVE or session.listener != listener:
            continue
        passport = <Session *> malloc(sizeof(Session))
        if passport == NULL:
            break
        session_leaves(reactor, session)
        passport[0] = session[0]
        passport.listener = NULL
        passport.queue = NULL
        session_give(reactor.udp, session)
        leaving.items[leaving.count] = passport
        leaving.count += 1
    oi_put(&reactor.udp_sessions, reactor.udp.count)
    return <long> listener.sessions


cdef inline void session_leaves(Reactor *reactor, Session *session) noexcept nogil:
    """Take it out of every table and line, and out of the epoll; socket, policy and places stay its own."""
    cdef Datagrams *udp = reactor.udp
    session_not_ready(udp, session)
    share_leave(udp, session)
    line_cut(&session.queue.line, BY_QUEUE, session)
    queue_drop(udp, session.queue)
    table_cut(udp, session)
    c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_DEL, session.fd, NULL)
    head_drop(session)
    c_assert(session.listener.sessions > 0)
    session.listener.sessions -= 1
    session.slot.generation += 1    # events of this batch are for nobody


cdef inline void line_enter(Line *self, Session *session) noexcept nogil:
    """Stand in the line of a queue by how long it has been silent. Those that come in that order need no search."""
    cdef Session *before = self.last
    while before != NULL and before.last_ms > session.last_ms:
        before = before.prev[BY_QUEUE]
    if before == self.last:
        line_append(self, BY_QUEUE, session)
        return
    session.prev[BY_QUEUE] = before
    if before != NULL:
        session.next[BY_QUEUE] = before.next[BY_QUEUE]
        before.next[BY_QUEUE] = session
    else:
        session.next[BY_QUEUE] = self.first
        self.first = session
    session.next[BY_QUEUE].prev[BY_QUEUE] = session


cdef inline long session_put_in(Reactor *reactor, UdpListener *listener, Session *passport) noexcept nogil:
    """Go on with a session, and free the passport; -errno where there is no room, and then nothing was done."""
    cdef Datagrams *udp = reactor.udp
    cdef Session *session = session_take(udp) if table_room(udp) else NULL
    cdef Slot slot
    cdef int error = ENOMEM
    if session == NULL:
        return -ENOMEM
    slot = session.slot
    session[0] = passport[0]
    session.slot = slot
    session.queue = queue_hold(udp, session.policy)
    if session.queue != NULL:
        error = 0 if udp_watch(reactor, session, session.fd) == 0 else errno
    if error:
        if session.queue != NULL:
            queue_drop(udp, session.queue)
        session_give(udp, session)
        return -error
    free(passport)
    session.state = SESSION_LIVE
    session.queued = 0
    session.listener = listener
    session.hash = mix(return_address_hash(&session.key, udp.batch.seed) ^ listener.salt, listener.salt | 1)
    if session.heading != NULL:
        session.hash = heading_hash(session.heading, session.hash, udp.batch.seed)
    table_put(udp, session)
    share_enter(udp, session)
    line_enter(&session.queue.line, session)
    listener.sessions += 1
    oi_put(&reactor.udp_sessions, udp.count)
    if session.policy.idle_ms:
        due_by(udp, session.last_ms + session.policy.idle_ms)
    if session.error:
        session_ready(udp, session)
    return 0


cdef inline Session *udp_passport_new(
    Gate *process, Gate *udp_gate, Policy *policy, const ReturnAddress *key, const Heading *heading,
    const Address *upstream,
) noexcept nogil:
    """A session that another process had, in the places that it has here, limits or not. `heading` is NULL if its peer
    writes none.

    NULL if it writes to an address that the policy does not know (`errno` 0), or without memory. The caller fills in
    what that process said of it.
    """
    cdef Session *session = <Session *> calloc(1, sizeof(Session))
    cdef Address client
    cdef int address
    if session == NULL:
        return NULL
    session.key = key[0]
    if heading != NULL and not heading_keep(session, heading):
        free(session)
        return NULL
    session_client(session, &client)
    session.policy = policy
    if policy.group != NULL:
        session.member = member_force(policy, upstream, 0)
    address = -1
    if session.member or policy.group == NULL:
        address = address_number(policy_targets(policy, session.member), upstream)
    if address >= 0 and throttle_is_wanted(policy):
        session.throttle = throttle_new(policy, &client)
        if session.throttle == NULL:
            address = -1
    if address < 0:
        if session.member:
            server_leave(policy_member(policy, session.member).server)
        heading_drop(session)
        free(session)
        return NULL
    session.address = <unsigned char> address
    policy_hold(policy)
    gate_force(udp_gate)
    gate_force(policy.gate)
    session.counted = <unsigned char> max(sources_enter(process, policy, &client, True), 0)
    oi_add(&policy.gate.admitted, 1)
    return session


cdef inline void udp_passport_free(Gate *process, Gate *udp_gate, Session *passport) noexcept nogil:
    """Another process has the session: let go of it, and of its places."""
    cdef Policy *policy = passport.policy
    cdef Address client
    c_close(passport.fd)
    if passport.counted:
        session_client(passport, &client)
        sources_leave(process, policy, &client, passport.counted)
    oi_raise_by(&policy.gate.ended, 1)
    if passport.throttle != NULL:
        throttle_end(passport.throttle, policy)
    if passport.member:
        server_leave(policy_member(policy, passport.member).server)
    gate_leave(policy.gate)
    gate_leave(udp_gate)
    policy_drop(policy)
    heading_drop(passport)
    free(passport)
