"""A look at what a client has sent of its preamble, a PROXY header or a TLS hello. It stays in the socket."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from base.linux cimport EAGAIN, EINTR, MSG_PEEK, SOL_SOCKET, SO_RCVLOWAT, c_recv, c_setsockopt, errno
from preamble.fault cimport FOUND_INVALID, FOUND_MORE
from preamble.hello cimport HELLO_WIRE_BYTES_MAX, Hello, hello_read
from preamble.proxy cimport HEADER_BYTES_MAX, ProxyHeader, proxy_read
from shared.ending cimport (
    ENDING_BAD_PROXY_HEADER, ENDING_BAD_TLS_HELLO, ENDING_CLIENT_CLOSED, ENDING_CLIENT_RESET,
)
from state.connection_slab cimport CLIENT, Conn
from state.reactor cimport Reactor
from tcp.ending cimport finish


cdef inline void low_water(Conn *conn, uint32_t size) noexcept nogil:
    """Have the kernel tell of bytes when there are so many, or the end."""
    cdef int mark = <int> size
    if conn.low_water != size:
        conn.low_water = size
        c_setsockopt(conn.side[CLIENT].fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof(mark))


cdef inline int64_t peek(Reactor *reactor, Conn *conn, bint ended, ProxyHeader *header, Hello *hello) noexcept nogil:
    """How many bytes there are, in the scratch, if `header` is whole; or `hello`, if that is not NULL.

    0: more is awaited, or the connection has ended. `ended` says that nothing follows what is there.
    """
    cdef uint32_t room = HEADER_BYTES_MAX + 1 if hello == NULL else HELLO_WIRE_BYTES_MAX
    cdef int64_t got = c_recv(conn.side[CLIENT].fd, reactor.scratch, room, MSG_PEEK)
    cdef int found = FOUND_MORE
    if got < 0:
        if errno != EAGAIN and errno != EINTR:
            finish(reactor, conn, ENDING_CLIENT_RESET, errno, True)
        return 0
    if got and hello == NULL:
        found = proxy_read(header, reactor.scratch, <uint32_t> got)
    elif got:
        found = hello_read(hello, reactor.scratch, <uint32_t> got, reactor.scratch + HELLO_WIRE_BYTES_MAX)
    if found == FOUND_MORE:
        if ended or got == 0:
            finish(reactor, conn, ENDING_CLIENT_CLOSED, 0, True)
        else:
            low_water(conn, header.need if hello == NULL else hello.need)
        return 0
    if found == FOUND_INVALID:
        if hello == NULL:
            conn.token = (<uint64_t> header.fault << 32) | header.at
        else:
            conn.token = (<uint64_t> hello.fault << 32) | hello.at
        finish(reactor, conn, ENDING_BAD_PROXY_HEADER if hello == NULL else ENDING_BAD_TLS_HELLO, 0, True)
        return 0
    low_water(conn, 1)
    return got
