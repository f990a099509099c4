"""The allow and deny rules in force for a route, compiled: the same answers as `oinetd.core.access`.

An allow exists and none matches: not allowed. A deny matches: denied. First the global rules, then the route's own.
A pattern is matched against the numeric address as text, a network against its bits. An IPv4 client of an IPv6
listener has two forms, plain and mapped, an IPv6 client with a scope has one with it and one without; a match of
either counts.
"""

from libc.stdint cimport uint8_t
from libc.stdlib cimport free
from libc.string cimport memset, strlen

from base.address cimport ADDRESS_TEXT_BYTES, Address, address_is_four, address_is_unix, address_text
from base.linux cimport AF_INET6, IF_NAMESIZE, if_indextoname
from shared.ending cimport ENDING_DENIED, ENDING_NOT_ALLOWED

cdef struct Pattern:
    char *text              # the shell pattern, or NULL if this is a network
    uint8_t network[16]     # IPv4 networks in mapped form
    int bits                # of the mapped form: 0-128
    bint four               # an IPv4 network matches an IPv4 client, an IPv6 network what the socket shows

cdef struct PatternList:
    Pattern *items
    int count

cdef struct Access:
    PatternList lists[4]    # global allow, global deny, own allow, own deny
    bint empty


cdef inline bint glob_match(const char *pattern, const char *text) noexcept nogil:
    """Whether `*` (any run) and `?` (one character) match all of `text`. Linear memory, no recursion: the place
    after the last star is the only one ever gone back to."""
    cdef const char *star = NULL
    cdef const char *resume = NULL
    while text[0] != 0:     # bounded by the product of two short strings
        if pattern[0] == c'*':
            star = pattern
            resume = text
            pattern += 1
        elif pattern[0] != 0 and (pattern[0] == c'?' or pattern[0] == text[0]):
            pattern += 1
            text += 1
        elif star != NULL:
            pattern = star + 1
            resume += 1
            text = resume
        else:
            return False
    while pattern[0] == c'*':
        pattern += 1
    return pattern[0] == 0


cdef inline bint network_match(const Pattern *pattern, const Address *peer) noexcept nogil:
    cdef int whole = pattern.bits >> 3
    cdef int rest = pattern.bits & 7
    cdef int i
    if pattern.four:
        if not address_is_four(peer):
            return False
    elif peer.family != AF_INET6:
        return False
    for i in range(whole):
        if pattern.network[i] != peer.ip[i]:
            return False
    return rest == 0 or ((pattern.network[whole] ^ peer.ip[whole]) >> (8 - rest)) == 0


cdef inline bint list_match(
    const PatternList *self, const Address *peer, const char *text, const char *other
) noexcept nogil:
    cdef int i
    for i in range(self.count):
        if self.items[i].text == NULL:
            if network_match(&self.items[i], peer):
                return True
        elif glob_match(self.items[i].text, text) or (other[0] != 0 and glob_match(self.items[i].text, other)):
            return True
    return False


cdef inline void other_form(const Address *peer, char *other) noexcept nogil:
    """The second form of an address, empty if it has none."""
    cdef size_t size
    other[0] = 0
    if peer.family != AF_INET6:
        return
    if address_is_four(peer):
        address_text(peer, other, True)
    elif peer.scope:
        address_text(peer, other, False)
        size = strlen(other)
        if size + IF_NAMESIZE + 1 > ADDRESS_TEXT_BYTES or if_indextoname(peer.scope, other + size + 1) == NULL:
            other[0] = 0
        else:
            other[size] = c'%'


cdef inline int access_decide(const Access *self, const Address *peer) noexcept nogil:
    """The ending of a client that is refused; 0 if it is let in."""
    cdef char text[ADDRESS_TEXT_BYTES]
    cdef char other[ADDRESS_TEXT_BYTES]
    cdef int i
    if self.empty or address_is_unix(peer):     # mode and owner of the socket's file judge who may connect
        return 0
    address_text(peer, text, False)
    other_form(peer, other)
    for i in range(0, 4, 2):
        if self.lists[i].count and not list_match(&self.lists[i], peer, text, other):
            return ENDING_NOT_ALLOWED
        if list_match(&self.lists[i + 1], peer, text, other):
            return ENDING_DENIED
    return 0


cdef inline bint list_has(const PatternList *self, const Address *peer) noexcept nogil:
    """Whether a pattern of the list matches, for one list alone."""
    cdef char text[ADDRESS_TEXT_BYTES]
    cdef char other[ADDRESS_TEXT_BYTES]
    if self.count == 0:
        return False
    address_text(peer, text, False)
    other_form(peer, other)
    return list_match(self, peer, text, other)


cdef inline bint access_denies_all(const Access *self, const Address *peer) noexcept nogil:
    """Whether a deny rule for all rules matches."""
    return list_has(&self.lists[1], peer)


cdef inline bint access_trusts(const Access *self, const Address *peer) noexcept nogil:
    """Whether a rule of the first list matches, in which are the peers that may send a PROXY header."""
    return list_has(&self.lists[0], peer)


cdef inline void access_free(Access *self) noexcept nogil:
    cdef int i, k
    for i in range(4):
        for k in range(self.lists[i].count):
            free(self.lists[i].items[k].text)
        free(self.lists[i].items)
    memset(self, 0, sizeof(Access))
