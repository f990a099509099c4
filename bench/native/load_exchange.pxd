"""The load client: requests and answers on connections that stay, in a closed loop or at a fixed rate.

In a closed loop a connection asks again when its answer is here. At a rate, requests fall due at fixed times, whatever
becomes of the earlier ones; each goes out on a connection that has no request under way, as soon as there is one, and
its latency is from the time that it was due. A stall is seen in all the requests that it kept from going out.
"""

from libc.errno cimport ENOMEM, ETIMEDOUT, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport close

from content cimport BLOCK_BYTES, Secret, Stream, keyed_word, stream_check, stream_fill
from load cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLET, EPOLLIN, EPOLLOUT, LOAD_BLOCKING_BYTES, LOAD_EVENTS,
    LOAD_PATIENCE_MS, LOAD_SCRATCH_BYTES, LoadPlan, LoadTotals, epoll_create1, epoll_ctl, epoll_event, histogram_add,
    load_now_ns, load_over, load_slice, load_timed, load_wait, load_watch, recv_all, recv_some, send_all, send_some,
)


cdef extern from * nogil:
    """
    #include <sys/prctl.h>
    #include <sys/timerfd.h>
    #include <time.h>
    #include <unistd.h>
    """
    int PR_SET_TIMERSLACK
    int prctl(int option, unsigned long argument)
    int TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME, CLOCK_MONOTONIC
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    cdef struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *time, itimerspec *old)
    ssize_t read(int fd, void *data, size_t length)


cdef enum:
    TIMER_INDEX = 0xffffffff  # of the timer in epoll


cdef struct Asker:  # one connection
    int fd
    int fault  # -errno where it can no more
    uint64_t connection
    Stream up
    Stream down
    size_t sent  # of the request under way
    size_t received  # of its answer
    uint64_t due_ns  # when the request under way was to go out; 0 where there is none
    bint wrong  # what came of the answer was not the server's
    uint64_t operations


cdef struct Asking:  # what one thread does
    const Secret *secret
    Asker *askers
    int count
    size_t up_bytes
    size_t down_bytes
    double interval_ns  # of an open loop; 0 in a closed one
    uint64_t turn  # how many requests have been begun, or let go
    int *resting  # askers without a request, in a ring: all have their turn; open loop
    int rest
    int rest_from
    int active  # askers with a request under way
    int timer
    char *scratch
    LoadPlan plan
    LoadTotals *totals
    uint64_t *histogram


cdef inline uint64_t due_of(const Asking *asking, uint64_t turn) noexcept nogil:
    return asking.plan.begin_ns + <uint64_t>(<double>turn * asking.interval_ns)


cdef inline int asker_send(Asking *asking, Asker *asker) noexcept nogil:
    """Send as much of the request as goes out now; 0 or -errno."""
    cdef Stream before
    cdef size_t part
    cdef ssize_t count
    while asker.sent < asking.up_bytes:
        before = asker.up
        part = asking.up_bytes - asker.sent
        if part > LOAD_SCRATCH_BYTES:
            part = LOAD_SCRATCH_BYTES
        stream_fill(asking.secret, &asker.up, asking.scratch, part)
        count = send_some(asker.fd, asking.scratch, part)
        if count < <ssize_t>part:  # what did not go out is made again when it can
            asker.up.at = before.at + (<uint64_t>count if count > 0 else 0)
            asker.up.mask = keyed_word(asking.secret, asker.connection, before.direction, asker.up.at // BLOCK_BYTES)
        if count <= 0:
            return <int>count
        asker.sent += <size_t>count
    return 0


cdef inline int asker_receive(Asking *asking, Asker *asker) noexcept nogil:
    """Take what is here of the answer: 1 when it is complete, 0 when it is not yet, or -errno."""
    cdef size_t want
    cdef ssize_t count
    while asker.received < asking.down_bytes:
        want = asking.down_bytes - asker.received
        count = recv_some(asker.fd, asking.scratch, want if want < LOAD_SCRATCH_BYTES else LOAD_SCRATCH_BYTES)
        if count <= 0:
            return <int>count
        if not stream_check(asking.secret, &asker.down, asking.scratch, <size_t>count):
            asker.wrong = True
        asker.received += <size_t>count
    return 1


cdef inline void asker_answered(Asking *asking, Asker *asker, uint64_t now) noexcept nogil:
    """Count the operation that is complete."""
    cdef LoadTotals *totals = asking.totals
    totals.every += 1
    asker.operations += 1
    totals.wrong += asker.wrong
    if asker.due_ns >= asking.plan.go_ns:
        totals.operations += 1
        histogram_add(asking.histogram, now - asker.due_ns)
    load_slice(&asking.plan, totals, now, 1)
    load_timed(&asking.plan, totals, now)
    asker.due_ns = asker.sent = asker.received = 0
    asker.wrong = False


cdef inline void asker_failed(Asking *asking, Asker *asker, int epfd, int status) noexcept nogil:
    asker.fault = status
    asker.due_ns = 0
    asking.active -= 1
    epoll_ctl(epfd, EPOLL_CTL_DEL, asker.fd, NULL)


cdef inline void asker_begin(Asking *asking, Asker *asker, int epfd, uint64_t due_ns) noexcept nogil:
    cdef int status
    asker.due_ns = due_ns
    asking.active += 1
    asking.totals.begun += 1
    status = asker_send(asking, asker)
    if status < 0:
        asker_failed(asking, asker, epfd, status)


cdef inline void asker_rest(Asking *asking, int index) noexcept nogil:
    asking.resting[(asking.rest_from + asking.rest) % asking.count] = index
    asking.rest += 1


cdef inline void timer_set(Asking *asking, uint64_t when_ns) noexcept nogil:
    cdef itimerspec when
    when.it_interval.tv_sec = when.it_interval.tv_nsec = 0
    when.it_value.tv_sec = <long>(when_ns // 1000000000)
    when.it_value.tv_nsec = <long>(when_ns % 1000000000)
    timerfd_settime(asking.timer, TFD_TIMER_ABSTIME, &when, NULL)


cdef inline void asking_issue(Asking *asking, int epfd) noexcept nogil:
    """Begin what is due, on the connections that rest; sets the timer for the next one."""
    cdef uint64_t now = load_now_ns()
    cdef uint64_t due = due_of(asking, asking.turn)
    cdef int index
    while asking.rest and due <= now and due < asking.plan.end_ns:
        index = asking.resting[asking.rest_from]
        asking.rest_from = (asking.rest_from + 1) % asking.count
        asking.rest -= 1
        asking.turn += 1
        asker_begin(asking, &asking.askers[index], epfd, due)
        due = due_of(asking, asking.turn)
    if asking.rest and due < asking.plan.end_ns:
        timer_set(asking, due)


cdef inline void asking_give_up(Asking *asking) noexcept nogil:
    """Count what was due and never begun as late by what had passed at the end: it took longer than that."""
    cdef uint64_t due = due_of(asking, asking.turn)
    while due < asking.plan.end_ns:
        if due >= asking.plan.go_ns:
            asking.totals.late += 1
            histogram_add(asking.histogram, load_now_ns() - due)
        asking.turn += 1
        due = due_of(asking, asking.turn)


cdef inline void asking_turn(Asking *asking, Asker *asker, int index, int epfd) noexcept nogil:
    """Something has happened on this connection."""
    cdef uint64_t now
    cdef int status
    if asker.due_ns == 0:
        return
    status = asker_send(asking, asker) if asker.sent < asking.up_bytes else 0
    if status == 0:
        status = asker_receive(asking, asker)
    if status < 0:
        asker_failed(asking, asker, epfd, status)
        return
    if status == 0:
        return
    now = load_now_ns()
    asker_answered(asking, asker, now)
    asking.active -= 1
    if asking.interval_ns > 0:
        asker_rest(asking, index)
    elif now < asking.plan.end_ns:
        asker_begin(asking, asker, epfd, now)


cdef inline int asking_loop(Asking *asking, int epfd) noexcept nogil:
    """Until the time is over and every answer is here, or none has come for LOAD_PATIENCE_MS."""
    cdef epoll_event events[LOAD_EVENTS]
    cdef int i, ready, status
    cdef uint64_t expired
    cdef bint open_loop = asking.interval_ns > 0
    for i in range(asking.count):
        status = load_watch(epfd, EPOLL_CTL_ADD, asking.askers[i].fd, <uint64_t>i, EPOLLIN | EPOLLOUT | EPOLLET)
        if status < 0:
            return status
        if not open_loop:
            asker_begin(asking, &asking.askers[i], epfd, load_now_ns())
        else:
            asker_rest(asking, i)
    if open_loop:
        asking_issue(asking, epfd)
    while asking.active or (open_loop and asking.rest and due_of(asking, asking.turn) < asking.plan.end_ns):
        ready = load_wait(epfd, events, LOAD_PATIENCE_MS)
        if ready < 0:
            return ready
        if ready == 0 and (asking.active or not open_loop):
            for i in range(asking.count):
                if asking.askers[i].due_ns:
                    asker_failed(asking, &asking.askers[i], epfd, -ETIMEDOUT)
        for i in range(ready):
            if events[i].data.u64 == TIMER_INDEX:
                read(asking.timer, &expired, sizeof(expired))
                load_timed(&asking.plan, asking.totals, load_now_ns())
            else:
                asking_turn(asking, &asking.askers[events[i].data.u64], <int>events[i].data.u64, epfd)
        if open_loop:
            asking_issue(asking, epfd)
    return 0


cdef inline int ask_alone(Asking *asking) noexcept nogil:
    """A closed loop on one blocking connection: two system calls for each operation, as few as there can be."""
    cdef Asker *asker = &asking.askers[0]
    cdef uint64_t now = load_now_ns()
    cdef int status = 0
    while now < asking.plan.end_ns:
        asker.due_ns = now
        asking.totals.begun += 1
        stream_fill(asking.secret, &asker.up, asking.scratch, asking.up_bytes)
        status = send_all(asker.fd, asking.scratch, asking.up_bytes)
        if status == 0:
            status = recv_all(asker.fd, asking.scratch, asking.down_bytes)
        if status < 0:
            asker.fault = status
            return 0
        now = load_now_ns()
        # Checked after the clock is read, and before the next request: it is no part of the latency.
        asker.wrong = not stream_check(asking.secret, &asker.down, asking.scratch, asking.down_bytes)
        asker_answered(asking, asker, now)
        now = load_now_ns()
    return 0


cdef inline int asking_run(Asking *asking) noexcept nogil:
    """0 or -errno. The connections stay open; what went wrong with each is noted there."""
    cdef int epfd = -1
    cdef int status = -ENOMEM
    asking.timer = -1
    asking.scratch = <char *>malloc(LOAD_SCRATCH_BYTES)
    asking.resting = <int *>calloc(<size_t>asking.count, sizeof(int))
    if asking.scratch != NULL and asking.resting != NULL:
        if asking.interval_ns == 0 and asking.count == 1 and (
            asking.up_bytes <= LOAD_BLOCKING_BYTES and asking.down_bytes <= LOAD_BLOCKING_BYTES
        ):
            status = ask_alone(asking)
        else:
            prctl(PR_SET_TIMERSLACK, 1000)
            epfd = epoll_create1(EPOLL_CLOEXEC)
            asking.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
            status = -errno if epfd < 0 or asking.timer < 0 else 0
            if status == 0:
                status = load_watch(epfd, EPOLL_CTL_ADD, asking.timer, TIMER_INDEX, EPOLLIN)
            if status == 0:
                status = asking_loop(asking, epfd)
            if asking.interval_ns > 0 and status == 0:
                asking_give_up(asking)
    load_over(asking.totals, load_now_ns())
    if epfd >= 0:
        close(epfd)
    if asking.timer >= 0:
        close(asking.timer)
    free(asking.resting)
    free(asking.scratch)
    return status
