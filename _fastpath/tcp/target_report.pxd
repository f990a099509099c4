"""What the control plane is told of addresses and servers: that one begins to fail, and that it works again."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from base.address cimport address_is_unix, address_read
from base.atomic cimport oi_add, oi_get, oi_put, oi_replace, oi_swap
from state.report cimport record_begin, record_push
from shared.policy cimport Policy, policy_member, policy_server_tag, policy_targets
from shared.ring cimport RECORD_FULL, RECORD_SERVER, RECORD_TARGET, RECORD_UNREACHABLE, Record
from shared.group cimport group_eject
from shared.server cimport Server, server_failed, server_worked
from state.reactor cimport Reactor
from shared.target cimport Target, is_of_the_server, target_failed, target_worked

cdef enum:
    FULL_TOLD_MS = 500          # time between two reports that a group is full
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


cdef inline void target_report(
    Reactor *reactor, const Policy *policy, uint16_t member, Target *target, int error
) noexcept nogil:
    """Say that an address fails with `error`, or with 0 that it works. A full ring leaves it for the next time."""
    cdef Record *record
    if oi_swap(&target.told, error != 0) == (error != 0):
        return      # another reactor has just said so
    record = record_begin(reactor, RECORD_TARGET, policy)
    if record == NULL:
        oi_put(&target.told, error == 0)
        return
    record.error = error
    record.server = policy_server_tag(policy, member)
    address_read(&record.upstream, &target.place.place)
    if address_is_unix(&record.upstream):
        record.upstream.port = <uint16_t> (target - &policy_targets(policy, member).items[0])
    record_push(reactor)


cdef inline void note_failed(Reactor *reactor, const Policy *policy, uint16_t member, int at, int error) noexcept nogil:
    """Address number `at` of the server, or of the destination, did not take a connection or a datagram."""
    cdef Target *target = &policy_targets(policy, member).items[at]
    if policy.to_original:      # it is the destination of one client
        return
    if is_of_the_server(error) and target_failed(target, reactor.now_ms):
        target_report(reactor, policy, member, target, error)


cdef inline void note_worked(Reactor *reactor, const Policy *policy, uint16_t member, int at) noexcept nogil:
    """Address number `at` took a connection, or a datagram came from it."""
    cdef Target *target = &policy_targets(policy, member).items[at]
    if target_worked(target):
        target_report(reactor, policy, member, target, 0)


# Servers of groups

cdef inline void group_found_full(Reactor *reactor, const Policy *policy) noexcept nogil:
    """Clients find every usable server full: tell that, and not again for a while."""
    cdef uint64_t before_ms = oi_get(&policy.group.full_ms)
    cdef Record *record
    if before_ms and reactor.now_ms < before_ms + FULL_TOLD_MS:
        return
    if not oi_replace(&policy.group.full_ms, before_ms, reactor.now_ms):
        return      # another reactor has just said so
    record = record_begin(reactor, RECORD_FULL, policy)
    if record != NULL:
        record.token = 2
        record_push(reactor)


cdef inline bint server_report(
    Reactor *reactor, const Policy *policy, const Server *server, int error, uint64_t failures
) noexcept nogil:
    """Say that connects to a server fail, or with 0 that it works; False if the ring is full."""
    cdef Record *record = record_begin(reactor, RECORD_SERVER, policy)
    if record == NULL:
        return False
    record.id = failures
    record.error = error
    record.server = server.tag
    record_push(reactor)
    return True


cdef inline void note_server_failed(
    Reactor *reactor, const Policy *policy, uint16_t member, int error, uint32_t least
) noexcept nogil:
    """No address of a server took a connection. The control plane is told once so many failed in a row as the group
    says, and no fewer than `least`."""
    cdef Server *server = policy_member(policy, member).server
    cdef uint64_t failures
    if not is_of_the_server(error):
        return
    failures = server_failed(server, reactor.now_ms)
    if failures >= policy.group.failures_told and failures >= least:
        oi_put(&server.told, 1)
        if policy.group.ejects:
            group_eject(policy.group, server)
        server_report(reactor, policy, server, error, failures)


cdef inline void note_server_worked(Reactor *reactor, const Policy *policy, uint16_t member) noexcept nogil:
    """A server took a connection, or answered."""
    cdef Server *server = policy_member(policy, member).server
    if server_worked(server) and oi_swap(&server.told, 0) and not server_report(reactor, policy, server, 0, 0):
        oi_put(&server.told, 1)
