"""What is due on a relay: keep-alive, write stall, half-close, idle, age, and the second after a failure."""

from libc.stdint cimport uint64_t

from shared.ending cimport ENDING_HALF_CLOSE_TIMEOUT, ENDING_IDLE_TIMEOUT, ENDING_MAX_LIFETIME, ENDING_WRITE_STALL
from tcp.ending cimport FLUSH_MS, abort, finish_failed
from tcp.flow cimport side_fail
from base.linux cimport (
    ECONNRESET, IPPROTO_TCP, SOL_SOCKET, SO_KEEPALIVE, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, c_setsockopt,
)
from shared.policy cimport Policy
from state.connection_slab cimport DOWN, QUEUED_THROTTLED, UP, UPSTREAM, Conn, Dir
from state.reactor cimport Reactor
from state.wheel cimport wheel_arm

cdef enum:
    KEEP_ALIVE_MS = 1000        # most connections are over by then, and are spared four system calls
    NEVER_MS = 86400000         # looked at daily if nothing is due


cdef inline void keep_alive(Conn *conn) noexcept nogil:
    """Set keep-alive on the upstream leg; the client's socket has it from its listener."""
    cdef Policy *policy = conn.policy
    cdef int on = 1
    cdef int fd = conn.side[UPSTREAM].fd
    conn.kept_alive = 1
    if policy.keep_idle_s and not conn.side[UPSTREAM].local:
        c_setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &policy.keep_idle_s, sizeof(int))
        c_setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &policy.keep_interval_s, sizeof(int))
        c_setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &policy.keep_count, sizeof(int))
        c_setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on))


cdef inline uint64_t left_of(uint64_t since_ms, uint64_t timeout_ms, uint64_t now_ms) noexcept nogil:
    """Milliseconds until a timeout that began at `since_ms`; 0 when it is over."""
    return since_ms + timeout_ms - now_ms if since_ms + timeout_ms > now_ms else 0


cdef inline void relay_arm(Reactor *reactor, Conn *conn) noexcept nogil:
    """Arm the timer at the shortest of the timeouts that may come to count."""
    cdef Policy *policy = conn.policy
    cdef uint64_t delay_ms = NEVER_MS
    if not conn.kept_alive:
        delay_ms = KEEP_ALIVE_MS
    if policy.idle_ms and policy.idle_ms < delay_ms:
        delay_ms = policy.idle_ms
    if policy.half_close_ms and policy.half_close_ms < delay_ms:
        delay_ms = policy.half_close_ms
    if policy.stall_ms and policy.stall_ms < delay_ms:
        delay_ms = policy.stall_ms
    if policy.lifetime_ms and policy.lifetime_ms < delay_ms:
        delay_ms = policy.lifetime_ms
    wheel_arm(&reactor.wheel, conn, reactor.now_ms, delay_ms)


cdef inline void relay_due(Reactor *reactor, Conn *conn) noexcept nogil:
    """The timer fired: end the connection if something is due, else come back when something may be."""
    cdef Policy *policy = conn.policy
    cdef uint64_t now_ms = reactor.now_ms
    cdef uint64_t delay_ms = NEVER_MS
    cdef uint64_t last_ms = conn.dir[UP].progress_ms
    cdef Dir *flow
    cdef uint64_t left_ms
    cdef int way
    if conn.dir[DOWN].progress_ms > last_ms:
        last_ms = conn.dir[DOWN].progress_ms
    if conn.dir[UP].queued == QUEUED_THROTTLED or conn.dir[DOWN].queued == QUEUED_THROTTLED:
        last_ms = now_ms        # it has something to move, and waits for its bandwidth
    if not conn.kept_alive:
        keep_alive(conn)
    for way in range(2):
        flow = &conn.dir[way]
        if flow.pend and (conn.side[way].error or conn.side[way].failing):
            left_ms = left_of(flow.progress_ms, FLUSH_MS, now_ms)
            if left_ms == 0:
                side_fail(&conn.side[way], ECONNRESET)
                conn.first_failed = conn.first_failed if conn.first_failed else 1 + way
                finish_failed(reactor, conn)
                return
            delay_ms = left_ms if left_ms < delay_ms else delay_ms
        if policy.stall_ms:
            left_ms = left_of(flow.progress_ms, policy.stall_ms, now_ms) if flow.pend else policy.stall_ms
            if left_ms == 0:
                abort(reactor, conn, ENDING_WRITE_STALL, 0)
                return
            delay_ms = left_ms if left_ms < delay_ms else delay_ms
    if policy.half_close_ms:
        left_ms = policy.half_close_ms
        if conn.dir[UP].fin_sent or conn.dir[DOWN].fin_sent:
            left_ms = left_of(last_ms, policy.half_close_ms, now_ms)
        if left_ms == 0:
            abort(reactor, conn, ENDING_HALF_CLOSE_TIMEOUT, 0)
            return
        delay_ms = left_ms if left_ms < delay_ms else delay_ms
    if policy.idle_ms:
        left_ms = left_of(last_ms, policy.idle_ms, now_ms)
        if left_ms == 0:
            abort(reactor, conn, ENDING_IDLE_TIMEOUT, 0)
            return
        delay_ms = left_ms if left_ms < delay_ms else delay_ms
    if policy.lifetime_ms:
        left_ms = left_of(conn.connected_us // 1000, policy.lifetime_ms, now_ms)
        if left_ms == 0:
            abort(reactor, conn, ENDING_MAX_LIFETIME, 0)
            return
        delay_ms = left_ms if left_ms < delay_ms else delay_ms
    wheel_arm(&reactor.wheel, conn, now_ms, delay_ms)
