"""Token buckets of one word: up to when what was taken has been paid for, in nanoseconds of the monotonic clock.

A bucket that is full says a time in the past. Taking moves the time on by what the units cost; so a bucket needs no
timer, is shared by threads without a lock, and a change of the rate holds at once.
"""

from libc.stdint cimport uint64_t

from base.atomic cimport oi_raise_by, oi_replace, oi_see

cdef enum:
    SECOND_NS = 1000000000


cdef inline uint64_t bucket_cost(uint64_t units, uint64_t rate) noexcept nogil:
    """The time in which so many units come, at most a gigabyte of them."""
    return units * <uint64_t> SECOND_NS // rate


cdef inline uint64_t bucket_reserve(
    uint64_t *self, uint64_t cost_ns, uint64_t depth_ns, uint64_t most_ns, uint64_t now_ns
) noexcept nogil:
    """Take what costs `cost_ns`; from when on it may be used. Reservations follow each other in the order in which they
    are made, so that all who share a bucket get on. What came in a time without use counts up to `depth_ns`. More than
    `most_ns` cannot have been reserved at this rate: the rate was lower, and that is forgotten."""
    cdef uint64_t used, begin
    while True:     # ends: each failure means that another thread succeeded
        used = oi_see(self)
        begin = used if used + depth_ns > now_ns else now_ns - depth_ns
        if begin > now_ns + most_ns:
            begin = now_ns + most_ns
        if oi_replace(self, used, begin + cost_ns):
            return begin


cdef inline uint64_t bucket_take(uint64_t *self, uint64_t cost_ns, uint64_t depth_ns, uint64_t now_ns) noexcept nogil:
    """Take what costs `cost_ns` if it is there: 0, else when to ask again. A full bucket has `depth_ns`, and gives more
    than that to nobody; what was taken beyond it was taken at a lower rate, and is forgotten."""
    cdef uint64_t used, begin
    while True:     # ends: each failure means that another thread succeeded
        used = oi_see(self)
        begin = used if used > now_ns else now_ns
        if begin > now_ns + depth_ns:
            if not oi_replace(self, used, now_ns + depth_ns):
                continue
            begin = now_ns + depth_ns
        if begin + cost_ns > now_ns + depth_ns:
            return begin + cost_ns - depth_ns
        if oi_replace(self, used, begin + cost_ns):
            return 0


cdef inline uint64_t bucket_book(uint64_t *self, uint64_t cost_ns, uint64_t depth_ns, uint64_t now_ns) noexcept nogil:
    """Take what costs `cost_ns` out of a bucket of `depth_ns`; from when on it may be used, `now_ns` for at once. Those
    that come later wait behind it."""
    cdef uint64_t used, begin
    while True:     # ends: each failure means that another thread succeeded
        used = oi_see(self)
        begin = used if used > now_ns else now_ns
        if oi_replace(self, used, begin + cost_ns):
            return begin + cost_ns - depth_ns if begin + cost_ns > now_ns + depth_ns else now_ns


cdef inline void bucket_give(uint64_t *self, uint64_t cost_ns) noexcept nogil:
    """Give back what was taken and not used."""
    oi_raise_by(self, <uint64_t> 0 - cost_ns)
