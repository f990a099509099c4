"""What is ours: addresses of this machine, and the UDP listeners of this process.

The kernel knows which addresses it has, and they come and go, so its routing is asked.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp

from base.socket cimport connected_locally, is_shortage
from base.address cimport Address, SocketAddress, address_is_four, address_is_unix, address_place
from base.atomic cimport oi_get, oi_put
from base.linux cimport (
    SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, c_close, c_connect, c_socket, errno,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, sockaddr,
)
from shared.route cimport ROUTE_UNKNOWN, route_of

cdef enum:
    PORT_WORDS = 1024           # a bit for each port

    EVERY_FOUR = 1              # bound to all addresses of IPv4 ...
    EVERY_SIX = 2               # ... and of IPv6

cdef struct OwnListener:
    uint8_t ip[16]              # what it is bound to, IPv4 in mapped form
    uint16_t port
    uint8_t every               # bits; 0 if it is bound to one address

cdef struct Own:                # the UDP listeners of this process; changed by the control plane
    uint64_t ports[PORT_WORDS]  # atomics: bits of their ports, so that nearly every sender is known not to be one
    OwnListener *listeners      # guarded by the hub's lock, like `count`; in the order of their ports
    size_t count


cdef inline bint own_port(const Own *self, uint16_t port) noexcept nogil:
    return (oi_get(&self.ports[port >> 6]) >> (port & 63)) & 1


cdef inline void own_set(Own *self, OwnListener *listeners, size_t count) noexcept nogil:
    """Put another table in place, which belongs to `self` from here. The hub's lock is held."""
    cdef size_t i
    cdef uint16_t port
    for i in range(PORT_WORDS):
        oi_put(&self.ports[i], 0)
    free(self.listeners)
    self.listeners = listeners
    self.count = count
    for i in range(count):
        port = listeners[i].port
        oi_put(&self.ports[port >> 6], oi_get(&self.ports[port >> 6]) | <uint64_t> 1 << (port & 63))


cdef inline bint own_bound(const Own *self, const Address *address) noexcept nogil:
    """Whether a listener has this address, if it is one of this machine. The hub's lock is held."""
    cdef size_t low = 0, high = self.count, middle
    cdef const OwnListener *listener
    cdef uint8_t bit = EVERY_FOUR if address_is_four(address) else EVERY_SIX
    while low < high:           # bounded: the first one of the port
        middle = (low + high) // 2
        if self.listeners[middle].port < address.port:
            low = middle + 1
        else:
            high = middle
    while low < self.count and self.listeners[low].port == address.port:
        listener = &self.listeners[low]
        if listener.every & bit or (listener.every == 0 and memcmp(listener.ip, address.ip, 16) == 0):
            return True
        low += 1
    return False


cdef inline bint always_local(const Address *address) noexcept nogil:
    """Loopback, and the unspecified address, which stands for it in a connect."""
    cdef int i
    if address_is_four(address):
        return address.ip[12] == 127 or memcmp(&address.ip[12], b"\0\0\0\0", 4) == 0
    for i in range(15):
        if address.ip[i]:
            return False
    return address.ip[15] <= 1


cdef inline int local_or_error(const Address *address) noexcept nogil:
    """1 if an address belongs to this machine now, 0 if not, -errno without a descriptor or memory to find out."""
    cdef SocketAddress place
    cdef int answer
    cdef int fd
    if address_is_unix(address) or always_local(address):
        return 1
    answer = route_of(address)
    if answer != ROUTE_UNKNOWN:
        return answer
    # Netlink is not allowed here. Connect tells it of all addresses but second ones of a network.
    address_place(address, &place)
    fd = c_socket(place.place.six.sin6_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -errno if is_shortage(errno) else 0
    answer = c_connect(fd, <const sockaddr *> &place.place, place.size) == 0 and connected_locally(fd, address)
    c_close(fd)
    return answer


cdef inline bint is_local(const Address *address) noexcept nogil:
    """The same; without a descriptor: no, and what follows needs one, too."""
    return local_or_error(address) == 1


cdef inline bint is_special(const Address *address) noexcept nogil:
    """Loopback, link-local, unspecified, multicast or broadcast, as in `oinetd.upstream.special`."""
    if always_local(address):
        return True
    if address_is_four(address):
        return (
            (address.ip[12] == 169 and address.ip[13] == 254) or address.ip[12] >> 4 == 0xe
            or memcmp(&address.ip[12], b"\xff\xff\xff\xff", 4) == 0
        )
    return address.ip[0] == 0xff or (address.ip[0] == 0xfe and address.ip[1] & 0xc0 == 0x80)


cdef inline int is_forbidden(const Address *address) noexcept nogil:
    """Whether a client may not choose this address as its destination; `oinetd.upstream.original` asks the same.
    -errno if that cannot be found out now: then nobody is let through."""
    return 1 if is_special(address) else local_or_error(address)


cdef inline bint is_own(Own *self, pthread_mutex_t *lock, const Address *sender) noexcept nogil:
    """Whether a datagram's sender is, or claims to be, one of our own UDP listeners."""
    cdef bint bound
    if not own_port(self, sender.port):
        return False
    pthread_mutex_lock(lock)
    bound = own_bound(self, sender)
    pthread_mutex_unlock(lock)
    return bound and is_local(sender)
