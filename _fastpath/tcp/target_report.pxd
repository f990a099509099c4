"""What the control plane is told of addresses: that one begins to fail, and that it works again. Each once."""

from libc.string cimport memset

from base.address cimport address_read
from base.atomic cimport oi_swap, oi_put
from tcp.ending cimport record_slot
from shared.policy cimport Policy
from shared.ring cimport RECORD_TARGET, Record, ring_push
from state.reactor cimport Reactor
from shared.target cimport Target, is_of_the_server, target_failed, target_worked


cdef inline void target_report(Reactor *reactor, Policy *policy, Target *target, int error) noexcept nogil:
    """Say that an address fails with `error`, or with 0 that it works. A full ring leaves it for the next time."""
    cdef Record *record
    if oi_swap(&target.told, error != 0) == (error != 0):
        return      # another reactor has just said so
    record = record_slot(reactor)
    if record == NULL:
        oi_put(&target.told, error == 0)
        return
    memset(record, 0, sizeof(Record))
    record.kind = RECORD_TARGET
    record.tag = policy.tag
    record.error = error
    address_read(&record.upstream, &target.place.place)
    ring_push(&reactor.ring, &reactor.hub.bell)


cdef inline void note_failed(Reactor *reactor, Policy *policy, int at, int error) noexcept nogil:
    """Address number `at` did not take a connection or a datagram."""
    cdef Target *target = &policy.targets.items[at]
    if is_of_the_server(error) and target_failed(target, reactor.now_ms):
        target_report(reactor, policy, target, error)


cdef inline void note_worked(Reactor *reactor, Policy *policy, int at) noexcept nogil:
    """Address number `at` took a connection, or a datagram came from it."""
    cdef Target *target = &policy.targets.items[at]
    if target_worked(target):
        target_report(reactor, policy, target, 0)
