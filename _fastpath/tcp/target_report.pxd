"""What the control plane is told of addresses: that one begins to fail, and that it works again. Each once."""

from libc.stdint cimport uint16_t

from base.address cimport address_is_unix, address_read
from base.atomic cimport oi_add, oi_put, oi_swap
from state.report cimport record_begin, record_push
from shared.policy cimport Policy
from shared.ring cimport RECORD_TARGET, RECORD_UNREACHABLE, Record
from state.reactor cimport Reactor
from shared.target cimport Target, is_of_the_server, target_failed, target_worked

cdef enum:
    FAILURES_TOLD = 3           # connects that failed in a row before the control plane resolves the name again


cdef inline void look_up_again(Reactor *reactor, Policy *policy, int error) noexcept nogil:
    """Have the destination's name resolved again."""
    cdef Record *record = record_begin(reactor, RECORD_UNREACHABLE, policy)
    if record != NULL:
        record.error = error
        record_push(reactor)
        oi_put(&policy.failures, 0)


cdef inline void unreachable(Reactor *reactor, Policy *policy, int error) noexcept nogil:
    """No address took it; after several times in a row the name is resolved again."""
    if oi_add(&policy.failures, 1) + 1 >= FAILURES_TOLD:
        look_up_again(reactor, policy, error)


cdef inline void target_report(Reactor *reactor, Policy *policy, Target *target, int error) noexcept nogil:
    """Say that an address fails with `error`, or with 0 that it works. A full ring leaves it for the next time."""
    cdef Record *record
    if oi_swap(&target.told, error != 0) == (error != 0):
        return      # another reactor has just said so
    record = record_begin(reactor, RECORD_TARGET, policy)
    if record == NULL:
        oi_put(&target.told, error == 0)
        return
    record.error = error
    address_read(&record.upstream, &target.place.place)
    if address_is_unix(&record.upstream):
        record.upstream.port = <uint16_t> (target - &policy.targets.items[0])
    record_push(reactor)


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
