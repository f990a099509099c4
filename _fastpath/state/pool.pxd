"""Where pending bytes stay: pipes and blocks, taken when a write was cut short or splice is used, given back at once.

One splice reads at most 4 KiB for each free slot of a pipe, whatever a slot could hold. Pipes of 64 KiB take twice the
processor time of 256 KiB (0.24 and 0.13 s a gigabyte); 512 KiB and 1 MiB take what 256 KiB do.

A pipe is given back only when it is empty; otherwise both ends are closed, for its bytes would come out in somebody
else's connection.

Pipes take their descriptors from the budget of the sessions, and only as long as an eighth of it is free: a connection
without a pipe copies. Idle ones that were not needed for a while are closed.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from base.atomic cimport oi_add, oi_get
from shared.gate cimport Budget, budget_give, budget_take
from base.linux cimport F_GETPIPE_SZ, F_SETPIPE_SZ, O_CLOEXEC, O_NONBLOCK, c_assert, c_close, c_fcntl, c_pipe2
from state.connection_slab cimport Dir, HOLDS_BLOCK, HOLDS_NOTHING, HOLDS_PIPE
from state.reactor cimport BLOCK_CLASSES, Block, Pipe, Pool, Reactor

cdef enum:
    PIPES_MAX = 4096            # of one reactor: two descriptors each
    PIPE_DESCRIPTORS = 2
    PIPE_SPARE_SHARE = 8        # the part of the budget that pipes leave to sessions
    POOL_TRIM_MS = 2000         # idle pipes that were not needed for so long are closed
    PIPES_IDLE_MAX = 64         # kept for the next; what a full one holds in the kernel is given back when it is empty
    PIPE_BYTES_MIN = 65536      # below that the user's soft limit of pages is used up and copying is better
    POOL_DRY_MS = 1000          # how long no pipe is asked for after one was refused
    BLOCK_IDLE_BYTES = 1048576  # kept of each size class


cdef inline uint8_t *block_bytes(Block *self) noexcept nogil:
    return <uint8_t *> self + sizeof(Block)


cdef inline uint32_t class_bytes(int size_class) noexcept nogil:
    return <uint32_t> 4096 << (2 * size_class)


cdef inline Block *block_take(Pool *pool, uint32_t size) noexcept nogil:
    """A block of at least `size` bytes; NULL if there is no memory."""
    cdef int size_class = 0
    cdef Block *block
    while size_class < BLOCK_CLASSES and class_bytes(size_class) < size:
        size_class += 1
    if size_class == BLOCK_CLASSES:
        block = <Block *> malloc(sizeof(Block) + size)
        if block != NULL:
            block.size_class = -1
        return block
    block = pool.blocks[size_class]
    if block != NULL:
        pool.blocks[size_class] = block.next
        pool.block_counts[size_class] -= 1
        return block
    block = <Block *> malloc(sizeof(Block) + class_bytes(size_class))
    if block != NULL:
        block.size_class = size_class
    return block


cdef inline void block_give(Pool *pool, Block *block) noexcept nogil:
    cdef int size_class = block.size_class
    if size_class < 0 or (<uint32_t> pool.block_counts[size_class] + 1) * class_bytes(size_class) > BLOCK_IDLE_BYTES:
        free(block)
        return
    block.next = pool.blocks[size_class]
    pool.blocks[size_class] = block
    pool.block_counts[size_class] += 1


cdef inline void pipe_leaves(Pool *pool, Pipe *pipe) noexcept nogil:
    """Take a pipe out of those in use, if it is one."""
    if pipe.owner == NULL:
        return
    if pipe.prev != NULL:
        pipe.prev.next = pipe.next
    else:
        c_assert(pool.busy == pipe)
        pool.busy = pipe.next
    if pipe.next != NULL:
        pipe.next.prev = pipe.prev
    pipe.owner = NULL
    pipe.next = NULL
    pipe.prev = NULL


cdef inline Pipe *pipe_enters(Pool *pool, Pipe *pipe, Dir *owner) noexcept nogil:
    """Put a pipe among those in use."""
    pipe.owner = owner
    pipe.prev = NULL
    pipe.next = pool.busy
    if pool.busy != NULL:
        pool.busy.prev = pipe
    pool.busy = pipe
    return pipe


cdef inline bint pipe_budget_take(Reactor *reactor) noexcept nogil:
    """Take the descriptors of a pipe, unless sessions may need them soon."""
    cdef Budget *budget = reactor.hub.gate.budget
    if budget == NULL:
        return True
    if not budget_take(budget, PIPE_DESCRIPTORS, oi_get(&budget.total) // PIPE_SPARE_SHARE):
        return False
    oi_add(&budget.pipes, PIPE_DESCRIPTORS)
    return True


cdef inline void pipe_budget_give(Reactor *reactor) noexcept nogil:
    cdef Budget *budget = reactor.hub.gate.budget
    if budget == NULL:
        return
    oi_add(&budget.pipes, <uint64_t> 0 - PIPE_DESCRIPTORS)
    if budget_give(budget, PIPE_DESCRIPTORS):
        reactor.room_made = True


cdef inline void pipe_destroy(Reactor *reactor, Pipe *pipe) noexcept nogil:
    pipe_leaves(&reactor.pool, pipe)
    c_close(pipe.read_fd)
    c_close(pipe.write_fd)
    free(pipe)
    reactor.pool.pipe_count -= 1
    pipe_budget_give(reactor)


cdef inline void pipe_size(Pipe *pipe, int asked_bytes) noexcept nogil:
    """Ask for a size and read back what there is now: the kernel may refuse, and rounds up."""
    cdef int got
    c_fcntl(pipe.write_fd, F_SETPIPE_SZ, asked_bytes)
    got = c_fcntl(pipe.write_fd, F_GETPIPE_SZ)
    pipe.asked_bytes = asked_bytes
    pipe.bytes = <uint32_t> got if got > 0 else 0


cdef inline Pipe *pipe_new(Reactor *reactor, int size_bytes) noexcept nogil:
    """A pipe of `size_bytes`, or of what the kernel gives; NULL if that is too little or nothing."""
    cdef int ends[2]
    cdef Pool *pool = &reactor.pool
    cdef Pipe *pipe = <Pipe *> calloc(1, sizeof(Pipe))
    if pipe == NULL:
        return NULL
    if pool.pipe_count >= PIPES_MAX or not pipe_budget_take(reactor):
        free(pipe)
        return NULL
    if c_pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0:
        pipe_budget_give(reactor)
        free(pipe)
        return NULL
    pool.pipe_count += 1
    pipe.read_fd = ends[0]
    pipe.write_fd = ends[1]
    pipe_size(pipe, size_bytes)
    if pipe.bytes < PIPE_BYTES_MIN and pipe.bytes < <uint32_t> size_bytes:
        pipe_destroy(reactor, pipe)
        return NULL
    oi_add(&reactor.stats.pipes, 1)
    return pipe


cdef inline Pipe *pipe_take(Reactor *reactor, int size_bytes, Dir *owner) noexcept nogil:
    """An empty pipe; NULL if there is none to be had, and then none is asked for during a second."""
    cdef Pool *pool = &reactor.pool
    cdef Pipe *pipe = pool.idle
    if pipe != NULL:
        pool.idle = pipe.next
        pool.idle_count -= 1
        if pool.idle_count < pool.idle_least:
            pool.idle_least = pool.idle_count
        if pipe.asked_bytes != size_bytes:      # rules differ; what the kernel refuses stays as it was
            pipe_size(pipe, size_bytes)
        return pipe_enters(pool, pipe, owner)
    if reactor.now_ms < pool.dry_until_ms:
        return NULL
    pipe = pipe_new(reactor, size_bytes)
    if pipe == NULL:
        pool.dry_until_ms = reactor.now_ms + POOL_DRY_MS
        return NULL
    return pipe_enters(pool, pipe, owner)


cdef inline void pipe_give(Reactor *reactor, Pipe *pipe) noexcept nogil:
    """Take back an empty pipe."""
    cdef Pool *pool = &reactor.pool
    if pool.idle_count >= PIPES_IDLE_MAX:
        pipe_destroy(reactor, pipe)
        return
    pipe_leaves(pool, pipe)
    pipe.next = pool.idle
    pool.idle = pipe
    pool.idle_count += 1
    if pool.trim_ms == 0:
        pool.trim_ms = reactor.now_ms + POOL_TRIM_MS
        pool.idle_least = 0


cdef inline void pool_trim(Reactor *reactor, int most) noexcept nogil:
    """Close idle pipes until no more than `most` are left."""
    cdef Pool *pool = &reactor.pool
    cdef Pipe *pipe
    while pool.idle_count > most:
        pipe = pool.idle
        pool.idle = pipe.next
        pool.idle_count -= 1
        pipe_destroy(reactor, pipe)
    if pool.idle_least > pool.idle_count:
        pool.idle_least = pool.idle_count


cdef inline void pool_due(Reactor *reactor) noexcept nogil:
    """Close the idle pipes that were not needed since the last look."""
    cdef Pool *pool = &reactor.pool
    pool_trim(reactor, pool.idle_count - pool.idle_least)
    pool.idle_least = pool.idle_count
    pool.trim_ms = reactor.now_ms + POOL_TRIM_MS if pool.idle_count else 0


cdef inline void holder_release(Reactor *reactor, Dir *flow) noexcept nogil:
    """Give back what an empty direction still holds."""
    c_assert(flow.pend == 0)
    if flow.holding == HOLDS_PIPE:
        pipe_give(reactor, <Pipe *> flow.holder)
    elif flow.holding == HOLDS_BLOCK:
        block_give(&reactor.pool, <Block *> flow.holder)
    flow.holder = NULL
    flow.holding = HOLDS_NOTHING


cdef inline void holder_drop(Reactor *reactor, Dir *flow) noexcept nogil:
    """Throw pending bytes away, and the pipe with them."""
    if flow.pend and flow.holding == HOLDS_PIPE:
        pipe_destroy(reactor, <Pipe *> flow.holder)
        flow.holder = NULL
        flow.holding = HOLDS_NOTHING
    flow.moved_in -= flow.pend
    flow.pend = 0
    holder_release(reactor, flow)


cdef inline void pool_destroy(Reactor *reactor) noexcept nogil:
    cdef Pool *pool = &reactor.pool
    cdef Block *block
    cdef int i
    pool_trim(reactor, 0)
    for i in range(BLOCK_CLASSES):
        while pool.blocks[i] != NULL:
            block = pool.blocks[i]
            pool.blocks[i] = block.next
            free(block)
