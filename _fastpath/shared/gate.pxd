"""A gate counts sessions and admits none above its bounds: one for the process, one for each rule.

Entering comes before accepting, so that a connection that has no room stays in the kernel's queue. A reactor that
finds the gate full raises `waiting` and tries once more; leaving lowers the count and then looks at `waiting`. Both are
sequentially consistent, so that one of the two always sees the other.

The gates of the process take the descriptors of a session from one budget, from which pipes are taken as well.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from base.atomic cimport oi_add, oi_get, oi_raise_by, oi_replace, oi_see, oi_show, oi_swap
from shared.histogram cimport Histogram
from shared.meter cimport Meter, Meters
from shared.source cimport (
    Prefix, Sources, source_count_in, source_count_out, source_counted, sources_free, sources_init,
)

cdef struct Budget:             # descriptors that sessions and pipes may have
    uint64_t references         # atomic: the owner's and one for each gate
    uint64_t total              # atomic: 0 is no bound
    uint64_t used               # atomic
    uint64_t pipes              # atomic: how many of them are those of pipes
    uint64_t waiting            # atomic: a reactor stopped accepting for want of them

cdef struct Rates:              # of a rule; atomics, 0 is none
    uint64_t bytes              # a second, of all its connections together, each direction by itself
    uint64_t source_bytes       # of those of one source
    uint64_t connect_ns         # between two connections
    uint64_t connect_depth_ns   # the time of those that may come at once
    uint64_t source_connect_ns  # the same for those of one source
    uint64_t source_connect_depth_ns

cdef struct Gate:
    uint64_t references         # atomic: the owner's and one for each policy
    uint64_t live               # atomic: connections inside
    uint64_t live_max           # atomic: 0 is no bound
    uint64_t source_max         # atomic: connections of one source; 0 is no bound and no counting
    uint64_t waiting            # atomic: a reactor stopped accepting here
    uint64_t full               # atomic: how often that was, ever
    uint64_t full_told          # atomic: the control plane knows that it is full
    uint64_t admitted           # atomic: connections of the native lane that were let in, ever
    uint64_t preambles          # atomic: clients that have a place and are not admitted yet
    uint64_t preamble_waiting   # atomic: a reactor stopped accepting because these have half of the places
    uint64_t lost               # atomic: datagrams of clients that were not admitted, since they were last counted
    uint64_t forged             # atomic: of these, those whose source address cannot be true
    uint64_t rate_waits         # atomic: connections that waited for their turn by the rate, ever
    uint64_t rate_waiting       # atomic: the next connection has waited
    uint64_t next_id            # atomic: the process gate numbers all sessions of both lanes
    Budget *budget              # NULL for the gate of a rule
    uint64_t cost               # descriptors of one session
    void *judge                 # the Policy whose access is put to live connections, as long as that is done
    bint judge_ends             # whether those that it refuses end
    uint64_t judged             # atomic: how many it refuses
    Sources sources
    Rates rates
    Meters meters               # of sources, if one of their rates is set
    uint8_t apart[64]           # what follows is written at each turn of a session: not in the line of what is above
    uint64_t bytes[2]           # atomics: what sessions of the native lane moved up and down, ever
    uint64_t datagrams[2]
    uint64_t datagrams_lost
    uint64_t throttled_bytes[2]     # buckets, as in `bucket.pxd`
    uint64_t connect_bucket     # as in `bucket.pxd`, of connections
    uint64_t sharing            # atomic: connections that share the buckets
    uint64_t ended              # atomic: of those that were admitted, how many have ended
    Histogram durations         # of the sessions that ended
    Histogram connects          # of those of them that were connected over TCP


cdef inline void gate_count_datagrams(Gate *self, int way, int taken, int lost, uint64_t bytes) noexcept nogil:
    """A batch of a UDP session went one way."""
    oi_add(&self.bytes[way], bytes)
    oi_add(&self.datagrams[way], <uint64_t> taken)
    if lost:
        oi_add(&self.datagrams_lost, <uint64_t> lost)


# The budget

cdef inline Budget *budget_new() noexcept nogil:
    """A budget without a bound and with one reference; NULL if there is no memory."""
    cdef Budget *self = <Budget *> calloc(1, sizeof(Budget))
    if self != NULL:
        self.references = 1
    return self


cdef inline void budget_drop(Budget *self) noexcept nogil:
    if self != NULL and oi_raise_by(&self.references, <uint64_t> -1) == 1:
        free(self)


cdef inline bint budget_take(Budget *self, uint64_t cost, uint64_t spared) noexcept nogil:
    """Take descriptors, if `spared` of them are left then; False if they are not."""
    cdef uint64_t used, total
    if self == NULL:
        return True
    while True:     # ends: each failure means that another thread succeeded
        total = oi_get(&self.total)
        used = oi_see(&self.used)
        if total and used + cost + spared > total:
            return False
        if oi_replace(&self.used, used, used + cost):
            return True


cdef inline bint budget_give(Budget *self, uint64_t cost) noexcept nogil:
    """Give descriptors back; true if a reactor waited for them."""
    if self == NULL:
        return False
    oi_raise_by(&self.used, <uint64_t> 0 - cost)
    return oi_see(&self.waiting) != 0 and oi_swap(&self.waiting, 0) != 0


cdef inline bint budget_is_short(Budget *self, uint64_t cost) noexcept nogil:
    """Whether a session of this cost would have to wait for descriptors."""
    cdef uint64_t total
    if self == NULL:
        return False
    total = oi_get(&self.total)
    return total != 0 and oi_see(&self.used) + cost > total


# The gate

cdef inline Gate *gate_new(uint64_t live_max, uint64_t source_max, Budget *budget, uint64_t cost) noexcept nogil:
    """A gate with one reference; NULL if there is no memory."""
    cdef Gate *self = <Gate *> calloc(1, sizeof(Gate))
    if self != NULL:
        self.references = 1
        self.live_max = live_max
        self.source_max = source_max
        self.next_id = 1
        if budget != NULL:
            oi_add(&budget.references, 1)
            self.budget = budget
            self.cost = cost
        sources_init(&self.sources)
        sources_init(&self.meters.table)
        self.meters.table.node_bytes = sizeof(Meter)
    return self


cdef inline void gate_hold(Gate *self) noexcept nogil:
    oi_add(&self.references, 1)


cdef inline void gate_drop(Gate *self) noexcept nogil:
    if oi_raise_by(&self.references, <uint64_t> -1) == 1:
        budget_drop(self.budget)
        sources_free(&self.sources)
        sources_free(&self.meters.table)
        free(self)


cdef inline bint gate_enter(Gate *self) noexcept nogil:
    """Take a place; false if all are taken."""
    cdef uint64_t live, live_max
    if not budget_take(self.budget, self.cost, 0):
        return False
    while True:     # ends: each failure means that another thread succeeded
        live_max = oi_get(&self.live_max)
        if live_max == 0:
            oi_raise_by(&self.live, 1)
            return True
        live = oi_see(&self.live)
        if live >= live_max:
            # A reactor that waits for descriptors is woken by the end of a session of this gate.
            if self.budget != NULL:
                oi_raise_by(&self.budget.used, <uint64_t> 0 - self.cost)
            return False
        if oi_replace(&self.live, live, live + 1):
            return True


cdef inline void gate_force(Gate *self) noexcept nogil:
    """Take a place whether there is one or not: for a session that another process let in."""
    if self.budget != NULL:
        oi_raise_by(&self.budget.used, self.cost)
    oi_raise_by(&self.live, 1)


cdef inline bint gate_enter_or_wait(Gate *self) noexcept nogil:
    """Take a place; false if all are taken, and then the next session that leaves sees that a reactor waits."""
    if gate_enter(self):
        return True
    oi_show(&self.waiting, 1)
    if self.budget != NULL:
        oi_show(&self.budget.waiting, 1)
    return gate_enter(self)


cdef inline bint gate_leave(Gate *self) noexcept nogil:
    """Give a place back; true if a reactor waited for it, or for its descriptors."""
    cdef bint wanted = budget_give(self.budget, self.cost)
    oi_raise_by(&self.live, <uint64_t> -1)
    return (oi_see(&self.waiting) != 0 and oi_swap(&self.waiting, 0) != 0) or wanted


# The preamble

cdef inline bint preamble_is_full(Gate *self) noexcept nogil:
    """Whether the clients whose preamble is being read have half of the places."""
    cdef uint64_t room = oi_get(&self.live_max)
    cdef uint64_t total = oi_get(&self.budget.total) if self.budget != NULL else 0
    if total and self.cost and (room == 0 or total // self.cost < room):
        room = total // self.cost
    if room == 0:
        return False
    return oi_see(&self.preambles) >= (room // 2 if room > 1 else 1)


cdef inline void preamble_enter(Gate *self) noexcept nogil:
    oi_raise_by(&self.preambles, 1)


cdef inline bint preamble_leave(Gate *self) noexcept nogil:
    """One less; true if a reactor waited for that."""
    oi_raise_by(&self.preambles, <uint64_t> -1)
    return oi_see(&self.preamble_waiting) != 0 and oi_swap(&self.preamble_waiting, 0) != 0


cdef inline bint source_enter(Gate *self, const uint8_t *ip, Prefix prefix, uint64_t bound) noexcept nogil:
    """Count one more connection of the address's source; false if it has `bound` of them."""
    return source_count_in(&self.sources, ip, prefix, bound)


cdef inline void source_leave(Gate *self, const uint8_t *ip, Prefix prefix) noexcept nogil:
    """Count one connection less."""
    source_count_out(&self.sources, ip, prefix)


cdef inline uint32_t source_count(Gate *self, const uint8_t *ip, Prefix prefix, uint32_t *steps) noexcept nogil:
    return source_counted(&self.sources, ip, prefix, steps)
