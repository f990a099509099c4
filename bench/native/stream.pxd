"""TCP streams as a capture sees them: for each direction of each connection, which sequence numbers went by.

Positions count from the first byte after the SYN. Where the SYN was not seen they count from the first segment that
was, and may be negative. They have 64 bits: sequence numbers wrap every 4 GiB, and the one that lies nearest to the
furthest position so far is meant.
"""

from libc.errno cimport ENOMEM, ENOSPC
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

from interval cimport Intervals, intervals_add, intervals_free
from segment cimport TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Ends, Segment


cdef enum:
    STREAMS_MAX = 1 << 18  # two for each connection; with its index, about 60 MiB
    STREAMS_FIRST = 256
    HEAD_BYTES = 24  # of a stream's beginning, kept to recognise it on the other leg
    NOBODY = 0xffffffff


cdef struct Stream:
    Ends ends
    uint32_t base  # the sequence number of position 0
    uint32_t opposite  # the index of the other direction; NOBODY where it was not seen
    int64_t furthest  # the end of the furthest segment
    int64_t fin  # position of the FIN, which is the length of the stream; valid with `ended`
    int64_t acknowledged  # how far the receiver said it has it; valid with `answered`
    Intervals seen
    uint64_t packets
    uint64_t payload  # bytes carried, those sent again counted again
    uint64_t repeated  # bytes that had been seen before
    uint64_t spilled  # bytes that no memory was left for
    uint64_t first_ns
    uint64_t last_ns
    bint begun  # the SYN was seen
    bint ended
    bint reset
    bint answered
    uint32_t head_seen  # one bit for each byte of `head`
    uint8_t head[HEAD_BYTES]


cdef struct Streams:
    Stream *items
    uint32_t count
    uint32_t room
    uint32_t *slots  # hash table: index of the newest stream with these ends, or NOBODY
    uint32_t slot_count  # a power of two, at least twice `room`
    uint64_t segments
    uint64_t refused  # segments of streams that no memory was left for


cdef inline uint64_t ends_hash(const Ends *ends) noexcept nogil:
    cdef const uint8_t *bytes = <const uint8_t *>ends
    cdef uint64_t value = <uint64_t>0xcbf29ce484222325
    cdef uint64_t part
    cdef size_t i
    for i in range(sizeof(Ends) // 4):
        part = 0
        memcpy(&part, bytes + i * 4, 4)
        value = (value ^ part) * <uint64_t>0x9e3779b97f4a7c15
        value ^= value >> 29
    return value


cdef inline uint32_t *streams_slot(Streams *streams, const Ends *ends) noexcept nogil:
    """The slot that holds these ends, or the empty one where they belong; a slot is always free."""
    cdef uint32_t mask = streams.slot_count - 1
    cdef uint32_t at = <uint32_t>ends_hash(ends) & mask
    while streams.slots[at] != NOBODY and memcmp(&streams.items[streams.slots[at]].ends, ends, sizeof(Ends)) != 0:
        at = (at + 1) & mask
    return &streams.slots[at]


cdef inline int streams_grow(Streams *streams) noexcept nogil:
    """Room for one more; 0 or -errno."""
    cdef uint32_t room = streams.room * 2 if streams.room else STREAMS_FIRST
    cdef uint32_t *slots
    cdef uint32_t *slot
    cdef Stream *items
    cdef uint32_t i
    if streams.count < streams.room:
        return 0
    if streams.room >= STREAMS_MAX:
        return -ENOSPC
    slots = <uint32_t *>calloc(<size_t>room * 2, sizeof(uint32_t))
    if slots == NULL:
        return -ENOMEM
    items = <Stream *>realloc(streams.items, <size_t>room * sizeof(Stream))
    if items == NULL:
        free(slots)
        return -ENOMEM
    free(streams.slots)
    streams.items = items
    streams.room = room
    streams.slots = slots
    streams.slot_count = room * 2
    memset(slots, 0xff, <size_t>streams.slot_count * sizeof(uint32_t))
    for i in range(streams.count):  # the newest of equal ends comes last, and stays
        slot = streams_slot(streams, &items[i].ends)
        slot[0] = i
    return 0


cdef inline void streams_free(Streams *streams) noexcept nogil:
    cdef uint32_t i
    for i in range(streams.count):
        intervals_free(&streams.items[i].seen)
    free(streams.items)
    free(streams.slots)
    memset(streams, 0, sizeof(Streams))


cdef inline int64_t position_of(const Stream *stream, uint32_t seq, int64_t near) noexcept nogil:
    """The position of a sequence number: of all that it can mean, the one nearest to `near`."""
    return near + <int32_t>(seq - stream.base - <uint32_t>near)


cdef inline void ends_turn(const Ends *ends, Ends *turned) noexcept nogil:
    memcpy(turned.source, ends.target, 16)
    memcpy(turned.target, ends.source, 16)
    turned.source_port = ends.target_port
    turned.target_port = ends.source_port


cdef inline Stream *stream_new(Streams *streams, const Segment *segment, uint64_t time_ns) noexcept nogil:
    """A stream for a segment that belongs to none so far; NULL where there is no memory for it."""
    cdef Ends turned
    cdef uint32_t *slot
    cdef Stream *stream
    if streams_grow(streams) < 0:
        return NULL
    stream = &streams.items[streams.count]
    memset(stream, 0, sizeof(Stream))
    stream.ends = segment.ends
    stream.begun = (segment.flags & TCP_SYN) != 0
    stream.base = segment.seq + (1 if stream.begun else 0)
    stream.first_ns = time_ns
    stream.opposite = NOBODY
    slot = streams_slot(streams, &segment.ends)
    slot[0] = streams.count
    ends_turn(&segment.ends, &turned)
    slot = streams_slot(streams, &turned)
    # A SYN without ACK opens a connection: what lies the other way is of an earlier one.
    if slot[0] != NOBODY and not (stream.begun and not (segment.flags & TCP_ACK)):
        stream.opposite = slot[0]
        streams.items[slot[0]].opposite = streams.count
    streams.count += 1
    return stream


cdef inline Stream *stream_of(Streams *streams, const Segment *segment, uint64_t time_ns) noexcept nogil:
    cdef uint32_t *slot
    cdef Stream *stream
    if streams.slots == NULL and streams_grow(streams) < 0:
        return NULL
    slot = streams_slot(streams, &segment.ends)
    if slot[0] == NOBODY:
        return stream_new(streams, segment, time_ns)
    stream = &streams.items[slot[0]]
    # Ports are used again: a SYN with another number begins another connection, one with the same is sent again.
    if segment.flags & TCP_SYN and not (stream.begun and stream.base == segment.seq + 1):
        return stream_new(streams, segment, time_ns)
    return stream


cdef inline void stream_keep_head(Stream *stream, const Segment *segment, int64_t start) noexcept nogil:
    cdef uint32_t i
    cdef int64_t at
    if start < 0 or start >= HEAD_BYTES:
        return
    for i in range(segment.held):
        at = start + i
        if at >= HEAD_BYTES:
            return
        stream.head[at] = segment.data[i]
        stream.head_seen |= <uint32_t>1 << <uint32_t>at


cdef inline void stream_acknowledge(Streams *streams, Stream *stream, const Segment *segment) noexcept nogil:
    cdef Stream *other
    cdef int64_t position
    if stream.opposite == NOBODY or not (segment.flags & TCP_ACK):
        return
    other = &streams.items[stream.opposite]
    position = position_of(other, segment.ack, other.furthest)
    if not other.answered or position > other.acknowledged:
        other.acknowledged = position
        other.answered = True


cdef inline void streams_take(Streams *streams, const Segment *segment, uint64_t time_ns) noexcept nogil:
    """Enter one segment."""
    cdef Stream *stream = stream_of(streams, segment, time_ns)
    cdef int64_t start, end, fresh
    streams.segments += 1
    if stream == NULL:
        streams.refused += 1
        return
    stream.packets += 1
    stream.last_ns = time_ns
    if segment.flags & TCP_RST:  # its numbers need not continue the stream, and what it carries is no data of it
        stream.reset = True
        return
    start = position_of(stream, segment.seq + (1 if segment.flags & TCP_SYN else 0), stream.furthest)
    end = start + segment.payload
    stream.payload += segment.payload
    fresh = intervals_add(&stream.seen, start, end)
    if fresh < 0:
        stream.spilled += segment.payload
    else:
        stream.repeated += segment.payload - <uint64_t>fresh
        if stream.begun and fresh > 0:
            stream_keep_head(stream, segment, start)
    if segment.flags & TCP_FIN:
        stream.ended = True
        stream.fin = end
    if end > stream.furthest or stream.packets == 1:
        stream.furthest = end
    stream_acknowledge(streams, stream, segment)
