"""A set of positions in a stream, as sorted intervals that neither overlap nor touch."""

from libc.errno cimport ENOMEM, ENOSPC
from libc.stdint cimport int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove


cdef enum:
    # Each gap in a capture makes one more. A stream with a million gaps is lost anyhow; memory stays at 16 MiB.
    INTERVALS_MAX = 1 << 20


cdef struct Interval:
    int64_t start
    int64_t end  # the first position that is not in it


cdef struct Intervals:
    Interval *items
    int count
    int room
    int64_t covered  # positions in all of them


cdef inline void intervals_free(Intervals *set) noexcept nogil:
    free(set.items)
    set.items = NULL
    set.count = set.room = 0


cdef inline int intervals_find(const Intervals *set, int64_t position) noexcept nogil:
    """The first interval that ends at `position` or after it."""
    cdef int low = 0
    cdef int high = set.count
    cdef int middle
    while low < high:
        middle = (low + high) // 2
        if set.items[middle].end < position:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline int intervals_make_room(Intervals *set) noexcept nogil:
    cdef int room = set.room * 2 if set.room else 4
    cdef Interval *items
    if set.count < set.room:
        return 0
    if set.count >= INTERVALS_MAX:
        return -ENOSPC
    items = <Interval *>realloc(set.items, <size_t>room * sizeof(Interval))
    if items == NULL:
        return -ENOMEM
    set.items = items
    set.room = room
    return 0


cdef inline int64_t intervals_add(Intervals *set, int64_t start, int64_t end) noexcept nogil:
    """Add [start, end); gives how many positions are new, or -errno and leaves the set as it was."""
    cdef int first, last, status
    cdef int64_t inside = 0
    cdef Interval *item
    if start >= end:
        return 0
    if set.count and set.items[set.count - 1].end == start:  # in order, as nearly always
        set.items[set.count - 1].end = end
        set.covered += end - start
        return end - start
    first = intervals_find(set, start)
    last = first
    while last < set.count and set.items[last].start <= end:
        inside += set.items[last].end - set.items[last].start
        last += 1
    if first == last:
        status = intervals_make_room(set)
        if status < 0:
            return status
        memmove(&set.items[first + 1], &set.items[first], <size_t>(set.count - first) * sizeof(Interval))
        set.items[first].start = start
        set.items[first].end = end
        set.count += 1
        set.covered += end - start
        return end - start
    item = &set.items[first]
    if item.start < start:
        start = item.start
    if set.items[last - 1].end > end:
        end = set.items[last - 1].end
    item.start = start
    item.end = end
    memmove(&set.items[first + 1], &set.items[last], <size_t>(set.count - last) * sizeof(Interval))
    set.count -= last - first - 1
    set.covered += end - start - inside
    return end - start - inside
