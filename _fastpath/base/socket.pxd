"""What is done with sockets in more than one place."""

from libc.string cimport memcmp

from base.address cimport Address, address_read
from base.linux cimport (
    AF_UNIX, ECONNRESET, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPIPE, IPPROTO_TCP, SOL_SOCKET, SO_DOMAIN, SO_ERROR,
    SO_LINGER, TCP_NODELAY, c_close, c_getsockname, c_getsockopt, c_setsockopt, linger, sockaddr, sockaddr_storage,
    socklen_t,
)


cdef inline bint is_shortage(int error) noexcept nogil:
    """Whether descriptors or memory have run out."""
    return error == EMFILE or error == ENFILE or error == ENOBUFS or error == ENOMEM


cdef inline int fd_close(int fd) noexcept nogil:
    """Close what is open; a closed descriptor is -1."""
    if fd >= 0:
        c_close(fd)
    return -1


cdef inline void close_with_reset(int fd) noexcept nogil:
    cdef linger reset
    reset.l_onoff = 1
    reset.l_linger = 0
    c_setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset))
    c_close(fd)


cdef inline int socket_error(int fd, int otherwise) noexcept nogil:
    """Take the error that the kernel holds for a socket."""
    cdef int error = 0
    cdef socklen_t size = sizeof(error)
    if c_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 or error == 0:
        return otherwise
    return ECONNRESET if error == EPIPE else error


cdef inline void set_nodelay(int fd) noexcept nogil:
    cdef int on = 1
    c_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))


cdef inline bint socket_is_unix(int fd) noexcept nogil:
    cdef int family = 0
    cdef socklen_t size = sizeof(family)
    return c_getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) == 0 and family == AF_UNIX


cdef inline bint connected_locally(int fd, const Address *peer) noexcept nogil:
    """Whether a socket that is connected, or on its way, to `peer` comes from that very address."""
    cdef sockaddr_storage place
    cdef socklen_t size = sizeof(place)
    cdef Address local
    if c_getsockname(fd, <sockaddr *> &place, &size) != 0:
        return False
    address_read(&local, &place)
    return memcmp(local.ip, peer.ip, sizeof(local.ip)) == 0
