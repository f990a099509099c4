"""Messages to a reactor, from Python and from other reactors: a bounded queue under a mutex, and an eventfd.

A message is written rarely (a hand-over, a kill, a stop), so a mutex costs nothing that could be seen. The eventfd is
registered edge-triggered and never read: each write is an edge of its own.
"""

from libc.stdint cimport uint64_t

from base.address cimport Address
from base.atomic cimport oi_swap
from base.linux cimport (
    c_write, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from shared.policy cimport Policy

cdef enum:
    INBOX_MAX = 1024            # a power of two; one place is kept for a message that is put back
    MESSAGE_ACCEPTED = 1        # a client from the reactor that accepted it
    MESSAGE_PAIR = 2            # two connected sockets from Python
    MESSAGE_KILL = 3
    MESSAGE_ABORT_ALL = 4
    MESSAGE_SNAPSHOT = 5
    MESSAGE_RETRY = 6           # a place is free, or the ring has room: try to accept again
    MESSAGE_STOP = 7
    MESSAGE_UDP_ROOM = 8        # another reactor has no UDP session to end for a new one: end one here
    MESSAGE_PIPES = 9           # descriptors are short: give pipes back
    MESSAGE_JUDGE = 10          # access rules have changed: which connections do they refuse now?
    MESSAGE_MOVED = 11          # a connection from another reactor; `answer` is its passport
    MESSAGE_SHED = 12           # move connections to reactor `fd` that do `token` thousandths of the work
    MESSAGE_LEAVE = 13          # end sessions of the server `token` with the ending `counted`: part `id` of `fd` parts
    MESSAGE_TAKE_OUT = 14       # take connections out for another process; `answer` is a Departure of the sender

    MESSAGE_UDP = 16            # from here on: for UDP listeners; the sender waits for the answer
    MESSAGE_UDP_ADD = 16        # serve `fd` by `policy`, paused if `counted`; the answer is the listener's index
    MESSAGE_UDP_REPLACE = 17    # `policy` is in force for new sessions, and nothing else changes
    MESSAGE_UDP_RENEW = 18      # the same after a reload: it lingers no more, and refused clients are reported again
    MESSAGE_UDP_LINGER = 19     # admit no new client; the answer is the number of sessions
    MESSAGE_UDP_COUNT = 20      # the answer is the number of sessions
    MESSAGE_UDP_REMOVE = 21     # abort its sessions and let go of its socket
    MESSAGE_UDP_TRIM = 22       # end the sessions above the bound
    MESSAGE_UDP_QUIET = 23      # end the sessions in which nothing is under way
    MESSAGE_UDP_REVOKE = 24     # end the sessions of clients that `policy` refuses; the answer is their number
    MESSAGE_UDP_PAUSE = 25      # read its socket no more; its sessions go on
    MESSAGE_UDP_RESUME = 26     # read it again
    MESSAGE_UDP_TAKE_OUT = 27   # take sessions out for another process, into the Leaving `passed`
    MESSAGE_UDP_PUT_IN = 28     # go on with a session; `passed` is its passport

cdef struct Message:
    int kind
    int fd
    int upstream_fd
    int counted                 # which per-source tables hold the client, bits: 1 process, 2 rule
    uint64_t id                 # of the connection; of a message to a UDP listener, its index
    uint64_t token
    double started_s
    uint64_t started_us
    Policy *policy
    Address client
    void *answer                # a Snapshot or an Answer of the sender, which waits
    void *passed                # what goes along with a message to a UDP listener

cdef struct Inbox:
    pthread_mutex_t lock
    uint64_t rung               # atomic: the eventfd was written and the reactor has not looked yet
    int fd                      # the eventfd
    int first                   # place of the oldest message
    int count
    int to_all                  # how many of them all reactors got, see `passport.pxd`
    Message messages[INBOX_MAX]


cdef inline void inbox_init(Inbox *self, int fd) noexcept nogil:
    pthread_mutex_init(&self.lock, NULL)
    self.fd = fd


cdef inline void inbox_free(Inbox *self) noexcept nogil:
    pthread_mutex_destroy(&self.lock)


cdef inline bint is_to_all(int kind) noexcept nogil:
    """Whether a message is one that must meet each connection once, in whatever reactor."""
    return MESSAGE_KILL <= kind <= MESSAGE_SNAPSHOT or kind in (MESSAGE_STOP, MESSAGE_JUDGE, MESSAGE_LEAVE)


cdef inline bint inbox_post(Inbox *self, const Message *message) noexcept nogil:
    """Put a message in; false if there is no room."""
    cdef uint64_t one = 1
    cdef bint posted = False
    pthread_mutex_lock(&self.lock)
    if self.count < INBOX_MAX - 1:
        self.messages[(self.first + self.count) & (INBOX_MAX - 1)] = message[0]
        self.count += 1
        self.to_all += is_to_all(message.kind)
        posted = True
    pthread_mutex_unlock(&self.lock)
    if posted and oi_swap(&self.rung, 1) == 0:
        c_write(self.fd, &one, sizeof(one))
    return posted


cdef inline bint inbox_has_words_to_all(Inbox *self) noexcept nogil:
    """Whether there is a message in it that all reactors got."""
    cdef int to_all
    pthread_mutex_lock(&self.lock)
    to_all = self.to_all
    pthread_mutex_unlock(&self.lock)
    return to_all != 0


cdef inline bint inbox_take(Inbox *self, Message *message) noexcept nogil:
    """Take the oldest message out; false if there is none."""
    cdef bint taken = False
    pthread_mutex_lock(&self.lock)
    if self.count:
        message[0] = self.messages[self.first]
        self.first = (self.first + 1) & (INBOX_MAX - 1)
        self.count -= 1
        self.to_all -= is_to_all(message.kind)
        taken = True
    pthread_mutex_unlock(&self.lock)
    return taken


cdef inline void inbox_return(Inbox *self, const Message *message) noexcept nogil:
    """Put the message that was just taken back, and look again soon.

    Behind the others: the control plane may wait for the answer to one of them before it makes room.
    """
    pthread_mutex_lock(&self.lock)
    self.messages[(self.first + self.count) & (INBOX_MAX - 1)] = message[0]
    self.count += 1
    self.to_all += is_to_all(message.kind)
    pthread_mutex_unlock(&self.lock)
    oi_swap(&self.rung, 1)
