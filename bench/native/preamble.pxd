"""What comes before the hello of a connection: a PROXY header or a TLS hello.

The client sends it in one piece with its hello. The server takes it off, and a connection without the right one is one
that does not carry what the client had sent.
"""

from libc.string cimport memcmp, memcpy

cdef enum:
    PREAMBLE_BYTES_MAX = 4096  # of what a client sends
    PROXY_BYTES_MAX = 256  # of a header that the server reads

    PREAMBLE_NONE = 0  # what the server expects
    PREAMBLE_EXACT = 1  # these bytes
    PREAMBLE_PROXY = 2  # a PROXY header, version 1 or 2, with this client address

    PROXY_FIXED_BYTES = 16  # of version 2
    PROXY_IPV4_BYTES = 12  # the addresses and ports
    ADDRESS_BYTES = 4


cdef struct Preamble:
    int kind
    size_t length
    char data[PREAMBLE_BYTES_MAX]  # for PREAMBLE_PROXY: the IPv4 address, then the beginning of a header of version 1


cdef inline bint preamble_set(Preamble *preamble, int kind, const char *data, size_t length) noexcept nogil:
    """False if it is too long."""
    if length > PREAMBLE_BYTES_MAX or (kind == PREAMBLE_PROXY and length <= ADDRESS_BYTES):
        return False
    preamble.kind = kind
    preamble.length = length
    memcpy(preamble.data, data, length)
    return True


cdef inline bint begins_alike(const char *data, size_t count, const char *wanted, size_t length) noexcept nogil:
    return memcmp(data, wanted, count if count < length else length) == 0


cdef inline int proxy_v1(const Preamble *wanted, const char *data, size_t count) noexcept nogil:
    """As `proxy_header`: `PROXY TCP4 ADDRESS `, whatever follows, and CRLF."""
    cdef size_t at
    cdef size_t length = wanted.length - ADDRESS_BYTES
    if not begins_alike(data, count, &wanted.data[ADDRESS_BYTES], length):
        return -1
    for at in range(length, count - 1 if count else 0):
        if data[at] == b"\r" and data[at + 1] == b"\n":
            return <int>at + 2
    return 0 if count < PROXY_BYTES_MAX else -1


cdef inline int proxy_v2(const Preamble *wanted, const char *data, size_t count) noexcept nogil:
    """As `proxy_header`: command PROXY, TCP over IPv4."""
    cdef size_t length
    if not begins_alike(data, count, b"\r\n\r\n\x00\r\nQUIT\n\x21\x11", 14):
        return -1
    if count < PROXY_FIXED_BYTES:
        return 0
    length = (<size_t><unsigned char>data[14] << 8) + <unsigned char>data[15]
    if length < PROXY_IPV4_BYTES or length > PROXY_BYTES_MAX - PROXY_FIXED_BYTES:
        return -1
    if count < PROXY_FIXED_BYTES + length:
        return 0
    if memcmp(&data[PROXY_FIXED_BYTES], wanted.data, ADDRESS_BYTES) != 0:
        return -1
    return PROXY_FIXED_BYTES + <int>length


cdef inline int proxy_header(const Preamble *wanted, const char *data, size_t count) noexcept nogil:
    """The length of the header that `data` begins with; 0 if it is not complete, -1 if it is not the right one."""
    if count == 0:
        return 0
    return proxy_v2(wanted, data, count) if data[0] == b"\r" else proxy_v1(wanted, data, count)
