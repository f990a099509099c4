"""The ready list: directions that can move and wait for nothing but their turn."""

from state.connection_slab cimport Dir
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
    """Let `flow` have a turn: at the tail of the small ones, or of the bulk."""
    if flow.queued:
        return
    flow.queued = 2 if flow.bulk else 1
    queue_append(&reactor.bulk if flow.bulk else &reactor.quick, flow)


cdef inline void ready_remove(Reactor *reactor, Dir *flow) noexcept nogil:
    if flow.queued:
        queue_cut(&reactor.bulk if flow.queued == 2 else &reactor.quick, flow)
        flow.queued = 0
