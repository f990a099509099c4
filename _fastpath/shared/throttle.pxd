"""How much a connection or a UDP session may move: its own bucket, that of its source, and that of its rule.

A direction takes a quantum from all its buckets at once, a quarter of a second of the slowest, and waits until the
last of them has it. So it moves four times a second, or each 256 KiB if that is more often, and within a rule each one
gets on in its turn. What it took and did not use is given back when it ends.

Few large moves are cheap: 100 connections of 1 MiB/s take 1.8 % of a core by splice, and 2.3 % with ten moves a second
(1,000 instead of 400 pairs of calls a second; copy 3.5 %, four or ten: its cost is in the bytes; loopback, reno). With
BBR, which sends each piece in paced parts, it is 4.3 and 5.0 %. Over ten seconds a quantum is 2.5 % of what moves.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from base.address cimport Address
from base.atomic cimport oi_add, oi_get
from base.clock cimport monotonic_us
from shared.bucket cimport bucket_cost, bucket_give, bucket_reserve, bucket_take
from shared.gate cimport Gate
from shared.meter cimport Meter, meter_enter, meter_leave
from shared.policy cimport Policy

cdef enum:
    QUANTA_A_SECOND = 4
    QUANTUM_BYTES_MAX = 262144  # what a pipe holds
    SHARE_BYTES_MIN = 4096      # a quantum of a bucket that many share is not smaller than this, if its rate allows it
    IDLE_NS = 100000000         # what was not used counts up to this time
    QUEUE_NS = 4000000000       # what can be reserved besides a share of each: they were larger while there were fewer
    DATAGRAM_DEPTH_BYTES = 65536    # the largest datagram passes a full bucket of any rate

cdef struct Throttle:
    uint64_t own[2]             # buckets of its own, up and down
    uint64_t until_us[2]        # when a direction that waits may go on
    uint32_t credit[2]          # bytes that were taken from all its buckets and not moved yet
    uint32_t slot[2]            # of a direction that waits: its place in the reactor's line
    Meter *meter                # of its source; NULL if that is not bounded


cdef inline bint throttle_is_wanted(const Policy *policy) noexcept nogil:
    """Whether something bounds the bytes of connections of this policy."""
    if policy.bandwidth:
        return True
    return policy.gate != NULL and (oi_get(&policy.gate.rates.bytes) or oi_get(&policy.gate.rates.source_bytes))


cdef inline Throttle *throttle_new(const Policy *policy, const Address *client) noexcept nogil:
    """For a new connection; NULL without memory."""
    cdef Throttle *self = <Throttle *> calloc(1, sizeof(Throttle))
    cdef uint64_t now_ns
    if self == NULL:
        return NULL
    now_ns = monotonic_us() * 1000
    self.own[0] = now_ns
    self.own[1] = now_ns
    if policy.gate == NULL:
        return self
    if oi_get(&policy.gate.rates.source_bytes):
        self.meter = meter_enter(&policy.gate.meters, client.ip, policy.source_prefix, now_ns)
        if self.meter == NULL:
            free(self)
            return NULL
    oi_add(&policy.gate.sharing, 1)
    return self


cdef inline void throttle_end(Throttle *self, const Policy *policy) noexcept nogil:
    """The connection has ended: give back what it took and did not use."""
    cdef Gate *gate = policy.gate
    cdef uint64_t rate
    cdef int way
    if gate != NULL:
        oi_add(&gate.sharing, <uint64_t> -1)
        for way in range(2):
            rate = oi_get(&gate.rates.bytes)
            if rate:
                bucket_give(&gate.throttled_bytes[way], bucket_cost(self.credit[way], rate))
            rate = oi_get(&gate.rates.source_bytes)
            if rate and self.meter != NULL:
                bucket_give(&self.meter.bytes[way], bucket_cost(self.credit[way], rate))
        if self.meter != NULL:
            meter_leave(&gate.meters, self.meter, monotonic_us() * 1000)
    free(self)


cdef inline uint64_t share_of(uint64_t rate, uint64_t users) noexcept nogil:
    """The quantum of a bucket that so many share."""
    cdef uint64_t quantum = rate // QUANTA_A_SECOND
    cdef uint64_t share = quantum // users if users else quantum
    if share < SHARE_BYTES_MIN:
        share = SHARE_BYTES_MIN
    return share if share < quantum else quantum


cdef inline uint64_t queue_ns(uint64_t rate, uint64_t quantum, uint64_t users) noexcept nogil:
    """The longest that a direction can have to wait for a bucket that so many share."""
    return 2 * users * bucket_cost(quantum, rate) + <uint64_t> QUEUE_NS


cdef inline uint32_t throttle_credit(Throttle *self, const Policy *policy, int way, uint64_t now_us) noexcept nogil:
    """How many bytes a direction may read now; 0: it has to wait until `until_us`."""
    cdef Gate *gate = policy.gate
    cdef uint64_t rule = oi_get(&gate.rates.bytes) if gate != NULL else 0
    cdef uint64_t source = oi_get(&gate.rates.source_bytes) if self.meter != NULL else 0
    cdef uint64_t quantum = QUANTUM_BYTES_MAX
    cdef uint64_t now_ns = now_us * 1000
    cdef uint64_t begin = 0
    cdef uint64_t users = oi_get(&gate.sharing) if rule else 0
    cdef uint64_t most_ns, when
    if policy.bandwidth == 0 and rule == 0 and source == 0:     # a reload took the bounds away
        return <uint32_t> 0x7fffffff
    if policy.bandwidth and policy.bandwidth // QUANTA_A_SECOND < quantum:
        quantum = policy.bandwidth // QUANTA_A_SECOND
    if rule:
        quantum = min(quantum, share_of(rule, users))
    if source:
        quantum = min(quantum, share_of(source, self.meter.source.count))
    if quantum == 0:
        quantum = 1
    if self.until_us[way] > now_us:
        most_ns = queue_ns(policy.bandwidth, quantum, 1) if policy.bandwidth else 0
        if rule:
            most_ns = max(most_ns, queue_ns(rule, quantum, users))
        if source:
            most_ns = max(most_ns, queue_ns(source, quantum, self.meter.source.count))
        if self.until_us[way] <= now_us + most_ns // 1000:
            return 0
        self.until_us[way] = 0      # a reload has raised the rate since
    if 2 * <uint64_t> self.credit[way] >= quantum:
        return self.credit[way]
    if policy.bandwidth:
        begin = bucket_reserve(
            &self.own[way], bucket_cost(quantum, policy.bandwidth), IDLE_NS, queue_ns(policy.bandwidth, quantum, 1),
            now_ns,
        )
    if rule:
        when = bucket_reserve(
            &gate.throttled_bytes[way], bucket_cost(quantum, rule), IDLE_NS, queue_ns(rule, quantum, users), now_ns
        )
        begin = when if when > begin else begin
    if source:
        when = bucket_reserve(
            &self.meter.bytes[way], bucket_cost(quantum, source), IDLE_NS,
            queue_ns(source, quantum, self.meter.source.count), now_ns,
        )
        begin = when if when > begin else begin
    self.credit[way] += <uint32_t> quantum
    if begin <= now_ns:
        return self.credit[way]
    self.until_us[way] = begin // 1000 + 1
    return 0


cdef inline void throttle_used(Throttle *self, int way, uint64_t moved) noexcept nogil:
    """A direction has read so many bytes."""
    self.credit[way] = self.credit[way] - <uint32_t> moved if moved < self.credit[way] else 0


cdef inline uint64_t datagram_depth(uint64_t rate) noexcept nogil:
    """What a full bucket for datagrams holds, as a time."""
    cdef uint64_t least = bucket_cost(DATAGRAM_DEPTH_BYTES, rate)
    return least if least > IDLE_NS else IDLE_NS


cdef inline bint throttle_takes(
    Throttle *self, const Policy *policy, int way, uint32_t size, uint64_t now_ns
) noexcept nogil:
    """Whether a datagram of this size may pass now; if not, nothing is taken."""
    cdef Gate *gate = policy.gate
    cdef uint64_t own = policy.bandwidth
    cdef uint64_t rule = oi_get(&gate.rates.bytes)
    cdef uint64_t source = oi_get(&gate.rates.source_bytes) if self.meter != NULL else 0
    if own and bucket_take(&self.own[way], bucket_cost(size, own), datagram_depth(own), now_ns):
        return False
    if rule and bucket_take(&gate.throttled_bytes[way], bucket_cost(size, rule), datagram_depth(rule), now_ns):
        if own:
            bucket_give(&self.own[way], bucket_cost(size, own))
        return False
    if source and bucket_take(&self.meter.bytes[way], bucket_cost(size, source), datagram_depth(source), now_ns):
        if own:
            bucket_give(&self.own[way], bucket_cost(size, own))
        if rule:
            bucket_give(&gate.throttled_bytes[way], bucket_cost(size, rule))
        return False
    return True
