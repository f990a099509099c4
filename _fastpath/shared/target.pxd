"""The addresses of a destination, and what is remembered of each: which one to try next.

All connections and UDP sessions of a listener share one list, and a reload that leaves the addresses as they are keeps
it. Addresses that work take turns within their family, families alternate, and the family of the resolver's first
answer goes first (RFC 8305, section 4). An address that failed is tried last for a while, that which failed longest ago
before the others. `oinetd.upstream.address_order` does the same for the Python lane, and a test holds the two together.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp

from base.address cimport SocketAddress
from base.atomic cimport oi_add, oi_get, oi_put, oi_raise_by
from base.linux cimport EADDRNOTAVAIL, EAGAIN, ELOOP, EMFILE, ENFILE, ENOBUFS, ENOMEM

cdef enum:
    ADDRESSES_MAX = 16          # of one destination; `oinetd.upstream.destination` cuts a longer list, and says so
    ADDRESS_BITS = 4            # bits of the number of an address
    HOLD_MS = 10000             # how long an address that failed is tried last; doubled when it fails again after that
    HOLD_MAX_MS = 300000
    ANSWERED_GRAIN_MS = 100     # answers that follow each other so fast are noted as one

cdef struct Target:
    SocketAddress place
    bint looping                # leads back to a listener of ours, if it is an address of this machine
    uint64_t looked             # atomic: see `tcp/loop.pxd`
    uint8_t rank                # among the addresses of its family, in the resolver's order
    uint8_t relatives           # how many its family has
    uint8_t second              # not of the family of the first address
    uint64_t failed_ms          # atomic: when it last failed; 0 if it did not since it worked
    uint64_t hold_ms            # atomic: how long it is tried last after that
    uint64_t told               # atomic: the control plane knows that it fails
    uint64_t answered_ms        # atomic: when datagrams last came from it

cdef struct Targets:
    uint64_t references         # atomic
    uint64_t turn               # atomic: searches that began
    bint may_self_connect       # the kernel may give the outgoing end the very port that it connects to
    bint may_broadcast          # over UDP: the configuration gives the destination as a number
    int count
    Target items[ADDRESSES_MAX]     # memory is there for `count` of them


cdef inline void targets_hold(Targets *self) noexcept nogil:
    oi_add(&self.references, 1)


cdef inline void targets_drop(Targets *self) noexcept nogil:
    if oi_raise_by(&self.references, <uint64_t> -1) == 1:
        free(self)


cdef inline void targets_rank(Targets *self) noexcept nogil:
    """Number the addresses within their families, once all are in."""
    cdef int counts[2]
    cdef Target *target
    cdef int i
    counts[0] = 0
    counts[1] = 0
    for i in range(self.count):
        target = &self.items[i]
        target.second = target.place.place.six.sin6_family != self.items[0].place.place.six.sin6_family
        target.rank = <uint8_t> counts[target.second]
        counts[target.second] += 1
    for i in range(self.count):
        self.items[i].relatives = <uint8_t> counts[self.items[i].second]


cdef inline bint targets_equal(const Targets *self, const Targets *other) noexcept nogil:
    """Whether both have the same addresses in the same order, and all else that is known of them beforehand."""
    cdef int i
    if self.may_self_connect != other.may_self_connect or self.may_broadcast != other.may_broadcast:
        return False
    for i in range(self.count):
        if i < other.count and self.items[i].looping != other.items[i].looping:
            return False
    return targets_same_places(self, other)


cdef inline bint targets_same_places(const Targets *self, const Targets *other) noexcept nogil:
    """Whether both have the same addresses in the same order."""
    cdef int i
    if self.count != other.count:
        return False
    for i in range(self.count):
        if memcmp(&self.items[i].place, &other.items[i].place, sizeof(SocketAddress)) != 0:
            return False
    return True


cdef inline void targets_remember(Targets *self, Targets *before) noexcept nogil:
    """Take over what `before` knows of the same addresses."""
    cdef int i, j
    oi_put(&self.turn, oi_get(&before.turn))
    for i in range(self.count):
        for j in range(before.count):
            if memcmp(&self.items[i].place, &before.items[j].place, sizeof(SocketAddress)) == 0:
                oi_put(&self.items[i].failed_ms, oi_get(&before.items[j].failed_ms))
                oi_put(&self.items[i].hold_ms, oi_get(&before.items[j].hold_ms))
                oi_put(&self.items[i].told, oi_get(&before.items[j].told))
                oi_put(&self.items[i].answered_ms, oi_get(&before.items[j].answered_ms))


cdef inline int targets_find(const Targets *self, const SocketAddress *place) noexcept nogil:
    """The number of an address; -1 if it is none of these."""
    cdef int i
    for i in range(self.count):
        if memcmp(&self.items[i].place, place, sizeof(SocketAddress)) == 0:
            return i
    return -1


cdef inline void target_answered(Target *self, uint64_t now_ms) noexcept nogil:
    """Datagrams came from it. All reactors share this: it is written to no more often than needed."""
    if now_ms >= oi_get(&self.answered_ms) + ANSWERED_GRAIN_MS:
        oi_put(&self.answered_ms, now_ms)


cdef inline uint64_t targets_begin(Targets *self) noexcept nogil:
    """A search begins; the number of its turn. One address needs none."""
    return oi_add(&self.turn, 1) if self.count > 1 else 0


cdef inline uint64_t target_place(const Target *self, uint64_t turn) noexcept nogil:
    """Its place in the order of a turn, if every address works."""
    return 2 * ((self.rank + self.relatives - turn % self.relatives) % self.relatives) + self.second


cdef inline int targets_pick(Targets *self, uint64_t tried, uint64_t turn, uint64_t now_ms) noexcept nogil:
    """The address to try next, of those whose bit in `tried` is not set; -1 if there is none."""
    cdef int best = -1
    cdef uint64_t best_failed = 0
    cdef uint64_t best_place = 0
    cdef uint64_t failed, place
    cdef int i
    if self.count == 1:
        return -1 if tried & 1 else 0
    for i in range(self.count):
        if tried >> i & 1:
            continue
        failed = oi_get(&self.items[i].failed_ms)
        if failed and now_ms >= failed + oi_get(&self.items[i].hold_ms):
            failed = 0
        place = target_place(&self.items[i], turn)
        if best < 0 or failed < best_failed or (failed == best_failed and place < best_place):
            best = i
            best_failed = failed
            best_place = place
    return best


cdef inline bint target_failed(Target *self, uint64_t now_ms) noexcept nogil:
    """It did not take a connection; whether that is to be told to the control plane."""
    cdef uint64_t failed = oi_get(&self.failed_ms)
    cdef uint64_t hold = oi_get(&self.hold_ms)
    if failed == 0:
        oi_put(&self.hold_ms, HOLD_MS)
    elif now_ms >= failed + hold:
        oi_put(&self.hold_ms, min(hold * 2, <uint64_t> HOLD_MAX_MS))
    oi_put(&self.failed_ms, now_ms)
    return oi_get(&self.told) == 0


cdef inline bint target_worked(Target *self) noexcept nogil:
    """It took a connection, or answered; whether that is to be told."""
    if oi_get(&self.failed_ms):
        oi_put(&self.failed_ms, 0)
        oi_put(&self.hold_ms, 0)
    return oi_get(&self.told) != 0


cdef inline bint is_of_the_server(int error) noexcept nogil:
    """Whether a failure to connect says something of the address, and not only of this machine."""
    return error not in (EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL, EAGAIN, ELOOP)
