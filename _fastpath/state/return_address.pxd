"""Sender and local address of a datagram: what an answer needs, and the key of a session."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from base.linux cimport c_assert, sockaddr_in6

cdef extern from * nogil:
    """
    #include <stdint.h>
    static inline uint64_t oi_mix(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128) a * b;
        return (uint64_t) product ^ (uint64_t) (product >> 64);
    }
    """
    uint64_t mix "oi_mix"(uint64_t one, uint64_t other)

cdef enum:
    KEY_WORDS = 7

cdef struct ReturnAddress:      # no padding that is not zero: its bytes are the key of a session
    sockaddr_in6 place          # of either family: the sender
    uint32_t place_size
    uint32_t local_size         # of what is valid in `local`; 0 if the socket is bound to one address
    uint8_t local[20]           # in_pktinfo or in6_pktinfo: the address of ours that was written to


cdef inline bint return_address_same(const ReturnAddress *self, const ReturnAddress *other) noexcept nogil:
    return memcmp(self, other, sizeof(ReturnAddress)) == 0


cdef inline uint64_t return_address_hash(const ReturnAddress *self, uint64_t seed) noexcept nogil:
    """A hash that cannot be aimed at without `seed`: clients choose their addresses themselves."""
    cdef uint64_t words[KEY_WORDS]
    cdef uint64_t value = seed
    cdef int i
    c_assert(sizeof(words) == sizeof(ReturnAddress))
    memcpy(words, self, sizeof(words))
    for i in range(KEY_WORDS):
        value = mix(value ^ words[i], seed ^ <uint64_t> 0x9e3779b97f4a7c15)
    return value
