"""Who the client of a UDP session is: its peer, or the one that the PROXY headers of its peer name."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from base.address cimport Address, address_read
from preamble.proxy cimport ProxyHeader
from shared.facts cimport Facts, facts_new
from state.return_address cimport mix
from state.udp_state cimport Heading, Session


cdef inline void heading_read(
    Heading *self, const ProxyHeader *header, const Address *peer, const uint8_t *data
) noexcept nogil:
    """What a valid `header`, which lies at `data`, says of the client of a peer."""
    self.client = header.source if header.named else peer[0]
    self.peer = peer[0]
    self.data = data
    self.size = header.length


cdef inline bint heading_same(const Heading *self, const uint8_t *data, uint32_t size) noexcept nogil:
    """Whether a datagram begins with this very header."""
    return size >= self.size and memcmp(data, self.data, self.size) == 0


cdef inline uint64_t heading_hash(const Heading *self, uint64_t hash, uint64_t seed) noexcept nogil:
    """`hash`, which is of the peer and the listener, with the client."""
    cdef uint64_t words[3]
    words[2] = <uint64_t> self.client.scope << 32 | self.client.port
    memcpy(words, self.client.ip, 16)
    return mix(mix(mix(hash ^ words[0], seed | 1) ^ words[1], seed | 1) ^ words[2], seed | 1)


cdef inline bint session_is_of(const Session *session, const Heading *heading) noexcept nogil:
    """Whether the session is one of this client, whose peer has that of the session; NULL is a peer without headers."""
    cdef const Heading *own = session.heading
    if heading == NULL or own == NULL:
        return own == heading
    return (
        memcmp(own.client.ip, heading.client.ip, 16) == 0 and own.client.port == heading.client.port
        and own.client.scope == heading.client.scope
    )


cdef inline void session_client(const Session *session, Address *client) noexcept nogil:
    """The address that access rules, limits and records are about."""
    if session.heading != NULL:
        client[0] = session.heading.client
    else:
        address_read(client, &session.key.place)


cdef inline Facts *heading_facts(const Heading *self) noexcept nogil:
    """For a record: who the peer is. NULL if it is the client, or without memory."""
    cdef Facts *facts = NULL if self == NULL else facts_new(self.data, 0)
    if facts != NULL:
        facts.peer = self.peer
    return facts


cdef inline bint heading_keep(Session *session, const Heading *heading) noexcept nogil:
    """Make this one the session's; False if there is no memory, and then the one before stays."""
    cdef Heading *kept = <Heading *> malloc(sizeof(Heading) + heading.size)
    if kept == NULL:
        return False
    kept[0] = heading[0]
    kept.data = <uint8_t *> (kept + 1)
    memcpy(kept + 1, heading.data, heading.size)
    free(session.heading)
    session.heading = kept
    return True


cdef inline void heading_drop(Session *session) noexcept nogil:
    free(session.heading)
    session.heading = NULL
