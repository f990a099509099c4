"""CRC-32C (Castagnoli), half a byte at a time: headers are short, and few ask for it."""

from libc.stdint cimport uint8_t, uint32_t

cdef extern from * nogil:
    """
    static const uint32_t oi_crc32c_table[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
        0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75
    };
    """
    const uint32_t *CRC32C_TABLE "oi_crc32c_table"


cdef inline uint32_t crc32c_add(uint32_t crc, const uint8_t *data, uint32_t size) noexcept nogil:
    """Go on with a checksum that began with 0xffffffff; its end is inverted."""
    cdef uint32_t i
    for i in range(size):
        crc ^= data[i]
        crc = (crc >> 4) ^ CRC32C_TABLE[crc & 15]
        crc = (crc >> 4) ^ CRC32C_TABLE[crc & 15]
    return crc
