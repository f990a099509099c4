"""How long sessions lasted and connects took, counted in fixed buckets where sessions end.

The buckets are those of `oinetd.core.histogram`: the bounds in microseconds, and one bucket for what is longer.
"""

from libc.stdint cimport uint64_t

from base.atomic cimport oi_add

cdef extern from *:
    """
    #define OI_BOUNDS 12
    static const uint64_t oi_duration_bounds[OI_BOUNDS] = {
        10000, 100000, 500000, 1000000, 5000000, 15000000, 60000000, 300000000, 1800000000, 7200000000,
        43200000000, 86400000000,
    };
    static const uint64_t oi_connect_bounds[OI_BOUNDS] = {
        500, 1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 1000000, 3000000, 10000000,
    };
    """
    const uint64_t oi_duration_bounds[12]
    const uint64_t oi_connect_bounds[12]

cdef enum:
    BOUNDS = 12

cdef struct Histogram:
    uint64_t counts[BOUNDS + 1]     # atomics: of each bucket alone, the last one is what is above all bounds
    uint64_t sum_us                 # atomic


cdef inline void histogram_add(Histogram *self, const uint64_t *bounds, uint64_t us) noexcept nogil:
    cdef int i = 0
    while i < BOUNDS and us > bounds[i]:
        i += 1
    oi_add(&self.counts[i], 1)
    oi_add(&self.sum_us, us)
