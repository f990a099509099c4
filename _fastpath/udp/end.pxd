"""How UDP sessions end, how Python learns of it, and which one ends to make room for another."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from base.address cimport Address, address_read
from base.atomic cimport oi_get, oi_put, oi_raise_by, oi_see, oi_swap
from shared.ending cimport ENDING_ABORTED, ENDING_DISPLACED, ENDING_IDLE_TIMEOUT
from shared.admission cimport sources_leave
from state.report cimport record_push, record_slot
from state.slab cimport Slot, slab_slots, slots_append
from shared.histogram cimport histogram_add, oi_duration_bounds
from shared.gate cimport Gate, budget_is_short, gate_enter, gate_leave
from shared.inbox cimport MESSAGE_UDP_ROOM, Message, inbox_post
from base.linux cimport c_assert, c_close
from shared.policy cimport Policy, policy_drop, policy_member, policy_server_tag, policy_targets
from shared.server cimport server_leave
from shared.throttle cimport throttle_end
from tcp.reclaim cimport descriptors_make_room
from shared.ring cimport RECORD_CLOSED, RECORD_LIVE, RECORD_OPENED, Record
from state.reactor cimport Hub, Reactor
from udp.header cimport head_drop
from udp.shares cimport share_leave, share_victim, share_victim_of
from state.udp_client cimport heading_drop, heading_facts, session_client
from state.udp_state cimport (
    BY_QUEUE, QUEUE_BUCKETS, SESSION_CLOSED, SESSION_LIVE, Datagrams, Session, SessionQueue,
)
from state.udp_table cimport line_cut, queue_drop, session_at, session_give, session_not_ready, table_cut

cdef enum:
    GRAIN_MS = 50               # sessions that are due so soon after each other end in one wake
    ENDS_MAX = 256              # in one turn, then the others have theirs
    ANSWER_MS = 2000            # as ANSWER_S in `oinetd.lanes.python.udp.table`
    DISPLACED_MAX = 4           # for one newcomer, of the process and of its rule each; far below RING_RESERVE


cdef inline void session_record(Record *record, const Session *session, uint64_t now_us) noexcept nogil:
    memset(record, 0, sizeof(Record))
    record.kind = RECORD_LIVE
    record.id = session.id
    record.tag = session.policy.tag
    record.token = session.last
    record.started_s = session.started_s
    record.duration_us = (session.ended_us if session.ended_us else now_us) - session.started_us
    record.up = session.bytes_up
    record.down = session.bytes_down
    record.datagrams_up = session.datagrams_up
    record.datagrams_down = session.datagrams_down
    record.datagrams_lost = session.datagrams_lost
    session_client(session, &record.client)
    record.facts = heading_facts(session.heading)
    record.server = policy_server_tag(session.policy, session.member)
    address_read(&record.upstream, &policy_targets(session.policy, session.member).items[session.address].place.place)
    record.error = session.error
    record.ending = session.ending
    record.moved_by = 1         # copy


cdef inline void report_opened(Reactor *reactor, Session *session) noexcept nogil:
    """Sessions begin only if the ring has room."""
    cdef Record *record = record_slot(reactor)
    c_assert(record != NULL)
    session_record(record, session, reactor.now_us)
    record.upstream.family = 0
    record.server = 0
    record.kind = RECORD_OPENED
    record_push(reactor)


cdef inline bint report_closed(Reactor *reactor, Session *session) noexcept nogil:
    """False if the ring is full. Afterwards the session is no more."""
    cdef Record *record = record_slot(reactor)
    if record == NULL:
        return False
    session_record(record, session, reactor.now_us)
    record.kind = RECORD_CLOSED
    record_push(reactor)
    policy_drop(session.policy)
    heading_drop(session)
    session_give(reactor.udp, session)
    return True


cdef inline void report_closed_rest(Reactor *reactor) noexcept nogil:
    """Python made room in the ring: write what waited for it."""
    cdef Datagrams *udp = reactor.udp
    cdef Session *session
    cdef Slot *rest
    if udp == NULL:
        return
    while udp.unreported.first != NULL:     # bounded: each round takes one from the list or leaves
        session = <Session *> udp.unreported.first
        rest = session.slot.next
        if not report_closed(reactor, session):
            return
        udp.unreported.first = rest
        if rest == NULL:
            udp.unreported.last = NULL


cdef inline void session_end(Reactor *reactor, Session *session, int ending, int error) noexcept nogil:
    """Close, give everything back, report. `session` must not be used afterwards."""
    cdef Datagrams *udp = reactor.udp
    cdef Policy *policy = session.policy
    cdef Address client
    c_assert(session.state == SESSION_LIVE)
    session_not_ready(udp, session)
    share_leave(udp, session)
    line_cut(&session.queue.line, BY_QUEUE, session)
    queue_drop(udp, session.queue)
    table_cut(udp, session)
    head_drop(session)
    c_close(session.fd)
    session.fd = -1
    session.slot.generation += 1
    session.state = SESSION_CLOSED
    session.ending = ending
    session.error = error
    session.ended_us = reactor.now_us
    c_assert(session.listener.sessions > 0)
    session.listener.sessions -= 1
    session.last = session.listener.lingering and session.listener.sessions == 0
    session.listener = NULL
    if session.throttle != NULL:
        throttle_end(session.throttle, policy)
        session.throttle = NULL
    if session.counted:
        session_client(session, &client)
        sources_leave(reactor.hub.gate, policy, &client, session.counted)
    oi_raise_by(&policy.gate.ended, 1)
    histogram_add(&policy.gate.durations, oi_duration_bounds, session.ended_us - session.started_us)
    if session.member and server_leave(policy_member(policy, session.member).server):
        reactor.room_made = True
    gate_leave(policy.gate)
    if gate_leave(reactor.hub.udp_gate):
        reactor.room_made = True
    oi_put(&reactor.udp_sessions, udp.count)
    oi_put(&reactor.stats.bytes_up, oi_get(&reactor.stats.bytes_up) + session.bytes_up)
    oi_put(&reactor.stats.bytes_down, oi_get(&reactor.stats.bytes_down) + session.bytes_down)
    if udp.unreported.first != NULL or not report_closed(reactor, session):
        slots_append(&udp.unreported, &session.slot)


# For the sake of others

cdef inline bint displace(Reactor *reactor, const Gate *newcomer) noexcept nogil:
    """End a session here for one of the rule of `newcomer`, or NULL; False if there is none. See `udp_shares`."""
    cdef Session *session
    if reactor.udp == NULL:
        return False
    session = share_victim(reactor.udp, newcomer)
    if session == NULL:
        return False
    session_end(reactor, session, ENDING_DISPLACED, 0)
    return True


cdef inline bint is_full(Gate *gate) noexcept nogil:
    cdef uint64_t live_max = oi_get(&gate.live_max)
    return (live_max != 0 and oi_see(&gate.live) >= live_max) or budget_is_short(gate.budget, gate.cost)


cdef inline void ask_for_room(Reactor *reactor) noexcept nogil:
    """Other reactors have all the sessions: have the one with the most end one, for the client that tries again."""
    cdef Hub *hub = reactor.hub
    cdef Reactor *most = reactor
    cdef Message message
    cdef uint64_t i
    for i in range(oi_see(&hub.reactor_count)):
        if oi_get(&hub.reactors[i].udp_sessions) > oi_get(&most.udp_sessions):
            most = hub.reactors[i]
    if most == reactor or oi_swap(&hub.udp_room_wanted, 1):
        return
    memset(&message, 0, sizeof(message))
    message.kind = MESSAGE_UDP_ROOM
    if not inbox_post(&most.inbox, &message):
        oi_swap(&hub.udp_room_wanted, 0)


cdef inline void give_room(Reactor *reactor) noexcept nogil:
    """Another reactor asked for a place."""
    oi_swap(&reactor.hub.udp_room_wanted, 0)
    if is_full(reactor.hub.udp_gate):
        displace(reactor, NULL)


cdef inline bint rule_make_room(Reactor *reactor, Gate *gate) noexcept nogil:
    """A place among the sessions of a rule, ending others of it here if need be."""
    cdef Session *oldest
    cdef int _turn
    for _turn in range(DISPLACED_MAX):
        if gate_enter(gate):
            return True
        oldest = share_victim_of(reactor.udp, gate)
        if oldest == NULL:
            return False
        session_end(reactor, oldest, ENDING_DISPLACED, 0)
    return gate_enter(gate)


cdef inline bint make_room(Reactor *reactor, Policy *policy) noexcept nogil:
    """A place for one more session, of the process and of its rule, ending others here if need be."""
    cdef Gate *udp_gate = reactor.hub.udp_gate
    cdef int _turn
    if not rule_make_room(reactor, policy.gate):
        return False
    for _turn in range(DISPLACED_MAX):
        if gate_enter(reactor.hub.udp_gate):
            return True
        if budget_is_short(udp_gate.budget, udp_gate.cost) and descriptors_make_room(reactor, udp_gate.cost):
            continue
        if not displace(reactor, policy.gate):
            ask_for_room(reactor)
            break
    if gate_enter(reactor.hub.udp_gate):
        return True
    gate_leave(policy.gate)
    return False


cdef inline void sessions_trim(Reactor *reactor) noexcept nogil:
    """The bound was lowered: end those that are too many."""
    cdef Gate *gate = reactor.hub.udp_gate
    cdef uint64_t live_max = oi_get(&gate.live_max)
    while live_max and oi_see(&gate.live) > live_max and displace(reactor, NULL):
        pass


cdef inline void rule_trim(Reactor *reactor, const Gate *gate) noexcept nogil:
    """The same for the bound of a rule."""
    cdef uint64_t live_max = oi_get(&gate.live_max)
    cdef Session *oldest
    while live_max and oi_see(&gate.live) > live_max:   # each turn ends one, or is the last
        oldest = share_victim_of(reactor.udp, gate)
        if oldest == NULL:
            return
        session_end(reactor, oldest, ENDING_DISPLACED, 0)


cdef inline long sessions_end_quiet(Reactor *reactor) noexcept nogil:
    """The process stops: end the sessions in which nothing is under way. How many are left."""
    cdef Session *session
    cdef uint32_t i
    if reactor.udp == NULL:
        return 0
    for i in range(slab_slots(&reactor.udp.slab)):
        session = session_at(reactor.udp, i)
        if session.state != SESSION_LIVE:
            continue
        if session.asked_ms == 0 or reactor.now_ms >= session.asked_ms + ANSWER_MS:
            session_end(reactor, session, ENDING_ABORTED, 0)
    return <long> reactor.udp.count


# By silence

cdef inline void due_by(Datagrams *udp, uint64_t when_ms) noexcept nogil:
    if udp.due_ms == 0 or when_ms < udp.due_ms:
        udp.due_ms = when_ms


cdef inline void sessions_due(Reactor *reactor) noexcept nogil:
    """End the sessions that are due; the next look is when the first of the others is."""
    cdef Datagrams *udp = reactor.udp
    cdef SessionQueue *queue
    cdef SessionQueue *rest
    cdef uint64_t first_ms = 0
    cdef uint64_t when_ms
    cdef int ends = 0, i
    for i in range(QUEUE_BUCKETS):
        queue = udp.queues[i]
        while queue != NULL:
            rest = queue.chain
            # The queue itself may go with its last session.
            queue.users += 1
            while queue.timeout_ms and queue.line.first != NULL and ends < ENDS_MAX:
                if queue.line.first.last_ms + queue.timeout_ms > reactor.now_ms:
                    break
                session_end(reactor, queue.line.first, ENDING_IDLE_TIMEOUT, 0)
                ends += 1
            if queue.timeout_ms and queue.line.first != NULL:
                when_ms = queue.line.first.last_ms + queue.timeout_ms
                if first_ms == 0 or when_ms < first_ms:
                    first_ms = when_ms
            queue_drop(udp, queue)
            queue = rest
    udp.due_ms = first_ms
    if ends < ENDS_MAX and first_ms and first_ms < reactor.now_ms + GRAIN_MS:
        udp.due_ms = reactor.now_ms + GRAIN_MS
