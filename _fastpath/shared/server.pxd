"""A server of a group as all reactors know it: its state, its weight, and the sessions that have selected it.

It outlives groups, policies and reloads. The control plane sets state and weight; reactors count sessions and connects
that failed. Nothing is locked: a selection is one exchange of `live`.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from base.atomic cimport oi_add, oi_get, oi_put, oi_raise_by, oi_replace, oi_see, oi_show, oi_swap

cdef extern from *:
    """
    #define OI_STRIDE ((uint64_t) 1 << 36)
    """
    const uint64_t STRIDE "OI_STRIDE"

cdef enum:
    SERVER_UP = 0
    SERVER_DOWN = 1             # by its checks
    SERVER_EJECTED = 2          # because connects failed
    SERVER_DRAIN = 3            # no new sessions; those that live go on
    SERVER_MAINT = 4            # by an operator: no sessions

    WEIGHT_MAX = 256
    FULL_WEIGHT = 1000          # weights are in thousandths, as in `oinetd.upstream.balance`
    RAMP_FROM = 100             # a slow start begins with so much of FULL_WEIGHT

    OVERDUE_BITS = 32           # of the count in `Server.overdue`
    MARKS = 254                 # what tells one count of overdue connects from the next
    PATIENCE_MIN_MS = 100       # the least time until a connect is overdue; RFC 8305 recommends no less
    PATIENCE_MS = 250           # if no connect to the server has succeeded yet
    PATIENCE_TIMES = 4          # of what connects took of late
    TOOK_SHARE = 8              # a shorter connect lowers that by so much of the difference

cdef struct Server:
    uint64_t references         # atomic
    uint64_t tag                # the control plane's name for it
    uint64_t state              # atomic
    uint64_t weight             # atomic: 0 is drain
    uint64_t overdue            # atomic: connects that are overdue since one succeeded; above it, how often one did
    uint64_t took_ms            # atomic: what connects took of late, and 1; 0 is not known
    uint64_t live_max           # atomic: 0 is no bound
    uint64_t ramp_ms            # atomic: when a slow start began, on the monotonic clock; 0 is none
    uint64_t failures           # atomic: connects that failed in a row
    uint64_t failed_ms          # atomic: when the last one failed; 0 is never
    uint64_t failed             # atomic: connects that failed, ever
    uint64_t told               # atomic: the control plane knows that it fails
    uint64_t waiting            # atomic: a reactor stopped accepting because the server is full
    uint8_t apart[64]           # what follows is written at each selection: not in the line of what is above
    uint64_t live               # atomic: sessions that have selected it, also those that are still connecting
    uint64_t passed             # atomic: how far it has come in the round of `roundrobin`
    uint64_t selected           # atomic: how often it was selected, ever


cdef inline Server *server_new(uint64_t tag, uint64_t weight) noexcept nogil:
    """A server that is up and has one reference; NULL if there is no memory."""
    cdef Server *self = <Server *> calloc(1, sizeof(Server))
    if self != NULL:
        self.references = 1
        self.tag = tag
        self.weight = weight
        self.passed = STRIDE // ((weight if weight else 1) * FULL_WEIGHT) // 2
    return self


cdef inline void server_hold(Server *self) noexcept nogil:
    oi_add(&self.references, 1)


cdef inline void server_drop(Server *self) noexcept nogil:
    if oi_raise_by(&self.references, <uint64_t> -1) == 1:
        free(self)


cdef inline bint server_is_usable(const Server *self) noexcept nogil:
    """Whether it takes new sessions, room or not."""
    return oi_get(&self.state) == SERVER_UP and oi_get(&self.weight) != 0


cdef inline bint server_has_gone(const Server *self) noexcept nogil:
    """Whether a UDP session that has selected it needs another one."""
    cdef uint64_t state = oi_get(&self.state)
    return state != SERVER_UP and state != SERVER_DRAIN


cdef inline bint server_has_room(const Server *self, uint64_t live) noexcept nogil:
    cdef uint64_t live_max = oi_get(&self.live_max)
    return live_max == 0 or live < live_max


cdef inline uint64_t server_weight(const Server *self, uint64_t slow_ms, uint64_t now_ms) noexcept nogil:
    """Its weight in thousandths; during a slow start of `slow_ms` it grows by the clock."""
    cdef uint64_t weight = oi_get(&self.weight)
    cdef uint64_t since_ms = oi_get(&self.ramp_ms)
    cdef uint64_t age_ms
    if slow_ms == 0 or since_ms == 0:
        return weight * FULL_WEIGHT
    age_ms = now_ms - since_ms if now_ms > since_ms else 0
    if age_ms >= slow_ms:
        return weight * FULL_WEIGHT
    return weight * (RAMP_FROM + (FULL_WEIGHT - RAMP_FROM) * age_ms // slow_ms)


cdef inline bint server_enter(Server *self, uint64_t seen) noexcept nogil:
    """Select it, if it still has the `seen` sessions by which it was chosen."""
    if not oi_replace(&self.live, seen, seen + 1):
        return False
    oi_add(&self.selected, 1)
    return True


cdef inline bint server_leave(Server *self) noexcept nogil:
    """A session that selected it has ended, or tries another one; true if a reactor waited for room."""
    oi_raise_by(&self.live, <uint64_t> -1)
    return oi_get(&self.live_max) != 0 and oi_see(&self.waiting) != 0 and oi_swap(&self.waiting, 0) != 0


cdef inline bint server_is_full(Server *self) noexcept nogil:
    """Whether it has no room; the next session that leaves it then sees that a reactor waits."""
    if server_has_room(self, oi_see(&self.live)):
        return False
    oi_show(&self.waiting, 1)
    return not server_has_room(self, oi_see(&self.live))


cdef inline uint64_t server_failed(Server *self, uint64_t now_ms) noexcept nogil:
    """A connect failed; how many failed in a row."""
    oi_add(&self.failed, 1)
    oi_put(&self.failed_ms, now_ms)
    return oi_add(&self.failures, 1) + 1


cdef inline bint server_worked(Server *self) noexcept nogil:
    """It took a connection, or answered; whether the control plane is to know."""
    cdef uint64_t word
    if oi_get(&self.failures):
        oi_put(&self.failures, 0)
    while True:     # ends: each failure means that another thread succeeded
        word = oi_get(&self.overdue)
        if <uint32_t> word == 0 or oi_replace(&self.overdue, word, ((word >> OVERDUE_BITS) + 1) << OVERDUE_BITS):
            break
    return oi_get(&self.told) != 0


# Connects that get no answer. A few of them wait on, so that it is found out whether the server is gone; meanwhile new
# sessions go elsewhere. `LocalLoad` in `oinetd.upstream.load` does the same.

cdef inline uint64_t server_overdue(const Server *self) noexcept nogil:
    return <uint32_t> oi_get(&self.overdue)


cdef inline bint server_is_silent(const Server *self, uint64_t limit) noexcept nogil:
    """Whether the connects that are overdue would eject it if they failed, which takes `limit` in a row; 0 is never."""
    cdef uint64_t overdue = server_overdue(self)
    return overdue != 0 and limit != 0 and overdue + oi_get(&self.failures) >= limit


cdef inline uint8_t server_wait(Server *self, uint64_t limit) noexcept nogil:
    """Count a connect as overdue that may wait on; the mark for `server_wait_over`, or 0 if enough wait already."""
    cdef uint64_t word
    while True:     # ends: each failure means that another thread succeeded
        word = oi_get(&self.overdue)
        if <uint32_t> word and <uint32_t> word + oi_get(&self.failures) >= limit:
            return 0
        if oi_replace(&self.overdue, word, word + 1):
            return <uint8_t> (1 + (word >> OVERDUE_BITS) % MARKS)


cdef inline void server_wait_over(Server *self, uint8_t mark) noexcept nogil:
    """An overdue connect has ended. Nothing is left of its count if one has succeeded since."""
    cdef uint64_t word
    while True:     # ends: each failure means that another thread succeeded
        word = oi_get(&self.overdue)
        if <uint32_t> word == 0 or 1 + (word >> OVERDUE_BITS) % MARKS != mark:
            return
        if oi_replace(&self.overdue, word, word - 1):
            return


cdef inline void server_took(Server *self, uint64_t took_ms) noexcept nogil:
    """It took a connection after this time. A longer time counts at once, a shorter one by and by."""
    cdef uint64_t before = oi_get(&self.took_ms), now = took_ms + 1
    if now < before:
        now = before - (before - now + TOOK_SHARE - 1) // TOOK_SHARE
    if now != before:
        oi_put(&self.took_ms, now)


cdef inline uint64_t server_patience_ms(const Server *self) noexcept nogil:
    """After which time a connect to it is overdue."""
    cdef uint64_t took_ms = oi_get(&self.took_ms)
    if took_ms == 0:
        return PATIENCE_MS
    return max(PATIENCE_TIMES * (took_ms - 1), <uint64_t> PATIENCE_MIN_MS)
