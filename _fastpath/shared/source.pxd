"""How many connections each source has: a table that a gate shares between all reactors.

Clients choose their addresses, so the hash is keyed (SipHash-1-3 with a key of the process), and no client can aim at a
bucket. The table is hashed linearly: one more source splits one bucket, one less joins two, so that the lock is never
held for longer than a look at some short chains, however many sources there are, and memory follows their number.

A source is a network: an address with all bits behind a prefix cleared. The prefix is part of the key, so that
connections which were counted before the prefix was changed find what they counted.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from base.address cimport MAPPED_PREFIX, UNIX_MARK
from base.linux cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)

cdef extern from "<sys/random.h>" nogil:
    long getrandom(void *data, size_t size, unsigned int flags)

cdef extern from * nogil:
    """
    #include <stdint.h>
    #define OI_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
    #define OI_SIPROUND do { \\
        v0 += v1; v1 = OI_ROTL(v1, 13) ^ v0; v0 = OI_ROTL(v0, 32); v2 += v3; v3 = OI_ROTL(v3, 16) ^ v2; \\
        v0 += v3; v3 = OI_ROTL(v3, 21) ^ v0; v2 += v1; v1 = OI_ROTL(v1, 17) ^ v2; v2 = OI_ROTL(v2, 32); \\
    } while (0)
    /* SipHash-1-3 of two words and a length byte, which here is the prefix. */
    static inline uint64_t oi_sip(const uint64_t *key, uint64_t one, uint64_t two, uint64_t tail) {
        uint64_t v0 = key[0] ^ 0x736f6d6570736575ULL, v1 = key[1] ^ 0x646f72616e646f6dULL;
        uint64_t v2 = key[0] ^ 0x6c7967656e657261ULL, v3 = key[1] ^ 0x7465646279746573ULL;
        v3 ^= one; OI_SIPROUND; v0 ^= one;
        v3 ^= two; OI_SIPROUND; v0 ^= two;
        tail |= (uint64_t) 24 << 56;
        v3 ^= tail; OI_SIPROUND; v0 ^= tail;
        v2 ^= 0xff; OI_SIPROUND; OI_SIPROUND; OI_SIPROUND;
        return v0 ^ v1 ^ v2 ^ v3;
    }
    """
    uint64_t sip "oi_sip"(const uint64_t *key, uint64_t one, uint64_t two, uint64_t tail)

cdef enum:
    SEGMENT = 256               # buckets that are allocated together; a power of two
    DIRECTORY_STEP = 64         # the list of segments grows by this many

cdef struct Prefix:             # how many bits of an address make a source
    uint8_t four                # of an IPv4 address, 0-32
    uint8_t six                 # of an IPv6 address, 0-128

cdef struct SourceKey:
    uint8_t ip[16]              # mapped form, the bits behind the prefix cleared
    uint32_t bits               # of the mapped form

cdef struct Source:             # in its bucket as long as it has connections
    SourceKey key
    uint32_t count
    uint64_t hash
    Source *chain

cdef struct Sources:            # zeroed but for the lock and the seed is empty
    pthread_mutex_t lock        # guards everything below
    uint64_t seed[2]
    Source ***segments
    uint32_t segments_size      # places in that list
    uint64_t buckets            # in use
    uint64_t used               # sources
    size_t node_bytes           # of one entry; 0 is a `Source` alone


cdef inline void source_key(SourceKey *self, const uint8_t *ip, Prefix prefix) noexcept nogil:
    """The source of an address in mapped form. Link-local addresses are sources of their own: they share one prefix
    on every link, and all hosts of a link would be one."""
    cdef int whole, rest
    memcpy(self.ip, ip, 16)
    if memcmp(ip, MAPPED_PREFIX, 12) == 0:
        self.bits = <uint32_t> 96 + prefix.four
    elif memcmp(ip, UNIX_MARK, 4) == 0:
        self.bits = 64          # the mark and the user
    elif ip[0] == 0xfe and (ip[1] & 0xc0) == 0x80:
        self.bits = 128
    else:
        self.bits = prefix.six
    whole = <int> (self.bits >> 3)
    rest = <int> (self.bits & 7)
    if rest:
        self.ip[whole] &= <uint8_t> (0xff << (8 - rest))
        whole += 1
    memset(&self.ip[whole], 0, <size_t> (16 - whole))


cdef inline uint64_t source_hash(const Sources *self, const SourceKey *key) noexcept nogil:
    cdef uint64_t words[2]
    memcpy(words, key.ip, 16)
    return sip(self.seed, words[0], words[1], key.bits)


cdef inline void sources_init(Sources *self) noexcept nogil:
    pthread_mutex_init(&self.lock, NULL)
    if getrandom(self.seed, sizeof(self.seed), 1) != sizeof(self.seed):     # GRND_NONBLOCK: a machine that just booted
        self.seed[0] ^= <uint64_t> <size_t> self * <uint64_t> 0x9e3779b97f4a7c15


cdef inline void sources_free(Sources *self) noexcept nogil:
    cdef Source *source
    cdef Source *rest
    cdef uint64_t i
    for i in range(self.buckets):
        source = self.segments[i // SEGMENT][i % SEGMENT]
        while source != NULL:
            rest = source.chain
            free(source)
            source = rest
    for i in range((self.buckets + SEGMENT - 1) // SEGMENT):
        free(self.segments[i])
    free(self.segments)
    pthread_mutex_destroy(&self.lock)


cdef inline uint64_t half_of(uint64_t buckets) noexcept nogil:
    """The largest power of two that is not above `buckets`, which is at least 1."""
    cdef uint64_t half = 1
    while half * 2 <= buckets:      # bounded: 64 bits
        half *= 2
    return half


cdef inline Source **bucket_of(const Sources *self, uint64_t hash) noexcept nogil:
    """Where the chain of a hash begins; there is at least one bucket."""
    cdef uint64_t half = half_of(self.buckets)
    cdef uint64_t place = hash & (half * 2 - 1)
    if place >= self.buckets:
        place &= half - 1
    return &self.segments[place // SEGMENT][place % SEGMENT]


cdef inline bint bucket_add(Sources *self) noexcept nogil:
    """One more bucket, empty; False if there is no memory."""
    cdef Source ***more
    cdef uint64_t segment = self.buckets // SEGMENT
    if self.buckets % SEGMENT == 0:
        if segment == self.segments_size:
            more = <Source ***> realloc(self.segments, (segment + DIRECTORY_STEP) * sizeof(Source **))
            if more == NULL:
                return False
            self.segments = more
            self.segments_size += DIRECTORY_STEP
        self.segments[segment] = <Source **> calloc(SEGMENT, sizeof(Source *))
        if self.segments[segment] == NULL:
            return False
    self.buckets += 1
    return True


cdef inline void bucket_split(Sources *self) noexcept nogil:
    """One more bucket takes its share of the chain that it was part of. Without memory chains become longer."""
    cdef uint64_t last = self.buckets
    cdef uint64_t half
    cdef Source **link
    cdef Source **fresh
    cdef Source *source
    if not bucket_add(self):
        return
    half = half_of(last)
    fresh = &self.segments[last // SEGMENT][last % SEGMENT]
    link = &self.segments[(last - half) // SEGMENT][(last - half) % SEGMENT]
    while link[0] != NULL:
        source = link[0]
        if source.hash & (half * 2 - 1) == last:
            link[0] = source.chain
            source.chain = fresh[0]
            fresh[0] = source
        else:
            link = &source.chain


cdef inline void bucket_join(Sources *self) noexcept nogil:
    """The last bucket's chain goes back to where it came from."""
    cdef uint64_t last = self.buckets - 1
    cdef uint64_t half = half_of(last)
    cdef Source **link = &self.segments[(last - half) // SEGMENT][(last - half) % SEGMENT]
    cdef Source **gone = &self.segments[last // SEGMENT][last % SEGMENT]
    while link[0] != NULL:
        link = &link[0].chain
    link[0] = gone[0]
    gone[0] = NULL
    self.buckets = last
    if last % SEGMENT == 0:
        free(self.segments[last // SEGMENT])


cdef inline Source **source_find(const Sources *self, const SourceKey *key, uint64_t hash) noexcept nogil:
    """The link to a source, or to the end of the chain where it would be. There is at least one bucket."""
    cdef Source **link = bucket_of(self, hash)
    while link[0] != NULL and (link[0].hash != hash or memcmp(&link[0].key, key, sizeof(SourceKey)) != 0):
        link = &link[0].chain
    return link


cdef inline bint source_add(Sources *self, const SourceKey *key, uint64_t hash, Source **link) noexcept nogil:
    """A source with its first connection; False if there is no memory."""
    cdef Source *source = <Source *> malloc(self.node_bytes if self.node_bytes else sizeof(Source))
    if source == NULL:
        return False
    source.key = key[0]
    source.hash = hash
    source.count = 1
    source.chain = NULL
    link[0] = source
    self.used += 1
    if self.used > self.buckets:
        bucket_split(self)
    return True


cdef inline bint source_count_in(Sources *self, const uint8_t *ip, Prefix prefix, uint64_t bound) noexcept nogil:
    """Count one more connection of a source; False if it has `bound` of them, or there is no memory."""
    cdef SourceKey key
    cdef Source **link
    cdef uint64_t hash
    cdef bint entered = False
    source_key(&key, ip, prefix)
    hash = source_hash(self, &key)
    pthread_mutex_lock(&self.lock)
    if self.buckets or bucket_add(self):
        link = source_find(self, &key, hash)
        if link[0] == NULL:
            entered = source_add(self, &key, hash, link)
        elif link[0].count < bound:
            link[0].count += 1
            entered = True
    pthread_mutex_unlock(&self.lock)
    return entered


cdef inline void source_count_out(Sources *self, const uint8_t *ip, Prefix prefix) noexcept nogil:
    """Count one connection less; a source that has none left is forgotten."""
    cdef SourceKey key
    cdef Source **link
    cdef Source *source
    source_key(&key, ip, prefix)
    pthread_mutex_lock(&self.lock)
    if self.buckets:
        link = source_find(self, &key, source_hash(self, &key))
        source = link[0]
        if source != NULL:
            source.count -= 1
            if source.count == 0:
                link[0] = source.chain
                free(source)
                self.used -= 1
                if self.buckets > 1 and self.used * 2 < self.buckets:
                    bucket_join(self)
    pthread_mutex_unlock(&self.lock)


cdef inline uint32_t source_counted(Sources *self, const uint8_t *ip, Prefix prefix, uint32_t *steps) noexcept nogil:
    """The connections of a source, and how many entries of the table were looked at to find it."""
    cdef SourceKey key
    cdef Source *source
    cdef uint64_t hash
    cdef uint32_t count = 0
    source_key(&key, ip, prefix)
    hash = source_hash(self, &key)
    steps[0] = 0
    pthread_mutex_lock(&self.lock)
    source = bucket_of(self, hash)[0] if self.buckets else NULL
    while source != NULL and count == 0:
        steps[0] += 1
        if source.hash == hash and memcmp(&source.key, &key, sizeof(SourceKey)) == 0:
            count = source.count
        source = source.chain
    pthread_mutex_unlock(&self.lock)
    return count
