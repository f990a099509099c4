"""Which UDP sessions there are: found by client, and in line by how long they have been silent.

The table is hashed and chained; it doubles when there is a session for each bucket.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from shared.gate cimport Gate
from base.linux cimport c_assert
from shared.policy cimport Policy
from state.return_address cimport ReturnAddress, return_address_same
from state.slab cimport slab_at, slab_give, slab_take
from state.udp_client cimport session_is_of
from state.udp_state cimport (
    BY_AGE, BY_QUEUE, BY_TURN, QUEUE_BUCKETS, SESSION_FREE, Datagrams, Heading, Line, RuleSessions, Session,
    SessionQueue, UdpListener,
)

cdef enum:
    BUCKETS_MIN = 64


# Slots

cdef inline Session *session_take(Datagrams *self) noexcept nogil:
    """A session without a socket; NULL if there is no memory."""
    cdef Session *session = <Session *> slab_take(&self.slab)
    if session != NULL:
        session.fd = -1
    return session


cdef inline void session_give(Datagrams *self, Session *session) noexcept nogil:
    session.state = SESSION_FREE
    slab_give(&self.slab, &session.slot)


cdef inline Session *session_at(const Datagrams *self, uint32_t index) noexcept nogil:
    """The session of a number, which may be over; NULL if there never was one."""
    return <Session *> slab_at(&self.slab, index)


# By client

cdef inline Session *session_find(
    Datagrams *self, const UdpListener *listener, const ReturnAddress *key, uint64_t hash, const Heading *heading
) noexcept nogil:
    """The session of a client of a listener, which the `heading` of its peer names; `hash` is that of all."""
    cdef Session *session
    if self.bucket_count == 0:
        return NULL
    session = self.buckets[hash & (self.bucket_count - 1)]
    while session != NULL:
        if session.hash == hash and session.listener == listener and return_address_same(&session.key, key):
            if session_is_of(session, heading):
                return session
        session = session.chain
    return NULL


cdef inline void buckets_double(Datagrams *self) noexcept nogil:
    """More buckets; without memory for them the chains become longer, which is no fault."""
    cdef uint64_t size = self.bucket_count * 2 if self.bucket_count else BUCKETS_MIN
    cdef Session **fresh = <Session **> calloc(size, sizeof(Session *))
    cdef Session *session
    cdef Session *rest
    cdef uint64_t i
    if fresh == NULL:
        return
    for i in range(self.bucket_count):
        session = self.buckets[i]
        while session != NULL:
            rest = session.chain
            session.chain = fresh[session.hash & (size - 1)]
            fresh[session.hash & (size - 1)] = session
            session = rest
    free(self.buckets)
    self.buckets = fresh
    self.bucket_count = size


cdef inline bint table_room(Datagrams *self) noexcept nogil:
    """Make sure that one more can be put in; False if there is no memory at all."""
    if self.count >= self.bucket_count:
        buckets_double(self)
    return self.bucket_count != 0


cdef inline void table_put(Datagrams *self, Session *session) noexcept nogil:
    cdef uint64_t place = session.hash & (self.bucket_count - 1)
    session.chain = self.buckets[place]
    self.buckets[place] = session
    self.count += 1


cdef inline void table_cut(Datagrams *self, Session *session) noexcept nogil:
    cdef Session **link = &self.buckets[session.hash & (self.bucket_count - 1)]
    while link[0] != session:       # bounded: it is there
        link = &link[0].chain
    link[0] = session.chain
    session.chain = NULL
    c_assert(self.count > 0)
    self.count -= 1


# In line

cdef inline void line_append(Line *self, int which, Session *session) noexcept nogil:
    session.next[which] = NULL
    session.prev[which] = self.last
    if self.last != NULL:
        self.last.next[which] = session
    else:
        self.first = session
    self.last = session


cdef inline void line_cut(Line *self, int which, Session *session) noexcept nogil:
    if session.prev[which] != NULL:
        session.prev[which].next[which] = session.next[which]
    else:
        c_assert(self.first == session)
        self.first = session.next[which]
    if session.next[which] != NULL:
        session.next[which].prev[which] = session.prev[which]
    else:
        c_assert(self.last == session)
        self.last = session.prev[which]


cdef inline void session_heard(Datagrams *self, Session *session, uint64_t now_ms) noexcept nogil:
    """It is not silent: the last in line."""
    cdef Line *line = &session.queue.rule.lines[session.answered]
    session.last_ms = now_ms
    if line.last != session:
        line_cut(line, BY_AGE, session)
        line_append(line, BY_AGE, session)
    if session.queue.line.last != session:
        line_cut(&session.queue.line, BY_QUEUE, session)
        line_append(&session.queue.line, BY_QUEUE, session)


cdef inline void session_ready(Datagrams *self, Session *session) noexcept nogil:
    """Let it have a turn."""
    if not session.queued:
        session.queued = 1
        line_append(&self.by_turn, BY_TURN, session)


cdef inline void session_not_ready(Datagrams *self, Session *session) noexcept nogil:
    if session.queued:
        session.queued = 0
        line_cut(&self.by_turn, BY_TURN, session)


# By rule

cdef inline uint32_t queue_bucket(const Gate *gate) noexcept nogil:
    return <uint32_t> ((<size_t> gate >> 4) * <size_t> 0x9e3779b97f4a7c15 >> 40) & (QUEUE_BUCKETS - 1)


cdef inline RuleSessions *rule_find(Datagrams *self, const Gate *gate) noexcept nogil:
    """The sessions of a rule; NULL if there is no queue of it."""
    cdef SessionQueue *queue = self.queues[queue_bucket(gate)]
    while queue != NULL and queue.gate != gate:
        queue = queue.chain
    return queue.rule if queue != NULL else NULL


cdef inline SessionQueue *queue_new(Datagrams *self, const Policy *policy) noexcept nogil:
    """A queue without users, in no bucket yet; NULL if there is no memory."""
    cdef SessionQueue *queue = <SessionQueue *> calloc(1, sizeof(SessionQueue))
    if queue == NULL:
        return NULL
    queue.gate = policy.gate
    queue.timeout_ms = policy.idle_ms
    queue.rule = rule_find(self, policy.gate)
    if queue.rule == NULL:
        queue.rule = <RuleSessions *> calloc(1, sizeof(RuleSessions))
        if queue.rule == NULL:
            free(queue)
            return NULL
        queue.rule.gate = policy.gate
    queue.rule.users += 1
    return queue


cdef inline SessionQueue *queue_hold(Datagrams *self, const Policy *policy) noexcept nogil:
    """The queue for a policy's sessions, with one user more; NULL if there is no memory."""
    cdef uint32_t bucket = queue_bucket(policy.gate)
    cdef SessionQueue *queue = self.queues[bucket]
    while queue != NULL and (queue.gate != policy.gate or queue.timeout_ms != policy.idle_ms):
        queue = queue.chain
    if queue == NULL:
        queue = queue_new(self, policy)
        if queue == NULL:
            return NULL
        queue.chain = self.queues[bucket]
        self.queues[bucket] = queue
    queue.users += 1
    return queue


cdef inline void queue_drop(Datagrams *self, SessionQueue *queue) noexcept nogil:
    cdef SessionQueue **link
    c_assert(queue.users > 0)
    queue.users -= 1
    if queue.users:
        return
    c_assert(queue.line.first == NULL)
    link = &self.queues[queue_bucket(queue.gate)]
    while link[0] != queue:         # bounded: it is there
        link = &link[0].chain
    link[0] = queue.chain
    queue.rule.users -= 1
    if queue.rule.users == 0:
        c_assert(queue.rule.counts[0] == 0 and queue.rule.counts[1] == 0)
        free(queue.rule)
    free(queue)
