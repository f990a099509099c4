"""A connection as a reactor keeps it: two sides, two directions, in a slot of the reactor's slab.

It takes 424 bytes, which is all the process memory of an idle connection whose first address took it.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from base.address cimport Address
from shared.attempt cimport Attempts
from shared.facts cimport Facts
from shared.inbox cimport MESSAGE_ACCEPTED, Message
from shared.policy cimport Policy, policy_targets
from shared.target cimport Targets
from shared.throttle cimport Throttle, throttle_is_wanted, throttle_new
from state.slab cimport Slab, Slot, slab_at, slab_give, slab_init, slab_take

cdef enum:
    CLIENT = 0
    UPSTREAM = 1
    UP = 0                      # the direction that reads from the client
    DOWN = 1

    CONN_FREE = 0
    CONN_CONNECTING = 1         # the upstream leg is being made; the client is not read
    CONN_RELAY = 2
    CONN_FLUSH = 3              # one side failed; the other is reset when its send queue is empty
    CONN_CLOSED = 4             # over, and waiting for room in the ring
    CONN_PREAMBLE = 5           # accepted, and something is awaited before it is admitted:

    STAGE_HEADER = 1            # a PROXY header,
    STAGE_HELLO = 2             # a TLS hello,
    STAGE_RATE = 3              # its turn by the rate of its rule

    HOLDS_NOTHING = 0
    HOLDS_BLOCK = 1
    HOLDS_PIPE = 2

    QUEUED_QUICK = 1
    QUEUED_BULK = 2
    QUEUED_THROTTLED = 3

    MODE_COPY = 0
    MODE_SPLICE = 1
    MOVED_BY_COPY = 1
    MOVED_BY_SPLICE = 2

    KIND_CLIENT = 0             # the low three bits of the event data
    KIND_UPSTREAM = 1
    KIND_LISTENER = 2
    KIND_INBOX = 3
    KIND_UDP_LISTENER = 4
    KIND_UDP_SESSION = 5
    KIND_ATTEMPT = 6            # a connect beside that of the upstream side
    KIND_BITS = 3

    OVERDUE_STAYS = 255         # no mark: its connect is overdue, it waits on for want of another server

cdef struct Side:
    int fd                      # -1 when closed
    int32_t error               # the first errno seen here; 0 is none
    uint8_t rd                  # reading may give something
    uint8_t wr                  # writing may take something
    uint8_t short_read_inconclusive                 # RDHUP, HUP, ERR or PRI was seen: a short read proves nothing
    uint8_t urgent              # an urgent byte may be in the way of splice
    uint8_t local               # a unix socket: a short read proves nothing, what was sent is with the peer
    uint8_t failing             # ERR was seen and reading has not come to it yet
    uint8_t delays              # TCP_NODELAY is still to be set, before a second write; see `undelay`
    uint8_t unwatched           # the kernel tells nothing of bytes to read; it is asked again before a wait for them

cdef struct Dir:                # one direction; its source is the side of the same number
    uint64_t moved_in           # bytes read, without those that were dropped unsent
    uint64_t moved_out          # bytes the destination's kernel took
    void *holder                # Block or Pipe with the pending bytes
    uint32_t pend               # bytes read and not yet written
    uint32_t offset             # of the first pending byte in a Block
    uint64_t progress_ms        # when a byte last moved
    uint64_t burst_ms           # begin of the second in which burst_bytes are counted
    uint32_t burst_bytes
    uint16_t mss                # the destination's segment; 0 until it was asked for
    uint8_t holding
    uint8_t mode
    uint8_t eof                 # the source said FIN, or failed: nothing more will be read
    uint8_t fin_sent            # the FIN was passed on
    uint8_t queued              # 0, or QUEUED_...
    uint8_t bulk                # the last read was a large one
    uint8_t full_run            # full reads in a row
    uint8_t small_run           # small moves in a row
    uint8_t moved_by
    uint8_t way
    Dir *next                   # in the ready list
    Dir *prev
    Conn *conn

cdef struct Conn:
    Slot slot
    Side side[2]
    Dir dir[2]
    uint8_t state
    uint8_t handed_over         # the pair came from Python
    uint8_t counted             # per-source tables that hold the client, bits: 1 process, 2 rule
    uint8_t opened_due          # the opened record is to be written
    uint8_t unreported          # in the list of those that wait for room in the ring
    uint8_t refused             # it was not admitted, and is counted as that
    uint8_t kept_alive          # keep-alive is set on the upstream leg
    uint8_t address             # number of the address that is tried on the upstream side, or that took the connection
    uint8_t ending
    uint8_t stage               # in the preamble: STAGE_...
    uint8_t overdue             # connecting: the mark of `server_wait`, or OVERDUE_STAYS; 0 is not overdue yet
    int32_t error               # errno of the ending
    uint8_t first_eof           # 1 + the side that said FIN first; 0 is none
    uint8_t first_failed        # 1 + the side that failed first; 0 is none
    uint16_t member             # the server of the policy's group, see `policy_member`; 0 is none
    int flush_left              # bytes in the send queue at the last look
    uint32_t low_water          # in the preamble: bytes from which the kernel tells of them
    uint32_t waited_ms          # how long after the accept it was admitted, and the search for its destination began
    uint32_t limit_ms           # connecting: how long after that the present server has; 0 is no limit
    uint64_t flush_ms           # when that queue last shrank; in the preamble: when its turn comes
    uint64_t dial_ms            # when the connect of the upstream side began, or in the preamble the look at a hello
    Facts *facts                # NULL if no header was accepted and no hello was read
    Attempts *attempts          # NULL if no address has failed and none was tried beside another
    Throttle *throttle          # NULL if nothing bounds its bytes
    Policy *policy
    uint32_t tried              # addresses that are not to be tried any more, a bit for each
    uint32_t turn               # of this search, in the order of addresses
    uint32_t work               # turns of late, see `passport.pxd`
    uint32_t work_window
    uint64_t told               # in the preamble its listener; then how many records the ring had seen with its opening
    uint64_t id
    uint64_t token
    double started_s            # Unix time
    uint64_t started_us         # monotonic
    uint64_t connected_us       # 0 before
    uint64_t ended_us
    Address client
    Address upstream            # the address that took the connection
    Conn *timer_next
    Conn *timer_prev
    uint64_t timer_tick         # 0 is not armed


cdef inline bint connections_init(Slab *self) noexcept nogil:
    return slab_init(self, sizeof(Conn))


cdef inline Conn *conn_take(Slab *self, const Message *message) noexcept nogil:
    """The connection of a client that was accepted, or of a pair that Python handed over; NULL without memory.

    The reference to the policy, which the message holds, is the connection's from here.
    """
    cdef Conn *conn = <Conn *> slab_take(self)
    if conn == NULL:
        return NULL
    # After a preamble it is the client in the header that is bounded.
    if throttle_is_wanted(message.policy) and not (message.kind == MESSAGE_ACCEPTED and message.token):
        conn.throttle = throttle_new(message.policy, &message.client)
        if conn.throttle == NULL:
            slab_give(self, &conn.slot)
            return NULL
    conn.side[CLIENT].fd = message.fd
    conn.side[UPSTREAM].fd = -1
    conn.dir[UP].conn = conn
    conn.dir[DOWN].conn = conn
    conn.dir[DOWN].way = DOWN
    conn.state = CONN_CONNECTING
    conn.policy = message.policy
    conn.id = message.id
    conn.token = message.token
    conn.started_s = message.started_s
    conn.client = message.client
    return conn


cdef inline void conn_give(Slab *self, Conn *conn) noexcept nogil:
    conn.state = CONN_FREE
    slab_give(self, &conn.slot)


cdef inline Conn *conn_at(const Slab *self, uint32_t index) noexcept nogil:
    """The connection of a number, which may be over; NULL if there never was one."""
    return <Conn *> slab_at(self, index)


cdef inline uint64_t event_data(uint32_t kind, uint32_t index, uint32_t generation) noexcept nogil:
    return (<uint64_t> generation << 32) | (<uint64_t> index << KIND_BITS) | kind


cdef inline Targets *conn_targets(const Conn *conn) noexcept nogil:
    """The addresses that it connects to: of its server, or of the destination."""
    return policy_targets(conn.policy, conn.member)
