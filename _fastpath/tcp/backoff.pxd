"""When descriptors or memory run out: accepting pauses on a timer, says so once, and recovers. The rest goes on.

At the limit each session that ends lets one in and the next one fails again, many times a second. So that it goes well
again is said only once nothing ran out for CALM_MS, which is longer than any pause.
"""

from libc.stdint cimport uint64_t

from base.atomic cimport oi_get, oi_put, oi_swap
from state.report cimport record_begin, record_push
from base.linux cimport EMFILE, ENFILE
from tcp.reclaim cimport pool_empty
from shared.ring cimport RECORD_ACCEPT_RESUMED, RECORD_ACCEPT_TROUBLE, Record
from state.reactor cimport Reactor

cdef enum:
    PAUSE_MIN_MS = 50           # doubled at each failure in a row ...
    PAUSE_MAX_MS = 1000         # ... up to this
    CALM_MS = 3000


cdef inline void say(Reactor *reactor, int kind, int error) noexcept nogil:
    cdef Record *record = record_begin(reactor, kind, NULL)
    if record != NULL:
        record.error = error
        record_push(reactor)


cdef inline void accept_pause(Reactor *reactor, int error) noexcept nogil:
    """No more accepting for a while."""
    reactor.accept_pause_ms *= 2
    if reactor.accept_pause_ms < PAUSE_MIN_MS:
        reactor.accept_pause_ms = PAUSE_MIN_MS
    if reactor.accept_pause_ms > PAUSE_MAX_MS:
        reactor.accept_pause_ms = PAUSE_MAX_MS
    reactor.accept_retry_ms = reactor.now_ms + reactor.accept_pause_ms
    if error == EMFILE or error == ENFILE:
        pool_empty(reactor)
    oi_put(&reactor.hub.trouble_ms, reactor.now_ms)
    if oi_swap(&reactor.hub.accept_paused, 1) == 0:
        reactor.calm_ms = reactor.now_ms + CALM_MS
        say(reactor, RECORD_ACCEPT_TROUBLE, error)


cdef inline void accept_recovered(Reactor *reactor) noexcept nogil:
    """A connection was accepted: the next pause is a short one."""
    reactor.accept_pause_ms = 0


cdef inline void accept_calm(Reactor *reactor) noexcept nogil:
    """Look whether nothing ran out any more in any reactor. The reactor that reported the trouble reports its end."""
    cdef uint64_t calm_ms = oi_get(&reactor.hub.trouble_ms) + CALM_MS
    if reactor.now_ms < calm_ms:
        reactor.calm_ms = calm_ms
        return
    reactor.calm_ms = 0
    oi_swap(&reactor.hub.accept_paused, 0)
    say(reactor, RECORD_ACCEPT_RESUMED, 0)
