"""UDP listeners of a reactor: datagrams go to the session of their sender, and new senders get one.

A listener that is taken away while it has sessions lingers: it admits no new client, and the record of its last session
says that it was the last.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from shared.access cimport Access, access_decide, access_denies_all
from base.address cimport Address
from base.atomic cimport oi_add
from state.datagram cimport MESSAGES_MAX, Group, batch_free, batch_new, batch_receive, take_trains
from shared.ending cimport ENDING_ABORTED, ENDING_REVOKED
from base.linux cimport (
    EMFILE, ENOMEM, EPOLLET, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, c_assert, c_epoll_ctl, epoll_event, errno,
)
from shared.policy cimport ACCEPT_OFF, Policy, policy_drop, policy_hold
from state.return_address cimport mix
from state.connection_slab cimport KIND_UDP_LISTENER, event_data
from state.reactor cimport LISTENERS_MAX, Reactor
from udp.end cimport rule_trim, session_end
from udp.incoming cimport group_hash, headed_take, serve
from state.slab cimport slab_destroy, slab_init, slab_slots
from state.udp_client cimport session_client
from state.udp_state cimport SESSION_LIVE, Datagrams, Session, SessionQueue, UdpListener
from state.udp_table cimport queue_drop, queue_hold, session_at

cdef enum:
    LISTENERS_MORE = 64         # the table grows by this many


# What a reactor with UDP listeners has

cdef inline void datagrams_free(Datagrams *self) noexcept nogil:
    """The reactor has been joined: every session is over and reported."""
    cdef uint32_t i
    if self == NULL:
        return
    for i in range(self.listener_count):
        if self.listeners[i].fd >= 0:
            queue_drop(self, self.listeners[i].queue)
            policy_drop(self.listeners[i].policy)
        free(self.listeners[i].told)
        free(self.listeners[i])
    free(self.listeners)
    slab_destroy(&self.slab)
    free(self.buckets)
    batch_free(self.batch)
    free(self)


cdef inline Datagrams *datagrams_new() noexcept nogil:
    """NULL if there is no memory. Pages that nothing ever reached take none."""
    cdef Datagrams *self = <Datagrams *> calloc(1, sizeof(Datagrams))
    if self == NULL:
        return NULL
    self.batch = batch_new()
    if self.batch == NULL or not slab_init(&self.slab, sizeof(Session)):
        datagrams_free(self)
        return NULL
    return self


# Turns

cdef inline void listener_ready(Datagrams *self, UdpListener *listener) noexcept nogil:
    """Let it have a turn."""
    if listener.queued or listener.paused:
        return
    listener.queued = True
    listener.next = NULL
    if self.turn_last != NULL:
        self.turn_last.next = listener
    else:
        self.turn_first = listener
    self.turn_last = listener


cdef inline UdpListener *listener_next(Datagrams *self) noexcept nogil:
    """The next listener in line, taken out of it; NULL if there is none."""
    cdef UdpListener *listener = self.turn_first
    if listener != NULL:
        self.turn_first = listener.next
        if self.turn_first == NULL:
            self.turn_last = NULL
        listener.queued = False
    return listener


cdef inline void listener_not_ready(Datagrams *self, UdpListener *listener) noexcept nogil:
    cdef UdpListener *before = NULL
    cdef UdpListener *here = self.turn_first
    if not listener.queued:
        return
    while here != listener:         # bounded: it is there
        before = here
        here = here.next
    if before == NULL:
        self.turn_first = listener.next
    else:
        before.next = listener.next
    if self.turn_last == listener:
        self.turn_last = before
    listener.queued = False


cdef inline int listener_turn(Reactor *reactor, UdpListener *listener) noexcept nogil:
    """Take a batch, and give it on; the number of messages, or -errno."""
    cdef Datagrams *udp = reactor.udp
    cdef Group *group
    cdef int i
    cdef int got = batch_receive(udp.batch, listener.fd, MESSAGES_MAX, True)
    if got <= 0:
        return got
    if udp.batch.forged:
        # In this order: the reader of both takes the lost first.
        oi_add(&listener.policy.gate.forged, <uint64_t> udp.batch.forged)
        oi_add(&listener.policy.gate.lost, <uint64_t> udp.batch.forged)
    for i in range(udp.batch.group_count):
        group = &udp.batch.groups[i]
        if listener.policy.accept_proxy == ACCEPT_OFF or not headed_take(reactor, listener, group):
            serve(reactor, listener, group, group_hash(listener, group), NULL, group.first, group.count)
    if got == MESSAGES_MAX:
        listener_ready(udp, listener)
    return got


# Orders of the control plane

cdef inline UdpListener *listener_place(Datagrams *self) noexcept nogil:
    """A listener without a socket; NULL if there is no memory, or too many."""
    cdef UdpListener *listener = self.free_listeners
    cdef UdpListener **more
    if listener != NULL:
        self.free_listeners = listener.next
        return listener
    if self.listener_count == LISTENERS_MAX:
        return NULL
    if self.listener_count % LISTENERS_MORE == 0:
        more = <UdpListener **> realloc(
            self.listeners, (self.listener_count + LISTENERS_MORE) * sizeof(UdpListener *))
        if more == NULL:
            return NULL
        self.listeners = more
    listener = <UdpListener *> calloc(1, sizeof(UdpListener))
    if listener == NULL:
        return NULL
    listener.fd = -1
    listener.index = self.listener_count
    listener.salt = mix(self.batch.seed ^ listener.index, <uint64_t> 0xd1b54a32d192ed03)
    self.listeners[listener.index] = listener
    self.listener_count += 1
    return listener


cdef inline void listener_free(Datagrams *self, UdpListener *listener) noexcept nogil:
    """Its place is free again, and events of it are recognised as over."""
    listener.fd = -1
    listener.generation += 1
    listener.next = self.free_listeners
    self.free_listeners = listener


cdef inline int udp_listener_add(Reactor *reactor, int fd, Policy *policy, bint paused) noexcept nogil:
    """Serve a bound socket, if it is not `paused`; its number, or -errno. What is in its queue already is the first
    event."""
    cdef Datagrams *udp
    cdef UdpListener *listener
    cdef epoll_event event
    if reactor.udp == NULL:
        reactor.udp = datagrams_new()
    udp = reactor.udp
    if udp == NULL:
        return -ENOMEM
    listener = listener_place(udp)
    if listener == NULL:
        return -EMFILE
    listener.queue = queue_hold(udp, policy)
    if listener.queue == NULL:
        listener_free(udp, listener)
        return -ENOMEM
    take_trains(fd)
    event.events = EPOLLIN | <unsigned int> EPOLLET
    event.data.u64 = event_data(KIND_UDP_LISTENER, listener.index, listener.generation)
    if not paused and c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0:
        queue_drop(udp, listener.queue)
        listener_free(udp, listener)
        return -errno
    c_assert(listener.sessions == 0 and not listener.queued)
    listener.fd = fd
    listener.lingering = False
    listener.paused = paused
    listener.policy = policy
    policy_hold(policy)
    oi_add(&reactor.udp_listeners, 1)
    return <int> listener.index


cdef inline UdpListener *listener_at(Reactor *reactor, uint32_t index) noexcept nogil:
    c_assert(reactor.udp != NULL and index < reactor.udp.listener_count)
    c_assert(reactor.udp.listeners[index].fd >= 0)
    return reactor.udp.listeners[index]


cdef inline int udp_listener_replace(
    Reactor *reactor, UdpListener *listener, Policy *policy, bint anew
) noexcept nogil:
    """Put another policy in force for sessions to come; `anew` tells of refused addresses once more. 0 or -errno."""
    cdef SessionQueue *queue = queue_hold(reactor.udp, policy)
    if queue == NULL:
        return -ENOMEM
    queue_drop(reactor.udp, listener.queue)
    listener.queue = queue
    policy_hold(policy)
    policy_drop(listener.policy)
    listener.policy = policy
    if anew:
        listener.lingering = False
        free(listener.told)
        listener.told = NULL
        rule_trim(reactor, policy.gate)
    return 0


cdef inline long sessions_revoke(Reactor *reactor, UdpListener *listener, const Access *access) noexcept nogil:
    """End the sessions of clients that `access` refuses; returns their number."""
    cdef Session *session
    cdef Address client
    cdef uint64_t left = listener.sessions
    cdef uint32_t i
    cdef long ended = 0
    for i in range(slab_slots(&reactor.udp.slab)):
        if left == 0:
            break
        session = session_at(reactor.udp, i)
        if session.state != SESSION_LIVE or session.listener != listener:
            continue
        left -= 1
        session_client(session, &client)
        if access_decide(access, &client) or (
            session.heading != NULL and access_denies_all(access, &session.heading.peer)
        ):
            session_end(reactor, session, ENDING_REVOKED, 0)
            ended += 1
    return ended


cdef inline void udp_listener_remove(Reactor *reactor, UdpListener *listener) noexcept nogil:
    """End its sessions, and let go of the socket."""
    cdef Datagrams *udp = reactor.udp
    cdef Session *session
    cdef uint32_t i
    if listener.sessions:
        for i in range(slab_slots(&udp.slab)):
            session = session_at(udp, i)
            if session.state == SESSION_LIVE and session.listener == listener:
                session_end(reactor, session, ENDING_ABORTED, 0)
    c_assert(listener.sessions == 0)
    listener_not_ready(udp, listener)
    c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_DEL, listener.fd, NULL)
    queue_drop(udp, listener.queue)
    policy_drop(listener.policy)
    listener.policy = NULL
    listener.queue = NULL
    free(listener.told)
    listener.told = NULL
    listener_free(udp, listener)
    oi_add(&reactor.udp_listeners, <uint64_t> -1)
