"""The addresses that a connection has tried, the servers too, and the connects that are under way beside the first.

They are kept apart from the connection, which has no need of them if its first address takes it. The record of the
session takes them over.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, realloc
from libc.string cimport memcpy, memset

from base.address cimport Address, address_is_unix, address_read
from base.linux cimport EINPROGRESS
from shared.group cimport TRIES_MAX
from shared.target cimport Targets

cdef struct Attempt:
    uint64_t began_ms
    uint64_t server             # tag of the server; 0 without a group
    Address place
    int fd                      # of a connect under way beside that of the upstream side; else -1
    int32_t error               # how it failed; EINPROGRESS as long as it has not, 0 if it took the connection
    uint8_t address             # its number among those of the server, or of the destination

cdef struct Attempts:           # in the order in which they began; they follow the struct
    uint64_t next_ms            # when the next address is tried beside those under way
    int room
    int count
    int first                   # of those of the present server
    int beside                  # connects with a descriptor here
    bint retrying               # it is counted in its group's `retrying`
    int tried_count
    uint16_t tried[TRIES_MAX]   # members of the group that are not to be tried again


cdef inline Attempt *attempts_items(const Attempts *self) noexcept nogil:
    return <Attempt *> (self + 1)


cdef inline size_t attempts_bytes(int room) noexcept nogil:
    return sizeof(Attempts) + <size_t> room * sizeof(Attempt)


cdef inline Attempts *attempts_new(int room) noexcept nogil:
    """Room for this many addresses; NULL if there is no memory."""
    cdef Attempts *self = <Attempts *> calloc(1, attempts_bytes(room))
    if self != NULL:
        self.room = room
    return self


cdef inline Attempts *attempts_of_next(Attempts *self, int more) noexcept nogil:
    """Go on with another server, which has `more` addresses; NULL, and nothing is changed, if there is no memory."""
    cdef int room = self.count + more
    cdef Attempts *moved = self
    if room > self.room:
        moved = <Attempts *> realloc(self, attempts_bytes(room))
        if moved == NULL:
            return NULL
        memset(&attempts_items(moved)[moved.room], 0, <size_t> (room - moved.room) * sizeof(Attempt))
        moved.room = room
    moved.first = moved.count
    return moved


cdef inline Attempts *attempts_copy(const Attempts *self) noexcept nogil:
    """A copy of what was tried, to be read later; NULL if there is nothing, or no memory."""
    cdef Attempts *copy = NULL
    if self != NULL:
        copy = attempts_new(self.count)
    if copy != NULL:
        memcpy(copy, self, attempts_bytes(self.count))
    return copy


cdef inline Attempt *attempts_find(const Attempts *self, int address) noexcept nogil:
    """The attempt at an address of the present server; NULL if there was none."""
    cdef Attempt *item = attempts_items(self)
    cdef int i
    for i in range(self.first, self.count):
        if item[i].address == address:
            return &item[i]
    return NULL


cdef inline Attempt *attempts_add(
    Attempts *self, const Targets *targets, uint64_t server, int address, uint64_t began_ms
) noexcept nogil:
    """The attempt at an address, a new one if there was none; an address is tried once."""
    cdef Attempt *item = attempts_find(self, address)
    if item == NULL:
        item = &attempts_items(self)[self.count]
        self.count += 1
        item.began_ms = began_ms
        item.server = server
        item.fd = -1
        item.error = EINPROGRESS
        item.address = <uint8_t> address
        address_read(&item.place, &targets.items[address].place.place)
        if address_is_unix(&item.place):
            item.place.port = <uint16_t> address    # its path has no room here
    return item
