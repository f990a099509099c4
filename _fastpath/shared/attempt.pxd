"""The addresses that a connection has tried, and the connects that are under way beside the first.

They are kept apart from the connection, which has no need of them where its first address takes it. The record of the
session takes them over.
"""

from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy

from base.linux cimport EINPROGRESS

cdef struct Attempt:
    uint64_t began_ms
    int fd                      # of a connect under way beside that of the upstream side; else -1
    int32_t error               # how it failed; EINPROGRESS as long as it has not, 0 where it took the connection
    uint8_t address             # its number

cdef struct Attempts:           # in the order in which they began; they follow the struct
    uint64_t next_ms            # when the next address is tried beside those under way
    int count
    int beside                  # connects with a descriptor here


cdef inline Attempt *attempts_items(const Attempts *self) noexcept nogil:
    return <Attempt *> (self + 1)


cdef inline Attempts *attempts_new(int room) noexcept nogil:
    """Room for this many addresses; NULL if there is no memory."""
    return <Attempts *> calloc(1, sizeof(Attempts) + <size_t> room * sizeof(Attempt))


cdef inline Attempts *attempts_copy(const Attempts *self) noexcept nogil:
    """A copy of what was tried, to be read later; NULL if there is nothing, or no memory."""
    cdef Attempts *copy = NULL
    if self != NULL:
        copy = attempts_new(self.count)
    if copy != NULL:
        memcpy(copy, self, sizeof(Attempts) + <size_t> self.count * sizeof(Attempt))
    return copy


cdef inline Attempt *attempts_find(const Attempts *self, int address) noexcept nogil:
    """The attempt at an address; NULL where there was none."""
    cdef Attempt *item = attempts_items(self)
    cdef int i
    for i in range(self.count):
        if item[i].address == address:
            return &item[i]
    return NULL


cdef inline Attempt *attempts_add(Attempts *self, int address, uint64_t began_ms) noexcept nogil:
    """The attempt at an address, a new one where there was none; an address is tried once."""
    cdef Attempt *item = attempts_find(self, address)
    if item == NULL:
        item = &attempts_items(self)[self.count]
        self.count += 1
        item.began_ms = began_ms
        item.fd = -1
        item.error = EINPROGRESS
        item.address = <uint8_t> address
    return item
