"""The life of a UDP session: it begins with a datagram of a client that is let in, and has an upstream of its own.

A refusal that the destination's host tells (nobody listens) ends it, after what had come before. It is noted where it
is seen and acted upon at the session's next turn, for the batch may still hold datagrams of others.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memset

from shared.access cimport access_decide
from shared.admission cimport sources_enter, sources_leave
from base.clock cimport monotonic_us, unix_time
from base.address cimport Address, address_read
from base.atomic cimport oi_add, oi_get, oi_put, oi_raise_by
from state.datagram cimport MESSAGES_MAX, Group, batch_receive
from state.datagram_send cimport Sent, batch_send
from shared.ending cimport (
    ENDING_BAD_PROXY_HEADER, ENDING_DENIED, ENDING_LIMITED, ENDING_NOT_ALLOWED, ENDING_NOT_TRUSTED, ENDING_SERVER_DOWN,
    ENDING_UPSTREAM_RESET, ENDING_UPSTREAM_SILENT,
)
from state.report cimport record_push, refused_begin, ring_has_reserve
from shared.histogram cimport histogram_add, oi_duration_bounds
from shared.bucket cimport bucket_take
from shared.gate cimport Gate, gate_count_datagrams, gate_leave
from base.linux cimport ECONNREFUSED, ENOPROTOOPT, ETIMEDOUT, c_assert
from tcp.loop cimport loop_say
from shared.own cimport is_own
from shared.policy cimport Policy, policy_hold, policy_proxy_version, policy_targets
from shared.throttle cimport throttle_end, throttle_is_wanted, throttle_new, throttle_takes
from shared.ring cimport RECORD_CLOSED, RECORD_OPENED, RING_RESERVE, Record, ring_room
from state.reactor cimport Reactor
from shared.target cimport target_answered
from tcp.target_report cimport (
    look_up_again, note_failed, note_server_failed, note_server_worked, note_worked, unreachable,
)
from udp.dial cimport REFUSALS_MIN, udp_dial
from udp.end cimport due_by, make_room, report_opened, session_end
from udp.header cimport send_headed
from udp.shares cimport share_answered, share_enter
from udp.silence cimport same_places, trail_answered, trail_make, trail_of_servers, waits_too_long
from state.udp_client cimport heading_drop, heading_facts, heading_keep
from state.udp_state cimport BY_QUEUE, SESSION_LIVE, Datagrams, Heading, Session, Trail, UdpListener
from state.udp_table cimport (
    line_append, queue_hold, session_give, session_heard, session_ready, session_take, table_put, table_room,
)
from state.udp_told cimport Told, told_add

cdef enum:
    LAST_READS_MAX = 4          # as in `udp/leg.py`: batches still taken from a socket whose peer has gone


cdef inline bint nobody_listens(int error) noexcept nogil:
    """Told by the destination itself. What routers tell concerns single datagrams; the next may arrive."""
    return error == ECONNREFUSED or error == ENOPROTOOPT


cdef inline bint is_refusal(int ending) noexcept nogil:
    """Whether the client was not let in, which is no failure."""
    return (
        ending == ENDING_DENIED or ending == ENDING_NOT_ALLOWED or ending == ENDING_LIMITED
        or ending == ENDING_NOT_TRUSTED or ending == ENDING_BAD_PROXY_HEADER
    )


cdef inline void turn_away(
    Reactor *reactor, UdpListener *listener, const Address *client, const Heading *heading, int ending, int error,
    uint64_t fault,
) noexcept nogil:
    """Report a client that gets no session, unless its address was reported before. `heading` is NULL if its peer wrote
    none that is valid; `fault` says what was wrong with it.
    """
    cdef bint failed = not is_refusal(ending)
    cdef Record *record
    cdef double now_s
    cdef uint64_t id
    if listener.told == NULL:
        listener.told = <Told *> calloc(1, sizeof(Told))
        if listener.told != NULL:
            listener.told.seed = reactor.udp.batch.seed
    if listener.told != NULL and not told_add(listener.told, client):
        return
    id = oi_add(&reactor.hub.gate.next_id, 1)
    now_s = unix_time()
    if failed and oi_get(&reactor.hub.totals_only) == 0:      # it was not refused: events come in pairs
        record = refused_begin(reactor, listener.policy, RECORD_OPENED, client, id, now_s, 0, 0)
        record.facts = heading_facts(heading)
        record_push(reactor)
    record = refused_begin(reactor, listener.policy, RECORD_CLOSED, client, id, now_s, ending, error)
    record.facts = heading_facts(heading)
    record.server = fault
    record_push(reactor)
    oi_put(&reactor.stats.refused, oi_get(&reactor.stats.refused) + 1)
    if failed:
        oi_add(&listener.policy.gate.admitted, 1)
        oi_raise_by(&listener.policy.gate.ended, 1)
        histogram_add(&listener.policy.gate.durations, oi_duration_bounds, 0)


cdef inline Session *session_open(
    Reactor *reactor, UdpListener *listener, const Group *group, uint64_t hash, const Heading *heading,
    const Address *client, int counted, const Trail *trail,
) noexcept nogil:
    """Make a session in a place that was taken; NULL if it cannot have its upstream, which is told."""
    cdef Datagrams *udp = reactor.udp
    cdef Policy *policy = listener.policy
    cdef Session *session = session_take(udp) if table_room(udp) else NULL
    if session == NULL:
        return NULL
    session.policy = policy
    if heading != NULL and not heading_keep(session, heading):
        session_give(udp, session)
        return NULL
    if throttle_is_wanted(policy):
        session.throttle = throttle_new(policy, client)
        if session.throttle == NULL:
            heading_drop(session)
            session_give(udp, session)
            return NULL
    if trail != NULL:
        session.trail = trail[0]
    session.counted = <unsigned char> counted
    session.hash = hash
    session.key = group.sender
    session.listener = listener
    session.started_s = unix_time()
    session.started_us = reactor.now_us
    session.last_ms = reactor.now_ms
    if not udp_dial(reactor, session, client):
        turn_away(reactor, listener, client, heading, session.ending, session.error, 0)
        if session.throttle != NULL:
            throttle_end(session.throttle, policy)
        heading_drop(session)
        session_give(udp, session)
        return NULL
    session.queue = queue_hold(udp, policy)
    c_assert(session.queue == listener.queue)
    policy_hold(policy)
    session.id = oi_add(&reactor.hub.gate.next_id, 1)
    session.state = SESSION_LIVE
    table_put(udp, session)
    share_enter(udp, session)
    line_append(&session.queue.line, BY_QUEUE, session)
    listener.sessions += 1
    oi_put(&reactor.udp_sessions, udp.count)
    oi_put(&reactor.stats.opened, oi_get(&reactor.stats.opened) + 1)
    if policy.idle_ms:
        due_by(udp, reactor.now_ms + policy.idle_ms)
    oi_add(&policy.gate.admitted, 1)
    if oi_get(&reactor.hub.totals_only) == 0:
        report_opened(reactor, session)
    return session


cdef inline bint session_is_due(Gate *gate) noexcept nogil:
    """Whether the rate of the rule allows one more session; what comes before its time is lost."""
    cdef uint64_t connect_ns = oi_get(&gate.rates.connect_ns)
    return connect_ns == 0 or bucket_take(
        &gate.connect_bucket, connect_ns, oi_get(&gate.rates.connect_depth_ns), monotonic_us() * 1000) == 0


cdef inline Session *session_begin(
    Reactor *reactor, UdpListener *listener, const Group *group, uint64_t hash, const Heading *heading,
    const Trail *trail,
) noexcept nogil:
    """A session for a new client, or for one with a trail; NULL if it may have none."""
    cdef Policy *policy = listener.policy
    cdef Session *session
    cdef Address peer
    cdef const Address *client = &peer
    cdef int refusal, counted
    if listener.lingering:
        return NULL
    if not ring_has_reserve(reactor):
        return NULL
    address_read(&peer, &group.sender.place)
    if heading != NULL:
        client = &heading.client
    refusal = access_decide(&policy.access, client)
    if refusal:
        turn_away(reactor, listener, client, heading, refusal, 0, 0)
        return NULL
    if not session_is_due(policy.gate):
        return NULL
    if is_own(&reactor.hub.own, &reactor.hub.lock, &peer):
        loop_say(reactor, policy, &peer, True)
        return NULL
    counted = sources_enter(reactor.hub.gate, policy, client, False)
    if counted < 0:
        turn_away(reactor, listener, client, heading, ENDING_LIMITED, 0, 0)
        return NULL
    if not make_room(reactor, policy):
        sources_leave(reactor.hub.gate, policy, client, counted)
        return NULL
    session = session_open(reactor, listener, group, hash, heading, client, counted, trail)
    if session == NULL:
        sources_leave(reactor.hub.gate, policy, client, counted)
        gate_leave(policy.gate)
        if gate_leave(reactor.hub.udp_gate):
            reactor.room_made = True
    return session


cdef inline Session *session_change(
    Reactor *reactor, UdpListener *listener, Session *session, const Group *group, uint64_t hash,
    const Heading *heading, bint silent,
) noexcept nogil:
    """The server of a session is `silent`, or it is no more to be used: the client gets a session with another one.
    Its session; NULL if it may have none."""
    cdef Trail trail
    if listener.lingering or ring_room(&reactor.ring) <= RING_RESERVE:
        return session      # one ends and one begins, or neither
    memset(&trail, 0, sizeof(trail))
    if silent:
        trail_of_servers(&trail, session)
    session_end(reactor, session, ENDING_UPSTREAM_SILENT if silent else ENDING_SERVER_DOWN, 0)
    return session_begin(reactor, listener, group, hash, heading, &trail)


cdef inline Session *session_move(
    Reactor *reactor, UdpListener *listener, Session *session, const Group *group, uint64_t hash,
    const Heading *heading,
) noexcept nogil:
    """The client writes again to a session whose address has left it without an answer: after too long a time it
    gets a session with another address, if there is one. Its session; NULL if it may have none."""
    cdef Policy *policy = listener.policy
    cdef bint same = same_places(session.policy, policy)
    cdef Trail trail
    if not waits_too_long(session, same, reactor.now_ms) or listener.lingering:
        return session
    if session.member or policy.group != NULL:
        return session_change(reactor, listener, session, group, hash, heading, True)
    if policy.targets.count == 0:
        return session
    if same and policy.targets.count == 1:
        look_up_again(reactor, policy, ETIMEDOUT)
        session.trail.rounds += 1
        return session
    if ring_room(&reactor.ring) <= RING_RESERVE:
        return session      # one ends and one begins, or neither
    look_up_again(reactor, policy, ETIMEDOUT)
    trail_make(&trail, session, policy, same)
    session_end(reactor, session, ENDING_UPSTREAM_SILENT, 0)
    return session_begin(reactor, listener, group, hash, heading, &trail)


cdef inline int within_bandwidth(Reactor *reactor, Session *session, int way, int first, int count) noexcept nogil:
    """How many datagrams of a part of the batch may pass, the first ones; the others are lost."""
    cdef uint64_t now_ns
    cdef int passing = 0
    if session.throttle == NULL:
        return count
    now_ns = monotonic_us() * 1000
    while passing < count and throttle_takes(session.throttle, session.policy, way,
                                             reactor.udp.batch.datagrams[first + passing].size, now_ns):
        passing += 1
    return passing


cdef inline void forward(Reactor *reactor, Session *session, int first, int count) noexcept nogil:
    """Datagrams of the client, in the batch, go to the upstream."""
    cdef Sent sent
    cdef int passing = within_bandwidth(reactor, session, 0, first, count)
    memset(&sent, 0, sizeof(sent))
    if policy_proxy_version(session.policy, session.member):
        send_headed(reactor.udp.batch, session, first, passing, &sent)
    else:
        batch_send(reactor.udp.batch, session.fd, first, passing, NULL, False, &sent)
    session.bytes_up += sent.bytes
    session.datagrams_up += <uint64_t> sent.count
    session.datagrams_lost += <uint64_t> (count - sent.count)
    gate_count_datagrams(session.policy.gate, 0, sent.count, count - sent.count, sent.bytes)
    if session.asked_ms == 0:
        session.asked_ms = reactor.now_ms
    session_heard(reactor.udp, session, reactor.now_ms)
    if nobody_listens(sent.error):
        session.error = sent.error
        session_ready(reactor.udp, session)


cdef inline int answer(Reactor *reactor, Session *session) noexcept nogil:
    """Give one batch of the upstream to the client; what `batch_receive` said."""
    cdef Group *group = &reactor.udp.batch.groups[0]
    cdef Sent sent
    cdef int got = batch_receive(reactor.udp.batch, session.fd, MESSAGES_MAX, False)
    if got <= 0:
        return got
    c_assert(reactor.udp.batch.group_count == 1)
    memset(&sent, 0, sizeof(sent))
    batch_send(reactor.udp.batch, session.listener.fd, group.first,
               within_bandwidth(reactor, session, 1, group.first, group.count), &session.key, False, &sent)
    if session.datagrams_down == 0:
        note_worked(reactor, session.policy, session.member, session.address)
        if session.member:
            note_server_worked(reactor, session.policy, session.member)
        if session.trail.left or session.trail.server:
            trail_answered(reactor, session)
        if oi_get(&session.policy.failures):
            oi_put(&session.policy.failures, 0)
    if not session.answered:
        share_answered(reactor.udp, session)
    target_answered(&policy_targets(session.policy, session.member).items[session.address], reactor.now_ms)
    session.asked_ms = 0
    session.trail.rounds = 0
    session.bytes_down += sent.bytes
    session.datagrams_down += <uint64_t> sent.count
    session.datagrams_lost += <uint64_t> (group.count - sent.count)
    gate_count_datagrams(session.policy.gate, 1, sent.count, group.count - sent.count, sent.bytes)
    session_heard(reactor.udp, session, reactor.now_ms)
    return got


cdef inline void session_refused(Reactor *reactor, Session *session) noexcept nogil:
    """Nobody listens: what came before belongs to the client; then the session is over."""
    cdef int _turn
    for _turn in range(LAST_READS_MAX):
        if answer(reactor, session) <= 0:
            break
    note_failed(reactor, session.policy, session.member, session.address, session.error)
    if session.member:
        note_server_failed(reactor, session.policy, session.member, session.error, REFUSALS_MIN)
    else:
        unreachable(reactor, session.policy, session.error)
    session_end(reactor, session, ENDING_UPSTREAM_RESET, session.error)


cdef inline int session_turn(Reactor *reactor, Session *session) noexcept nogil:
    """Take what the upstream has, at most a batch; how many messages that were. `session` may be gone afterwards."""
    cdef int got
    if session.error == 0:
        got = answer(reactor, session)
        if got >= 0 or not nobody_listens(-got):
            if got == 0:
                session.short_read_inconclusive = 0
            elif got < 0 or got == MESSAGES_MAX or session.short_read_inconclusive:
                session_ready(reactor.udp, session)     # an error is told once, and may have hidden datagrams
            return max(got, 0)
        session.error = -got
    session_refused(reactor, session)
    return 1
