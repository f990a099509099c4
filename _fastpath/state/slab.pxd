"""Connections and UDP sessions in memory: chunks of slots that never move, and a freed slot is used again.

The event data of a descriptor holds the number of a slot and its generation. The generation changes when the owner of
the slot ends, so that an event of an owner that is over is recognised even when slot and descriptor number are already
in use again.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef enum:
    CHUNK_SLOTS = 64
    CHUNKS_MAX = 65536          # four million slots of one reactor

cdef struct Slot:               # what a connection and a UDP session begin with
    uint32_t index
    uint32_t generation
    Slot *next                  # in the list of free slots, or of those that wait for room in the ring

cdef struct Slab:
    char **chunks
    uint32_t chunk_count
    uint32_t chunk_max          # CHUNKS_MAX but in tests
    size_t slot_bytes
    Slot *free

cdef struct SlotList:
    Slot *first
    Slot *last


cdef inline bint slab_init(Slab *self, size_t slot_bytes) noexcept nogil:
    # Untouched pages of the table cost nothing.
    self.chunks = <char **> calloc(CHUNKS_MAX, sizeof(char *))
    self.chunk_max = CHUNKS_MAX
    self.slot_bytes = slot_bytes
    return self.chunks != NULL


cdef inline void slab_destroy(Slab *self) noexcept nogil:
    cdef uint32_t i
    if self.chunks != NULL:
        for i in range(self.chunk_count):
            free(self.chunks[i])
        free(self.chunks)
    memset(self, 0, sizeof(Slab))


cdef inline bint slab_grow(Slab *self) noexcept nogil:
    cdef char *chunk
    cdef Slot *slot
    cdef int i
    if self.chunk_count == self.chunk_max:
        return False
    chunk = <char *> calloc(CHUNK_SLOTS, self.slot_bytes)
    if chunk == NULL:
        return False
    self.chunks[self.chunk_count] = chunk
    for i in range(CHUNK_SLOTS - 1, -1, -1):
        slot = <Slot *> (chunk + <size_t> i * self.slot_bytes)
        slot.index = self.chunk_count * CHUNK_SLOTS + <uint32_t> i
        slot.generation = 1
        slot.next = self.free
        self.free = slot
    self.chunk_count += 1
    return True


cdef inline Slot *slab_take(Slab *self) noexcept nogil:
    """A zeroed slot; NULL if there is no memory."""
    cdef Slot *slot
    if self.free == NULL and not slab_grow(self):
        return NULL
    slot = self.free
    self.free = slot.next
    slot.next = NULL
    memset(<char *> slot + sizeof(Slot), 0, self.slot_bytes - sizeof(Slot))
    return slot


cdef inline void slab_give(Slab *self, Slot *slot) noexcept nogil:
    slot.next = self.free
    self.free = slot


cdef inline uint32_t slab_slots(const Slab *self) noexcept nogil:
    """How many slots there are, used and free."""
    return self.chunk_count * CHUNK_SLOTS


cdef inline Slot *slab_at(const Slab *self, uint32_t index) noexcept nogil:
    """The slot of a number; NULL if there never was one."""
    if index >= self.chunk_count * CHUNK_SLOTS:
        return NULL
    return <Slot *> (self.chunks[index // CHUNK_SLOTS] + <size_t> (index % CHUNK_SLOTS) * self.slot_bytes)


cdef inline void slots_append(SlotList *self, Slot *slot) noexcept nogil:
    slot.next = NULL
    if self.last != NULL:
        self.last.next = slot
    else:
        self.first = slot
    self.last = slot
