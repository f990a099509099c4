"""The turns of a reactor's UDP: sockets that may have datagrams, one batch after the other, and sessions that are due.

An event only puts a socket in line: turns are taken in order of arrival, a batch each, so that none waits for more
than a batch of each other one, and TCP for no more than ROUNDS.
"""

from libc.stdint cimport uint32_t, uint64_t

from shared.ending cimport ENDING_ABORTED
from base.linux cimport EPOLLERR, EPOLLHUP
from shared.policy cimport policy_server_tag
from state.connection_slab cimport KIND_UDP_LISTENER
from state.reactor cimport Reactor, Snapshot
from udp.end cimport session_end, session_record, sessions_due
from udp.listener cimport listener_next, listener_ready, listener_turn
from udp.session cimport session_turn
from state.slab cimport slab_slots
from state.udp_state cimport SESSION_LIVE, Datagrams, Session, UdpListener
from state.udp_table cimport session_at, session_not_ready, session_ready

cdef enum:
    ROUNDS = 8                  # each gives one listener its turn, ...
    SESSIONS_A_ROUND = 16       # ... and this many sessions
    RETRY_MS = 100              # after receiving failed for want of memory
    RATE_MAX = 80               # messages in a millisecond above which a wake finds several, and ...
    RATE_ODDS_MAX = 8           # ... that more from one side than from the other, which is no exchange but a stream


cdef inline void udp_event(
    Reactor *self, uint32_t kind, uint32_t index, uint32_t generation, uint32_t events
) noexcept nogil:
    """Take down what an event says."""
    cdef UdpListener *listener
    cdef Session *session
    if kind == KIND_UDP_LISTENER:
        listener = self.udp.listeners[index]
        if listener.generation == generation:
            listener_ready(self.udp, listener)
        return
    session = session_at(self.udp, index)
    if session == NULL or session.slot.generation != generation:
        return      # it ended earlier in this batch
    if events & (EPOLLERR | EPOLLHUP):
        session.short_read_inconclusive = 1
    session_ready(self.udp, session)


cdef inline void rate_count(Reactor *self, int up, int down) noexcept nogil:
    """Note how fast datagrams come: polling before sleep is for exchanges with few of them under way.

    (50,000 a second one way, 64 bytes, CPU seconds a million: 3.6 with polling, 2.2 without.)
    """
    cdef Datagrams *udp = self.udp
    cdef int odds
    if udp.rate_ms != self.now_ms:
        udp.rate_ms = self.now_ms
        udp.rate_up = 0
        udp.rate_down = 0
    udp.rate_up += up
    udp.rate_down += down
    odds = udp.rate_up - udp.rate_down
    if udp.rate_up + udp.rate_down > RATE_MAX or odds > RATE_ODDS_MAX or -odds > RATE_ODDS_MAX:
        self.bulk_us = self.now_us


cdef inline void turns_take(Reactor *self) noexcept nogil:
    cdef Datagrams *udp = self.udp
    cdef UdpListener *listener
    cdef Session *session
    cdef int _round, _turn, got
    cdef int up = 0, down = 0
    for _round in range(ROUNDS):
        listener = listener_next(udp)
        if listener == NULL and udp.by_turn.first == NULL:
            break
        if listener != NULL:
            got = listener_turn(self, listener)
            if got < 0:
                udp.retry_ms = self.now_ms + RETRY_MS
            else:
                up += got
        for _turn in range(SESSIONS_A_ROUND):
            session = udp.by_turn.first
            if session == NULL:
                break
            session_not_ready(udp, session)
            down += session_turn(self, session)
    if up or down:
        rate_count(self, up, down)


cdef inline void udp_turn(Reactor *self) noexcept nogil:
    """Everything that UDP has to do now, within bounds."""
    cdef Datagrams *udp = self.udp
    cdef uint32_t i
    if udp == NULL:
        return
    if udp.retry_ms and self.now_ms >= udp.retry_ms:
        udp.retry_ms = 0
        for i in range(udp.listener_count):
            if udp.listeners[i].fd >= 0:
                listener_ready(udp, udp.listeners[i])
    turns_take(self)
    if udp.due_ms and self.now_ms >= udp.due_ms:
        sessions_due(self)


cdef inline bint udp_waits(const Reactor *self) noexcept nogil:
    """Whether there is something to do at once."""
    if self.udp == NULL or self.stopping:
        return False
    return self.udp.turn_first != NULL or self.udp.by_turn.first != NULL


cdef inline uint64_t udp_next_ms(const Reactor *self, uint64_t until_ms) noexcept nogil:
    """When UDP has something to do, or `until_ms` if that is earlier; 0 is never."""
    if self.udp == NULL or self.stopping:
        return until_ms
    if self.udp.due_ms and (until_ms == 0 or self.udp.due_ms < until_ms):
        until_ms = self.udp.due_ms
    if self.udp.retry_ms and (until_ms == 0 or self.udp.retry_ms < until_ms):
        until_ms = self.udp.retry_ms
    return until_ms


cdef inline void udp_each(Reactor *self, bint every, uint64_t id, Snapshot *snapshot) noexcept nogil:
    """Write all sessions down; or, without a snapshot, abort the one of that number, or every one."""
    cdef Session *session
    cdef uint32_t i
    if self.udp == NULL:
        return
    for i in range(slab_slots(&self.udp.slab)):
        session = session_at(self.udp, i)
        if session.state != SESSION_LIVE:
            continue
        if snapshot != NULL:
            if snapshot.count < snapshot.capacity:
                session_record(&snapshot.records[snapshot.count], session, self.now_us)
                if self.now_ms > session.last_ms:
                    snapshot.records[snapshot.count].idle_us = 1000 * (self.now_ms - session.last_ms)
            snapshot.count += 1
        elif every or session.id == id:
            session_end(self, session, ENDING_ABORTED, 0)


cdef inline void udp_leave(Reactor *self, uint64_t server, uint64_t part, uint64_t parts, int ending) noexcept nogil:
    """End the sessions of a server, or a part of them."""
    cdef Session *session
    cdef uint32_t i
    if self.udp == NULL:
        return
    for i in range(slab_slots(&self.udp.slab)):
        session = session_at(self.udp, i)
        if session.state != SESSION_LIVE or session.member == 0 or session.id % parts != part:
            continue
        if policy_server_tag(session.policy, session.member) == server:
            session_end(self, session, ending, 0)
