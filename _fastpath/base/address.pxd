"""A peer's numeric address, small enough to be kept with every connection.

A client of a unix socket has its user and group in place of an address, behind UNIX_MARK, and its process as scope.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from base.linux cimport (
    AF_INET, AF_INET6, AF_UNIX, SOL_SOCKET, SO_PEERCRED, c_getsockopt, htons, inet_ntop, ntohs, sockaddr, sockaddr_in,
    sockaddr_in6, sockaddr_un, socklen_t, ucred,
)

cdef enum:
    ADDRESS_TEXT_BYTES = 64     # longer than any IPv6 address in full, mapped form and end included

cdef struct Address:
    uint8_t ip[16]              # an IPv4 address is kept in its mapped form, ::ffff:a.b.c.d
    uint32_t scope
    uint16_t port               # host order; of a unix destination, the number of the address
    uint16_t family             # of the socket; 0 is no address

cdef union Place:
    sockaddr_in6 six            # its family stands where that of the others does
    sockaddr_un local

cdef struct SocketAddress:      # what bind and connect take, of any family
    Place place
    socklen_t size

cdef extern from *:
    """
    static const unsigned char oi_mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    """
    const uint8_t *MAPPED_PREFIX "oi_mapped_prefix"

cdef extern from *:
    """
    static const unsigned char oi_unix_mark[4] = {0xff, 'u', 'n', 'x'};     /* multicast: no client's address */
    """
    const uint8_t *UNIX_MARK "oi_unix_mark"


cdef inline void address_read(Address *self, const void *place) noexcept nogil:
    """Take the address out of a sockaddr of either family."""
    cdef const sockaddr_in *four
    cdef const sockaddr_in6 *six
    memset(self, 0, sizeof(Address))
    self.family = (<const sockaddr *> place).sa_family
    if self.family == AF_INET:
        four = <const sockaddr_in *> place
        memcpy(self.ip, MAPPED_PREFIX, 12)
        memcpy(&self.ip[12], &four.sin_addr, 4)
        self.port = ntohs(four.sin_port)
    elif self.family == AF_INET6:
        six = <const sockaddr_in6 *> place
        memcpy(self.ip, &six.sin6_addr, 16)
        self.port = ntohs(six.sin6_port)
        self.scope = six.sin6_scope_id
    elif self.family == AF_UNIX:
        memcpy(self.ip, UNIX_MARK, 4)


cdef inline void address_place(const Address *self, SocketAddress *place) noexcept nogil:
    """The sockaddr of an address; of an IPv4 one, also in mapped form, the IPv4 one."""
    cdef sockaddr_in *four = <sockaddr_in *> &place.place
    memset(place, 0, sizeof(SocketAddress))
    if address_is_four(self):
        four.sin_family = AF_INET
        four.sin_port = htons(self.port)
        memcpy(&four.sin_addr, &self.ip[12], 4)
        place.size = sizeof(sockaddr_in)
    else:
        place.place.six.sin6_family = AF_INET6
        place.place.six.sin6_port = htons(self.port)
        memcpy(&place.place.six.sin6_addr, self.ip, 16)
        place.place.six.sin6_scope_id = self.scope
        place.size = sizeof(sockaddr_in6)


cdef inline bint address_is_unix(const Address *self) noexcept nogil:
    return self.family == AF_UNIX


cdef inline bint peer_credentials(int fd, ucred *peer) noexcept nogil:
    """Who is at the other end of a unix socket, since the connect."""
    cdef socklen_t size = sizeof(ucred)
    return c_getsockopt(fd, SOL_SOCKET, SO_PEERCRED, peer, &size) == 0


cdef inline void address_identify(Address *self, int fd) noexcept nogil:
    """Put user, group and process of the peer of a unix socket into its address."""
    cdef ucred peer
    if peer_credentials(fd, &peer):
        memcpy(&self.ip[4], &peer.uid, 4)
        memcpy(&self.ip[8], &peer.gid, 4)
        self.scope = <uint32_t> peer.pid


cdef inline bint address_is_four(const Address *self) noexcept nogil:
    """Whether the peer speaks IPv4, be it to an IPv4 or to an IPv6 socket."""
    return memcmp(self.ip, MAPPED_PREFIX, 12) == 0


cdef inline void address_text(const Address *self, char *text, bint mapped) noexcept nogil:
    """Write the address as text of at most ADDRESS_TEXT_BYTES; `mapped` asks for ::ffff:a.b.c.d."""
    text[0] = 0
    if address_is_four(self) and not mapped:
        inet_ntop(AF_INET, &self.ip[12], text, ADDRESS_TEXT_BYTES)
    else:
        inet_ntop(AF_INET6, self.ip, text, ADDRESS_TEXT_BYTES)
