"""The loop of the far end: accept, read, answer, and what the end of a connection says."""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport close

from content cimport HELLO_SHORT, WORD_FIN
from load cimport load_now_ns
from load_server cimport (
    ACCEPTED, BROKEN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, FINS, IPPROTO_TCP, MSG_DONTWAIT,
    SERVER_ACCEPTS, SERVER_EVENTS, SERVER_READ_BYTES, SERVER_SEND_BYTES, SOCK_CLOEXEC, SOCK_NONBLOCK, STAGE_ANSWERED,
    STAGE_DOWNLOAD, STAGE_HELLO, STAGE_OVER, STAGE_PREAMBLE, STAGE_REQUESTS, TCP_NODELAY, Peer, Server, ServerThread,
    accept4, epoll_create1, epoll_ctl, epoll_event, epoll_wait, peer_answer, peer_download, peer_take, peer_word,
    pthread_mutex_lock, pthread_mutex_unlock, recv, setsockopt,
)
from preamble cimport PREAMBLE_NONE


cdef inline int peer_watch(ServerThread *thread, Peer *peer, int operation, bint writing) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLOUT if writing else EPOLLIN
    if peer.stage == STAGE_DOWNLOAD:  # the word to stop may come at any time
        event.events |= EPOLLIN
    event.data.ptr = peer
    peer.writing = writing
    return epoll_ctl(thread.epfd, operation, peer.fd, &event)


cdef inline void peer_enter(Server *server, Peer *peer) noexcept nogil:
    pthread_mutex_lock(&server.seen.lock)
    peer.next = server.peers
    peer.link = &server.peers
    if peer.next != NULL:
        peer.next.link = &peer.next
    server.peers = peer
    pthread_mutex_unlock(&server.seen.lock)


cdef inline void peer_drop(Server *server, Peer *peer) noexcept nogil:
    pthread_mutex_lock(&server.seen.lock)
    peer.link[0] = peer.next
    if peer.next != NULL:
        peer.next.link = peer.link
    pthread_mutex_unlock(&server.seen.lock)
    close(peer.fd)  # which takes it out of epoll: no other descriptor refers to it
    free(peer)


cdef inline void server_accept(Server *server, ServerThread *first) noexcept nogil:
    cdef int _, fd
    cdef int on = 1
    cdef Peer *peer
    cdef ServerThread *thread
    for _ in range(SERVER_ACCEPTS):
        fd = accept4(server.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            return
        peer = <Peer *>calloc(1, sizeof(Peer))
        if peer == NULL:
            close(fd)
            return
        first.counts[ACCEPTED] += 1
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
        peer.fd = fd
        peer.accepted_ns = load_now_ns()
        peer.stage = STAGE_HELLO if server.preamble.kind == PREAMBLE_NONE else STAGE_PREAMBLE
        thread = &server.each[server.dealt % <uint64_t>server.threads]
        server.dealt += 1
        peer_enter(server, peer)
        if peer_watch(thread, peer, EPOLL_CTL_ADD, False) < 0:
            peer_drop(server, peer)


cdef inline int peer_ended(Server *server, ServerThread *thread, Peer *peer, bint fin) noexcept nogil:
    """The client has sent its FIN, or the connection broke off; -1: it is to be closed in either case."""
    cdef bint over = peer.stage == STAGE_OVER or peer.stage == STAGE_ANSWERED
    if peer.stage == STAGE_REQUESTS:
        over = peer.have == 0 and peer.owed == 0
    if fin and over:
        thread.counts[FINS] += 1
        if peer.hello.kind != HELLO_SHORT:
            peer_word(server, peer, WORD_FIN, 0)
    else:
        thread.counts[BROKEN] += 1
    return -1


cdef inline int peer_read(Server *server, ServerThread *thread, Peer *peer) noexcept nogil:
    """Take what has come and begin to answer; -1 where the connection is to be closed."""
    cdef ssize_t got = recv(peer.fd, thread.input, SERVER_READ_BYTES, MSG_DONTWAIT)
    cdef int stage = peer.stage
    if got < 0:
        if errno == EAGAIN or errno == EINTR:
            return 0
        return peer_ended(server, thread, peer, False)
    if got == 0:
        return peer_ended(server, thread, peer, True)
    if peer_take(server, thread, peer, thread.input, <size_t>got) < 0:
        return -1
    if peer.owed:
        got = peer_answer(server, thread, peer)
        if got < 0:
            return peer_ended(server, thread, peer, False)
        if got == 0:
            peer_watch(thread, peer, EPOLL_CTL_MOD, True)
    elif peer.stage == STAGE_DOWNLOAD and stage != STAGE_DOWNLOAD:
        peer_watch(thread, peer, EPOLL_CTL_MOD, True)
    return 0


cdef inline int peer_write(Server *server, ServerThread *thread, Peer *peer) noexcept nogil:
    """Send what is due; -1 where the connection is to be closed."""
    cdef int status
    if peer.stage == STAGE_DOWNLOAD:
        status = peer_download(server, thread, peer)
        if status == 1:
            peer.stage = STAGE_OVER
            peer.have = 0
    else:
        status = peer_answer(server, thread, peer)
    if status < 0:
        return peer_ended(server, thread, peer, False)
    if status == 1:
        peer_watch(thread, peer, EPOLL_CTL_MOD, False)
    return 0


cdef inline int server_loop(Server *server, ServerThread *thread, int stop_fd) noexcept nogil:
    """Serve until `stop_fd` is readable."""
    cdef epoll_event events[SERVER_EVENTS]
    cdef int i, ready, status
    cdef Peer *peer
    while True:  # ends on stop_fd
        ready = epoll_wait(thread.epfd, events, SERVER_EVENTS, -1)
        if ready < 0 and errno != EINTR:
            return -errno
        for i in range(ready):
            if events[i].data.ptr == <void *>thread:
                return 0
            if events[i].data.ptr == <void *>server:
                server_accept(server, thread)
                continue
            peer = <Peer *>events[i].data.ptr
            status = 0
            if not peer.writing or peer.stage == STAGE_DOWNLOAD and events[i].events & EPOLLIN:
                status = peer_read(server, thread, peer)
            if status == 0 and peer.writing and events[i].events & ~<unsigned int>EPOLLIN:
                status = peer_write(server, thread, peer)
            if status < 0:
                peer_drop(server, peer)


cdef inline int server_begin(Server *server, int listener, int stop_fd, int threads) noexcept nogil:
    """Make the epolls of all threads; 0 or -errno."""
    cdef int i
    cdef epoll_event event
    server.listener = listener
    server.threads = threads
    server.seen.size = 1024
    server.seen.slots = <uint64_t *>calloc(server.seen.size, sizeof(uint64_t))
    if server.seen.slots == NULL:
        return -ENOMEM
    for i in range(threads):
        server.each[i].epfd = epoll_create1(EPOLL_CLOEXEC)
        server.each[i].input = <char *>malloc(SERVER_READ_BYTES)
        server.each[i].output = <char *>malloc(SERVER_SEND_BYTES)
        if server.each[i].epfd < 0:
            return -errno
        if server.each[i].input == NULL or server.each[i].output == NULL:
            return -ENOMEM
        event.events = EPOLLIN
        event.data.ptr = &server.each[i]
        if epoll_ctl(server.each[i].epfd, EPOLL_CTL_ADD, stop_fd, &event) < 0:
            return -errno
    event.data.ptr = server
    return -errno if epoll_ctl(server.each[0].epfd, EPOLL_CTL_ADD, listener, &event) < 0 else 0


cdef inline void server_end(Server *server) noexcept nogil:
    """Close what is open; no thread serves any more."""
    cdef int i
    while server.peers != NULL:
        peer_drop(server, server.peers)
    for i in range(server.threads):
        if server.each[i].epfd > 0:
            close(server.each[i].epfd)
        free(server.each[i].input)
        free(server.each[i].output)
    free(server.seen.slots)
