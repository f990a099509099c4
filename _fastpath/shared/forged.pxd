"""Source addresses that no host can have: the datagram is forged, or an answer could reach no host.

The kernel checks much of that for IPv4, and for IPv6 nearly nothing: a frame of the local network may bear an IPv6
source of the form ::ffff:a.b.c.d, and an IPv6 socket shows it as it shows the IPv4 address a.b.c.d. What tells them
apart is IP_PKTINFO, which comes with datagrams that did arrive over IPv4 and with no others. (TCP needs no such
check: Linux answers no SYN with such a source. From 5.4 on ip6_rcv dropped every packet that has one; since 5.12 it
lets them through, for translators, and tcp_v6_conn_request drops the SYN. So no handshake with it can be completed.)
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from base.address cimport MAPPED_PREFIX
from base.linux cimport AF_INET, sockaddr_in, sockaddr_in6

cdef extern from *:
    """
    static const unsigned char oi_no_address[16] = {0};
    """
    const uint8_t *NO_ADDRESS "oi_no_address"


cdef inline bint _four_is_no_source(const uint8_t *ip) noexcept nogil:
    """0.0.0.0, multicast, and the broadcast address of every network."""
    if ip[0] & 0xf0 == 0xe0:
        return True
    return ip[0] & ip[1] & ip[2] & ip[3] == 0xff or ip[0] | ip[1] | ip[2] | ip[3] == 0


cdef inline bint is_forged(const sockaddr_in6 *source, bint over_four) noexcept nogil:
    """Whether this cannot be the source of a datagram; `over_four` says that it arrived over IPv4."""
    cdef const uint8_t *ip
    if source.sin6_port == 0:
        return True     # at the same offset in both families; no answer can be sent to port 0
    if source.sin6_family == AF_INET:
        return _four_is_no_source(<const uint8_t *> &(<const sockaddr_in *> source).sin_addr)
    ip = <const uint8_t *> &source.sin6_addr
    if memcmp(ip, MAPPED_PREFIX, 12) == 0:
        return not over_four or _four_is_no_source(&ip[12])
    return ip[0] == 0xff or memcmp(ip, NO_ADDRESS, 16) == 0
