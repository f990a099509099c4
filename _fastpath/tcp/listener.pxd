"""Accepting: a place in both gates first, then the connection, then whether the client is welcome.

Every reactor that serves has every listener in its epoll, edge-triggered and EPOLLEXCLUSIVE: a new connection wakes one
that sleeps, and is noted by those that are busy on the way to it. A reactor over its threshold passes new connections
on to one below it (`load.pxd`). (SO_REUSEPORT would spread by a hash and lose queued connections whenever a socket of
the group closes.)
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from shared.access cimport access_decide
from shared.bucket cimport bucket_give, bucket_take
from shared.admission cimport sources_enter, sources_leave
from base.clock cimport monotonic_us, unix_time
from base.socket cimport close_with_reset, is_shortage
from base.address cimport Address, address_identify, address_is_unix, address_read
from base.atomic cimport oi_add, oi_get, oi_put, oi_see, oi_show, oi_swap
from tcp.backoff cimport accept_pause, accept_recovered
from tcp.connect cimport watch
from tcp.search cimport dial_go
from shared.ending cimport ENDING_ACCEPT_FAILED, ENDING_LIMITED, ENDING_RESOLVE_FAILED, ENDING_SOCKET_FAILED
from state.report cimport record_slot, report_full, report_refused, ring_has_reserve
from tcp.ending cimport finish, listeners_wake, report
from shared.gate cimport Gate, gate_enter_or_wait, gate_leave, preamble_enter, preamble_is_full, preamble_leave
from shared.group cimport group_is_full
from shared.inbox cimport MESSAGE_ACCEPTED, MESSAGE_RETRY, Message, inbox_post
from base.linux cimport (
    EAGAIN, EINVAL, ENOMEM, POLLIN, SOCK_CLOEXEC, SOCK_NONBLOCK, c_accept4, c_assert, c_close, c_poll, errno, pollfd,
    pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock, sockaddr, sockaddr_storage, socklen_t,
)
from shared.policy cimport Policy, policy_drop, policy_hold
from tcp.admit cimport peer_judge
from tcp.preamble cimport preamble_begin
from tcp.reclaim cimport descriptors_make_room
from shared.ring cimport RECORD_CLOSED
from state.load cimport LOAD_HIGH, reactor_for_new
from state.connection_slab cimport CLIENT, CONN_PREAMBLE, STAGE_HEADER, STAGE_HELLO, Conn, conn_take
from state.reactor cimport Hub, Listener, Reactor
from shared.target cimport targets_begin
from tcp.target_report cimport group_found_full

cdef enum:
    ACCEPT_BATCH = 16           # then the events of those already here


cdef inline void leave_gates(Reactor *reactor, Policy *policy, const Address *client, int counted) noexcept nogil:
    """Give back what was taken for a client that did not become a connection."""
    cdef bint wanted
    sources_leave(reactor.hub.gate, policy, client, counted)
    wanted = gate_leave(policy.gate)
    if gate_leave(reactor.hub.gate) or wanted:
        reactor.accept_again = True
        listeners_wake(reactor)


cdef inline void refuse(Reactor *reactor, const Message *message, int ending, int error) noexcept nogil:
    """Close a client that is not served, and say why."""
    leave_gates(reactor, message.policy, &message.client, message.counted)
    if error:
        close_with_reset(message.fd)
    else:
        c_close(message.fd)
    report_refused(
        reactor, message.policy, RECORD_CLOSED, &message.client, message.id, message.started_s, ending, error)
    oi_put(&reactor.stats.refused, oi_get(&reactor.stats.refused) + 1)


cdef inline bint conn_begin(Reactor *reactor, const Message *message) noexcept nogil:
    """Make a connection of an accepted client. The policy's reference comes with the message.

    False if there is neither memory for it nor room in the ring to say so: then nothing is done.
    """
    cdef Conn *conn = conn_take(&reactor.slab, message)
    if conn == NULL:
        if record_slot(reactor) == NULL:
            return False
        if message.token:
            preamble_leave(reactor.hub.gate)
        refuse(reactor, message, ENDING_ACCEPT_FAILED, ENOMEM)
        policy_drop(message.policy)
        accept_pause(reactor, ENOMEM)
        return True
    conn.counted = <unsigned char> message.counted
    conn.started_us = message.started_us
    conn.side[CLIENT].local = address_is_unix(&conn.client)
    conn.ending = ENDING_RESOLVE_FAILED     # should the policy have no address at all
    conn.limit_ms = conn.policy.connect_ms
    conn.turn = <uint32_t> targets_begin(conn.policy.targets)
    oi_put(&reactor.live, oi_get(&reactor.live) + 1)
    if message.token:
        conn.token = 0
        conn.state = CONN_PREAMBLE
        conn.stage = <unsigned char> (message.token & 3)
        if watch(reactor, conn, CLIENT) != 0:
            finish(reactor, conn, ENDING_SOCKET_FAILED, errno, True)
        else:
            preamble_begin(reactor, conn, message.token)
        return True
    oi_add(&conn.policy.gate.admitted, 1)
    if oi_get(&reactor.hub.totals_only) == 0:
        conn.opened_due = 1
        report(reactor, conn)
    if watch(reactor, conn, CLIENT) != 0:
        finish(reactor, conn, ENDING_SOCKET_FAILED, errno, True)
        return True
    dial_go(reactor, conn)
    return True


cdef inline void admit(Reactor *reactor, Message *message) noexcept nogil:
    """Decide on an accepted client, which is inside both gates already."""
    cdef Policy *policy = message.policy
    cdef Hub *hub = reactor.hub
    cdef int refusal = 0
    cdef Reactor *server
    cdef bint begun
    cdef bint headed = False
    if policy.accept_proxy:
        refusal = peer_judge(policy, &message.client, &headed)
    if refusal == 0 and not headed:
        refusal = access_decide(&policy.access, &message.client)
    if refusal == 0:
        message.counted = sources_enter(hub.gate, policy, &message.client, False)
        if message.counted < 0:
            message.counted = 0
            refusal = ENDING_LIMITED
    if refusal:
        refuse(reactor, message, refusal, 0)
        return
    if headed or policy.names != NULL:      # its preamble is awaited
        message.token |= STAGE_HEADER if headed else STAGE_HELLO
        preamble_enter(hub.gate)
    else:
        message.token = 0
    policy_hold(policy)
    server = reactor if oi_get(&reactor.load) < LOAD_HIGH else reactor_for_new(hub)
    if server != reactor and inbox_post(&server.inbox, message):
        oi_put(&reactor.stats.handed_off, oi_get(&reactor.stats.handed_off) + 1)
        return
    begun = conn_begin(reactor, message)
    c_assert(begun)     # for the same reason as in `refuse`


cdef inline bint connect_is_due(Reactor *reactor, Gate *gate) noexcept nogil:
    """Whether the rate of the rule allows one more connection now; if not, it is asked for again when it does.

    It is taken then, and given back if there is nobody.
    """
    cdef uint64_t connect_ns = oi_get(&gate.rates.connect_ns)
    cdef uint64_t now_us, when_us
    if connect_ns == 0:
        return True
    now_us = monotonic_us()
    when_us = bucket_take(&gate.connect_bucket, connect_ns, oi_get(&gate.rates.connect_depth_ns), now_us * 1000) // 1000
    if when_us == 0:
        return True
    when_us += 1
    oi_put(&gate.rate_waiting, 1)
    if reactor.connect_us == 0 or when_us < reactor.connect_us:
        reactor.connect_us = when_us
    return False


cdef inline void connect_give(Gate *gate) noexcept nogil:
    """Nobody was there to accept."""
    cdef uint64_t connect_ns = oi_get(&gate.rates.connect_ns)
    if connect_ns:
        bucket_give(&gate.connect_bucket, connect_ns)


cdef inline bint accept_one(Reactor *reactor, Listener *listener, Policy *policy) noexcept nogil:
    """Accept one connection; false if there is no point in trying again now."""
    cdef sockaddr_storage peer
    cdef socklen_t size = sizeof(peer)
    cdef Message message
    cdef Hub *hub = reactor.hub
    cdef int error
    if not ring_has_reserve(reactor):
        return False
    if policy.group != NULL and policy.group.bounded and group_is_full(policy.group):
        group_found_full(reactor, policy)
        return False
    if (policy.accept_proxy or policy.names != NULL) and preamble_is_full(hub.gate):
        oi_show(&hub.gate.preamble_waiting, 1)
        if preamble_is_full(hub.gate):
            return False
    if not connect_is_due(reactor, policy.gate):
        return False
    if not gate_enter_or_wait(policy.gate):
        connect_give(policy.gate)
        report_full(reactor, policy, policy.gate)
        return False
    if not gate_enter_or_wait(hub.gate):
        if not descriptors_make_room(reactor, hub.gate.cost) or not gate_enter_or_wait(hub.gate):
            gate_leave(policy.gate)
            connect_give(policy.gate)
            report_full(reactor, policy, hub.gate)
            return False
    memset(&message, 0, sizeof(message))
    message.fd = c_accept4(listener.fd, <sockaddr *> &peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if message.fd < 0:
        error = errno
        leave_gates(reactor, policy, NULL, 0)
        connect_give(policy.gate)
        oi_put(&policy.gate.rate_waiting, 0)
        if error == EAGAIN or error == EINVAL:      # EINVAL: it no longer listens
            oi_put(&listener.ready[reactor.index], 0)
            return False
        if is_shortage(error):
            accept_pause(reactor, error)
            return False
        return True     # a client that has gone again, or an error of the network that belongs to it: the next one
    if oi_get(&policy.gate.rate_waiting) and oi_swap(&policy.gate.rate_waiting, 0):
        oi_add(&policy.gate.rate_waits, 1)
    address_read(&message.client, &peer)
    if address_is_unix(&message.client):
        address_identify(&message.client, message.fd)
    message.kind = MESSAGE_ACCEPTED
    message.token = (<uint64_t> listener.generation << 32) | (listener.index << 2)
    message.policy = policy
    message.id = oi_add(&hub.gate.next_id, 1)
    message.started_s = unix_time()
    message.started_us = reactor.now_us
    oi_put(&reactor.stats.accepted, oi_get(&reactor.stats.accepted) + 1)
    accept_recovered(reactor)
    admit(reactor, &message)
    return reactor.accept_retry_ms == 0


cdef inline bint client_waits(const Listener *listener) noexcept nogil:
    """Whether the accept queue has something, or the socket no longer listens.

    An accept that finds nobody makes a socket and a file first, and takes them apart: 4.2 us, and poll takes 0.3. A
    short connection that comes alone has one of these.
    """
    cdef pollfd look
    look.fd = listener.fd
    look.events = POLLIN
    return c_poll(&look, 1, 0) != 0


cdef inline void listener_serve(Reactor *reactor, Listener *listener, uint32_t generation) noexcept nogil:
    """Accept a batch. While this runs the listener is in use, and its removal waits."""
    cdef Hub *hub = reactor.hub
    cdef Policy *policy
    cdef int turn
    cdef bint more = True
    pthread_mutex_lock(&hub.lock)
    if listener.dead:
        oi_put(&listener.ready[reactor.index], 0)
    if listener.dead or (generation and listener.generation != generation):
        pthread_mutex_unlock(&hub.lock)
        return
    policy = listener.policy
    policy_hold(policy)
    listener.users += 1
    pthread_mutex_unlock(&hub.lock)
    for turn in range(ACCEPT_BATCH):
        if (turn or not generation) and not client_waits(listener):     # an event says that there is one
            oi_put(&listener.ready[reactor.index], 0)
            more = False
            break
        more = accept_one(reactor, listener, policy)
        if not more:
            break
    if more:
        reactor.accept_again = True
    pthread_mutex_lock(&hub.lock)
    listener.users -= 1
    if listener.dead and listener.users == 0:
        pthread_cond_broadcast(&hub.idle)
    pthread_mutex_unlock(&hub.lock)
    policy_drop(policy)


cdef inline void listeners_serve(Reactor *reactor) noexcept nogil:
    """Go on where accepting stopped: a batch was full, a place became free, a pause is over."""
    cdef Hub *hub = reactor.hub
    cdef Message message
    cdef uint64_t i
    reactor.accept_again = False
    if <uint64_t> reactor.index >= oi_see(&hub.serving):
        # It gets no new connections: the room that it made is for the others.
        memset(&message, 0, sizeof(message))
        message.kind = MESSAGE_RETRY
        reactor.accept_again = not inbox_post(&hub.reactors[0].inbox, &message)
        return
    for i in range(oi_see(&hub.listener_count)):
        if oi_get(&hub.listeners[i].ready[reactor.index]):
            listener_serve(reactor, hub.listeners[i], 0)
