"""What reactors are made of: the hub that all share, the listeners, and one reactor's own state."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shared.gate cimport Gate
from shared.inbox cimport Inbox
from base.linux cimport epoll_event, pthread_cond_t, pthread_mutex_t, pthread_t
from shared.own cimport Own
from shared.policy cimport Policy
from shared.ring cimport Bell, Record, Ring
from state.connection_slab cimport Conn, Dir
from state.slab cimport Slab, SlotList
from state.udp_state cimport Datagrams

cdef enum:
    REACTORS_MAX = 64
    LISTENERS_MAX = 65536       # every port there is
    EVENTS_MAX = 256            # taken by one epoll_wait
    WHEEL_TICKS = 1024          # a power of two
    WHEEL_WORDS = 16            # of 64 bits: one for each bucket
    TICK_MS = 100
    THROTTLE_SLOTS = 256        # a power of two
    THROTTLE_WORDS = 4          # of 64 bits: one for each slot
    THROTTLE_TICK_US = 4000
    BLOCK_CLASSES = 5           # 4, 16, 64, 256 KiB, 1 MiB

cdef struct Pipe:
    int read_fd
    int write_fd
    int asked_bytes
    uint32_t bytes              # what it holds: less than asked, if the kernel did not give that much, or more
    Dir *owner                  # NULL for an idle one
    Pipe *next                  # of those that are idle, or in use
    Pipe *prev                  # of those in use

cdef struct Block:              # its bytes follow it
    Block *next
    int size_class              # -1 for one of a size of its own

cdef struct Pool:
    Pipe *idle
    Pipe *busy
    int idle_count
    int idle_least              # the fewest that were idle since the last look: those that were not needed
    uint64_t trim_ms            # when they are closed; 0 is never
    int pipe_count              # in use and idle
    uint64_t dry_until_ms       # no pipe is asked for before that
    Block *blocks[BLOCK_CLASSES]
    int block_counts[BLOCK_CLASSES]

cdef struct Wheel:
    Conn *buckets[WHEEL_TICKS]
    uint64_t filled[WHEEL_WORDS]      # a bit for each bucket that is not empty
    uint64_t tick                           # the last one that was served

cdef struct Queue:
    Dir *first
    Dir *last

cdef struct Listener:
    int fd
    uint32_t index
    uint32_t generation
    bint dead                   # being removed: no reactor begins to accept
    int users                   # reactors that are accepting from it
    Policy *policy
    uint64_t ready[REACTORS_MAX]    # atomic: this reactor has not seen it empty since the last event
    Listener *next_free

cdef struct Snapshot:
    pthread_mutex_t lock
    pthread_cond_t done
    Record *records
    int capacity
    int count                   # how many there are, even when they do not fit
    int missing                 # reactors that have not answered

cdef struct Stats:              # atomics
    uint64_t accepted
    uint64_t opened
    uint64_t closed
    uint64_t refused
    uint64_t bytes_up
    uint64_t bytes_down
    uint64_t loops
    uint64_t promoted
    uint64_t demoted
    uint64_t handed_off
    uint64_t pipes
    uint64_t spins
    uint64_t poll_pauses
    uint64_t moved              # connections that left for another reactor

cdef struct Habit:              # of polling before sleep, see `busy_poll.pxd`
    uint64_t gap_us             # moving average of the waits
    uint64_t lent               # moving average of the polls that lent the core to others, in LENT_UNITs
    uint64_t paused_us          # no polling until then
    uint64_t pause_us           # how long the last pause was

cdef struct Hub:
    pthread_mutex_t lock        # guards listeners: table, policies, users; and those of `own`
    pthread_cond_t idle         # a listener that is being removed has no user left
    pthread_mutex_t moving      # held while a connection changes its reactor, see `passport.pxd`
    Listener **listeners
    uint64_t listener_count     # atomic: table places ever used
    Listener *free_listeners
    Gate *gate                  # of the process; owned by the maker of the hub
    Gate *udp_gate              # the same for UDP sessions
    Own own
    uint64_t pipes_asked_ms     # atomic: when reactors were last asked to give pipes back
    uint64_t udp_room_wanted    # atomic: a reactor was asked to end a UDP session for another one's sake
    Bell bell
    uint64_t reactor_count      # atomic: reactors that run; it only grows
    uint64_t serving            # atomic: how many of them, the first, get new connections; at least 1
    int most                    # how many of them, the first, may get any; they share UDP listeners
    Reactor *reactors[REACTORS_MAX]
    uint64_t ring_full            # atomic: a reactor waits for room in its ring
    uint64_t accept_paused           # atomic: that accepting pauses was said
    uint64_t totals_only              # atomic: ends are counted, sessions are not reported one by one
    uint64_t trouble_ms         # atomic: when a descriptor or memory was last missing
    uint64_t splice_refused     # atomic: errno with which splice was refused for good
    uint64_t spin_us            # atomic: 0 is off

cdef struct Reactor:
    Hub *hub
    int index
    int epoll_fd
    pthread_t thread
    uint64_t thread_id          # atomic: the number that the kernel has for it; 0 until it runs
    bint started
    uint64_t exited             # atomic
    uint64_t now_us             # monotonic, once for each batch of events
    uint64_t now_ms
    uint64_t live               # atomic: connections here
    uint64_t udp_listeners      # atomic
    uint64_t udp_sessions       # atomic
    Datagrams *udp              # NULL as long as there was no UDP listener
    Queue quick                 # directions whose last read was small
    Queue bulk
    Queue throttled[THROTTLE_SLOTS]     # directions that wait for their time
    uint64_t throttled_filled[THROTTLE_WORDS]   # a bit for each slot that is not empty, or was not when last seen
    uint64_t throttled_tick     # the last one that was served
    uint64_t throttled_count
    uint64_t connect_us         # when a listener above its rate is asked again; 0 is never
    bint accept_again           # a listener may have more
    bint room_made              # descriptors were given back for which a listener of any reactor waited
    bint stopping
    uint64_t window_us          # when the load was last measured
    uint64_t window_cpu_us      # the thread's processor time then
    uint64_t load               # atomic: thousandths of a core, in the last window
    uint64_t accept_retry_ms    # accepting pauses until then; 0 is no pause
    uint64_t accept_pause_ms
    uint64_t calm_ms            # when to look whether accepting goes well again; 0 is never
    SlotList unreported         # connections that have ended and wait for room in the ring
    uint8_t *scratch
    uint64_t bulk_us            # when a large read was last seen, or datagrams came fast
    uint64_t spin_credit_us     # polling that may still be done
    uint64_t spin_mark_us       # up to when the credit was counted
    Habit habits[2]             # by the direction that moved last: the wait for an answer, and for the next request
    uint8_t moved_way
    uint64_t switches           # involuntary ones of the thread, when they were last looked at
    uint64_t poll_paused_us     # atomic: until then it does not poll, in one of the two waits
    uint64_t draw               # state of the random numbers by which servers are drawn
    uint64_t crowd              # moving average of the events in one wake, in sixteenths
    Slab slab
    Pool pool
    Wheel wheel
    Stats stats
    Ring ring
    Inbox inbox
    epoll_event events[EVENTS_MAX]
