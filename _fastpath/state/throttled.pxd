"""Directions that wait for their time, because a bucket has nothing for them: in slots of four milliseconds.

They hold no buffer and no pipe, no edge moves them, and there is no timer for each: the reactor sleeps until the first
slot that has somebody in it.
"""

from libc.stdint cimport uint32_t, uint64_t

from base.linux cimport c_assert
from state.connection_slab cimport QUEUED_THROTTLED, Dir
from state.queue cimport queue_append, queue_cut, ready_add
from state.reactor cimport Reactor, THROTTLE_SLOTS, THROTTLE_TICK_US, THROTTLE_WORDS
from state.wheel cimport lowest_bit


cdef inline void throttled_add(Reactor *reactor, Dir *flow) noexcept nogil:
    """Let a direction wait until its time, or come back early if that is further than the slots reach."""
    cdef uint64_t tick = flow.conn.throttle.until_us[flow.way] // THROTTLE_TICK_US + 1
    cdef uint64_t now_tick = reactor.now_us // THROTTLE_TICK_US
    cdef uint32_t slot
    c_assert(flow.queued == 0 and flow.pend == 0 and not flow.eof)
    if reactor.throttled_count == 0:
        reactor.throttled_tick = now_tick
    if tick <= reactor.throttled_tick:
        tick = reactor.throttled_tick + 1
    if tick >= reactor.throttled_tick + THROTTLE_SLOTS:
        tick = reactor.throttled_tick + THROTTLE_SLOTS - 1
    slot = <uint32_t> (tick & (THROTTLE_SLOTS - 1))
    flow.queued = QUEUED_THROTTLED
    flow.conn.throttle.slot[flow.way] = slot
    queue_append(&reactor.throttled[slot], flow)
    reactor.throttled_filled[slot >> 6] |= <uint64_t> 1 << (slot & 63)
    reactor.throttled_count += 1


cdef inline void throttled_turn(Reactor *reactor) noexcept nogil:
    """Make those ready whose time has come."""
    cdef uint64_t target = reactor.now_us // THROTTLE_TICK_US
    cdef uint32_t slot
    cdef Dir *flow
    if target > reactor.throttled_tick + THROTTLE_SLOTS:    # a machine that slept: one round serves all
        reactor.throttled_tick = target - THROTTLE_SLOTS
    while reactor.throttled_tick < target and reactor.throttled_count:
        reactor.throttled_tick += 1
        slot = <uint32_t> (reactor.throttled_tick & (THROTTLE_SLOTS - 1))
        reactor.throttled_filled[slot >> 6] &= ~(<uint64_t> 1 << (slot & 63))
        while reactor.throttled[slot].first != NULL:    # bounded: nobody is added to a slot that is served
            flow = reactor.throttled[slot].first
            queue_cut(&reactor.throttled[slot], flow)
            reactor.throttled_count -= 1
            flow.queued = 0
            ready_add(reactor, flow)


cdef inline uint64_t throttled_next_ms(const Reactor *reactor) noexcept nogil:
    """When the first one is due; at least one waits."""
    cdef uint32_t start = <uint32_t> ((reactor.throttled_tick + 1) & (THROTTLE_SLOTS - 1))
    cdef uint32_t step, place
    cdef uint64_t word
    for step in range(THROTTLE_WORDS + 1):
        place = ((start >> 6) + step) & (THROTTLE_WORDS - 1)
        word = reactor.throttled_filled[place]
        if step == 0:
            word &= ~<uint64_t> 0 << (start & 63)
        elif step == THROTTLE_WORDS:
            word &= ~(~<uint64_t> 0 << (start & 63))
        if word:
            place = place * 64 + <uint32_t> lowest_bit(word)
            place = (place - start) & (THROTTLE_SLOTS - 1)
            return ((reactor.throttled_tick + 1 + place) * THROTTLE_TICK_US + 999) // 1000
    return reactor.now_ms + 1
