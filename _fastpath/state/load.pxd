"""How loaded a reactor is: the processor time of its thread, as thousandths of a core, over windows of 100 ms.

As few reactors as the load needs: 64 connections of 64-byte round trips with client and server on the same two cores
take 13.8 us of processor time each with two reactors, and 11.3 us with one, which finds more events at each wake. So a
reactor serves alone up to LOAD_HIGH. Above it the control plane is told at each window; it lets another one serve if
the machine has a core for it, and has connections moved (`oinetd/lanes/native/packing.py`).
"""

from libc.stdint cimport uint64_t

from base.atomic cimport oi_get, oi_put, oi_see
from base.linux cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec
from shared.ring cimport RECORD_LOADED, RING_RESERVE, Record, ring_room
from state.reactor cimport Hub, Reactor
from state.report cimport record_begin, record_push

cdef enum:
    LOAD_WINDOW_US = 100000
    LOAD_HIGH = 700             # thousandths of a core: above it a reactor is too full for more


cdef inline void load_measure(Reactor *self) noexcept nogil:
    """A window is over. One in which the reactor slept for longer is as long as that."""
    cdef timespec now
    cdef uint64_t cpu_us
    cdef uint64_t load
    cdef Record *record
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
    cpu_us = <uint64_t> now.tv_sec * 1000000 + <uint64_t> now.tv_nsec // 1000
    load = (cpu_us - self.window_cpu_us) * 1000 // (self.now_us - self.window_us)
    self.window_us = self.now_us
    self.window_cpu_us = cpu_us
    oi_put(&self.load, load)
    if load < LOAD_HIGH or self.hub.reactor_count == 1 or ring_room(&self.ring) < RING_RESERVE:
        return
    record = record_begin(self, RECORD_LOADED, NULL)
    record.token = load
    record_push(self)


cdef inline Reactor *reactor_for_new(Hub *hub) noexcept nogil:
    """The reactor for a new connection: of those that serve the most loaded below LOAD_HIGH, else the least loaded."""
    cdef uint64_t serving = oi_see(&hub.serving)
    cdef Reactor *best = hub.reactors[0]
    cdef uint64_t least = oi_get(&best.load)
    cdef uint64_t load, i
    for i in range(1, serving):
        load = oi_get(&hub.reactors[i].load)
        if (load > least) if load < LOAD_HIGH and least < LOAD_HIGH else (load < least):
            best = hub.reactors[i]
            least = load
    return best
