"""What is in force for a route: addresses, access, limits, timeouts. Never changed once made; a reload makes another.

Each connection holds the policy it began with, so that a change of the configuration never reaches into one that
lives.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free

from shared.access cimport Access, access_free
from base.address cimport SocketAddress
from base.linux cimport AF_INET, AF_UNIX
from base.atomic cimport oi_add, oi_raise_by
from shared.gate cimport Gate, gate_drop
from shared.group cimport Group, Member, group_drop, group_members
from shared.names cimport Names, names_free
from shared.target cimport Targets, targets_drop
from shared.source cimport Prefix

cdef enum:
    RELAY_AUTO = 0
    RELAY_COPY = 1
    RELAY_SPLICE = 2

    MEMBER_WAITS = 0xFFFF       # in place of the number of a member: the session waits for room in a server

    ACCEPT_OFF = 0              # of `accept_proxy`
    ACCEPT_ON = 1
    ACCEPT_OPTIONAL = 2

    PROXY_CHECKSUM = 1          # bits of `proxy_tlv`
    PROXY_UNIQUE_ID = 2
    PROXY_AUTHORITY = 4
    PROXY_PASS = 8

    SOCKET_OPTIONS_MAX = 8
    OPTION_BYTES_MAX = 16

cdef struct SocketOption:       # of the sockets towards the server
    int family                  # 0 is any
    bint stream                 # of TCP alone
    int level
    int name
    uint32_t size
    uint8_t value[OPTION_BYTES_MAX]

cdef struct Policy:
    uint64_t references         # atomic
    uint64_t failures           # atomic: connects that failed in a row
    uint64_t tag                # the control plane's name for it
    Gate *gate                  # of the rule
    Prefix source_prefix        # for what is counted of each source
    Access access
    Targets *targets            # the addresses of the destination; none if there is a group
    Group *group                # the servers to choose from; NULL if the destination is a single one
    uint64_t loops_said[2]      # atomic: of a destination, of a source
    bint has_source             # `src=`: the outgoing end is bound to ...
    bint from_client            # or to the address of the client
    bint to_original            # each client has a destination of its own: see `tcp/original.pxd` ...
    uint16_t bound_port         # ... and this is the port that it listens on
    int option_count
    SocketOption options[SOCKET_OPTIONS_MAX]
    int protocol                # of a stream socket towards the server; 0 is TCP
    int64_t peer_uid            # of a unix destination: the user that has to listen there; -1 is any
    SocketAddress sources[2]    # ... the first of the destination's family, IPv4 and IPv6; size 0 is none
    uint64_t bandwidth          # bytes a second of a connection, each direction by itself; 0 is no bound
    uint32_t buffer_bytes
    uint32_t pipe_bytes
    uint32_t connect_ms         # timeouts: 0 is off
    uint32_t idle_ms            # of a connection or of a UDP session
    uint32_t half_close_ms
    uint32_t silence_ms         # how long a UDP client that was never answered waits at one address
    uint32_t stall_ms
    uint32_t lifetime_ms        # of a connection, from when both legs stand
    int32_t keep_idle_s         # 0 is no keep-alive
    int32_t keep_interval_s
    int32_t keep_count
    uint32_t flip_bytes         # for tests: read at most this many bytes and change between copy and splice each time
    uint32_t move_turns         # for tests: a connection changes its reactor after this many turns
    uint8_t relay
    uint8_t accept_proxy        # whether clients begin with a header
    uint32_t proxy_ms           # for all of it
    uint32_t peek_ms            # for a TLS hello
    Names *names                # of a listener that rules share: they are chosen by the hello; else NULL
    Access trust                # in its first list: the peers that may send one
    uint8_t proxy_version       # of the header that the server gets first; 0 is none
    uint8_t proxy_tlv           # what a header of version 2 says besides addresses
    uint8_t proxy_first         # of UDP: only the first datagram of a session has it
    uint64_t run_id             # the first half of unique IDs


cdef inline void policy_hold(Policy *self) noexcept nogil:
    oi_add(&self.references, 1)


cdef inline void names_drop(Names *self) noexcept nogil:
    """One reference less; with the last one those to its policies go, which have no names of their own."""
    cdef uint32_t i
    if oi_raise_by(&self.references, <uint64_t> -1) == 1:
        for i in range(self.policy_count):
            policy_drop(<Policy *> self.policies[i])
        names_free(self)


cdef inline void policy_drop(Policy *self) noexcept nogil:
    if oi_raise_by(&self.references, <uint64_t> -1) == 1:
        if self.names != NULL:
            names_drop(self.names)
        access_free(&self.access)
        access_free(&self.trust)
        if self.gate != NULL:
            gate_drop(self.gate)
        if self.targets != NULL:
            targets_drop(self.targets)
        if self.group != NULL:
            group_drop(self.group)
        free(self)


cdef inline Member *policy_member(const Policy *self, uint16_t member) noexcept nogil:
    """The member of its group with the number that sessions keep: from 1 on."""
    return &group_members(self.group)[member - 1]


cdef inline Targets *policy_targets(const Policy *self, uint16_t member) noexcept nogil:
    """The addresses of a session: of the server that it has selected, or of the destination."""
    return self.targets if member == 0 else policy_member(self, member).targets


cdef inline uint8_t policy_proxy_version(const Policy *self, uint16_t member) noexcept nogil:
    """The version of the header that the server of a session gets first, or the destination; 0 is none."""
    return self.proxy_version if member == 0 else policy_member(self, member).proxy_version


cdef inline const SocketAddress *source_for(
    const Policy *self, uint16_t member, const SocketAddress *target, bint *wanted
) noexcept nogil:
    """The address of ours from which to connect to `target`; of size 0 if there is none, though it may be `wanted`."""
    cdef int at = 0 if target.place.six.sin6_family == AF_INET else 1
    if member and policy_member(self, member).has_source:
        wanted[0] = target.place.six.sin6_family != AF_UNIX
        return &policy_member(self, member).sources[at]
    wanted[0] = self.has_source and target.place.six.sin6_family != AF_UNIX
    return &self.sources[at]


cdef inline uint64_t policy_server_tag(const Policy *self, uint16_t member) noexcept nogil:
    """The tag of the server that a session has selected; 0 if it has none."""
    return 0 if member == 0 or member == MEMBER_WAITS else policy_member(self, member).server.tag
