"""The two clocks: monotonic time for durations and deadlines, Unix time for the log."""

from libc.stdint cimport uint64_t

from base.linux cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec


cdef inline uint64_t monotonic_us() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t> now.tv_sec * 1000000 + <uint64_t> now.tv_nsec // 1000


cdef inline double unix_time() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <double> now.tv_sec + <double> now.tv_nsec * 1e-9
