"""Refused client addresses that were told of, so that each is logged once; the oldest makes room when all are taken."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from base.address cimport Address
from state.return_address cimport mix

cdef enum:
    TOLD_MAX = 4096             # as in `oinetd.lanes.python.udp.listener`; a power of two
    TOLD_BUCKETS = 4096

cdef struct ToldAddress:
    uint8_t ip[16]
    uint32_t scope

cdef struct Told:               # zeroed but for the seed is empty
    uint64_t seed
    ToldAddress items[TOLD_MAX]
    uint16_t chain[TOLD_MAX]            # 1 + the next of the same bucket; 0 is none
    uint16_t buckets[TOLD_BUCKETS]      # 1 + the first
    uint32_t count
    uint32_t oldest                     # when all are taken: the one that goes next


cdef inline uint32_t told_bucket(const Told *self, const ToldAddress *address) noexcept nogil:
    cdef uint64_t words[2]
    memcpy(words, address.ip, 16)
    return <uint32_t> mix(mix(self.seed ^ words[0], self.seed | 1) ^ words[1], self.seed ^ address.scope) & (
        TOLD_BUCKETS - 1
    )


cdef inline void told_drop(Told *self, uint32_t place) noexcept nogil:
    """Take an address out of its bucket."""
    cdef uint16_t *link = &self.buckets[told_bucket(self, &self.items[place])]
    while link[0] != place + 1:     # bounded: it is there
        link = &self.chain[link[0] - 1]
    link[0] = self.chain[place]


cdef inline bint told_add(Told *self, const Address *client) noexcept nogil:
    """Note an address; False if it is known."""
    cdef ToldAddress wanted
    cdef uint32_t bucket, place
    cdef uint16_t at
    memcpy(wanted.ip, client.ip, 16)
    wanted.scope = client.scope
    bucket = told_bucket(self, &wanted)
    at = self.buckets[bucket]
    while at:
        if memcmp(&self.items[at - 1], &wanted, sizeof(ToldAddress)) == 0:
            return False
        at = self.chain[at - 1]
    place = self.count
    if place == TOLD_MAX:
        place = self.oldest
        self.oldest = (place + 1) & (TOLD_MAX - 1)
        told_drop(self, place)
    else:
        self.count += 1
    self.items[place] = wanted
    self.chain[place] = self.buckets[bucket]
    self.buckets[bucket] = <uint16_t> (place + 1)
    return True
