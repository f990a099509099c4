"""What the bench's loads carry: bytes that follow from a secret, so that either end can check every one of them.

A run has a secret, which client and server know and a forwarder does not. A stream is the bytes of one direction of one
connection. It is cut into blocks of 64 KiB; a block is a random table, the same for the whole run, combined with a
number that follows from secret, connection, direction and position. So no two places of all streams are alike: a byte
that is lost, changed, doubled or moved is seen where it should have been. Making or checking 64 KiB takes a few
microseconds (`python -m bench calibrate` measures it).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy


cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>

    typedef uint64_t bench_word __attribute__((aligned(1), may_alias));

    __attribute__((optimize("O3")))
    static void bench_fill(char *out, const char *table, uint64_t mask, size_t words)
    {
        bench_word *to = (bench_word *)out;
        const bench_word *from = (const bench_word *)table;
        for (size_t i = 0; i < words; i++)
            to[i] = from[i] ^ mask;
    }

    __attribute__((optimize("O3")))
    static int bench_same(const char *in, const char *table, uint64_t mask, size_t words)
    {
        const bench_word *got = (const bench_word *)in;
        const bench_word *want = (const bench_word *)table;
        uint64_t wrong = 0;
        for (size_t i = 0; i < words; i++)
            wrong |= got[i] ^ want[i] ^ mask;
        return wrong == 0;
    }
    """
    void bench_fill(char *out, const char *table, uint64_t mask, size_t words)
    bint bench_same(const char *data, const char *table, uint64_t mask, size_t words)


cdef enum:
    BLOCK_BYTES = 65536
    BLOCK_WORDS = 8192
    HELLO_BYTES = 64
    WORD_BYTES = 8
    UP = 1  # directions: from client to server
    DOWN = 2
    WORDS = 3  # not a stream: the single words of the protocol
    BLOCK_END = 1  # what the first word of a block is combined with where no block follows

    HELLO_EXCHANGE = 1  # requests and answers of fixed sizes, one after the other
    HELLO_SHORT = 2  # the hello is the request; the answer has the same size
    HELLO_UPLOAD = 3
    HELLO_DOWNLOAD = 4

    WORD_GREETING = 1  # the server has read the hello
    WORD_START = 2  # of a download
    WORD_STOP = 3
    WORD_RECEIPT = 4  # the server has read the end of an upload; a second word follows, combined with the bytes it got
    WORD_FIN = 5  # the server has read the client's FIN
    WORD_WRONG = 6  # in place of a receipt: what came is not what was sent


cdef struct Secret:
    uint64_t key[2]
    char table[BLOCK_BYTES]


cdef struct Stream:  # a place in a stream
    uint64_t connection
    uint64_t direction
    uint64_t at  # bytes before it
    uint64_t mask  # of the block that `at` is in


cdef struct Hello:  # the first bytes of a connection, from the client
    uint64_t tag  # follows from the secret and the rest
    uint64_t kind
    uint64_t connection
    uint64_t up_bytes  # of a request
    uint64_t down_bytes  # of an answer; blocks of a download, 0 without end
    uint64_t started_ns  # before the client's connect()
    uint64_t spare[2]


cdef inline uint64_t rotated(uint64_t value, int count) noexcept nogil:
    return value << count | value >> (64 - count)


cdef inline void sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotated(v[1], 13) ^ v[0]
    v[0] = rotated(v[0], 32)
    v[2] += v[3]
    v[3] = rotated(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotated(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotated(v[1], 17) ^ v[2]
    v[2] = rotated(v[2], 32)


cdef inline uint64_t keyed(const Secret *secret, const uint64_t *words, int count) noexcept nogil:
    """SipHash-1-3 of some words: nobody without the secret can tell it."""
    cdef uint64_t v[4]
    cdef int i, _
    v[0] = secret.key[0] ^ <uint64_t>0x736f6d6570736575
    v[1] = secret.key[1] ^ <uint64_t>0x646f72616e646f6d
    v[2] = secret.key[0] ^ <uint64_t>0x6c7967656e657261
    v[3] = secret.key[1] ^ <uint64_t>0x7465646279746573
    for i in range(count):
        v[3] ^= words[i]
        sip_round(v)
        v[0] ^= words[i]
    v[2] ^= 0xff
    for _ in range(3):
        sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline uint64_t keyed_word(
    const Secret *secret, uint64_t connection, uint64_t direction, uint64_t number
) noexcept nogil:
    cdef uint64_t words[3]
    words[0] = connection
    words[1] = direction
    words[2] = number
    return keyed(secret, words, 3)


cdef inline void secret_begin(Secret *secret, const char *key) noexcept nogil:
    """Take a key of 16 bytes, and make the table that follows from it."""
    cdef uint64_t word
    cdef uint64_t i
    memcpy(secret.key, key, 16)
    for i in range(BLOCK_WORDS):
        word = keyed_word(secret, 0, 0, i)
        memcpy(&secret.table[i * WORD_BYTES], &word, WORD_BYTES)


cdef inline void stream_begin(const Secret *secret, Stream *stream, uint64_t connection, int direction) noexcept nogil:
    stream.connection = connection
    stream.direction = <uint64_t>direction
    stream.at = 0
    stream.mask = keyed_word(secret, connection, <uint64_t>direction, 0)


cdef inline void stream_skip(const Secret *secret, Stream *stream, size_t count) noexcept nogil:
    """Move on by `count` bytes, at most to the end of the block."""
    stream.at += count
    if stream.at % BLOCK_BYTES == 0 and count:
        stream.mask = keyed_word(secret, stream.connection, stream.direction, stream.at // BLOCK_BYTES)


cdef inline char stream_byte(const Secret *secret, const Stream *stream, size_t offset) noexcept nogil:
    return secret.table[offset] ^ <char>(stream.mask >> (8 * (offset % WORD_BYTES)))


cdef inline void stream_fill(const Secret *secret, Stream *stream, char *out, size_t count) noexcept nogil:
    """Write the next `count` bytes of the stream."""
    cdef size_t offset, part, words
    while count > 0:
        offset = stream.at % BLOCK_BYTES
        part = BLOCK_BYTES - offset
        if part > count:
            part = count
        if offset % WORD_BYTES == 0 and part >= WORD_BYTES:
            words = part // WORD_BYTES
            bench_fill(out, &secret.table[offset], stream.mask, words)
            part = words * WORD_BYTES
        else:
            out[0] = stream_byte(secret, stream, offset)
            part = 1
        stream_skip(secret, stream, part)
        out += part
        count -= part


cdef inline bint stream_check(const Secret *secret, Stream *stream, const char *data, size_t count) noexcept nogil:
    """Whether `count` bytes are the next ones of the stream; moves on in either case."""
    cdef size_t offset, part, words
    cdef bint right = True
    while count > 0:
        offset = stream.at % BLOCK_BYTES
        part = BLOCK_BYTES - offset
        if part > count:
            part = count
        if offset % WORD_BYTES == 0 and part >= WORD_BYTES:
            words = part // WORD_BYTES
            right = bench_same(data, &secret.table[offset], stream.mask, words) and right
            part = words * WORD_BYTES
        else:
            right = data[0] == stream_byte(secret, stream, offset) and right
            part = 1
        stream_skip(secret, stream, part)
        data += part
        count -= part
    return right


cdef inline void hello_make(
    const Secret *secret, Hello *hello, uint64_t kind, uint64_t connection, uint64_t up_bytes, uint64_t down_bytes,
    uint64_t started_ns
) noexcept nogil:
    hello.kind = kind
    hello.connection = connection
    hello.up_bytes = up_bytes
    hello.down_bytes = down_bytes
    hello.started_ns = started_ns
    hello.spare[0] = hello.spare[1] = 0
    hello.tag = keyed(secret, &hello.kind, 7)


cdef inline bint hello_right(const Secret *secret, const Hello *hello) noexcept nogil:
    return hello.tag == keyed(secret, &hello.kind, 7)


# How far a stream of blocks has been read. The first word of each block says whether a block follows.
cdef struct Reading:
    Stream stream
    char head[WORD_BYTES]
    uint64_t wrong_at  # where the first wrong byte can be, plus one; 0 where there is none
    bint ended


cdef inline void reading_take(const Secret *secret, Reading *reading, const char *data, size_t count) noexcept nogil:
    """Check `count` bytes that came. After a wrong one the rest is only counted: nothing can be said of its place."""
    cdef size_t offset, part
    cdef uint64_t head, want
    while count > 0:
        if reading.wrong_at or reading.ended:
            if reading.ended and not reading.wrong_at:
                reading.wrong_at = reading.stream.at + 1  # bytes behind the end
            reading.stream.at += count
            return
        offset = reading.stream.at % BLOCK_BYTES
        if offset < WORD_BYTES:
            reading.head[offset] = data[0]
            part = 1
            if offset == WORD_BYTES - 1:
                memcpy(&head, reading.head, WORD_BYTES)
                memcpy(&want, secret.table, WORD_BYTES)
                head ^= want ^ reading.stream.mask
                if head == BLOCK_END:
                    reading.ended = True
                elif head != 0:
                    reading.wrong_at = reading.stream.at + 1
            stream_skip(secret, &reading.stream, part)
        else:
            part = BLOCK_BYTES - offset
            if part > count:
                part = count
            if not stream_check(secret, &reading.stream, data, part):
                reading.wrong_at = reading.stream.at - part + 1
        data += part
        count -= part


cdef inline size_t block_make(const Secret *secret, Stream *stream, char *out, bint last) noexcept nogil:
    """The next block, or the word that ends the stream; gives its length."""
    cdef uint64_t head
    if last:
        stream_fill(secret, stream, out, WORD_BYTES)
        memcpy(&head, out, WORD_BYTES)
        head ^= BLOCK_END
        memcpy(out, &head, WORD_BYTES)
        return WORD_BYTES
    stream_fill(secret, stream, out, BLOCK_BYTES)
    return BLOCK_BYTES
