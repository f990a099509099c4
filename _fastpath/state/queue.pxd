"""The ready list: directions that can move and wait for nothing but their turn."""

from state.connection_slab cimport QUEUED_BULK, QUEUED_QUICK, QUEUED_THROTTLED, Dir
from state.reactor cimport Queue, Reactor


cdef inline void queue_append(Queue *self, Dir *flow) noexcept nogil:
    flow.next = NULL
    flow.prev = self.last
    if self.last != NULL:
        self.last.next = flow
    else:
        self.first = flow
    self.last = flow


cdef inline void queue_cut(Queue *self, Dir *flow) noexcept nogil:
    if flow.prev != NULL:
        flow.prev.next = flow.next
    else:
        self.first = flow.next
    if flow.next != NULL:
        flow.next.prev = flow.prev
    else:
        self.last = flow.prev
    flow.next = NULL
    flow.prev = NULL


cdef inline void ready_add(Reactor *reactor, Dir *flow) noexcept nogil:
    """Let `flow` have a turn: at the tail of the small ones, or of the bulk. A throttled one waits for its time."""
    if flow.queued:
        return
    flow.queued = QUEUED_BULK if flow.bulk else QUEUED_QUICK
    queue_append(&reactor.bulk if flow.bulk else &reactor.quick, flow)


cdef inline void ready_remove(Reactor *reactor, Dir *flow) noexcept nogil:
    if flow.queued == QUEUED_THROTTLED:
        queue_cut(&reactor.throttled[flow.conn.throttle.slot[flow.way]], flow)
        reactor.throttled_count -= 1
    elif flow.queued:
        queue_cut(&reactor.bulk if flow.queued == QUEUED_BULK else &reactor.quick, flow)
    flow.queued = 0
