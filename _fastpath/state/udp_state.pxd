"""What UDP is made of in a reactor: listeners, sessions, and the lines in which sessions stand.

A UDP listener belongs to one reactor, and its sessions with it. So nothing here is locked: the control plane
writes a message to the reactor (`udp.message`).
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from base.address cimport Address
from state.datagram cimport Batch
from shared.gate cimport Gate
from shared.policy cimport Policy
from shared.throttle cimport Throttle
from state.return_address cimport ReturnAddress
from state.slab cimport Slab, Slot, SlotList
from state.udp_told cimport Told

cdef enum:
    SESSION_FREE = 0
    SESSION_LIVE = 1
    SESSION_CLOSED = 2          # over, and waiting for room in the ring

    BY_AGE = 0                  # lines: those of one rule with or without an answer, the longest silent first
    BY_QUEUE = 1                # the same for those of one rule and one timeout
    BY_TURN = 2                 # sessions whose upstream may have more
    LINES = 3

    QUEUE_BUCKETS = 256         # chains stay short up to some thousand rules

cdef struct Trail:              # of a client whose questions no address has answered yet
    uint16_t left               # the addresses that it left in this round, a bit for each; of a group, their number
    uint8_t home                # the first of these; ADDRESSES_MAX if that is none any more
    uint8_t rounds              # how often it was at every address
    uint64_t since_ms           # when it asked the first of these; of a group, the last
    uint64_t server             # tag of the server that it left last; 0 is none

cdef struct Heading:            # the PROXY header that a peer writes before a datagram
    Address client              # the one in it, or the peer if it names none
    Address peer
    const uint8_t *data
    uint32_t size

cdef struct Session:
    Slot slot
    int fd                      # the upstream socket; -1 when closed
    int32_t error               # of its end; while it lives, that of a refusal that ends it at its next turn
    uint8_t state
    uint8_t counted             # per-source tables that hold the client, bits: 1 process, 2 rule
    uint8_t address             # which address of the policy the socket is connected to
    uint8_t answered            # an answer came for it
    uint8_t short_read_inconclusive                 # ERR was seen: a short read proves nothing
    uint8_t queued              # in the line BY_TURN
    uint8_t ending
    uint8_t last                # of a listener that lingers
    uint16_t member             # the server of the policy's group, see `policy_member`; 0 is none
    uint32_t head_bytes         # of `head`; here because it fits
    Trail trail
    uint64_t hash               # of `key`, with that of the listener
    ReturnAddress key           # the peer, and which address of ours it writes to
    Heading *heading            # the last header of the peer; NULL if it writes none, and is the client
    UdpListener *listener
    SessionQueue *queue
    Policy *policy
    Throttle *throttle          # NULL if nothing bounds its bytes
    uint8_t *head               # the PROXY header for its server, made for its first datagram; NULL is none yet
    uint64_t id
    double started_s            # Unix time
    uint64_t started_us         # monotonic
    uint64_t ended_us
    uint64_t asked_ms           # when the client first wrote since the last answer; 0 is not since
    uint64_t last_ms            # when a datagram of either side last came
    uint64_t bytes_up
    uint64_t bytes_down
    uint64_t datagrams_up
    uint64_t datagrams_down
    uint64_t datagrams_lost
    Session *next[LINES]
    Session *prev[LINES]
    Session *chain              # in its bucket

cdef struct Line:
    Session *first
    Session *last

cdef struct RuleSessions:       # the sessions of one rule
    Gate *gate                  # of the rule, as in its queues
    uint64_t users              # queues
    Line lines[2]               # unanswered, answered
    uint64_t counts[2]          # how many those are
    RuleSessions *next[2]       # in their rank
    RuleSessions *prev[2]

cdef struct Ranking:            # rules by the number of binary digits of a count
    uint64_t filled             # a bit for each rank that has a rule
    RuleSessions *first[64]
    RuleSessions *last[64]

cdef struct SessionQueue:       # sessions of one rule with one timeout, so that the first is the next to end
    Gate *gate                  # of the rule; never looked into here, and as long there as a policy of it is
    uint64_t timeout_ms         # 0 is never
    uint64_t users              # listeners and sessions
    RuleSessions *rule
    Line line
    SessionQueue *chain         # in its bucket

cdef struct UdpListener:
    int fd                      # the control plane's; -1 is no listener
    uint32_t index
    uint32_t generation
    bint lingering              # no new client is admitted
    bint queued                 # in the list of those that may have more
    bint paused                 # its socket is not read: another process takes over
    Policy *policy              # for sessions to come
    SessionQueue *queue         # of that policy
    uint64_t sessions
    uint64_t salt               # so that one client's sessions of two listeners differ in their hash
    Told *told                  # refused addresses; NULL if there were none
    UdpListener *next           # in the list of those that may have more, or of free ones

cdef struct Datagrams:
    Batch *batch                # empty between two turns
    Slab slab
    Session **buckets
    uint64_t bucket_count       # a power of two
    uint64_t count              # sessions that live
    Ranking rankings[2]         # of unanswered and answered sessions
    Line by_turn
    SessionQueue *queues[QUEUE_BUCKETS]
    UdpListener **listeners
    uint32_t listener_count     # places of the table ever used
    UdpListener *free_listeners
    UdpListener *turn_first     # listeners that may have more
    UdpListener *turn_last
    SlotList unreported         # sessions that have ended and wait for room in the ring
    uint64_t due_ms             # no session ends by silence before; 0 is none does
    uint64_t retry_ms           # receiving failed for want of memory: look again then; 0 is no such case
    uint64_t rate_ms            # the millisecond in which messages were counted ...
    int rate_up                 # ... from clients
    int rate_down               # ... and from upstreams
