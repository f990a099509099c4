"""The PROXY header that a server gets before the client's bytes.

It is the beginning of the first segment: if the client has sent something already, the kernel is told that more
follows, and keeps the header until the client's bytes are behind it. Else it leaves at once, so that a server that
speaks first is not kept waiting. Its bytes are in no count.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from base.address cimport Address, address_is_unix, address_read
from base.linux cimport (
    ECONNRESET, ENOBUFS, EPIPE, MSG_MORE, MSG_NOSIGNAL, c_getsockname, c_send, errno, sockaddr, sockaddr_storage,
    socklen_t,
)
from preamble.proxy cimport HEADER_BYTES_MAX, TLV_AUTHORITY, TLV_CRC32C, TLV_NOOP, TLV_UNIQUE_ID, big_16, tlv_find
from preamble.proxy_write cimport proxy_begin_v2, proxy_end_v2, proxy_write_v1, snprintf, tlv_put
from shared.facts cimport Facts, facts_name, facts_tlvs
from shared.policy cimport (
    PROXY_AUTHORITY, PROXY_CHECKSUM, PROXY_PASS, PROXY_UNIQUE_ID, Policy, policy_proxy_version,
)
from state.connection_slab cimport CLIENT, UPSTREAM, Conn

cdef enum:
    UNIQUE_ID_BYTES = 32        # of the text, in hexadecimal digits


cdef inline void ends_of(const Conn *conn, Address *client, Address *reached) noexcept nogil:
    """The client, and the address that it connected to; without a family if they are not known."""
    cdef sockaddr_storage place
    cdef socklen_t size = sizeof(place)
    client[0] = conn.client
    reached.family = 0
    if conn.facts != NULL and conn.facts.headed:
        reached[0] = conn.facts.reached
        if conn.facts.unknown:
            client.family = 0
    elif address_is_unix(&conn.client):
        client.family = 0
    elif conn.policy.to_original:       # `redirect` has changed the address of the socket
        reached[0] = conn.upstream
    elif c_getsockname(conn.side[CLIENT].fd, <sockaddr *> &place, &size) == 0:
        address_read(reached, &place)


cdef inline bint passes(const Conn *conn, int kind) noexcept nogil:
    """Whether the header that was accepted has a TLV of this type that is passed on."""
    return (
        conn.policy.proxy_tlv & PROXY_PASS and conn.facts != NULL
        and tlv_find(facts_tlvs(conn.facts), conn.facts.tlv_bytes, kind) != NULL
    )


cdef inline uint32_t tlvs_pass(
    uint8_t *header, uint32_t at, const uint8_t *tlv, uint32_t tlv_bytes, bint checksum
) noexcept nogil:
    """Add the TLVs of the header that was accepted, but for its checksum and what only fills it up."""
    cdef const uint8_t *end = tlv + tlv_bytes
    cdef uint32_t size, then
    while tlv < end:        # bounded: each is at least three bytes
        size = big_16(tlv + 1)
        if tlv[0] != TLV_CRC32C and tlv[0] != TLV_NOOP:
            then = tlv_put(header, at, tlv[0], tlv + 3, size, checksum)
            if then == at:
                break
            at = then
        tlv += 3 + size
    return at


cdef inline uint32_t tlv_unique_id(
    uint8_t *header, uint32_t at, const Policy *policy, uint64_t id, bint checksum
) noexcept nogil:
    """Add the unique ID of a session."""
    cdef char unique[UNIQUE_ID_BYTES + 1]
    snprintf(unique, sizeof(unique), b"%016llx%016llx", <unsigned long long> policy.run_id, <unsigned long long> id)
    return tlv_put(header, at, TLV_UNIQUE_ID, <const uint8_t *> unique, UNIQUE_ID_BYTES, checksum)


cdef inline uint32_t header_write(const Conn *conn, uint8_t *header) noexcept nogil:
    """Write the header of a connection into HEADER_BYTES_MAX; its length."""
    cdef const Policy *policy = conn.policy
    cdef bint checksum = policy.proxy_tlv & PROXY_CHECKSUM
    cdef Address client, reached
    cdef uint32_t at
    ends_of(conn, &client, &reached)
    if policy_proxy_version(policy, conn.member) == 1:
        return proxy_write_v1(<char *> header, &client, &reached)
    at = proxy_begin_v2(header, &client, &reached, False)
    if at and policy.proxy_tlv & PROXY_AUTHORITY and conn.facts != NULL and conn.facts.name_bytes:
        if not passes(conn, TLV_AUTHORITY):
            at = tlv_put(header, at, TLV_AUTHORITY, facts_name(conn.facts), conn.facts.name_bytes, checksum)
    if at and policy.proxy_tlv & PROXY_UNIQUE_ID and not passes(conn, TLV_UNIQUE_ID):
        at = tlv_unique_id(header, at, policy, conn.id, checksum)
    if at and policy.proxy_tlv & PROXY_PASS and conn.facts != NULL:
        at = tlvs_pass(header, at, facts_tlvs(conn.facts), conn.facts.tlv_bytes, checksum)
    return proxy_end_v2(header, at, checksum)


cdef inline int header_send(const Conn *conn) noexcept nogil:
    """Send the header to the server that took the connection; 0 or an errno."""
    cdef uint8_t header[HEADER_BYTES_MAX]
    cdef uint32_t size = header_write(conn, header)
    # `rd` is set by an event: bytes, or a FIN that is passed on, follow in this turn.
    cdef int flags = MSG_NOSIGNAL | (MSG_MORE if conn.side[CLIENT].rd else 0)
    cdef long sent = c_send(conn.side[UPSTREAM].fd, header, size, flags)
    if sent < 0:
        return ECONNRESET if errno == EPIPE else errno
    return 0 if sent == size else ENOBUFS   # an empty queue takes more than the longest header
