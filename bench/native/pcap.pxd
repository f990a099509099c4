"""pcap files: written with the header of Linux's own "any" captures (SLL2), which names interface and direction.

Times have nanoseconds; numbers are in the order of this machine, as the format allows. Files that are read may have
microseconds and the link types that a capture on Linux makes.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport write

from segment cimport Segment, read_16, segment_read
from stream cimport Streams, streams_take


cdef enum:
    PCAP_MAGIC_NS = 0xa1b23c4d
    PCAP_MAGIC_US = 0xa1b2c3d4
    PCAP_HEADER_BYTES = 24
    PCAP_RECORD_BYTES = 16
    LINK_ETHERNET = 1
    LINK_RAW = 101
    LINK_SLL = 113
    LINK_SLL2 = 276
    SLL_BYTES = 16
    SLL2_BYTES = 20
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_IPV6 = 0x86dd
    PCAP_BUFFER_BYTES = 131072  # a write for each thousand packets; larger ones leave the processor's cache
    PCAP_SNAPLEN_MAX = 65536


cdef struct PcapHeader:
    uint32_t magic
    uint16_t major
    uint16_t minor
    uint32_t zone
    uint32_t accuracy
    uint32_t snaplen
    uint32_t link


cdef struct PcapRecord:
    uint32_t seconds
    uint32_t fraction
    uint32_t captured
    uint32_t wire


cdef struct Pcap:
    int fd  # -1: nothing is written
    int error  # errno of the write that failed; what comes after it is not written
    size_t used
    uint64_t written  # bytes, those in the buffer included
    uint8_t *buffer


cdef inline void pcap_flush(Pcap *pcap) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t count
    while done < pcap.used and pcap.error == 0:
        count = write(pcap.fd, pcap.buffer + done, pcap.used - done)
        if count >= 0:
            done += <size_t>count
        elif errno != EINTR:
            pcap.error = errno
    pcap.used = 0


cdef inline void pcap_put(Pcap *pcap, const void *data, size_t size) noexcept nogil:
    """Append; `size` is at most PCAP_SNAPLEN_MAX, which fits."""
    if pcap.used + size > PCAP_BUFFER_BYTES:
        pcap_flush(pcap)
    memcpy(pcap.buffer + pcap.used, data, size)
    pcap.used += size
    pcap.written += size


cdef inline void pcap_begin(Pcap *pcap, uint32_t snaplen) noexcept nogil:
    cdef PcapHeader header
    memset(&header, 0, sizeof(header))
    header.magic = PCAP_MAGIC_NS
    header.major = 2
    header.minor = 4
    header.snaplen = snaplen + SLL2_BYTES
    header.link = LINK_SLL2
    pcap_put(pcap, &header, sizeof(header))


cdef inline void pcap_packet(
    Pcap *pcap, const uint8_t *sll2, const uint8_t *packet, uint32_t captured, uint32_t wire, uint32_t seconds,
    uint32_t ns
) noexcept nogil:
    cdef PcapRecord record
    if pcap.error:
        return
    if captured > PCAP_SNAPLEN_MAX:
        captured = PCAP_SNAPLEN_MAX
    record.seconds = seconds
    record.fraction = ns
    record.captured = captured + SLL2_BYTES
    record.wire = wire + SLL2_BYTES
    pcap_put(pcap, &record, sizeof(record))
    pcap_put(pcap, sll2, SLL2_BYTES)
    pcap_put(pcap, packet, captured)


cdef inline int link_bytes(uint32_t link, const uint8_t *data, uint32_t captured) noexcept nogil:
    """How long the link's header is; -1 where what follows is neither IPv4 nor IPv6."""
    cdef uint32_t kind
    cdef int size
    if link == LINK_RAW:
        return 0
    if link == LINK_ETHERNET and captured >= 18:
        kind = read_16(data + 12)
        size = 14
        if kind == ETHERTYPE_VLAN:
            kind = read_16(data + 16)
            size = 18
    elif link == LINK_SLL and captured >= SLL_BYTES:
        kind = read_16(data + 14)
        size = SLL_BYTES
    elif link == LINK_SLL2 and captured >= SLL2_BYTES:
        kind = read_16(data)
        size = SLL2_BYTES
    else:
        return -1
    return size if kind == ETHERTYPE_IPV4 or kind == ETHERTYPE_IPV6 else -1


cdef inline int64_t pcap_read(const uint8_t *file, size_t size, Streams *streams) noexcept nogil:
    """Enter a whole file; the number of its packets, or -1 where it is no pcap file that is understood.

    A file that a killed program left may end within a packet: that one is not counted.
    """
    cdef PcapHeader header
    cdef PcapRecord record
    cdef Segment segment
    cdef size_t at = sizeof(header)
    cdef int64_t packets = 0
    cdef uint64_t unit
    cdef int link
    if size < sizeof(header):
        return -1
    memcpy(&header, file, sizeof(header))
    if header.magic != PCAP_MAGIC_NS and header.magic != PCAP_MAGIC_US:
        return -1
    unit = 1 if header.magic == PCAP_MAGIC_NS else 1000
    while size - at >= sizeof(record):
        memcpy(&record, file + at, sizeof(record))
        at += sizeof(record)
        if size - at < record.captured:
            break
        link = link_bytes(header.link, file + at, record.captured)
        if link >= 0 and record.wire >= <uint32_t>link and segment_read(
            file + at + link, record.captured - <uint32_t>link, record.wire - <uint32_t>link, &segment
        ):
            streams_take(streams, &segment, <uint64_t>record.seconds * 1000000000 + record.fraction * unit)
        at += record.captured
        packets += 1
    return packets
