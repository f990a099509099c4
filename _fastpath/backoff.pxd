"""When descriptors or memory run out: accepting pauses on a timer, says so once, and recovers. The rest goes on."""

from libc.stdint cimport uint64_t

from atomic cimport oi_get, oi_swap
from ending cimport record_slot
from linux cimport EMFILE, ENFILE, ENOBUFS, ENOMEM
from ring cimport RECORD_ACCEPT_RESUMED, RECORD_ACCEPT_TROUBLE, Record, ring_push
from state cimport Reactor

cdef enum:
    PAUSE_MIN_MS = 50           # doubled at each failure in a row ...
    PAUSE_MAX_MS = 1000         # ... up to this


cdef inline bint is_shortage(int error) noexcept nogil:
    return error == EMFILE or error == ENFILE or error == ENOBUFS or error == ENOMEM


cdef inline void say(Reactor *reactor, int kind, int error) noexcept nogil:
    cdef Record *record = record_slot(reactor)
    if record != NULL:
        record.kind = kind
        record.error = error
        ring_push(&reactor.ring, &reactor.hub.bell)


cdef inline void accept_pause(Reactor *reactor, int error) noexcept nogil:
    """No more accepting for a while."""
    reactor.accept_pause_ms *= 2
    if reactor.accept_pause_ms < PAUSE_MIN_MS:
        reactor.accept_pause_ms = PAUSE_MIN_MS
    if reactor.accept_pause_ms > PAUSE_MAX_MS:
        reactor.accept_pause_ms = PAUSE_MAX_MS
    reactor.accept_retry_ms = reactor.now_ms + reactor.accept_pause_ms
    if oi_swap(&reactor.hub.troubled, 1) == 0:
        say(reactor, RECORD_ACCEPT_TROUBLE, error)


cdef inline void accept_recovered(Reactor *reactor) noexcept nogil:
    """A connection was accepted and has its upstream socket."""
    reactor.accept_pause_ms = 0
    if oi_get(&reactor.hub.troubled) and oi_swap(&reactor.hub.troubled, 0):
        say(reactor, RECORD_ACCEPT_RESUMED, 0)
