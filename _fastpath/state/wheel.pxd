"""The timer wheel: one entry for each connection at most, ticks of 100 ms, deadlines that are looked up late.

Moving a timer whenever a byte moves would cost more than the byte. Instead an entry stays where it is, and when its
time comes the connection computes what is really due and is put back. A deadline may therefore only ever be later
than its entry, never earlier: an entry is armed at the shortest of the enabled timeouts.
"""

from libc.stdint cimport uint32_t, uint64_t

from state.connection_slab cimport Conn
from state.reactor cimport TICK_MS, WHEEL_TICKS, WHEEL_WORDS, Wheel

cdef extern from *:
    """
    #define oi_lowest_bit(word) __builtin_ctzll(word)
    """
    int lowest_bit "oi_lowest_bit"(uint64_t word) nogil


cdef inline void wheel_disarm(Wheel *self, Conn *conn) noexcept nogil:
    cdef uint32_t bucket = <uint32_t> (conn.timer_tick & (WHEEL_TICKS - 1))
    if conn.timer_tick == 0:
        return
    if conn.timer_prev != NULL:
        conn.timer_prev.timer_next = conn.timer_next
    else:
        self.buckets[bucket] = conn.timer_next
        if conn.timer_next == NULL:
            self.filled[bucket >> 6] &= ~(<uint64_t> 1 << (bucket & 63))
    if conn.timer_next != NULL:
        conn.timer_next.timer_prev = conn.timer_prev
    conn.timer_next = NULL
    conn.timer_prev = NULL
    conn.timer_tick = 0


cdef inline void wheel_arm(Wheel *self, Conn *conn, uint64_t now_ms, uint64_t delay_ms) noexcept nogil:
    """Serve `conn` in `delay_ms` or up to 100 ms later; a long delay is served early and has to be armed again."""
    cdef uint64_t tick = (now_ms + delay_ms) // TICK_MS + 1
    cdef uint32_t bucket
    if tick >= self.tick + WHEEL_TICKS:
        tick = self.tick + WHEEL_TICKS - 1
    if tick <= self.tick:
        tick = self.tick + 1
    if conn.timer_tick == tick:
        return
    wheel_disarm(self, conn)
    bucket = <uint32_t> (tick & (WHEEL_TICKS - 1))
    conn.timer_tick = tick
    conn.timer_next = self.buckets[bucket]
    if conn.timer_next != NULL:
        conn.timer_next.timer_prev = conn
    self.buckets[bucket] = conn
    self.filled[bucket >> 6] |= <uint64_t> 1 << (bucket & 63)


cdef inline uint64_t wheel_next(const Wheel *self) noexcept nogil:
    """The tick of the first bucket that is not empty; 0 if all are."""
    cdef uint32_t start = <uint32_t> ((self.tick + 1) & (WHEEL_TICKS - 1))
    cdef uint32_t step
    cdef uint32_t place
    cdef uint64_t word
    for step in range(WHEEL_WORDS + 1):
        place = ((start >> 6) + step) & (WHEEL_WORDS - 1)
        word = self.filled[place]
        if step == 0:
            word &= ~<uint64_t> 0 << (start & 63)
        elif step == WHEEL_WORDS:
            word &= ~(~<uint64_t> 0 << (start & 63))
        if word:
            place = place * 64 + <uint32_t> lowest_bit(word)
            return self.tick + 1 + ((place - start) & (WHEEL_TICKS - 1))
    return 0
