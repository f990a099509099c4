"""A gate counts who is inside and lets nobody in above its bounds: one for the process, one for each rule.

Entering comes before accepting, so that a connection that has no room stays in the kernel's queue. Who finds the gate
full raises `waiting` and tries once more; who leaves lowers the count and then looks at `waiting`. Both orders are
sequentially consistent, so that one of the two always sees the other.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from atomic cimport oi_add, oi_get, oi_put, oi_raise_by, oi_replace, oi_see, oi_show, oi_swap
from linux cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)

cdef enum:
    SOURCES_MIN = 64            # slots of an empty table; it doubles at three quarters

cdef struct Source:             # one client address and the connections it has; count 0 is a free slot
    uint8_t ip[16]
    uint32_t count

cdef struct Gate:
    uint64_t references         # atomic: the owner's and one for each policy
    uint64_t live               # atomic: connections inside
    uint64_t live_max           # atomic: 0 is no bound
    uint64_t source_max         # atomic: connections of one client address; 0 is no bound and no counting
    uint64_t waiting            # atomic: a reactor stopped accepting here
    uint64_t admitted           # atomic: connections of the native lane that were let in, ever
    uint64_t lost               # atomic: datagrams of those who were not let in, since they were last counted
    uint64_t next_id            # atomic: the process gate numbers all sessions of both lanes
    pthread_mutex_t lock        # guards the table below
    Source *sources             # open addressing, linear probing
    uint32_t sources_size       # a power of two
    uint32_t sources_used


cdef inline Gate *gate_new(uint64_t live_max, uint64_t source_max) noexcept nogil:
    """A gate with one reference; NULL where there is no memory."""
    cdef Gate *self = <Gate *> calloc(1, sizeof(Gate))
    if self != NULL:
        self.references = 1
        self.live_max = live_max
        self.source_max = source_max
        self.next_id = 1
        pthread_mutex_init(&self.lock, NULL)
    return self


cdef inline void gate_hold(Gate *self) noexcept nogil:
    oi_add(&self.references, 1)


cdef inline void gate_drop(Gate *self) noexcept nogil:
    if oi_raise_by(&self.references, <uint64_t> -1) == 1:
        pthread_mutex_destroy(&self.lock)
        free(self.sources)
        free(self)


cdef inline bint gate_enter(Gate *self) noexcept nogil:
    """Take a place; false where all are taken."""
    cdef uint64_t live, live_max
    while True:     # ends: each failure means that another thread succeeded
        live_max = oi_get(&self.live_max)
        if live_max == 0:
            oi_raise_by(&self.live, 1)
            return True
        live = oi_see(&self.live)
        if live >= live_max:
            return False
        if oi_replace(&self.live, live, live + 1):
            return True


cdef inline bint gate_enter_or_wait(Gate *self) noexcept nogil:
    """Take a place; false where all are taken, and then the next to leave is told that somebody waits."""
    if gate_enter(self):
        return True
    oi_show(&self.waiting, 1)
    return gate_enter(self)


cdef inline bint gate_leave(Gate *self) noexcept nogil:
    """Give a place back; true where somebody waited for it."""
    oi_raise_by(&self.live, <uint64_t> -1)
    return oi_see(&self.waiting) != 0 and oi_swap(&self.waiting, 0) != 0


cdef inline uint32_t source_slot(const uint8_t *ip, uint32_t size) noexcept nogil:
    """Where the search for an address begins (FNV-1a)."""
    cdef uint32_t value = <uint32_t> 2166136261
    cdef int i
    for i in range(16):
        value = (value ^ ip[i]) * 16777619
    return (value ^ (value >> 15)) & (size - 1)


cdef inline bint sources_grow(Gate *self) noexcept nogil:
    cdef uint32_t size = self.sources_size * 2 if self.sources_size else SOURCES_MIN
    cdef Source *fresh = <Source *> calloc(size, sizeof(Source))
    cdef uint32_t i, k
    if fresh == NULL:
        return False
    for i in range(self.sources_size):
        if self.sources[i].count:
            k = source_slot(self.sources[i].ip, size)
            while fresh[k].count:
                k = (k + 1) & (size - 1)
            fresh[k] = self.sources[i]
    free(self.sources)
    self.sources = fresh
    self.sources_size = size
    return True


cdef inline bint source_enter(Gate *self, const uint8_t *ip, uint64_t bound) noexcept nogil:
    """Count one more connection of this address; false where it has `bound` of them."""
    cdef bint entered = False
    cdef uint32_t k
    pthread_mutex_lock(&self.lock)
    if self.sources_used * 4 < self.sources_size * 3 or sources_grow(self):
        k = source_slot(ip, self.sources_size)
        while self.sources[k].count and memcmp(self.sources[k].ip, ip, 16) != 0:   # bounded: a quarter is free
            k = (k + 1) & (self.sources_size - 1)
        if self.sources[k].count == 0:
            memcpy(self.sources[k].ip, ip, 16)
            self.sources_used += 1
            self.sources[k].count = 1
            entered = True
        elif self.sources[k].count < bound:
            self.sources[k].count += 1
            entered = True
    pthread_mutex_unlock(&self.lock)
    return entered


cdef inline void source_leave(Gate *self, const uint8_t *ip) noexcept nogil:
    """Count one connection less; an address that has none left gives its slot back."""
    cdef uint32_t k, gap, home, mask
    pthread_mutex_lock(&self.lock)
    mask = self.sources_size - 1
    if self.sources_size:
        k = source_slot(ip, self.sources_size)
        while self.sources[k].count and memcmp(self.sources[k].ip, ip, 16) != 0:   # bounded: a quarter is free
            k = (k + 1) & mask
        if self.sources[k].count > 1:
            self.sources[k].count -= 1
        elif self.sources[k].count == 1:
            self.sources_used -= 1
            self.sources[k].count = 0
            # Linear probing has no holes within a run: move back whoever was pushed over this slot.
            gap = k
            k = (k + 1) & mask
            while self.sources[k].count:
                home = source_slot(self.sources[k].ip, self.sources_size)
                if ((k - home) & mask) >= ((k - gap) & mask):
                    self.sources[gap] = self.sources[k]
                    self.sources[k].count = 0
                    gap = k
                k = (k + 1) & mask
    pthread_mutex_unlock(&self.lock)


cdef inline uint32_t source_count(Gate *self, const uint8_t *ip) noexcept nogil:
    cdef uint32_t found = 0
    cdef uint32_t k
    pthread_mutex_lock(&self.lock)
    if self.sources_size:
        k = source_slot(ip, self.sources_size)
        while self.sources[k].count and memcmp(self.sources[k].ip, ip, 16) != 0:   # bounded: a quarter is free
            k = (k + 1) & (self.sources_size - 1)
        found = self.sources[k].count
    pthread_mutex_unlock(&self.lock)
    return found
