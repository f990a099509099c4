"""The PROXY header that a server gets before the client's bytes.

It is the beginning of the first segment: if the client has sent something already, the kernel is told that more
follows, and keeps the header until the client's bytes are behind it. Else it leaves at once, so that a server that
speaks first is not kept waiting. Its bytes are in no count.
"""

from libc.stdint cimport uint8_t, uint32_t

from base.address cimport Address, address_is_unix, address_read
from base.linux cimport (
    ECONNRESET, ENOBUFS, EPIPE, MSG_MORE, MSG_NOSIGNAL, c_getsockname, c_send, errno, sockaddr, sockaddr_storage,
    socklen_t,
)
from preamble.proxy cimport HEADER_BYTES_MAX, TLV_UNIQUE_ID
from preamble.proxy_write cimport proxy_begin_v2, proxy_end_v2, proxy_write_v1, snprintf, tlv_put
from shared.policy cimport PROXY_CHECKSUM, PROXY_UNIQUE_ID, Policy
from state.connection_slab cimport CLIENT, UPSTREAM, Conn

cdef enum:
    UNIQUE_ID_BYTES = 32        # of the text, in hexadecimal digits


cdef inline void ends_of(const Conn *conn, Address *client, Address *reached) noexcept nogil:
    """The client, and the address that it connected to; without a family where they are not known."""
    cdef sockaddr_storage place
    cdef socklen_t size = sizeof(place)
    client[0] = conn.client
    reached.family = 0
    if address_is_unix(&conn.client):
        client.family = 0
    elif c_getsockname(conn.side[CLIENT].fd, <sockaddr *> &place, &size) == 0:
        address_read(reached, &place)


cdef inline uint32_t header_write(const Conn *conn, uint8_t *header) noexcept nogil:
    """Write the header of a connection into HEADER_BYTES_MAX; its length."""
    cdef const Policy *policy = conn.policy
    cdef bint checksum = policy.proxy_tlv & PROXY_CHECKSUM
    cdef char unique[UNIQUE_ID_BYTES + 1]
    cdef Address client, reached
    cdef uint32_t at
    ends_of(conn, &client, &reached)
    if policy.proxy_version == 1:
        return proxy_write_v1(<char *> header, &client, &reached)
    at = proxy_begin_v2(header, &client, &reached, False)
    if at and policy.proxy_tlv & PROXY_UNIQUE_ID:
        snprintf(unique, sizeof(unique), b"%016llx%016llx", <unsigned long long> policy.run_id,
                 <unsigned long long> conn.id)
        at = tlv_put(header, at, TLV_UNIQUE_ID, <const uint8_t *> unique, UNIQUE_ID_BYTES, checksum)
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
