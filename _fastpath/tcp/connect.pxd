"""One socket on its way to an address: opened, bound to a source, connected, watched."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp

from base.address cimport Address, SocketAddress, address_read, peer_credentials
from base.linux cimport (
    AF_UNIX, EINPROGRESS, EPERM, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, EPOLL_CTL_ADD, EPOLL_CTL_MOD,
    IPPROTO_IP, IPPROTO_TCP, IP_BIND_ADDRESS_NO_PORT, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET,
    SO_OOBINLINE, TCP_QUICKACK, c_bind, c_close, c_connect, c_epoll_ctl, c_getsockname, c_setsockopt, c_socket,
    epoll_event, errno, sockaddr, sockaddr_storage, socklen_t, ucred,
)
from shared.ending cimport ENDING_BIND_FAILED, ENDING_CONNECT_FAILED, ENDING_SOCKET_FAILED
from shared.policy cimport Policy, SocketOption
from state.connection_slab cimport CLIENT, KIND_CLIENT, UPSTREAM, Conn, event_data
from state.reactor cimport Reactor


cdef inline int watch_for(Reactor *reactor, int operation, int fd, uint64_t data, uint32_t reads) noexcept nogil:
    """Register a descriptor for everything; `reads` is EPOLLIN | EPOLLPRI, or 0: nothing is told of bytes to read."""
    cdef epoll_event event
    event.events = reads | EPOLLOUT | EPOLLRDHUP | <uint32_t> EPOLLET
    event.data.u64 = data
    return c_epoll_ctl(reactor.epoll_fd, operation, fd, &event)


cdef inline int watch_as(Reactor *reactor, int operation, int fd, uint64_t data) noexcept nogil:
    """Register a descriptor for everything; its events bear `data`."""
    return watch_for(reactor, operation, fd, data, EPOLLIN | EPOLLPRI)


cdef inline int watch(Reactor *reactor, Conn *conn, int side) noexcept nogil:
    """Register a side for everything."""
    return watch_as(reactor, EPOLL_CTL_ADD, conn.side[side].fd,
                    event_data(KIND_CLIENT + side, conn.slot.index, conn.slot.generation))


cdef inline int watch_reads(Reactor *reactor, Conn *conn, int side, bint reads) noexcept nogil:
    """Have the kernel tell of bytes to read on a side, or not; of a FIN and of errors it tells always. 0 or -1.

    Bytes that are there already are told at once: the kernel looks when the registration changes.
    """
    cdef uint64_t data = event_data(KIND_CLIENT + side, conn.slot.index, conn.slot.generation)
    cdef uint32_t wanted = EPOLLIN | EPOLLPRI if reads else 0
    if watch_for(reactor, EPOLL_CTL_MOD, conn.side[side].fd, data, wanted) != 0:
        return -1
    conn.side[side].unwatched = not reads
    return 0


cdef inline int options_set(const Policy *policy, int fd, int family, bint stream) noexcept nogil:
    """Set the options of the rule on a socket towards the server; 0 or an errno."""
    cdef const SocketOption *option
    cdef int i
    for i in range(policy.option_count):
        option = &policy.options[i]
        if (option.family and option.family != family) or (option.stream and not stream):
            continue
        if c_setsockopt(fd, option.level, option.name, option.value, option.size) != 0:
            return errno
    return 0


cdef inline int connect_begin(
    const Policy *policy, const SocketAddress *source, const SocketAddress *target, int *ending
) noexcept nogil:
    """A socket on its way to `target`, from `source` if that is of size above 0; its connect may be in progress.
    -errno, and then `ending` says at what. TCP_NODELAY is set by `undelay`."""
    cdef int off = 0
    cdef int on = 1
    cdef bint local = target.place.six.sin6_family == AF_UNIX
    cdef int fd = c_socket(target.place.six.sin6_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
                           0 if local else policy.protocol)
    cdef int error
    if fd < 0:
        ending[0] = ENDING_SOCKET_FAILED
        return -errno
    if not local:
        c_setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on))
        c_setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof(off))
        if policy.option_count:
            error = options_set(policy, fd, target.place.six.sin6_family, True)
            if error:
                ending[0] = ENDING_SOCKET_FAILED
                c_close(fd)
                return -error
    if source.size and not local:
        # The port is chosen by connect, which can use one again towards another destination; bind could not.
        c_setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on))
        if c_bind(fd, <const sockaddr *> &source.place, source.size) != 0:
            ending[0] = ENDING_BIND_FAILED
            error = errno
            c_close(fd)
            return -error
    if c_connect(fd, <const sockaddr *> &target.place, target.size) != 0 and errno != EINPROGRESS:
        ending[0] = ENDING_CONNECT_FAILED
        error = errno
        c_close(fd)
        return -error
    if local and not peer_is_right(policy, fd):
        ending[0] = ENDING_CONNECT_FAILED
        c_close(fd)
        return -EPERM
    return fd


cdef inline bint peer_is_right(const Policy *policy, int fd) noexcept nogil:
    """Whether the user who listens on a unix socket is the one that the rule demands."""
    cdef ucred peer
    return policy.peer_uid < 0 or (peer_credentials(fd, &peer) and <int64_t> peer.uid == policy.peer_uid)


cdef inline bint self_connected(int fd, const SocketAddress *target) noexcept nogil:
    """Whether the connect came back to its own socket: nobody listens on a port of this machine, and the kernel chose
    that port for the outgoing end."""
    cdef sockaddr_storage place
    cdef socklen_t size = sizeof(place)
    cdef Address local, far
    if c_getsockname(fd, <sockaddr *> &place, &size) != 0:
        return False
    address_read(&local, &place)
    address_read(&far, &target.place)
    return local.port == far.port and memcmp(local.ip, far.ip, sizeof(local.ip)) == 0


cdef inline void acknowledge(const Conn *conn) noexcept nogil:
    """Say the last word of the upstream's handshake, if no bytes of the client are here to carry it.

    It was held back when the connect began: a packet less for each connection whose client speaks first.
    """
    cdef int on = 1
    if not conn.side[CLIENT].rd and not conn.side[UPSTREAM].local:
        c_setsockopt(conn.side[UPSTREAM].fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on))
