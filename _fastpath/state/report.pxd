"""Records on their way into the ring of a reactor: a slot, filled, and then pushed."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from base.address cimport Address
from base.atomic cimport oi_add, oi_put, oi_show, oi_swap
from base.linux cimport c_assert
from shared.gate cimport Gate
from shared.policy cimport Policy
from shared.ring cimport RECORD_FULL, RING_RESERVE, Record, ring_push, ring_room, ring_slot
from state.reactor cimport Reactor


cdef inline Record *record_slot(Reactor *reactor) noexcept nogil:
    """Where the next record goes; NULL if the ring is full, and then Python says when it no longer is."""
    cdef Record *record = ring_slot(&reactor.ring)
    if record == NULL:
        oi_show(&reactor.hub.ring_full, 1)
        record = ring_slot(&reactor.ring)
    return record


cdef inline Record *record_begin(Reactor *reactor, int kind, const Policy *policy) noexcept nogil:
    """An empty record of this kind, of the policy if there is one; NULL if the ring is full."""
    cdef Record *record = record_slot(reactor)
    if record != NULL:
        memset(record, 0, sizeof(Record))
        record.kind = kind
        if policy != NULL:
            record.tag = policy.tag
    return record


cdef inline void record_push(Reactor *reactor) noexcept nogil:
    """The record that was begun is complete."""
    ring_push(&reactor.ring, &reactor.hub.bell)


cdef inline bint ring_has_reserve(Reactor *reactor) noexcept nogil:
    """Whether a client may be accepted: what is said of it has room in the ring."""
    if ring_room(&reactor.ring) < RING_RESERVE:
        oi_show(&reactor.hub.ring_full, 1)
        return ring_room(&reactor.ring) >= RING_RESERVE
    return True


cdef inline Record *refused_begin(
    Reactor *reactor, const Policy *policy, int kind, const Address *client, uint64_t id, double started_s, int ending,
    int error,
) noexcept nogil:
    """The record of a client that is not served. The ring has room: the reactor looked at its reserve before."""
    cdef Record *record = record_begin(reactor, kind, policy)
    c_assert(record != NULL)
    record.ending = ending
    record.error = error
    record.id = id
    record.started_s = started_s
    record.client = client[0]
    return record


cdef inline void report_refused(
    Reactor *reactor, const Policy *policy, int kind, const Address *client, uint64_t id, double started_s, int ending,
    int error,
) noexcept nogil:
    """Tell of a client that is not served."""
    refused_begin(reactor, policy, kind, client, id, started_s, ending, error)
    record_push(reactor)


cdef inline void report_full(Reactor *reactor, const Policy *policy, Gate *gate) noexcept nogil:
    """A client finds no room at a gate: count it, and tell once. If the ring is full, the next one tells."""
    cdef Record *record
    oi_add(&gate.full, 1)
    if oi_swap(&gate.full_told, 1):
        return
    record = record_begin(reactor, RECORD_FULL, policy)
    if record == NULL:
        oi_put(&gate.full_told, 0)
        return
    record.token = gate == policy.gate
    record_push(reactor)
