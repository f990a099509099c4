"""Polling for a moment before sleep, if messages come so fast that waking up would cost more than waiting.

A sleeping thread is woken through the scheduler and, on an idle core, out of a halt: several microseconds each time,
far more in a virtual machine. A reactor polls while the recent gaps between events were shorter than `spin_us`, gives
its core to threads that wait for it between two looks, and pays for what it polled in vain from a credit, so that this
never takes more than a share of a core. Polling that found something is not charged: it stood in for a sleep and a
wake-up. One that finds nothing loses the habit at once. (64-byte round trips on one connection over veth, two cores of
a virtual machine, medians: 67 us without, 38 us with, if client and server run on other cores, at 30 and 39 us of
processor time each; charging all polling left 71 us. If the scheduler keeps all three on one core: 28 and 38 us.)

If client or server run on the same core, each poll yields to them and finds its event when they have run. That is no
worse than a sleep (25 us a round trip, and 28 if polling pauses then). But if others compute there, the yield gives
them a whole slice: 99 of 100 round trips took up to 3.5 ms, and 1.4 ms with pauses. So a poll that lent its core for
LENT_STEP_US ends, and if that is so of more than every fourth one polling pauses, for PAUSE_US and longer each time,
and is tried again then by a single poll. The wait for an answer and the wait for the next request have their habits
apart: the server may share the core, and the client not.

If a wake finds several events, more gather while a reactor sleeps, and are served in one go: then it does not poll.

Bulk is not made to gather before it wakes a reactor: a wake-up finds about a megabyte as it is, so SO_RCVLOWAT with a
deadline of 50 to 200 us changes nothing (0.12 s a gigabyte on one stream with and without).
"""

from libc.stdint cimport uint64_t

from base.clock cimport monotonic_us
from base.atomic cimport oi_get, oi_put
from base.linux cimport RUSAGE_THREAD, c_epoll_wait, getrusage, rusage, sched_yield
from state.reactor cimport EVENTS_MAX, Habit, Reactor

cdef enum:
    SPIN_SHARE_PERCENT = 20     # of a core, polled in vain at most
    SPIN_CREDIT_US = 20000      # saved up at most
    BULK_QUIET_US = 2000        # no polling so soon after a large read: bulk gains nothing and pays (0.09 -> 0.12 s/GB)
    CROWD_UNIT = 16             # one event, in the moving average of the events of a wake
    CROWD_MAX = 24              # an event and a half: above it no polling (8 connections: 1.36 -> 1.05 of rinetd's CPU)
    GAP_CAP = 4                 # a gap counts as at most this many `spin_us`, so that the habit comes back soon
    LENT_STEP_US = 200          # more than a peer needs for a message; with 3, p99 on quiet cores: 67 -> 112 us
    LENT_UNIT = 256             # one poll, in the moving average of those that lent the core
    LENT_MAX = 64               # every fourth
    PAUSE_US = 100000
    PAUSE_MOST_US = 1600000


cdef inline bint core_was_lent(Reactor *self) noexcept nogil:
    """Whether the thread was off its core since this was last asked: a yield that switches counts as involuntary."""
    cdef rusage usage
    cdef uint64_t before = self.switches
    getrusage(RUSAGE_THREAD, &usage)
    self.switches = <uint64_t> usage.ru_nivcsw
    return self.switches != before


cdef inline void habit_learn(Reactor *self, Habit *habit, bint lent, uint64_t now_us) noexcept nogil:
    """A poll is over: pause, if too many have lent their core."""
    habit.lent = (habit.lent * 7 + (LENT_UNIT if lent else 0)) // 8
    if not lent:
        habit.pause_us = 0
    elif habit.lent > LENT_MAX:
        habit.lent = LENT_MAX       # so that one poll after the pause decides
        habit.pause_us = min(habit.pause_us * 2, <uint64_t> PAUSE_MOST_US) if habit.pause_us else PAUSE_US
        habit.paused_us = now_us + habit.pause_us
        oi_put(&self.poll_paused_us, habit.paused_us)
        oi_put(&self.stats.poll_pauses, oi_get(&self.stats.poll_pauses) + 1)


cdef inline int poll_a_while(Reactor *self, Habit *habit, uint64_t spin_us, uint64_t begin_us) noexcept nogil:
    """Look again and again, at most `spin_us` long; the number of events, 0 for none."""
    cdef int count
    cdef uint64_t now_us
    cdef uint64_t step_us = begin_us
    cdef bint lent = False
    while True:     # bounded by spin_us
        count = c_epoll_wait(self.epoll_fd, self.events, EVENTS_MAX, 0)
        now_us = monotonic_us()
        if now_us - step_us >= LENT_STEP_US:
            lent = core_was_lent(self)
        if count != 0 or lent or now_us - begin_us >= spin_us or oi_get(&self.inbox.rung):
            break
        step_us = now_us
        sched_yield()
    habit_learn(self, habit, lent, now_us)
    if count == 0:
        now_us -= begin_us
        self.spin_credit_us = self.spin_credit_us - now_us if self.spin_credit_us > now_us else 0
    oi_put(&self.stats.spins, oi_get(&self.stats.spins) + 1)
    return count


cdef inline int wait_for_events(Reactor *self, int sleep_ms) noexcept nogil:
    """epoll_wait, with or without polling before; the number of events or -1."""
    cdef uint64_t spin_us = oi_get(&self.hub.spin_us)
    cdef Habit *habit = &self.habits[self.moved_way]
    cdef uint64_t begin_us, gap_us
    cdef int count = 0
    if sleep_ms == 0 or spin_us == 0:
        return c_epoll_wait(self.epoll_fd, self.events, EVENTS_MAX, sleep_ms)
    begin_us = monotonic_us()
    self.spin_credit_us += (begin_us - self.spin_mark_us) * SPIN_SHARE_PERCENT // 100
    self.spin_mark_us = begin_us
    if self.spin_credit_us > SPIN_CREDIT_US:
        self.spin_credit_us = SPIN_CREDIT_US
    if (
        habit.gap_us < spin_us and self.crowd < CROWD_MAX and self.spin_credit_us > spin_us
        and begin_us - self.bulk_us > BULK_QUIET_US and begin_us >= habit.paused_us
    ):
        count = poll_a_while(self, habit, spin_us, begin_us)
    if count == 0:
        count = c_epoll_wait(self.epoll_fd, self.events, EVENTS_MAX, sleep_ms)
    gap_us = monotonic_us() - begin_us
    if gap_us > spin_us * GAP_CAP:
        gap_us = spin_us * GAP_CAP
    habit.gap_us = (habit.gap_us * 3 + gap_us) // 4
    if count > 0:
        self.crowd = (self.crowd * 7 + <uint64_t> count * CROWD_UNIT) // 8
    return count
