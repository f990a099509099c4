# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What libFuzzer calls: the native parsers of what a client sends before the relay, and what has to hold for any bytes.

The first byte chooses the parser, the second one where the bytes are cut. `tests/fuzz/run.sh` builds and runs it.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport abort, free, malloc
from libc.string cimport memcmp, memcpy

from preamble.fault cimport FOUND_INVALID, FOUND_MORE, FOUND_WHOLE
from preamble.hello cimport HELLO_WIRE_BYTES_MAX, MESSAGE_BYTES_MAX, NAME_CHARS_MAX, Hello, hello_read
from preamble.proxy cimport (
    HEADER_BYTES_MAX, LINE_BYTES_MAX, ProxyHeader, proxy_read, proxy_read_datagram, tlv_find,
)
from preamble.proxy_write cimport LINE_ROOM_BYTES, proxy_begin_v2, proxy_end_v2, proxy_write_v1, tlv_put


cdef void claim(bint holds) noexcept nogil:
    if not holds:
        abort()


cdef void write_and_read(const ProxyHeader *header, const uint8_t *tlvs) noexcept nogil:
    """What is written of a header that was read is read again."""
    cdef uint8_t written[HEADER_BYTES_MAX]
    cdef char line[LINE_ROOM_BYTES]
    cdef ProxyHeader again
    cdef uint32_t size = proxy_write_v1(line, &header.source, &header.destination)
    cdef uint32_t at
    claim(size <= LINE_BYTES_MAX)
    claim(proxy_read(&again, <const uint8_t *> line, size) == FOUND_WHOLE and again.length == size)
    claim(again.named == header.named)
    claim(memcmp(again.source.ip, header.source.ip, 16) == 0 and again.source.port == header.source.port)
    at = proxy_begin_v2(written, &header.source, &header.destination, False)
    if at:
        at = tlv_put(written, at, 0xE0, tlvs, header.length - header.tlvs, True)
    size = proxy_end_v2(written, at, True)
    claim(size <= HEADER_BYTES_MAX)
    claim(proxy_read(&again, written, size) == FOUND_WHOLE and again.length == size)
    claim(memcmp(again.destination.ip, header.destination.ip, 16) == 0)


cdef void fuzz_proxy(const uint8_t *data, uint32_t size, uint32_t cut, bint datagram) noexcept nogil:
    cdef ProxyHeader header, part
    cdef int found = proxy_read_datagram(&header, data, size) if datagram else proxy_read(&header, data, size)
    cdef int first
    if found == FOUND_WHOLE:
        claim(header.length <= size and header.tlvs <= header.length <= HEADER_BYTES_MAX)
        tlv_find(&data[header.tlvs], header.length - header.tlvs, 2)
        write_and_read(&header, &data[header.tlvs])
    elif found == FOUND_MORE:
        claim(size < header.need <= HEADER_BYTES_MAX)
    else:
        claim(header.fault != 0 and header.at <= size)
    if datagram:
        return
    first = proxy_read(&part, data, cut)
    if first == FOUND_MORE:
        claim(part.need > cut and (found != FOUND_WHOLE or part.need <= header.length))
    elif first == FOUND_INVALID:
        claim(found == FOUND_INVALID and part.fault == header.fault and part.at == header.at)
    else:
        claim(found == FOUND_WHOLE and part.length == header.length)


cdef void fuzz_hello(const uint8_t *data, uint32_t size, uint32_t cut) noexcept nogil:
    cdef Hello hello, part
    cdef uint8_t *message = <uint8_t *> malloc(MESSAGE_BYTES_MAX)
    cdef int found = hello_read(&hello, data, size, message)
    cdef int first
    cdef uint32_t i
    if found == FOUND_WHOLE:
        claim(hello.name_size <= NAME_CHARS_MAX)
        for i in range(hello.name_size):
            claim(hello.name[i] > 32 and not 65 <= hello.name[i] <= 90)
        i = 0
        while i < hello.protocols_size:
            claim(hello.protocols[i] != 0)
            i += 1 + hello.protocols[i]
        claim(i == hello.protocols_size)
    elif found == FOUND_MORE:
        claim(size < hello.need <= HELLO_WIRE_BYTES_MAX)
    else:
        claim(hello.fault != 0)
    first = hello_read(&part, data, cut, message)
    if first == FOUND_MORE:
        claim(part.need > cut)
        if found == FOUND_WHOLE and cut > 5 and data[5] == 1:       # else it is no hello, which may show earlier
            claim(part.need <= size)
    elif first == FOUND_INVALID:
        claim(found == FOUND_INVALID and part.fault == hello.fault and part.at == hello.at)
    else:
        claim(found == FOUND_WHOLE and part.name_size == hello.name_size)
    free(message)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    """One input, in a place of its own size, so that a byte too much is seen."""
    cdef uint8_t *copy
    cdef uint32_t length, cut
    if size < 2:
        return 0
    length = <uint32_t> size - 2
    copy = <uint8_t *> malloc(length)
    memcpy(copy, &data[2], length)
    cut = length * data[1] // 255
    if data[0] % 3 == 2:
        fuzz_hello(copy, length, cut)
    else:
        fuzz_proxy(copy, length, cut, data[0] % 3 == 1)
    free(copy)
    return 0
