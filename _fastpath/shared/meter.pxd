"""What each source of a rule may do in a second: its buckets, kept as long as they say more than that they are full.

A source that has left is in a line, oldest first, until its buckets are full again; then it is forgotten. So who comes
back at once finds what was used, and nothing is kept of those that have gone.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free

from base.atomic cimport oi_see
from base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from shared.source cimport (
    Prefix, Source, SourceKey, Sources, bucket_add, bucket_join, source_add, source_find, source_hash, source_key,
)

cdef enum:
    FORGOTTEN_AT_ONCE = 4       # sources looked at, each time one comes or goes

cdef struct Meter:
    Source source               # the first: the table knows nothing else
    uint64_t bytes[2]           # buckets, up and down
    uint64_t connects           # bucket
    bint waits                  # in the line of those to be forgotten
    Meter *next

cdef struct Meters:
    Sources table               # its entries are meters
    Meter *first
    Meter *last


cdef inline bint meter_is_full(const Meter *self, uint64_t now_ns) noexcept nogil:
    return (
        oi_see(<uint64_t *> &self.bytes[0]) <= now_ns and oi_see(<uint64_t *> &self.bytes[1]) <= now_ns
        and oi_see(<uint64_t *> &self.connects) <= now_ns
    )


cdef inline void meters_forget(Meters *self, uint64_t now_ns) noexcept nogil:
    """Forget sources that have left, if their buckets are full. The lock is held."""
    cdef Meter *meter
    cdef Source **link
    cdef int _turn
    for _turn in range(FORGOTTEN_AT_ONCE):
        meter = self.first
        if meter == NULL or (meter.source.count == 0 and not meter_is_full(meter, now_ns)):
            return
        self.first = meter.next
        if self.first == NULL:
            self.last = NULL
        meter.waits = False
        if meter.source.count:
            continue
        link = source_find(&self.table, &meter.source.key, meter.source.hash)
        link[0] = meter.source.chain
        free(meter)
        self.table.used -= 1
        if self.table.buckets > 1 and self.table.used * 2 < self.table.buckets:
            bucket_join(&self.table)


cdef inline Meter *meter_enter(Meters *self, const uint8_t *ip, Prefix prefix, uint64_t now_ns) noexcept nogil:
    """The meter of a source, which stays until `meter_leave`; NULL without memory."""
    cdef SourceKey key
    cdef Source **link
    cdef Meter *meter = NULL
    cdef uint64_t hash
    source_key(&key, ip, prefix)
    hash = source_hash(&self.table, &key)
    pthread_mutex_lock(&self.table.lock)
    meters_forget(self, now_ns)
    if self.table.buckets or bucket_add(&self.table):
        link = source_find(&self.table, &key, hash)
        if link[0] != NULL:
            link[0].count += 1
            meter = <Meter *> link[0]
        elif source_add(&self.table, &key, hash, link):
            # The table may have grown around it.
            meter = <Meter *> source_find(&self.table, &key, hash)[0]
            meter.bytes[0] = now_ns
            meter.bytes[1] = now_ns
            meter.connects = 0
            meter.waits = False
            meter.next = NULL
    pthread_mutex_unlock(&self.table.lock)
    return meter


cdef inline void meter_leave(Meters *self, Meter *meter, uint64_t now_ns) noexcept nogil:
    """It is not used here any more."""
    pthread_mutex_lock(&self.table.lock)
    meter.source.count -= 1
    if meter.source.count == 0 and not meter.waits:
        meter.waits = True
        meter.next = NULL
        if self.last != NULL:
            self.last.next = meter
        else:
            self.first = meter
        self.last = meter
    meters_forget(self, now_ns)
    pthread_mutex_unlock(&self.table.lock)
