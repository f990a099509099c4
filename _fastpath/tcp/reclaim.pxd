"""Pipes give way to sessions: when no descriptor is left for a client, pipes are taken back, idle ones first.

What a pipe in use holds moves into a block of memory, and its connection copies from then on. So every descriptor of
the budget can become a session's, however many clients do not read.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from base.atomic cimport oi_get, oi_replace, oi_see
from tcp.flow cimport flow_unpipe
from shared.gate cimport Budget, budget_is_short
from shared.inbox cimport MESSAGE_PIPES, Message, inbox_post
from state.pool cimport holder_release, pool_trim
from state.connection_slab cimport Dir
from state.reactor cimport Hub, Pipe, Reactor

cdef enum:
    RECLAIM_PIPES = 16          # in one go, each a copy of what it holds: some 50 us for a full one
    ASK_MS = 50                 # between two messages to the other reactors


cdef inline void pipes_reclaim(Reactor *reactor, uint64_t cost) noexcept nogil:
    """Close idle pipes of this reactor, and then some in use, until a session of `cost` descriptors has room."""
    cdef Budget *budget = reactor.hub.gate.budget
    cdef Pipe *pipe
    cdef Dir *owner
    cdef int left = RECLAIM_PIPES
    pool_trim(reactor, 0)
    while left > 0 and reactor.pool.busy != NULL and budget_is_short(budget, cost):
        left -= 1
        pipe = reactor.pool.busy
        owner = pipe.owner
        if owner.pend == 0:
            holder_release(reactor, owner)
            pool_trim(reactor, 0)
        elif flow_unpipe(reactor, owner) != 0:
            return      # no memory: it keeps its pipe


cdef inline void pipes_ask(Reactor *reactor) noexcept nogil:
    """Have the other reactors give pipes back; what they free wakes the reactors that wait for it."""
    cdef Hub *hub = reactor.hub
    cdef uint64_t asked_ms = oi_get(&hub.pipes_asked_ms)
    cdef Message message
    cdef uint64_t i
    if reactor.now_ms < asked_ms + ASK_MS or not oi_replace(&hub.pipes_asked_ms, asked_ms, reactor.now_ms):
        return
    memset(&message, 0, sizeof(message))
    message.kind = MESSAGE_PIPES
    for i in range(oi_see(&hub.reactor_count)):
        if hub.reactors[i] != reactor:
            inbox_post(&hub.reactors[i].inbox, &message)


cdef inline bint descriptors_make_room(Reactor *reactor, uint64_t cost) noexcept nogil:
    """Take pipes back if the budget has no room for a session because of them; whether it has now."""
    cdef Budget *budget = reactor.hub.gate.budget
    if not budget_is_short(budget, cost):
        return True
    if oi_get(&budget.pipes) == 0:
        return False
    pipes_reclaim(reactor, cost)
    if not budget_is_short(budget, cost):
        return True
    pipes_ask(reactor)
    # Another reactor may take what they free, and a message may find no room: look again.
    reactor.accept_retry_ms = reactor.now_ms + ASK_MS
    return False


cdef inline void pool_empty(Reactor *reactor) noexcept nogil:
    """The process or the machine has no descriptor left: no pipe stays idle, here and in the other reactors."""
    pool_trim(reactor, 0)
    pipes_ask(reactor)
