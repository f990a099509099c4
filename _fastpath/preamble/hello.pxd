"""The first message of a TLS client, as `oinetd.preamble.tls_hello` reads it.

The parser is given all bytes from the first one, and a place to put the records together.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcpy, memset

from base.linux cimport AF_INET, AF_INET6, inet_pton
from preamble.fault cimport (
    FAULT_EXTENSION_TWICE, FAULT_HELLO, FAULT_HELLO_TOO_LONG, FAULT_PROTOCOLS, FAULT_RECORD, FAULT_SERVER_NAME,
    FOUND_INVALID, FOUND_MORE, FOUND_WHOLE,
)
from preamble.proxy cimport big_16

cdef enum:
    HANDSHAKE = 22
    CLIENT_HELLO = 1
    RECORD_HEAD_BYTES = 5
    RECORD_BYTES_MAX = 16384
    MESSAGE_HEAD_BYTES = 4
    MESSAGE_BYTES_MAX = 16384
    HELLO_WIRE_BYTES_MAX = 65536
    NAME_CHARS_MAX = 253
    EXTENSION_SERVER_NAME = 0
    EXTENSION_PROTOCOLS = 16

cdef struct Hello:
    uint32_t need               # FOUND_MORE: the fewest bytes, from the first one, with which it can be whole
    uint32_t at                 # FOUND_INVALID: the byte that shows it
    uint32_t fault
    uint32_t name_size          # 0: no server by name
    char name[NAME_CHARS_MAX + 1]       # in lower case, with NUL
    const uint8_t *protocols    # a length byte before each; inside the message
    uint32_t protocols_size

cdef struct Reader:             # takes a message apart; once it was too short, it stays `broken`
    const uint8_t *data
    uint32_t left
    bint broken


cdef inline const uint8_t *take(Reader *self, uint32_t size) noexcept nogil:
    """The next `size` bytes; those of an empty reader if there are fewer."""
    cdef const uint8_t *found = self.data
    if size > self.left:
        self.broken = True
        self.left = 0
        return found
    self.data += size
    self.left -= size
    return found


cdef inline uint32_t take_number(Reader *self, uint32_t size) noexcept nogil:
    cdef const uint8_t *found = take(self, size)
    if self.broken:
        return 0
    return found[0] if size == 1 else big_16(found)


cdef inline Reader take_vector(Reader *self, uint32_t size) noexcept nogil:
    """Bytes with their number, of `size` bytes, before them."""
    cdef Reader found
    found.left = take_number(self, size)
    found.broken = False
    found.data = take(self, found.left)
    if self.broken:
        found.left = 0
    return found


cdef inline int hello_invalid(Hello *self, int fault, uint32_t at) noexcept nogil:
    self.fault = <uint32_t> fault
    self.at = at
    return FOUND_INVALID


cdef inline int hello_more(Hello *self, uint32_t need) noexcept nogil:
    if need > HELLO_WIRE_BYTES_MAX:
        return hello_invalid(self, FAULT_HELLO_TOO_LONG, HELLO_WIRE_BYTES_MAX)
    self.need = need
    return FOUND_MORE


cdef inline bint is_name_char(uint8_t char) noexcept nogil:
    return (97 <= char <= 122) or (48 <= char <= 57) or char == 45 or char == 46 or char == 95


cdef inline bint name_keep(Hello *self, const uint8_t *name, uint32_t size) noexcept nogil:
    """Keep a server name in lower case without the dot at its end, none for the literal of an address; False if it is
    not valid."""
    cdef uint8_t address[16]
    cdef uint32_t i
    if size and name[size - 1] == 46:
        size -= 1
    if size > NAME_CHARS_MAX or memchr(name, 0, size) != NULL:
        return False
    memcpy(self.name, name, size)
    self.name[size] = 0
    if size == 0 or inet_pton(AF_INET6 if memchr(name, 58, size) != NULL else AF_INET, self.name, address) == 1:
        self.name[0] = 0
        return True
    for i in range(size):
        if 65 <= <uint8_t> self.name[i] <= 90:
            self.name[i] += 32
        if not is_name_char(<uint8_t> self.name[i]):
            return False
    self.name_size = size
    return True


cdef inline bint read_server_name(Hello *self, Reader *value) noexcept nogil:
    cdef Reader names = take_vector(value, 2)
    cdef Reader name
    cdef Reader found
    cdef uint32_t kind
    found.data = NULL
    found.left = 0
    if value.broken or value.left or names.left == 0:
        return False
    while names.left:       # bounded: each is at least three bytes
        kind = take_number(&names, 1)
        name = take_vector(&names, 2)
        if names.broken:
            return False
        if kind != 0:
            continue
        if found.data != NULL:
            return False
        found = name
    return found.data == NULL or name_keep(self, found.data, found.left)


cdef inline bint read_protocols(Hello *self, Reader *value) noexcept nogil:
    cdef Reader names = take_vector(value, 2)
    if value.broken or value.left or names.left == 0:
        return False
    self.protocols = names.data
    self.protocols_size = names.left
    while names.left:       # bounded: each is at least two bytes
        if take_vector(&names, 1).left == 0 or names.broken:
            return False
    return True


cdef inline int read_extensions(Hello *self, Reader *extensions) noexcept nogil:
    """0, or a fault."""
    cdef uint8_t seen[8192]     # a bit for each type
    cdef Reader value
    cdef uint32_t kind
    memset(seen, 0, sizeof(seen))
    while extensions.left:      # bounded: each is at least four bytes
        kind = take_number(extensions, 2)
        value = take_vector(extensions, 2)
        if extensions.broken:
            return FAULT_HELLO
        if seen[kind >> 3] & (1 << (kind & 7)):
            return FAULT_EXTENSION_TWICE
        seen[kind >> 3] |= <uint8_t> (1 << (kind & 7))
        if kind == EXTENSION_SERVER_NAME and not read_server_name(self, &value):
            return FAULT_SERVER_NAME
        if kind == EXTENSION_PROTOCOLS and not read_protocols(self, &value):
            return FAULT_PROTOCOLS
    return 0


cdef inline int read_message(Hello *self, const uint8_t *body, uint32_t size) noexcept nogil:
    cdef Reader reader
    cdef Reader part
    cdef int fault
    reader.data = body
    reader.left = size
    reader.broken = False
    take(&reader, 2 + 32)               # version, random
    if take_vector(&reader, 1).left > 32:
        return hello_invalid(self, FAULT_HELLO, 0)
    part = take_vector(&reader, 2)      # ciphers
    if reader.broken or part.left == 0 or part.left % 2:
        return hello_invalid(self, FAULT_HELLO, 0)
    part = take_vector(&reader, 1)      # compression
    if reader.broken or part.left == 0:
        return hello_invalid(self, FAULT_HELLO, 0)
    if reader.left == 0:                # without extensions, from before TLS 1.2
        return FOUND_WHOLE
    part = take_vector(&reader, 2)
    if reader.broken or reader.left:
        return hello_invalid(self, FAULT_HELLO, 0)
    fault = read_extensions(self, &part)
    return hello_invalid(self, fault, 0) if fault else FOUND_WHOLE


cdef inline int record_check(Hello *self, const uint8_t *data, uint32_t size, uint32_t at) noexcept nogil:
    """FOUND_WHOLE if the head of the record at `at` is valid, as far as it has come."""
    cdef uint32_t length
    if size > at and data[at] != HANDSHAKE:
        return hello_invalid(self, FAULT_RECORD, at)
    if size > at + 1 and data[at + 1] != 3:
        return hello_invalid(self, FAULT_RECORD, at + 1)
    if size >= at + RECORD_HEAD_BYTES:
        length = big_16(&data[at + 3])
        if length == 0 or length > RECORD_BYTES_MAX:
            return hello_invalid(self, FAULT_RECORD, at + 3)
    return FOUND_WHOLE


cdef inline int hello_read(Hello *self, const uint8_t *data, uint32_t size, uint8_t *message) noexcept nogil:
    """Read the hello at the beginning of `data`: FOUND_MORE, FOUND_WHOLE or FOUND_INVALID. `message` is a place of
    MESSAGE_BYTES_MAX for it, to which `protocols` points. What does not begin as a hello wants no server by name."""
    cdef uint32_t got = 0       # bytes of the message that came
    cdef uint32_t need = MESSAGE_HEAD_BYTES
    cdef uint32_t at = 0
    cdef uint32_t begin, there, missing, in_record
    memset(self, 0, sizeof(Hello))
    if size == 0:
        return hello_more(self, 1)
    if size > HELLO_WIRE_BYTES_MAX:
        size = HELLO_WIRE_BYTES_MAX
    while got < need:           # bounded: each record is at least six bytes
        if record_check(self, data, size, at) != FOUND_WHOLE:
            if self.at == 0:    # a client that speaks something else
                self.fault = 0
                return FOUND_WHOLE
            return FOUND_INVALID
        if size < at + RECORD_HEAD_BYTES:
            return hello_more(self, at + RECORD_HEAD_BYTES + need - got)
        begin = at + RECORD_HEAD_BYTES
        at = begin + big_16(&data[at + 3])
        there = (at if at < size else size) - begin
        if there and got == 0 and data[begin] != CLIENT_HELLO:
            return FOUND_WHOLE
        if there > MESSAGE_BYTES_MAX - got:     # behind the hello other messages may follow
            there = MESSAGE_BYTES_MAX - got
        memcpy(&message[got], &data[begin], there)
        got += there
        if got >= MESSAGE_HEAD_BYTES:
            need = MESSAGE_HEAD_BYTES + ((<uint32_t> message[1] << 16) | big_16(&message[2]))
            if need > MESSAGE_BYTES_MAX:
                return hello_invalid(self, FAULT_HELLO_TOO_LONG, begin)
        if size < at and got < need:
            missing = need - got
            in_record = at - size
            return hello_more(self, size + missing if missing <= in_record
                              else at + RECORD_HEAD_BYTES + missing - in_record)
    return read_message(self, &message[MESSAGE_HEAD_BYTES], need - MESSAGE_HEAD_BYTES)
