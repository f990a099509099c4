"""Letters to a reactor, from Python and from other reactors: a bounded queue under a mutex, and an eventfd.

A letter is written rarely (a hand-over, a kill, a stop), so a mutex costs nothing that could be seen. The eventfd is
registered edge-triggered and never read: each write is an edge of its own.
"""

from libc.stdint cimport int32_t, uint64_t

from base.address cimport Address
from base.atomic cimport oi_swap
from base.linux cimport (
    c_write, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from shared.policy cimport Policy

cdef enum:
    LETTERS_MAX = 1024          # a power of two; one place is kept for a letter that is put back
    LETTER_ACCEPTED = 1         # a client from the reactor that accepted it
    LETTER_PAIR = 2             # two connected sockets from Python
    LETTER_KILL = 3
    LETTER_ABORT_ALL = 4
    LETTER_SNAPSHOT = 5
    LETTER_RETRY = 6            # a place is free, or the ring has room: try to accept again
    LETTER_STOP = 7
    LETTER_UDP = 8              # an order for the UDP listeners
    LETTER_UDP_ROOM = 9         # another reactor has no UDP session to end for a new one: end one here
    LETTER_PIPES = 10           # descriptors are short: give pipes back
    LETTER_JUDGE = 11           # access rules have changed: whom do they refuse now?

cdef struct Letter:
    int kind
    int fd
    int upstream_fd
    int counted                 # which per-source tables hold the client, bits: 1 process, 2 rule
    uint64_t id
    uint64_t token
    double started_s
    uint64_t started_us
    Policy *policy
    Address client
    void *answer                # of a snapshot or an order

cdef struct Inbox:
    pthread_mutex_t lock
    uint64_t rung               # atomic: the eventfd was written and the reactor has not looked yet
    int fd                      # the eventfd
    int first                   # place of the oldest letter
    int count
    Letter letters[LETTERS_MAX]


cdef inline void inbox_init(Inbox *self, int fd) noexcept nogil:
    pthread_mutex_init(&self.lock, NULL)
    self.fd = fd


cdef inline void inbox_free(Inbox *self) noexcept nogil:
    pthread_mutex_destroy(&self.lock)


cdef inline bint inbox_post(Inbox *self, const Letter *letter) noexcept nogil:
    """Put a letter in; false where there is no room."""
    cdef uint64_t one = 1
    cdef bint posted = False
    pthread_mutex_lock(&self.lock)
    if self.count < LETTERS_MAX - 1:
        self.letters[(self.first + self.count) & (LETTERS_MAX - 1)] = letter[0]
        self.count += 1
        posted = True
    pthread_mutex_unlock(&self.lock)
    if posted and oi_swap(&self.rung, 1) == 0:
        c_write(self.fd, &one, sizeof(one))
    return posted


cdef inline bint inbox_take(Inbox *self, Letter *letter) noexcept nogil:
    """Take the oldest letter out; false where there is none."""
    cdef bint taken = False
    pthread_mutex_lock(&self.lock)
    if self.count:
        letter[0] = self.letters[self.first]
        self.first = (self.first + 1) & (LETTERS_MAX - 1)
        self.count -= 1
        taken = True
    pthread_mutex_unlock(&self.lock)
    return taken


cdef inline void inbox_return(Inbox *self, const Letter *letter) noexcept nogil:
    """Put the letter that was just taken back, and look again soon.

    Behind the others: the control plane may wait for the answer to one of them before it makes room.
    """
    pthread_mutex_lock(&self.lock)
    self.letters[(self.first + self.count) & (LETTERS_MAX - 1)] = letter[0]
    self.count += 1
    pthread_mutex_unlock(&self.lock)
    oi_swap(&self.rung, 1)
