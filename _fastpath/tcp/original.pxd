"""The destination `original`: where a client of such a rule was going when the packet filter brought it here.

`tproxy` leaves the local address of the connection as it was. `redirect` changes it to that of the listener, and the
connection tracking of the kernel knows the one before. `oinetd.upstream.original` does the same for the Python lane.

A policy of such a rule has one target, whose address says nothing: that of the client is in `conn.upstream`.
"""

from base.address cimport Address, SocketAddress, address_is_four, address_place, address_read
from base.linux cimport (
    IPPROTO_IP, IPPROTO_IPV6, SO_ORIGINAL_DST, c_getsockname, c_getsockopt, sockaddr, sockaddr_storage, socklen_t,
)
from shared.own cimport local_or_error
from state.connection_slab cimport CLIENT, Conn


cdef inline void redirected_from(int fd, Address *address) noexcept nogil:
    """Put the address that a connection had before `redirect` in place of its local one, if there was another."""
    cdef sockaddr_storage place
    cdef socklen_t size = sizeof(place)
    cdef int level = IPPROTO_IP if address_is_four(address) else IPPROTO_IPV6
    if c_getsockopt(fd, level, SO_ORIGINAL_DST, &place, &size) == 0:
        address_read(address, &place)


cdef inline void original_find(Conn *conn, SocketAddress *wanted) noexcept nogil:
    """Where the client of a connection was going."""
    cdef int fd = conn.side[CLIENT].fd
    cdef sockaddr_storage place
    cdef socklen_t size = sizeof(place)
    c_getsockname(fd, <sockaddr *> &place, &size)       # of a TCP socket of ours, which never fails
    address_read(&conn.upstream, &place)
    if conn.upstream.port == conn.policy.bound_port and local_or_error(&conn.upstream) != 0:
        redirected_from(fd, &conn.upstream)
    address_place(&conn.upstream, wanted)
    address_read(&conn.upstream, &wanted.place)         # an IPv4 client of an IPv6 listener wants an IPv4 address
