"""How many connections a source may have: counted for the process and for each rule, if there is a bound."""

from libc.stdint cimport uint64_t

from base.address cimport Address
from base.atomic cimport oi_get
from base.clock cimport monotonic_us
from shared.bucket cimport bucket_take
from shared.gate cimport Gate, source_enter, source_leave
from shared.meter cimport Meter, meter_enter, meter_leave
from shared.policy cimport Policy

cdef enum:
    COUNTED_PROCESS = 1         # bits: the tables that hold a client's source
    COUNTED_RULE = 2


cdef inline void sources_leave(Gate *process, const Policy *policy, const Address *client, int counted) noexcept nogil:
    """Count a client out of the tables that hold its source."""
    if counted & COUNTED_PROCESS:
        source_leave(process, client.ip, policy.source_prefix)
    if counted & COUNTED_RULE:
        source_leave(policy.gate, client.ip, policy.source_prefix)


cdef inline bint source_is_due(const Policy *policy, const Address *client) noexcept nogil:
    """Whether the rate of the client's source allows one more connection; it is counted then."""
    cdef Gate *gate = policy.gate
    cdef uint64_t now_ns = monotonic_us() * 1000
    cdef Meter *meter = meter_enter(&gate.meters, client.ip, policy.source_prefix, now_ns)
    cdef bint due
    if meter == NULL:
        return False
    due = bucket_take(&meter.connects, oi_get(&gate.rates.source_connect_ns),
                      oi_get(&gate.rates.source_connect_depth_ns), now_ns) == 0
    meter_leave(&gate.meters, meter, now_ns)
    return due


cdef inline int sources_enter(
    Gate *process, const Policy *policy, const Address *client, bint forced
) noexcept nogil:
    """Count a client if its source is bounded: the tables that hold it, or -1 if it has all it may have.

    `forced` counts it above the bound, too: another process let it in.
    """
    cdef int counted = 0
    cdef uint64_t bound = oi_get(&process.source_max)
    if oi_get(&policy.gate.rates.source_connect_ns) and not source_is_due(policy, client):
        return -1
    if bound:
        if not source_enter(process, client.ip, policy.source_prefix, <uint64_t> -1 if forced else bound):
            return -1
        counted |= COUNTED_PROCESS
    bound = oi_get(&policy.gate.source_max)
    if bound:
        if not source_enter(policy.gate, client.ip, policy.source_prefix, <uint64_t> -1 if forced else bound):
            sources_leave(process, policy, client, counted)
            return -1
        counted |= COUNTED_RULE
    return counted
