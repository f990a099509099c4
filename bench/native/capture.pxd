"""A packet ring of the kernel's (TPACKET_V3), read block by block.

The kernel copies each packet that the socket's filter lets pass, once, into a block that this process has mapped; it
hands a block over when it is full or its time is up, and takes no more packets for one that was not handed back. So
loss has one cause, a reader that is late, and the kernel counts it. The walker reads nothing outside the block it is
given, whatever the block says.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pcap cimport Pcap, SLL2_BYTES, pcap_packet
from segment cimport Segment, segment_read
from stream cimport Streams, streams_take


cdef extern from "<linux/if_packet.h>" nogil:
    struct tpacket_hdr_v1:
        uint32_t block_status
        uint32_t num_pkts
        uint32_t offset_to_first_pkt
        uint32_t blk_len
        uint64_t seq_num
    union tpacket_bd_header_u:
        tpacket_hdr_v1 bh1
    struct tpacket_block_desc:
        uint32_t version
        uint32_t offset_to_priv
        tpacket_bd_header_u hdr
    struct tpacket3_hdr:
        uint32_t tp_next_offset
        uint32_t tp_sec
        uint32_t tp_nsec
        uint32_t tp_snaplen
        uint32_t tp_len
        uint32_t tp_status
        uint16_t tp_mac
        uint16_t tp_net
    struct sockaddr_ll:
        unsigned short sll_family
        uint16_t sll_protocol
        int32_t sll_ifindex
        unsigned short sll_hatype
        unsigned char sll_pkttype
        unsigned char sll_halen
        unsigned char sll_addr[8]
    enum:
        TP_STATUS_KERNEL, TP_STATUS_USER, TP_STATUS_LOSING, TPACKET_ALIGNMENT

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t value)
    uint16_t htons(uint16_t value)

# The kernel writes the status from another processor: what is in the block must not be read before it, nor after it
# was given back.
cdef extern from *:
    """
    #define oi_status_get(at) __atomic_load_n((at), __ATOMIC_ACQUIRE)
    #define oi_status_put(at, value) __atomic_store_n((at), (value), __ATOMIC_RELEASE)
    """
    uint32_t oi_status_get(const uint32_t *at) nogil
    void oi_status_put(uint32_t *at, uint32_t value) nogil


cdef struct Tally:
    uint64_t blocks
    uint64_t packets
    uint64_t others  # packets that are not TCP, or cut off within their headers
    uint64_t malformed  # blocks that contradict themselves; what came before the fault was taken
    uint64_t losing  # packets that came after a loss, as the kernel marked them


cdef struct Ring:
    uint8_t *map
    uint32_t block_bytes
    uint32_t block_count
    uint32_t next  # the block that the kernel hands over next


cdef inline void sll2_write(uint8_t *header, const sockaddr_ll *from_) noexcept nogil:
    """The 20 bytes of LINKTYPE_LINUX_SLL2, all in network order."""
    cdef uint32_t index = htonl(<uint32_t>from_.sll_ifindex)
    cdef uint16_t kind = htons(from_.sll_hatype)
    memset(header, 0, SLL2_BYTES)
    memcpy(header, &from_.sll_protocol, 2)
    memcpy(header + 4, &index, 4)
    memcpy(header + 8, &kind, 2)
    header[10] = from_.sll_pkttype
    header[11] = from_.sll_halen
    memcpy(header + 12, from_.sll_addr, 8)


cdef inline bint packet_take(
    const uint8_t *at, size_t room, Streams *streams, Pcap *pcap, Tally *tally
) noexcept nogil:
    """Take the packet whose header is at `at`, with `room` bytes to the block's end; False where it does not fit."""
    cdef tpacket3_hdr header
    cdef sockaddr_ll from_
    cdef size_t from_at = (sizeof(tpacket3_hdr) + TPACKET_ALIGNMENT - 1) // TPACKET_ALIGNMENT * TPACKET_ALIGNMENT
    cdef uint8_t sll2[SLL2_BYTES]
    cdef Segment segment
    if room < from_at + sizeof(sockaddr_ll):
        return False
    memcpy(&header, at, sizeof(header))
    # A cooked socket's packets begin with the network header.
    if header.tp_net > room or header.tp_snaplen > room - header.tp_net or header.tp_snaplen > header.tp_len:
        return False
    tally.packets += 1
    if header.tp_status & TP_STATUS_LOSING:
        tally.losing += 1
    if segment_read(at + header.tp_net, header.tp_snaplen, header.tp_len, &segment):
        streams_take(streams, &segment, <uint64_t>header.tp_sec * 1000000000 + header.tp_nsec)
    else:
        tally.others += 1
    if pcap.fd >= 0:
        memcpy(&from_, at + from_at, sizeof(from_))
        sll2_write(sll2, &from_)
        pcap_packet(pcap, sll2, at + header.tp_net, header.tp_snaplen, header.tp_len, header.tp_sec, header.tp_nsec)
    return True


cdef inline void block_walk(
    const uint8_t *block, size_t size, Streams *streams, Pcap *pcap, Tally *tally
) noexcept nogil:
    """Take every packet of one block."""
    cdef tpacket_block_desc description
    cdef tpacket3_hdr header
    cdef size_t at
    cdef uint32_t i
    tally.blocks += 1
    if size < sizeof(description):
        tally.malformed += 1
        return
    memcpy(&description, block, sizeof(description))
    at = description.hdr.bh1.offset_to_first_pkt
    for i in range(description.hdr.bh1.num_pkts):
        # Offsets only grow, so that the loop ends whatever the count is.
        if at > size or not packet_take(block + at, size - at, streams, pcap, tally):
            tally.malformed += 1
            return
        if i + 1 == description.hdr.bh1.num_pkts:
            return
        memcpy(&header, block + at, sizeof(header))
        if header.tp_next_offset == 0:
            tally.malformed += 1
            return
        at += header.tp_next_offset


cdef inline uint32_t *block_status(uint8_t *block) noexcept nogil:
    return &(<tpacket_block_desc *>block).hdr.bh1.block_status


cdef inline uint32_t ring_drain(Ring *ring, Streams *streams, Pcap *pcap, Tally *tally) noexcept nogil:
    """Take the blocks that the kernel has handed over, and give them back; at most one turn of the ring."""
    cdef uint8_t *block
    cdef uint32_t i
    for i in range(ring.block_count):
        block = ring.map + <size_t>ring.next * ring.block_bytes
        if not (oi_status_get(block_status(block)) & TP_STATUS_USER):
            return i
        block_walk(block, ring.block_bytes, streams, pcap, tally)
        oi_status_put(block_status(block), TP_STATUS_KERNEL)
        ring.next = (ring.next + 1) % ring.block_count
    return ring.block_count
