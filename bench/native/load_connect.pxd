"""The load client of the bench: short connections and downloads; times in nanoseconds.

What it returns, and how it counts, is told in load.pxd.
"""

from libc.errno cimport EAGAIN, ECONNRESET, EINPROGRESS, EINTR, ENOMEM, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport close

from load cimport (
    EPOLL_CLOEXEC, LOAD_EVENTS, LOAD_SCRATCH_BYTES, MSG_DONTWAIT, LoadPeer, LoadTotals, epoll_create1, epoll_event,
    exchange, histogram_add, load_now_ns, load_wait, load_watch, recv, recv_all, send_all,
)


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        unsigned short sa_family
    int SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC
    int MSG_TRUNC
    int socket(int domain, int type, int protocol)
    int connect(int fd, const sockaddr *address, socklen_t length)


cdef struct LoadTimes:  # of one download
    uint64_t socket_ns  # socket() and connect()
    uint64_t setup_ns  # the first byte asked for, and here: the forwarder has accepted, connected and relayed
    uint64_t download_ns  # from the request to the last byte
    uint64_t received


cdef inline int open_peer(
    int epfd, LoadPeer *peer, uint64_t index, const sockaddr *address, socklen_t length,
    const char *request, size_t size
) noexcept nogil:
    """Begin a connection without waiting for it. On one machine it is often there at once, and so the request goes."""
    cdef int status
    peer.sent = peer.received = 0
    peer.started_ns = load_now_ns()
    peer.fd = socket(address.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if peer.fd < 0:
        return -errno
    if connect(peer.fd, address, length) < 0 and errno != EINPROGRESS:
        status = -errno
    else:
        status = exchange(peer, request, size, NULL, 0)
        if status >= 0:
            status = load_watch(epfd, peer.fd, index, peer.sent < size)
    if status < 0:
        close(peer.fd)
        peer.fd = -1
    return status


cdef inline int connect_one(
    const sockaddr *address, socklen_t length, const char *request, size_t size, char *scratch
) noexcept nogil:
    """One short connection, blocking: connect, one exchange of `size` bytes each way, close."""
    cdef int status = 0
    cdef int fd = socket(address.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -errno
    if connect(fd, address, length) < 0:
        status = -errno
    if status == 0:
        status = send_all(fd, request, size)
    if status == 0:
        status = recv_all(fd, scratch, size)
    close(fd)
    return status


cdef inline void load_failed(LoadTotals *totals, int status) noexcept nogil:
    totals.failures += 1
    if totals.first_errno == 0:
        totals.first_errno = -status


cdef inline int connect_many(
    int epfd, LoadPeer *peers, int count, const sockaddr *address, socklen_t length, const char *request,
    size_t size, char *scratch, uint64_t duration_ns, uint64_t *histogram, LoadTotals *totals
) noexcept nogil:
    """Short connections, `count` of them under way at any time."""
    cdef epoll_event events[LOAD_EVENTS]
    cdef int active = 0
    cdef int i, ready, status
    cdef uint64_t index, now
    cdef uint64_t begin = load_now_ns()
    for i in range(count):
        status = open_peer(epfd, &peers[i], <uint64_t>i, address, length, request, size)
        if status < 0:
            return status
        active += 1
    while active > 0:
        ready = load_wait(epfd, events)
        if ready < 0:
            return ready
        for i in range(ready):
            index = events[i].data.u64
            status = exchange(&peers[index], request, size, scratch, size)
            if status == 0:
                continue
            now = load_now_ns()
            close(peers[index].fd)  # which takes it out of epoll: no other descriptor refers to it
            peers[index].fd = -1
            if status == 1:
                histogram_add(histogram, now - peers[index].started_ns)
                totals.operations += 1
            else:
                load_failed(totals, status)
            if now - begin >= duration_ns:
                active -= 1
                continue
            status = open_peer(epfd, &peers[index], index, address, length, request, size)
            if status < 0:
                load_failed(totals, status)
                active -= 1
    totals.elapsed_ns = load_now_ns() - begin
    return 0


cdef inline int load_connections(
    const sockaddr *address, socklen_t length, int count, const char *request, size_t size,
    uint64_t duration_ns, uint64_t *histogram, LoadTotals *totals
) noexcept nogil:
    """Short connections for `duration_ns`: each connects, exchanges `size` bytes (at most 16 KiB), closes."""
    cdef char *scratch = <char *>malloc(LOAD_SCRATCH_BYTES)
    cdef LoadPeer *peers = <LoadPeer *>calloc(<size_t>count, sizeof(LoadPeer))
    cdef uint64_t begin = load_now_ns()
    cdef uint64_t start = begin
    cdef uint64_t now = begin
    cdef int epfd = -1
    cdef int i
    cdef int status = -ENOMEM
    if scratch != NULL and peers != NULL and count == 1:
        status = 0
        while now - begin < duration_ns:
            start = now
            status = connect_one(address, length, request, size, scratch)
            now = load_now_ns()
            if status < 0:
                load_failed(totals, status)
                status = 0
            else:
                histogram_add(histogram, now - start)
                totals.operations += 1
        totals.elapsed_ns = now - begin
    elif scratch != NULL and peers != NULL:
        for i in range(count):
            peers[i].fd = -1
        epfd = epoll_create1(EPOLL_CLOEXEC)
        status = -errno if epfd < 0 else connect_many(
            epfd, peers, count, address, length, request, size, scratch, duration_ns, histogram, totals)
        for i in range(count):
            if peers[i].fd >= 0:
                close(peers[i].fd)
    if epfd >= 0:
        close(epfd)
    free(peers)
    free(scratch)
    return status


cdef inline int download_open(
    LoadPeer *peer, LoadTimes *times, const sockaddr *address, socklen_t length, char *scratch
) noexcept nogil:
    """Connect and ask for one byte, blocking, so that both set-up times are those of this connection alone."""
    cdef uint64_t one = 1
    cdef uint64_t start = load_now_ns()
    cdef uint64_t connected
    cdef int status
    peer.fd = socket(address.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if peer.fd < 0:
        return -errno
    if connect(peer.fd, address, length) < 0:
        return -errno
    connected = load_now_ns()
    times.socket_ns = connected - start
    status = send_all(peer.fd, <const char *>&one, sizeof(one))
    if status == 0:
        status = recv_all(peer.fd, scratch, 1)
    times.setup_ns = load_now_ns() - connected
    return status


cdef inline int download_all(
    int epfd, LoadPeer *peers, LoadTimes *times, int count, uint64_t size, char *scratch
) noexcept nogil:
    """Ask for `size` bytes on every connection and count what comes, without copying it out of the kernel."""
    cdef epoll_event events[LOAD_EVENTS]
    cdef int active = count
    cdef int i, ready, status
    cdef uint64_t index
    cdef ssize_t got
    for i in range(count):
        peers[i].started_ns = load_now_ns()
        status = send_all(peers[i].fd, <const char *>&size, sizeof(size))
        if status == 0:
            status = load_watch(epfd, peers[i].fd, <uint64_t>i, False)
        if status < 0:
            return status
    while active > 0:
        ready = load_wait(epfd, events)
        if ready < 0:
            return ready
        for i in range(ready):
            index = events[i].data.u64
            while times[index].received < size:
                got = recv(peers[index].fd, scratch, LOAD_SCRATCH_BYTES, MSG_DONTWAIT | MSG_TRUNC)
                if got > 0:
                    times[index].received += <uint64_t>got
                elif got == 0:
                    return -ECONNRESET
                elif errno == EAGAIN:
                    break
                elif errno != EINTR:
                    return -errno
            if times[index].received >= size and times[index].download_ns == 0:
                times[index].download_ns = load_now_ns() - peers[index].started_ns
                active -= 1
    return 0


cdef inline int load_downloads(
    const sockaddr *address, socklen_t length, int count, uint64_t size, LoadTimes *times, LoadTotals *totals
) noexcept nogil:
    """`count` connections, opened one after the other, then `size` bytes down all of them at once."""
    cdef char *scratch = <char *>malloc(LOAD_SCRATCH_BYTES)
    cdef LoadPeer *peers = <LoadPeer *>calloc(<size_t>count, sizeof(LoadPeer))
    cdef uint64_t begin = load_now_ns()
    cdef int epfd = -1
    cdef int i
    cdef int status = -ENOMEM
    if scratch != NULL and peers != NULL:
        status = 0
        for i in range(count):
            peers[i].fd = -1
        for i in range(count):
            if status == 0:
                status = download_open(&peers[i], &times[i], address, length, scratch)
        if status == 0:
            epfd = epoll_create1(EPOLL_CLOEXEC)
            status = -errno if epfd < 0 else download_all(epfd, peers, times, count, size, scratch)
        for i in range(count):
            if peers[i].fd >= 0:
                close(peers[i].fd)
        totals.operations = <uint64_t>count
        totals.elapsed_ns = load_now_ns() - begin
    if epfd >= 0:
        close(epfd)
    free(peers)
    free(scratch)
    return status
