"""Records on their way to Python: one ring for each reactor, one writer, one reader, nothing ever dropped.

The bell is an eventfd. It is rung only while it is armed: Python disarms it with the first batch and arms it again
when it found all rings empty, so that a busy data plane does not wake the control plane for each record.
"""

from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free

from base.address cimport Address
from shared.attempt cimport Attempts
from shared.facts cimport Facts
from base.atomic cimport oi_get, oi_give, oi_see, oi_show, oi_swap, oi_take
from base.linux cimport c_write

cdef enum:
    RING_RECORDS = 4096         # a power of two; at 30,000 connections a second some 70 ms of records
    RING_RESERVE = 64           # accepting stops below this many free places

    RECORD_OPENED = 1           # a client was admitted
    RECORD_CLOSED = 2           # the session is over
    RECORD_LIVE = 3             # what a snapshot shows
    RECORD_RELAYED = 4          # a pair that Python handed over is done
    RECORD_UNREACHABLE = 5      # several connects of a policy failed in a row
    RECORD_ACCEPT_TROUBLE = 6   # accepting pauses, errno says why
    RECORD_ACCEPT_RESUMED = 7
    RECORD_TARGET = 20          # an address of a destination fails, errno says how; at 0 it works again
    RECORD_LOADED = 11          # a reactor was over its threshold for a window; `token` is its load in thousandths
    RECORD_SERVER = 21          # connects to a server fail, `id` in a row, errno says how; at 0 it works again
    RECORD_COUNTED = 8          # ends of a policy's sessions, added up; in no ring, see `totals.pxd`
    RECORD_LOOPED = 9           # a destination (`upstream`) or a sender of datagrams (`client`) is a listener of ours
    RECORD_FULL = 10            # clients wait for a place, `token` says where: 0 process, 1 rule, 2 servers of a group


cdef struct Record:
    uint64_t id
    uint64_t tag                # the policy's
    uint64_t token              # of a pair handed over; of a UDP session, 1 for the last of a listener that lingers
    double started_s            # Unix time
    uint64_t duration_us
    uint64_t connect_us
    uint64_t idle_us            # of one that lives: since something moved; 0 in other records
    uint64_t up
    uint64_t down
    uint64_t datagrams_up
    uint64_t datagrams_down
    uint64_t datagrams_lost
    uint64_t server             # tag of the server of a group; 0 is none. Of an invalid PROXY header: fault, then place
    Address client
    Address upstream
    Facts *facts                # owned by the reader of the record; NULL if no header was accepted
    Attempts *tries             # owned by the reader of the record; NULL if no address failed
    int32_t error
    uint8_t kind
    uint8_t ending
    uint8_t moved_by            # bits: 1 copy, 2 splice

cdef struct Bell:
    uint64_t armed              # atomic
    int fd

cdef struct Ring:
    uint64_t head               # atomic, the writer's: records ever written
    uint8_t pad_a[56]
    uint64_t tail               # atomic, the reader's: records ever read
    uint8_t pad_b[56]
    Record *items


cdef inline bint ring_init(Ring *self) noexcept nogil:
    self.items = <Record *> calloc(RING_RECORDS, sizeof(Record))
    return self.items != NULL


cdef inline void ring_free(Ring *self) noexcept nogil:
    free(self.items)
    self.items = NULL


cdef inline uint64_t ring_room(Ring *self) noexcept nogil:
    """Free places, as the writer sees it; there may be more."""
    return RING_RECORDS - (oi_get(&self.head) - oi_take(&self.tail))


cdef inline Record *ring_slot(Ring *self) noexcept nogil:
    """Where the writer puts its next record; NULL if the ring is full. `ring_push` makes it seen."""
    if ring_room(self) == 0:
        return NULL
    return &self.items[oi_get(&self.head) & (RING_RECORDS - 1)]


cdef inline void ring_push(Ring *self, Bell *bell) noexcept nogil:
    cdef uint64_t one = 1
    # Against `bell_arm`: the writer shows the record, then looks at the bell; the reader arms it, then looks again.
    oi_show(&self.head, oi_get(&self.head) + 1)
    if oi_see(&bell.armed) and oi_swap(&bell.armed, 0):
        c_write(bell.fd, &one, sizeof(one))


cdef inline Record *ring_peek(Ring *self) noexcept nogil:
    """The reader's next record; NULL if there is none."""
    cdef uint64_t tail = oi_get(&self.tail)
    if oi_see(&self.head) == tail:
        return NULL
    return &self.items[tail & (RING_RECORDS - 1)]


cdef inline void ring_pop(Ring *self) noexcept nogil:
    oi_give(&self.tail, oi_get(&self.tail) + 1)


cdef inline void bell_arm(Bell *self) noexcept nogil:
    oi_show(&self.armed, 1)
