"""The far end of the bench's loads: one thread, one epoll, thousands of connections.

`LOAD_ECHO` sends back what comes. `LOAD_SOURCE` reads numbers of eight bytes, least byte first, and answers each with
as many bytes. Both pass a FIN on once everything before it is answered. Each connection is registered once,
edge-triggered; a buffer is held only while the client does not take what is sent.
"""

from libc.errno cimport EAGAIN, ENOMEM, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    cdef struct sockaddr
    int SOCK_NONBLOCK, SOCK_CLOEXEC
    int MSG_DONTWAIT, MSG_NOSIGNAL
    int accept4(int fd, sockaddr *address, socklen_t *length, int flags)
    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP
    int setsockopt(int fd, int level, int option, const void *value, socklen_t length)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout_ms)


cdef enum:
    LOAD_ECHO = 0
    LOAD_SOURCE = 1
    SERVER_EVENTS = 256  # taken from epoll at once
    SERVER_BLOCK_BYTES = 262144  # what one recv or send moves at most
    SERVER_ACCEPTS = 64  # connections taken before the others get their turn


cdef struct ServerPeer:  # indexed by descriptor
    bint live
    char *held  # echo: bytes the client has not taken yet
    size_t held_from
    size_t held_to
    uint64_t owed  # source: bytes still to send
    unsigned char header[8]  # source: the number being read
    int header_bytes


cdef struct Server:
    int epfd
    int listener
    int mode
    ServerPeer *peers
    int peers_size
    char *block
    uint64_t accepted


cdef inline void server_drop(Server *server, int fd) noexcept nogil:
    free(server.peers[fd].held)
    memset(&server.peers[fd], 0, sizeof(ServerPeer))
    close(fd)


cdef inline bint server_room(Server *server, int fd) noexcept nogil:
    """Make the table reach to `fd`."""
    cdef int size = server.peers_size
    cdef ServerPeer *peers
    if fd < size:
        return True
    while size <= fd:
        size *= 2
    peers = <ServerPeer *>realloc(server.peers, <size_t>size * sizeof(ServerPeer))
    if peers == NULL:
        return False
    memset(&peers[server.peers_size], 0, <size_t>(size - server.peers_size) * sizeof(ServerPeer))
    server.peers = peers
    server.peers_size = size
    return True


cdef inline void server_accept(Server *server) noexcept nogil:
    cdef int _, fd
    cdef int on = 1
    cdef epoll_event event
    for _ in range(SERVER_ACCEPTS):
        fd = accept4(server.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            return
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
        event.data.fd = fd
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
        if not server_room(server, fd) or epoll_ctl(server.epfd, EPOLL_CTL_ADD, fd, &event) < 0:
            close(fd)
            return
        server.peers[fd].live = True
        server.accepted += 1


cdef inline int echo_flush(ServerPeer *peer, int fd) noexcept nogil:
    """1: nothing is held any more; 0: the client takes no more now; -1: it is gone."""
    cdef ssize_t count
    while peer.held_from < peer.held_to:
        count = send(fd, peer.held + peer.held_from, peer.held_to - peer.held_from, MSG_DONTWAIT | MSG_NOSIGNAL)
        if count >= 0:
            peer.held_from += <size_t>count
        elif errno == EAGAIN:
            return 0
        elif errno != EINTR:
            return -1
    free(peer.held)
    peer.held = NULL
    return 1


cdef inline int echo_advance(Server *server, int fd, bint ending) noexcept nogil:
    """0: wait for the next edge; -1: done with this connection. `ending`: a FIN or an error was announced."""
    cdef ServerPeer *peer = &server.peers[fd]
    cdef ssize_t got, count
    cdef int state
    while True:  # ends when the kernel has nothing more, or takes nothing more
        if peer.held != NULL:
            state = echo_flush(peer, fd)
            if state <= 0:
                return state
            ending = True  # the edge for what came meanwhile may be spent: read until the kernel says no
        got = recv(fd, server.block, SERVER_BLOCK_BYTES, MSG_DONTWAIT)
        if got == 0:
            return -1
        if got < 0:
            if errno == EINTR:
                continue
            return 0 if errno == EAGAIN else -1
        count = send(fd, server.block, <size_t>got, MSG_DONTWAIT | MSG_NOSIGNAL)
        if count < 0:
            if errno != EAGAIN and errno != EINTR:
                return -1
            count = 0
        if count < got:
            peer.held = <char *>malloc(<size_t>(got - count))
            if peer.held == NULL:
                return -1
            memcpy(peer.held, server.block + count, <size_t>(got - count))
            peer.held_from = 0
            peer.held_to = <size_t>(got - count)
        elif got < SERVER_BLOCK_BYTES and not ending:
            return 0


cdef inline int source_advance(Server *server, int fd, bint ending) noexcept nogil:
    """As `echo_advance`."""
    cdef ServerPeer *peer = &server.peers[fd]
    cdef ssize_t count
    cdef size_t want
    while True:  # ends when the kernel has nothing more, or takes nothing more
        while peer.owed > 0:
            want = SERVER_BLOCK_BYTES if peer.owed > SERVER_BLOCK_BYTES else <size_t>peer.owed
            count = send(fd, server.block, want, MSG_DONTWAIT | MSG_NOSIGNAL)
            if count >= 0:
                peer.owed -= <uint64_t>count
            elif errno == EAGAIN:
                return 0
            elif errno != EINTR:
                return -1
        count = recv(fd, peer.header + peer.header_bytes, <size_t>(8 - peer.header_bytes), MSG_DONTWAIT)
        if count == 0:
            return -1
        if count < 0:
            if errno == EINTR:
                continue
            return 0 if errno == EAGAIN else -1
        peer.header_bytes += <int>count
        if peer.header_bytes == 8:
            memcpy(&peer.owed, peer.header, 8)
            peer.header_bytes = 0


cdef inline int server_loop(Server *server, int stop_fd) noexcept nogil:
    """Serve until `stop_fd` becomes readable."""
    cdef epoll_event events[SERVER_EVENTS]
    cdef int i, fd, ready
    cdef bint ending
    cdef int status
    while True:  # ends on stop_fd
        ready = epoll_wait(server.epfd, events, SERVER_EVENTS, -1)
        if ready < 0 and errno != EINTR:
            return -errno
        for i in range(ready):
            fd = events[i].data.fd
            if fd == stop_fd:
                return 0
            if fd == server.listener:
                server_accept(server)
                continue
            ending = (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0
            if server.mode == LOAD_ECHO:
                status = echo_advance(server, fd, ending)
            else:
                status = source_advance(server, fd, ending)
            if status < 0:
                server_drop(server, fd)


cdef inline int load_serve(int listener, int stop_fd, int mode, uint64_t *accepted) noexcept nogil:
    """Serve the listening, non-blocking socket until `stop_fd` is readable; 0 or -errno."""
    cdef Server server
    cdef epoll_event event
    cdef int fd
    cdef int status = -ENOMEM
    memset(&server, 0, sizeof(server))
    server.listener = listener
    server.mode = mode
    server.peers_size = 1024
    server.peers = <ServerPeer *>calloc(<size_t>server.peers_size, sizeof(ServerPeer))
    server.block = <char *>calloc(1, SERVER_BLOCK_BYTES)
    server.epfd = epoll_create1(EPOLL_CLOEXEC)
    if server.epfd < 0:
        status = -errno
    elif server.peers != NULL and server.block != NULL:
        status = 0
        event.events = EPOLLIN
        event.data.fd = listener
        if epoll_ctl(server.epfd, EPOLL_CTL_ADD, listener, &event) < 0:
            status = -errno
        event.data.fd = stop_fd
        if status == 0 and epoll_ctl(server.epfd, EPOLL_CTL_ADD, stop_fd, &event) < 0:
            status = -errno
        if status == 0:
            status = server_loop(&server, stop_fd)
        for fd in range(server.peers_size):
            if server.peers[fd].live:
                server_drop(&server, fd)
    if server.epfd >= 0:
        close(server.epfd)
    free(server.block)
    free(server.peers)
    accepted[0] = server.accepted
    return status
