"""What a connection said before it was admitted, if it said anything; apart from the connection, as few have it."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

from base.address cimport Address

cdef struct Facts:              # the TLVs of the header that are passed on follow
    Address peer                # the other end of the socket: `client` is the one in the header
    Address reached             # where the client connected to; without a family if it is not known
    bint unknown                # the header has no internet addresses: the client is the peer
    uint32_t tlv_bytes


cdef inline uint8_t *facts_tlvs(const Facts *self) noexcept nogil:
    return <uint8_t *> (self + 1)


cdef inline Facts *facts_new(const uint8_t *tlvs, uint32_t tlv_bytes) noexcept nogil:
    """NULL if there is no memory."""
    cdef Facts *self = <Facts *> malloc(sizeof(Facts) + tlv_bytes)
    if self != NULL:
        memset(self, 0, sizeof(Facts))
        self.tlv_bytes = tlv_bytes
        memcpy(facts_tlvs(self), tlvs, tlv_bytes)
    return self


cdef inline Facts *facts_copy(const Facts *self) noexcept nogil:
    """A copy for a record, without TLVs; NULL if there is nothing, or no memory."""
    cdef Facts *copy = NULL
    if self != NULL:
        copy = facts_new(NULL, 0)
    if copy != NULL:
        copy.peer = self.peer
    return copy
