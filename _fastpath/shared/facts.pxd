"""What a connection said before it was admitted, if it said anything; apart from the connection, as few have it."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

from base.address cimport Address

cdef enum:
    FACTS_PROTOCOLS_MAX = 256   # bytes of protocols that are kept for records

cdef struct Facts:              # the TLVs of the header that are passed on follow, the server name, the protocols
    Address peer                # the other end of the socket, if `client` is the one of a header
    Address reached             # where the client connected to; without a family where it is not known
    bint headed                 # a header was accepted
    bint unknown                # the header has no internet addresses: the client is the peer
    uint32_t tlv_bytes
    uint32_t name_bytes         # of the hello; 0 where it names no server
    uint32_t protocol_bytes     # a length byte before each, the last one perhaps cut


cdef inline uint8_t *facts_tlvs(const Facts *self) noexcept nogil:
    return <uint8_t *> (self + 1)


cdef inline uint8_t *facts_name(const Facts *self) noexcept nogil:
    return facts_tlvs(self) + self.tlv_bytes


cdef inline uint8_t *facts_protocols(const Facts *self) noexcept nogil:
    return facts_name(self) + self.name_bytes


cdef inline Facts *facts_new(const uint8_t *tlvs, uint32_t tlv_bytes) noexcept nogil:
    """Of a header; NULL if there is no memory."""
    cdef Facts *self = <Facts *> malloc(sizeof(Facts) + tlv_bytes)
    if self != NULL:
        memset(self, 0, sizeof(Facts))
        self.headed = True
        self.tlv_bytes = tlv_bytes
        if tlv_bytes:
            memcpy(facts_tlvs(self), tlvs, tlv_bytes)
    return self


cdef inline Facts *facts_named(
    const Facts *before, const uint8_t *name, uint32_t name_bytes, const uint8_t *protocols, uint32_t protocol_bytes
) noexcept nogil:
    """What was known `before`, which may be NULL and stays as it is, and what the hello wants; NULL without memory."""
    cdef uint32_t tlv_bytes = before.tlv_bytes if before != NULL else 0
    cdef uint32_t kept = min(protocol_bytes, <uint32_t> FACTS_PROTOCOLS_MAX)
    cdef Facts *self = <Facts *> malloc(sizeof(Facts) + tlv_bytes + name_bytes + kept)
    if self == NULL:
        return NULL
    if before != NULL:
        memcpy(self, before, sizeof(Facts) + tlv_bytes)
    else:
        memset(self, 0, sizeof(Facts))
    self.name_bytes = name_bytes
    self.protocol_bytes = kept
    if name_bytes:
        memcpy(facts_name(self), name, name_bytes)
    if kept:
        memcpy(facts_protocols(self), protocols, kept)
    return self


cdef inline Facts *facts_copy(const Facts *self) noexcept nogil:
    """A copy for a record, without TLVs; NULL if there is nothing, or no memory."""
    cdef Facts *copy
    if self == NULL:
        return NULL
    copy = facts_named(NULL, facts_name(self), self.name_bytes, facts_protocols(self), self.protocol_bytes)
    if copy != NULL:
        copy.peer = self.peer
        copy.headed = self.headed
    return copy
