"""Headers of the PROXY protocol to send, as `oinetd.preamble.proxy_writer` writes them."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from base.address cimport Address, address_is_four
from base.linux cimport AF_INET, AF_INET6, inet_ntop
from preamble.crc32c cimport crc32c_add
from preamble.proxy cimport (
    ADDRESS_BYTES_MAX, COMMAND_LOCAL, COMMAND_PROXY, FAMILY_INET, FAMILY_INET6, FIXED_BYTES, HEADER_BYTES_MAX,
    PROXY_SIGNATURE, SIGNATURE_BYTES, TLV_CRC32C, TRANSPORT_DATAGRAM, TRANSPORT_STREAM,
)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *text, size_t size, const char *form, ...)

cdef enum:
    CHECKSUM_BYTES = 7          # of its TLV
    LINE_ROOM_BYTES = 128       # for a line of version 1 and its NUL


cdef inline void put_16(uint8_t *place, uint32_t value) noexcept nogil:
    place[0] = <uint8_t> (value >> 8)
    place[1] = <uint8_t> value


cdef inline uint32_t proxy_write_v1(char *line, const Address *source, const Address *destination) noexcept nogil:
    """Write a line into LINE_ROOM_BYTES; its length. An address without a family is not known."""
    cdef char texts[2][ADDRESS_BYTES_MAX]
    cdef bint four = address_is_four(source) and address_is_four(destination)
    cdef int family = AF_INET if four else AF_INET6
    if source.family == 0 or destination.family == 0:
        return <uint32_t> snprintf(line, LINE_ROOM_BYTES, b"PROXY UNKNOWN\r\n")
    inet_ntop(family, &source.ip[12 if four else 0], texts[0], ADDRESS_BYTES_MAX)
    inet_ntop(family, &destination.ip[12 if four else 0], texts[1], ADDRESS_BYTES_MAX)
    return <uint32_t> snprintf(
        line, LINE_ROOM_BYTES, b"PROXY TCP%d %s %s %u %u\r\n", <int> (4 if four else 6), texts[0], texts[1],
        <unsigned int> source.port, <unsigned int> destination.port)


cdef inline uint32_t tlv_put(uint8_t *header, uint32_t at, int kind, const uint8_t *value, uint32_t size,
                             bint checksum) noexcept nogil:
    """Add a TLV to a header that is being written, if there is room; where the next one goes."""
    if at + 3 + size + (CHECKSUM_BYTES if checksum else 0) > HEADER_BYTES_MAX:
        return at
    header[at] = <uint8_t> kind
    put_16(&header[at + 1], size)
    memcpy(&header[at + 3], value, size)
    return at + 3 + size


cdef inline uint32_t proxy_begin_v2(uint8_t *header, const Address *source, const Address *destination,
                                    bint datagram) noexcept nogil:
    """Write all of a header but TLVs and length into HEADER_BYTES_MAX; where the TLVs go, 0 if there are none."""
    cdef bint four = address_is_four(source) and address_is_four(destination)
    cdef uint32_t size = 4 if four else 16
    cdef uint32_t skip = 12 if four else 0
    memcpy(header, PROXY_SIGNATURE, SIGNATURE_BYTES)
    memset(&header[SIGNATURE_BYTES], 0, 4)
    header[12] = 2 << 4 | COMMAND_LOCAL
    if source.family == 0 or destination.family == 0:
        return 0
    header[12] = 2 << 4 | COMMAND_PROXY
    header[13] = <uint8_t> ((FAMILY_INET if four else FAMILY_INET6) << 4)
    header[13] |= TRANSPORT_DATAGRAM if datagram else TRANSPORT_STREAM
    memcpy(&header[FIXED_BYTES], &source.ip[skip], size)
    memcpy(&header[FIXED_BYTES + size], &destination.ip[skip], size)
    put_16(&header[FIXED_BYTES + 2 * size], source.port)
    put_16(&header[FIXED_BYTES + 2 * size + 2], destination.port)
    return FIXED_BYTES + 2 * size + 4


cdef inline uint32_t proxy_end_v2(uint8_t *header, uint32_t at, bint checksum) noexcept nogil:
    """Write the length, and the checksum if it is wanted; the length of the header. `at` is where TLVs would go."""
    cdef uint32_t crc
    if at == 0:
        return FIXED_BYTES
    if checksum:
        header[at] = TLV_CRC32C
        put_16(&header[at + 1], 4)
        memset(&header[at + 3], 0, 4)
        at += CHECKSUM_BYTES
    put_16(&header[14], at - FIXED_BYTES)
    if checksum:
        crc = ~crc32c_add(<uint32_t> 0xffffffff, header, at)
        put_16(&header[at - 4], crc >> 16)
        put_16(&header[at - 2], crc & 0xffff)
    return at
