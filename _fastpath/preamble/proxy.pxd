"""The header of the PROXY protocol, versions 1 and 2, as `oinetd.preamble.proxy_protocol` reads it.

The parser is pure: it is given all bytes from the first one. It keeps nothing and needs no memory.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memset

from base.address cimport Address, MAPPED_PREFIX
from base.linux cimport AF_INET, AF_INET6, inet_pton
from preamble.crc32c cimport crc32c_add
from preamble.fault cimport (
    FAULT_ADDRESS, FAULT_ADDRESSES_SHORT, FAULT_CHECKSUM, FAULT_CHECKSUM_SIZE, FAULT_COMMAND, FAULT_DATAGRAM,
    FAULT_FAMILY, FAULT_LINE_TOO_LONG, FAULT_LONE_CR, FAULT_LONE_LF, FAULT_PORT, FAULT_SIGNATURE, FAULT_TLV,
    FAULT_TOO_LONG, FAULT_UNIQUE_ID, FAULT_VERSION, FAULT_WORDS, FOUND_INVALID, FOUND_MORE, FOUND_WHOLE,
)

cdef enum:
    SIGNATURE_BYTES = 12
    LINE_BEGIN_BYTES = 6        # "PROXY "
    LINE_BYTES_MIN = 15         # "PROXY UNKNOWN" and CRLF
    LINE_BYTES_MAX = 107
    FIXED_BYTES = 16            # of version 2: signature, version and command, family, length
    HEADER_BYTES_MAX = 4096
    UNIQUE_ID_BYTES_MAX = 128
    ADDRESS_BYTES_MAX = 46      # of the text of one, with NUL

    COMMAND_LOCAL = 0
    COMMAND_PROXY = 1
    FAMILY_UNSPEC = 0
    FAMILY_INET = 1
    FAMILY_INET6 = 2
    FAMILY_UNIX = 3
    TRANSPORT_STREAM = 1
    TRANSPORT_DATAGRAM = 2

    TLV_ALPN = 1
    TLV_AUTHORITY = 2
    TLV_CRC32C = 3
    TLV_NOOP = 4
    TLV_UNIQUE_ID = 5

cdef extern from * nogil:
    """
    static const unsigned char oi_proxy_signature[] = "\\r\\n\\r\\n\\0\\r\\nQUIT\\n";
    static const unsigned char oi_proxy_line[] = "PROXY ";
    """
    const uint8_t *PROXY_SIGNATURE "oi_proxy_signature"
    const uint8_t *PROXY_LINE "oi_proxy_line"

cdef struct ProxyHeader:
    uint32_t need               # FOUND_MORE: the fewest bytes, from the first one, with which it can be whole
    uint32_t at                 # FOUND_INVALID: the byte that shows it
    uint32_t length             # FOUND_WHOLE
    uint32_t tlvs               # where the TLVs begin; `length` if there are none
    uint8_t fault
    uint8_t version
    uint8_t named               # it has internet addresses
    Address source
    Address destination


cdef inline uint32_t big_16(const uint8_t *data) noexcept nogil:
    return (<uint32_t> data[0] << 8) | data[1]


cdef inline int invalid(ProxyHeader *header, int fault, uint32_t at) noexcept nogil:
    header.fault = <uint8_t> fault
    header.at = at
    return FOUND_INVALID


cdef inline int more(ProxyHeader *header, uint32_t need) noexcept nogil:
    header.need = need
    return FOUND_MORE


cdef inline int whole(ProxyHeader *header, uint32_t length, int version) noexcept nogil:
    header.length = length
    header.tlvs = length
    header.version = <uint8_t> version
    return FOUND_WHOLE


# Version 1

cdef inline bint read_host(Address *address, int family, const uint8_t *text, uint32_t size) noexcept nogil:
    """Whether a word is an address of this family."""
    cdef char copy[ADDRESS_BYTES_MAX]
    if size >= ADDRESS_BYTES_MAX or memchr(text, 0, size) != NULL:
        return False
    memcpy(copy, text, size)
    copy[size] = 0
    address.family = <uint16_t> family
    if family == AF_INET:
        memcpy(address.ip, MAPPED_PREFIX, 12)
        return inet_pton(AF_INET, copy, &address.ip[12]) == 1
    return inet_pton(AF_INET6, copy, address.ip) == 1


cdef inline bint read_port(Address *address, const uint8_t *text, uint32_t size) noexcept nogil:
    cdef uint32_t value = 0
    cdef uint32_t i
    if size == 0 or size > 5 or (text[0] == 48 and size > 1):
        return False
    for i in range(size):
        if text[i] < 48 or text[i] > 57:
            return False
        value = 10 * value + (text[i] - 48)
    address.port = <uint16_t> value
    return value <= 65535


cdef inline int read_words(ProxyHeader *header, const uint8_t *data, uint32_t end) noexcept nogil:
    """The words of a whole line whose CR is at `end`."""
    cdef uint32_t begins[5]
    cdef uint32_t sizes[5]
    cdef uint32_t at = LINE_BEGIN_BYTES
    cdef uint32_t i
    cdef int count = 0
    cdef int family
    if end - at >= 7 and memcmp(&data[at], b"UNKNOWN", 7) == 0 and (end - at == 7 or data[at + 7] == 32):
        return whole(header, end + 2, 1)
    begins[0] = at
    for i in range(at, end + 1):
        if i < end and data[i] != 32:
            continue
        if count == 5:
            return invalid(header, FAULT_WORDS, LINE_BEGIN_BYTES)
        begins[count] = at
        sizes[count] = i - at
        count += 1
        at = i + 1
    if count != 5 or sizes[0] != 4 or memcmp(&data[begins[0]], b"TCP", 3) != 0:
        return invalid(header, FAULT_WORDS, LINE_BEGIN_BYTES)
    if data[begins[0] + 3] == 52:
        family = AF_INET
    elif data[begins[0] + 3] == 54:
        family = AF_INET6
    else:
        return invalid(header, FAULT_WORDS, LINE_BEGIN_BYTES)
    if not read_host(&header.source, family, &data[begins[1]], sizes[1]):
        return invalid(header, FAULT_ADDRESS, begins[1])
    if not read_host(&header.destination, family, &data[begins[2]], sizes[2]):
        return invalid(header, FAULT_ADDRESS, begins[2])
    if not read_port(&header.source, &data[begins[3]], sizes[3]):
        return invalid(header, FAULT_PORT, begins[3])
    if not read_port(&header.destination, &data[begins[4]], sizes[4]):
        return invalid(header, FAULT_PORT, begins[4])
    header.named = 1
    return whole(header, end + 2, 1)


cdef inline int read_line(ProxyHeader *header, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef uint32_t end
    cdef uint32_t last = size if size < LINE_BYTES_MAX - 1 else LINE_BYTES_MAX - 1
    for end in range(size if size < LINE_BEGIN_BYTES else LINE_BEGIN_BYTES):
        if data[end] != PROXY_LINE[end]:
            return invalid(header, FAULT_SIGNATURE, end)
    for end in range(last):
        if data[end] == 13 or data[end] == 10:
            break
    else:
        if size >= LINE_BYTES_MAX - 1:
            return invalid(header, FAULT_LINE_TOO_LONG, LINE_BYTES_MAX - 1)
        return more(header, size + 1 if size + 1 > LINE_BYTES_MIN else LINE_BYTES_MIN)
    if data[end] == 10:
        return invalid(header, FAULT_LONE_LF, end)
    if size == end + 1:
        return more(header, end + 2 if end + 2 > LINE_BYTES_MIN else LINE_BYTES_MIN)
    if data[end + 1] != 10:
        return invalid(header, FAULT_LONE_CR, end)
    return read_words(header, data, end)


# Version 2

cdef inline uint32_t checksum_of(const uint8_t *header, uint32_t length, uint32_t field) noexcept nogil:
    """The checksum of a header whose own field, of 4 bytes, is taken as zeros."""
    cdef uint8_t zeros[4]
    cdef uint32_t crc
    memset(zeros, 0, 4)
    crc = crc32c_add(<uint32_t> 0xffffffff, header, field)
    crc = crc32c_add(crc, zeros, 4)
    return ~crc32c_add(crc, &header[field + 4], length - field - 4)


cdef inline int check_tlvs(ProxyHeader *header, const uint8_t *data, uint32_t at, uint32_t length) noexcept nogil:
    """FOUND_WHOLE if every TLV from `at` on is valid."""
    cdef uint32_t size
    while at < length:      # bounded: each is at least three bytes
        if at + 3 > length or at + 3 + big_16(&data[at + 1]) > length:
            return invalid(header, FAULT_TLV, at)
        size = big_16(&data[at + 1])
        if data[at] == TLV_UNIQUE_ID and size > UNIQUE_ID_BYTES_MAX:
            return invalid(header, FAULT_UNIQUE_ID, at)
        if data[at] == TLV_CRC32C:
            if size != 4:
                return invalid(header, FAULT_CHECKSUM_SIZE, at)
            if checksum_of(data, length, at + 3) != (big_16(&data[at + 3]) << 16 | big_16(&data[at + 5])):
                return invalid(header, FAULT_CHECKSUM, at)
        at += 3 + size
    return FOUND_WHOLE


cdef inline void read_addresses(ProxyHeader *header, const uint8_t *data, int family) noexcept nogil:
    cdef uint32_t size = 4 if family == FAMILY_INET else 16
    cdef const uint8_t *ports = &data[2 * size]
    if family == FAMILY_INET:
        header.source.family = header.destination.family = AF_INET
        memcpy(header.source.ip, MAPPED_PREFIX, 12)
        memcpy(header.destination.ip, MAPPED_PREFIX, 12)
        memcpy(&header.source.ip[12], data, 4)
        memcpy(&header.destination.ip[12], &data[4], 4)
    else:
        header.source.family = header.destination.family = AF_INET6
        memcpy(header.source.ip, data, 16)
        memcpy(header.destination.ip, &data[16], 16)
    header.source.port = <uint16_t> big_16(ports)
    header.destination.port = <uint16_t> big_16(&ports[2])
    header.named = 1


cdef inline uint32_t block_bytes_of(int family) noexcept nogil:
    """What the addresses of a family take."""
    if family == FAMILY_INET:
        return 12
    if family == FAMILY_INET6:
        return 36
    return 216 if family == FAMILY_UNIX else 0


cdef inline int read_binary(ProxyHeader *header, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef uint32_t length, behind
    cdef int family
    cdef bint skipped
    if size > 12 and data[12] >> 4 != 2:
        return invalid(header, FAULT_VERSION, 12)
    if size > 12 and (data[12] & 15) > COMMAND_PROXY:
        return invalid(header, FAULT_COMMAND, 12)
    skipped = size > 12 and (data[12] & 15) == COMMAND_LOCAL
    if size > 13 and not skipped and (data[13] >> 4 > FAMILY_UNIX or (data[13] & 15) > TRANSPORT_DATAGRAM):
        return invalid(header, FAULT_FAMILY, 13)
    if size < FIXED_BYTES:
        return more(header, FIXED_BYTES)
    length = FIXED_BYTES + big_16(&data[14])
    if length > HEADER_BYTES_MAX:
        return invalid(header, FAULT_TOO_LONG, 14)
    family = data[13] >> 4
    skipped = skipped or family == FAMILY_UNSPEC or (data[13] & 15) == 0
    behind = FIXED_BYTES + block_bytes_of(family)
    if not skipped and length < behind:
        return invalid(header, FAULT_ADDRESSES_SHORT, 14)
    if size < length:
        return more(header, length)
    if skipped:
        return whole(header, length, 2)
    if check_tlvs(header, data, behind, length) != FOUND_WHOLE:
        return FOUND_INVALID
    if family != FAMILY_UNIX:
        read_addresses(header, &data[FIXED_BYTES], family)
    whole(header, length, 2)
    header.tlvs = behind
    return FOUND_WHOLE


cdef inline int proxy_read(ProxyHeader *header, const uint8_t *data, uint32_t size) noexcept nogil:
    """Read the header at the beginning of `data`: FOUND_MORE, FOUND_WHOLE or FOUND_INVALID."""
    cdef uint32_t at
    memset(header, 0, sizeof(ProxyHeader))
    if size == 0:
        return more(header, LINE_BYTES_MIN)
    if data[0] == PROXY_LINE[0]:
        return read_line(header, data, size)
    for at in range(size if size < SIGNATURE_BYTES else SIGNATURE_BYTES):
        if data[at] != PROXY_SIGNATURE[at]:
            return invalid(header, FAULT_SIGNATURE, at)
    return read_binary(header, data, size)


cdef inline int proxy_read_datagram(ProxyHeader *header, const uint8_t *data, uint32_t size) noexcept nogil:
    """Read the header of a datagram: version 2, for datagrams or LOCAL, and all of it in this datagram."""
    cdef int found = proxy_read(header, data, size)
    if found == FOUND_MORE:
        return invalid(header, FAULT_DATAGRAM, size)
    if found == FOUND_WHOLE and header.version != 2:
        return invalid(header, FAULT_DATAGRAM, 0)
    if (found == FOUND_WHOLE and (data[12] & 15) != COMMAND_LOCAL and (data[13] & 15) != TRANSPORT_DATAGRAM):
        return invalid(header, FAULT_DATAGRAM, 13)
    return found


cdef inline const uint8_t *tlv_find(const uint8_t *tlvs, uint32_t size, int kind) noexcept nogil:
    """The first TLV of this type among valid ones; NULL if there is none."""
    cdef uint32_t at = 0
    while at < size:        # bounded: each is at least three bytes
        if tlvs[at] == kind:
            return &tlvs[at]
        at += 3 + big_16(&tlvs[at + 1])
    return NULL
