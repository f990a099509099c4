"""One TCP segment, read out of a packet that begins with its network header.

The packet may be cut short by the capture's snapshot length; only lengths that the headers state are believed, and
nothing is read beyond what was captured.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset


cdef enum:
    TCP_FIN = 0x01
    TCP_SYN = 0x02
    TCP_RST = 0x04
    TCP_ACK = 0x10
    PROTOCOL_TCP = 6
    PROTOCOL_HOP_BY_HOP = 0
    PROTOCOL_ROUTING = 43
    PROTOCOL_DESTINATION = 60
    IPV6_OPTIONS_MAX = 8  # extension headers before TCP; more are no traffic of a forwarder


cdef struct Ends:  # compared and hashed as bytes: no padding
    uint8_t source[16]  # IPv4 as ::ffff:a.b.c.d
    uint8_t target[16]
    uint16_t source_port  # host order
    uint16_t target_port


cdef struct Segment:
    Ends ends
    uint32_t seq
    uint32_t ack
    uint32_t flags  # of the TCP header
    uint32_t payload  # bytes it carried, captured or not
    uint32_t held  # bytes of the payload that were captured
    const uint8_t *data


cdef inline uint32_t read_16(const uint8_t *data) noexcept nogil:
    return (<uint32_t>data[0] << 8) | data[1]


cdef inline uint32_t read_32(const uint8_t *data) noexcept nogil:
    return (read_16(data) << 16) | read_16(data + 2)


cdef inline void mapped_address(uint8_t *address, const uint8_t *four) noexcept nogil:
    memset(address, 0, 10)
    address[10] = address[11] = 0xff
    memcpy(&address[12], four, 4)


cdef inline int ipv4_read(
    const uint8_t *packet, uint32_t captured, uint32_t wire, Ends *ends, uint32_t *end
) noexcept nogil:
    """The length of the header; 0 where the packet is not whole TCP. `end` is where the packet ends on the wire."""
    cdef uint32_t header
    if captured < 20:
        return 0
    header = (packet[0] & 0x0f) * 4
    # Of a fragment only the first part has ports, and no part tells the sequence range of the whole.
    if header < 20 or packet[9] != PROTOCOL_TCP or (read_16(packet + 6) & 0x3fff):
        return 0
    end[0] = read_16(packet + 2)
    if end[0] == 0:  # segmentation offload beyond 64 KiB: the header cannot tell
        end[0] = wire
    mapped_address(ends.source, packet + 12)
    mapped_address(ends.target, packet + 16)
    return <int>header


cdef inline int ipv6_read(
    const uint8_t *packet, uint32_t captured, uint32_t wire, Ends *ends, uint32_t *end
) noexcept nogil:
    cdef uint32_t header = 40
    cdef uint32_t protocol
    cdef int _i
    if captured < 40:
        return 0
    protocol = packet[6]
    end[0] = read_16(packet + 4) + 40
    if end[0] == 40:
        end[0] = wire
    for _i in range(IPV6_OPTIONS_MAX):
        if protocol not in (PROTOCOL_HOP_BY_HOP, PROTOCOL_ROUTING, PROTOCOL_DESTINATION):
            break
        if captured < header + 8:
            return 0
        protocol = packet[header]
        header += 8 + <uint32_t>packet[header + 1] * 8
    if protocol != PROTOCOL_TCP:
        return 0
    memcpy(ends.source, packet + 8, 16)
    memcpy(ends.target, packet + 24, 16)
    return <int>header


cdef inline bint segment_read(const uint8_t *packet, uint32_t captured, uint32_t wire, Segment *segment) noexcept nogil:
    """False where the packet is not TCP, is a fragment, is cut off within its headers, or contradicts itself."""
    cdef const uint8_t *tcp
    cdef uint32_t header, begin
    cdef uint32_t end = 0
    cdef int network = 0
    if captured < 1:
        return False
    if packet[0] >> 4 == 4:
        network = ipv4_read(packet, captured, wire, &segment.ends, &end)
    elif packet[0] >> 4 == 6:
        network = ipv6_read(packet, captured, wire, &segment.ends, &end)
    if network == 0 or captured < <uint32_t>network + 20:
        return False
    tcp = packet + network
    header = (tcp[12] >> 4) * 4
    begin = <uint32_t>network + header
    if header < 20 or end < begin:
        return False
    segment.ends.source_port = <uint16_t>read_16(tcp)
    segment.ends.target_port = <uint16_t>read_16(tcp + 2)
    segment.seq = read_32(tcp + 4)
    segment.ack = read_32(tcp + 8)
    segment.flags = tcp[13]
    segment.payload = end - begin
    # A short frame is padded by Ethernet: what lies beyond the packet's end is not its data.
    segment.held = (captured if captured < end else end) - begin if captured > begin else 0
    segment.data = packet + begin
    return True
