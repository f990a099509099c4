"""Which rule serves a client, by the server name and the protocols of its TLS hello, as `oinetd.core.names` says it.

A table is made once and never changed. It has open addressing and is at most half full, so that a look costs the same
however many names there are.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy

cdef enum:
    NAME_EXACT = 0              # in the order of preference
    NAME_WILDCARD = 1           # its text is what follows the first label
    NAME_NONE = 2               # whatever name the client wants
    NAME_KINDS = 3

    FULL_STOP = 46

cdef struct NameChoice:         # what one name is for
    const uint8_t *protocol
    uint32_t protocol_size      # 0: whatever the client speaks
    uint32_t rule
    uint32_t next               # 1 + the place of the next choice of this name; 0 is none

cdef struct NameSlot:
    const uint8_t *text
    uint32_t size
    uint32_t kind
    uint32_t first              # 1 + the place of its first choice; 0 is a free slot

cdef struct Names:
    uint64_t references         # atomic
    NameSlot *slots
    uint32_t mask
    NameChoice *choices
    uint32_t choice_count
    uint8_t *texts
    uint32_t text_bytes
    void **policies             # by the numbers of rules
    uint32_t policy_count


cdef inline void names_free(Names *self) noexcept nogil:
    free(self.slots)
    free(self.choices)
    free(self.texts)
    free(self.policies)
    free(self)


cdef inline Names *names_new(uint32_t choices, uint32_t text_bytes, uint32_t policies) noexcept nogil:
    """A table for so many choices, with texts of so many bytes in all; NULL if there is no memory."""
    cdef Names *self = <Names *> calloc(1, sizeof(Names))
    cdef uint32_t size = 8
    if self == NULL:
        return NULL
    while size < 2 * choices:
        size *= 2
    self.references = 1
    self.mask = size - 1
    self.slots = <NameSlot *> calloc(size, sizeof(NameSlot))
    self.choices = <NameChoice *> calloc(choices + 1, sizeof(NameChoice))
    self.texts = <uint8_t *> calloc(text_bytes + 1, 1)
    self.policies = <void **> calloc(policies + 1, sizeof(void *))
    if self.slots == NULL or self.choices == NULL or self.texts == NULL or self.policies == NULL:
        names_free(self)
        return NULL
    return self


cdef inline NameSlot *slot_of(const Names *self, uint32_t kind, const uint8_t *text, uint32_t size) noexcept nogil:
    """The slot of a name, or the free one in its place (FNV-1a, linear probing)."""
    cdef uint32_t hashed = (<uint32_t> 2166136261 ^ kind) * 16777619
    cdef NameSlot *slot
    cdef uint32_t i
    for i in range(size):
        hashed = (hashed ^ text[i]) * 16777619
    hashed ^= hashed >> 15
    while True:     # ends: at least half of the slots are free
        slot = &self.slots[hashed & self.mask]
        if slot.first == 0 or (slot.kind == kind and slot.size == size and memcmp(slot.text, text, size) == 0):
            return slot
        hashed += 1


cdef inline const uint8_t *names_keep(Names *self, const uint8_t *text, uint32_t size) noexcept nogil:
    cdef uint8_t *kept = self.texts + self.text_bytes
    memcpy(kept, text, size)
    self.text_bytes += size
    return kept


cdef inline void names_add(
    Names *self, uint32_t kind, const uint8_t *text, uint32_t size, const uint8_t *protocol, uint32_t protocol_size,
    uint32_t rule,
) noexcept nogil:
    """One more choice; there is room for it."""
    cdef NameSlot *slot = slot_of(self, kind, text, size)
    cdef NameChoice *choice = &self.choices[self.choice_count]
    if slot.first == 0:
        slot.text = names_keep(self, text, size)
        slot.size = size
        slot.kind = kind
    choice.protocol = names_keep(self, protocol, protocol_size)
    choice.protocol_size = protocol_size
    choice.rule = rule
    choice.next = slot.first
    self.choice_count += 1
    slot.first = self.choice_count


cdef inline int choice_for(
    const Names *self, const NameSlot *slot, const uint8_t *protocol, uint32_t size
) noexcept nogil:
    """The rule of a name for this protocol, with size 0 for any; -1 if there is none."""
    cdef const NameChoice *choice
    cdef uint32_t at = slot.first
    while at:       # bounded: the choices of one name
        choice = &self.choices[at - 1]
        if choice.protocol_size == size and (size == 0 or memcmp(choice.protocol, protocol, size) == 0):
            return <int> choice.rule
        at = choice.next
    return -1


cdef inline int slot_choose(
    const Names *self, const NameSlot *slot, const uint8_t *protocols, uint32_t size
) noexcept nogil:
    """The rule of a name for a client with these protocols, each behind its length; -1 if there is none."""
    cdef uint32_t at = 0
    cdef int found
    while at < size:        # bounded: each is at least two bytes
        found = choice_for(self, slot, &protocols[at + 1], protocols[at])
        if found >= 0 and protocols[at]:
            return found
        at += 1 + <uint32_t> protocols[at]
    return choice_for(self, slot, protocols, 0)


cdef inline int names_choose(
    const Names *self, const uint8_t *name, uint32_t name_size, const uint8_t *protocols, uint32_t size
) noexcept nogil:
    """The rule for a client that wants this name, in lower case, empty for none; -1 if there is none."""
    cdef const uint8_t *text
    cdef const NameSlot *slot
    cdef uint32_t kind, text_size
    cdef int found
    for kind in range(NAME_KINDS):
        text = name
        text_size = name_size
        if kind == NAME_EXACT and name_size == 0:
            continue
        if kind == NAME_WILDCARD:
            text = <const uint8_t *> memchr(name, FULL_STOP, name_size)
            if text == NULL:
                continue
            text += 1
            text_size = name_size - <uint32_t> (text - name)
        elif kind == NAME_NONE:
            text_size = 0
        slot = slot_of(self, kind, text, text_size)
        if slot.first:
            found = slot_choose(self, slot, protocols, size)
            if found >= 0:
                return found
    return -1
