"""The PROXY header before the datagrams that a server gets: version 2, made once for a session. It is in no count."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from base.address cimport Address, MAPPED_PREFIX, address_read
from base.linux cimport AF_INET, AF_INET6, c_getsockname, sockaddr, sockaddr_storage, socklen_t
from preamble.proxy cimport HEADER_BYTES_MAX, TLV_UNIQUE_ID, ProxyHeader, proxy_read, tlv_find
from preamble.proxy_write cimport proxy_begin_v2, proxy_end_v2
from shared.policy cimport PROXY_CHECKSUM, PROXY_PASS, PROXY_UNIQUE_ID, Policy
from state.datagram cimport Batch, in6_pktinfo, in_pktinfo
from state.datagram_send cimport Sent, batch_send, batch_send_headed
from state.return_address cimport ReturnAddress
from state.udp_client cimport heading_keep
from state.udp_state cimport Heading, Session
from tcp.header cimport tlv_unique_id, tlvs_pass

cdef inline void reached_by(Address *reached, int fd, const ReturnAddress *sender) noexcept nogil:
    """The address of ours that a client writes to; without a family if it is not known."""
    cdef sockaddr_storage place
    cdef socklen_t size = sizeof(place)
    reached.family = 0
    if c_getsockname(fd, <sockaddr *> &place, &size) != 0:
        return
    address_read(reached, &place)
    if sender.local_size == sizeof(in_pktinfo):
        reached.family = AF_INET
        memcpy(reached.ip, MAPPED_PREFIX, 12)
        memcpy(&reached.ip[12], &(<const in_pktinfo *> sender.local).ipi_spec_dst, 4)
    elif sender.local_size:
        reached.family = AF_INET6
        memcpy(reached.ip, &(<const in6_pktinfo *> sender.local).ipi6_addr, 16)


cdef inline bint head_make(Session *session) noexcept nogil:
    """Make the header of a session, behind that of its peer if it writes one; False if there is no memory."""
    cdef const Policy *policy = session.policy
    cdef const Heading *heading = session.heading
    cdef const uint8_t *tlvs = NULL
    cdef uint8_t header[HEADER_BYTES_MAX]
    cdef bint checksum = policy.proxy_tlv & PROXY_CHECKSUM
    cdef ProxyHeader accepted
    cdef Address client, reached
    cdef uint32_t tlv_bytes = 0, at
    if heading == NULL:
        address_read(&client, &session.key.place)
        reached_by(&reached, session.listener.fd, &session.key)
    else:
        proxy_read(&accepted, heading.data, heading.size)
        client, reached = accepted.source, accepted.destination     # without a family if it names none
        if policy.proxy_tlv & PROXY_PASS:
            tlvs = heading.data + accepted.tlvs
            tlv_bytes = heading.size - accepted.tlvs
    at = proxy_begin_v2(header, &client, &reached, True)
    if at and policy.proxy_tlv & PROXY_UNIQUE_ID and tlv_find(tlvs, tlv_bytes, TLV_UNIQUE_ID) == NULL:
        at = tlv_unique_id(header, at, policy, session.id, checksum)
    if at:
        at = tlvs_pass(header, at, tlvs, tlv_bytes, checksum)
    session.head_bytes = proxy_end_v2(header, at, checksum)
    session.head = <uint8_t *> malloc(session.head_bytes)
    if session.head == NULL:
        return False
    memcpy(session.head, header, session.head_bytes)
    return True


cdef inline void head_drop(Session *session) noexcept nogil:
    free(session.head)
    session.head = NULL


cdef inline void heading_note(Session *session, const Heading *heading) noexcept nogil:
    """The datagrams that follow are behind this header of the peer, most often the one before."""
    if session.heading.size != heading.size or memcmp(session.heading.data, heading.data, heading.size) != 0:
        if heading_keep(session, heading):
            head_drop(session)


cdef inline void send_headed(Batch *batch, Session *session, int first, int count, Sent *sent) noexcept nogil:
    """Send datagrams of the client, in the batch, to a server that expects headers: each has one, or the first."""
    if session.policy.proxy_first and session.datagrams_up:
        batch_send(batch, session.fd, first, count, NULL, False, sent)
    elif session.head != NULL or head_make(session):
        batch_send_headed(
            batch, session.fd, first, count, session.head, session.head_bytes, session.policy.proxy_first, sent)
