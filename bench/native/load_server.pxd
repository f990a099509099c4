"""The far end of the bench's loads: some threads, each with an epoll of its own; the first one accepts for all.

A connection begins with a hello (`content.pxd`), which says what it is for. The server checks what comes, answers with
what only it can make, and counts both. A request with wrong content is counted as such and answered all the same, so
that a load goes on. An upload and a download end with a word for the bytes and, after the client's FIN, one for that.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from content cimport (
    BLOCK_BYTES, DOWN, HELLO_BYTES, HELLO_EXCHANGE, HELLO_SHORT, HELLO_UPLOAD, UP, WORD_BYTES, WORD_GREETING,
    WORD_RECEIPT, WORD_START, WORD_STOP, WORD_WRONG, WORDS, Hello, Reading, Secret, Stream, block_make, hello_right,
    keyed_word, reading_take, stream_begin, stream_check, stream_fill,
)
from preamble cimport PREAMBLE_EXACT, PROXY_BYTES_MAX, Preamble, begins_alike, proxy_header


cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #define CHECK_ANSWER "HTTP/1.0 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n"
    #define CHECK_ANSWER_BYTES (sizeof(CHECK_ANSWER) - 1)
    """
    const char *CHECK_ANSWER
    const size_t CHECK_ANSWER_BYTES
    ctypedef unsigned int socklen_t
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    cdef struct sockaddr
    int SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, TCP_NODELAY, IPPROTO_TCP
    int accept4(int fd, sockaddr *address, socklen_t *length, int flags)
    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)
    int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
    ctypedef union epoll_data_t:
        void *ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN, EPOLLOUT
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout_ms)


cdef enum:
    SERVER_EVENTS = 256  # taken from epoll at once
    SERVER_ACCEPTS = 64  # connections taken before the others get their turn
    SERVER_READ_BYTES = 262144
    SERVER_SEND_BYTES = 131072  # two blocks
    SERVER_THREADS_MAX = 64

    ACCEPTED = 0  # what is counted
    HELLOS = 1  # that were right
    FOREIGN = 2  # that were not: no client of this run sent them
    REPEATED = 3  # of a connection that has said hello before
    REUSED = 4  # on a connection that had served another client
    EARLY = 5  # on a connection that was there before its client wanted one
    REQUESTS = 6  # complete ones, uploads among them
    ANSWERS = 7  # begun
    WRONG = 8  # requests and uploads whose content was not what the client had sent
    BYTES_IN = 9  # after the hello
    BYTES_OUT = 10
    FINS = 11  # connections that the client ended as it should
    BROKEN = 12  # connections that ended otherwise
    COUNTS = 13

    STAGE_HELLO = 0
    STAGE_REQUESTS = 1
    STAGE_ANSWERED = 2  # a short connection: nothing should follow but its end
    STAGE_START = 3
    STAGE_DOWNLOAD = 4
    STAGE_UPLOAD = 5
    STAGE_OVER = 6  # all is said but the FIN
    STAGE_PREAMBLE = 7  # before the hello


cdef struct Peer:
    int fd
    int stage
    bint stopping  # a download: the client has enough
    bint writing  # epoll reports when it takes more, and not what comes
    bint spoilt  # the request under way has wrong content
    Hello hello
    size_t have  # bytes of the hello, the request or the word under way
    uint64_t owed  # bytes of answers not sent yet
    uint64_t accepted_ns
    Reading up
    Stream down
    char word[WORD_BYTES]
    char header[PROXY_BYTES_MAX]  # as much as has come of it
    Peer *next  # of all connections, under the lock of `Server`
    Peer **link  # what points to this one


cdef struct Identities:  # of connections that have said hello
    pthread_mutex_t lock
    uint64_t *slots
    uint64_t size  # a power of two
    uint64_t count


cdef struct ServerThread:
    int epfd
    uint64_t counts[COUNTS]
    char *input
    char *output


cdef struct Server:
    Secret secret
    Preamble preamble
    Identities seen
    int listener
    int threads
    uint64_t dealt  # connections given to threads in turn
    Peer *peers
    ServerThread each[SERVER_THREADS_MAX]


cdef inline bint identities_add(Identities *seen, uint64_t identity) noexcept nogil:
    """False if it is there already."""
    cdef uint64_t at, i, other
    cdef uint64_t *slots
    cdef bint fresh = True
    pthread_mutex_lock(&seen.lock)
    if seen.count * 2 >= seen.size:
        slots = <uint64_t *>calloc(seen.size * 4, sizeof(uint64_t))
        if slots != NULL:
            for i in range(seen.size):
                if seen.slots[i]:
                    other = seen.slots[i] * <uint64_t>0x9e3779b97f4a7c15 & (seen.size * 4 - 1)
                    while slots[other]:
                        other = (other + 1) & (seen.size * 4 - 1)
                    slots[other] = seen.slots[i]
            free(seen.slots)
            seen.slots = slots
            seen.size *= 4
    at = identity * <uint64_t>0x9e3779b97f4a7c15 & (seen.size - 1)
    # Without memory for a larger table the search ends at a free slot as long as there is one.
    while seen.slots[at] and seen.slots[at] != identity and seen.count < seen.size - 1:
        at = (at + 1) & (seen.size - 1)
    if seen.slots[at] == identity:
        fresh = False
    elif not seen.slots[at]:
        seen.slots[at] = identity
        seen.count += 1
    pthread_mutex_unlock(&seen.lock)
    return fresh


cdef inline int peer_word(Server *server, Peer *peer, uint64_t number, uint64_t extra) noexcept nogil:
    """Send a word of the protocol; it fits, for nothing else waits to be sent. 0, or -1 where the client is gone."""
    cdef uint64_t word = keyed_word(&server.secret, peer.hello.connection, WORDS, number) ^ extra
    return 0 if send(peer.fd, &word, WORD_BYTES, MSG_DONTWAIT | MSG_NOSIGNAL) == WORD_BYTES else -1


cdef inline int peer_begin(Server *server, ServerThread *thread, Peer *peer) noexcept nogil:
    """The hello is complete. -1 where it is none: then there is nothing to be said to this client."""
    cdef uint64_t *counts = thread.counts
    if not hello_right(&server.secret, &peer.hello):
        counts[FOREIGN] += 1
        return -1
    counts[HELLOS] += 1
    if not identities_add(&server.seen, peer.hello.connection):
        counts[REPEATED] += 1
    if peer.accepted_ns < peer.hello.started_ns:
        counts[EARLY] += 1
    stream_begin(&server.secret, &peer.up.stream, peer.hello.connection, UP)
    stream_begin(&server.secret, &peer.down, peer.hello.connection, DOWN)
    peer.up.wrong_at = peer.up.ended = 0
    peer.have = 0
    if peer.hello.kind == HELLO_SHORT:
        peer.stage = STAGE_ANSWERED
        counts[REQUESTS] += 1
        counts[ANSWERS] += 1
        peer.owed = HELLO_BYTES
        return 0
    if peer.hello.kind == HELLO_EXCHANGE:
        peer.stage = STAGE_REQUESTS
    elif peer.hello.kind == HELLO_UPLOAD:
        peer.stage = STAGE_UPLOAD
    else:
        peer.stage = STAGE_START
    return peer_word(server, peer, WORD_GREETING, 0)


cdef inline size_t peer_collect(void *into, size_t want, Peer *peer, const char *data, size_t count) noexcept nogil:
    """Take what is missing of `want` bytes; how many were taken. `peer.have` is how many there are."""
    cdef size_t part = want - peer.have
    if part > count:
        part = count
    memcpy(<char *>into + peer.have, data, part)
    peer.have += part
    return part


cdef inline bint word_is(Server *server, Peer *peer, uint64_t number) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, peer.word, WORD_BYTES)
    peer.have = 0
    return word == keyed_word(&server.secret, peer.hello.connection, WORDS, number)


cdef inline size_t peer_request(
    Server *server, ServerThread *thread, Peer *peer, const char *data, size_t count
) noexcept nogil:
    cdef size_t part = peer.hello.up_bytes - peer.have
    if part > count:
        part = count
    if not stream_check(&server.secret, &peer.up.stream, data, part):
        peer.spoilt = True
    peer.have += part
    if peer.have == peer.hello.up_bytes:
        peer.have = 0
        thread.counts[REQUESTS] += 1
        thread.counts[WRONG] += peer.spoilt
        thread.counts[ANSWERS] += 1
        peer.spoilt = False
        peer.owed += peer.hello.down_bytes
    return part


cdef inline int peer_upload(
    Server *server, ServerThread *thread, Peer *peer, const char *data, size_t count
) noexcept nogil:
    cdef bint wrong = peer.up.wrong_at != 0
    reading_take(&server.secret, &peer.up, data, count)
    if peer.up.wrong_at and not wrong:
        thread.counts[WRONG] += 1
        peer_word(server, peer, WORD_WRONG, 0)
        return peer_word(server, peer, WORD_WRONG, 0)
    if not peer.up.ended or peer.up.wrong_at:
        return 0
    thread.counts[REQUESTS] += 1
    thread.counts[ANSWERS] += 1
    peer.stage = STAGE_OVER
    if peer_word(server, peer, WORD_RECEIPT, 0) < 0:
        return -1
    return peer_word(server, peer, WORD_RECEIPT + 16, peer.up.stream.at)


cdef inline ssize_t peer_preamble(
    Server *server, ServerThread *thread, Peer *peer, const char *data, size_t count
) noexcept nogil:
    """Take what belongs before the hello: how many bytes that is, or -1 where it is not the right one."""
    cdef const Preamble *wanted = &server.preamble
    cdef size_t part
    cdef int length
    if wanted.kind == PREAMBLE_EXACT:
        part = wanted.length - peer.have
        part = count if count < part else part
        if begins_alike(data, part, &wanted.data[peer.have], part):
            peer.have += part
            if peer.have == wanted.length:
                peer.stage = STAGE_HELLO
                peer.have = 0
            return <ssize_t>part
    else:
        part = PROXY_BYTES_MAX - peer.have
        part = count if count < part else part
        memcpy(&peer.header[peer.have], data, part)
        length = proxy_header(wanted, peer.header, peer.have + part)
        if length == 0:
            peer.have += part
            return <ssize_t>part
        if length > 0:
            part = <size_t>length - peer.have
            peer.stage = STAGE_HELLO
            peer.have = 0
            return <ssize_t>part
    thread.counts[FOREIGN] += 1
    return -1


cdef inline int peer_take(
    Server *server, ServerThread *thread, Peer *peer, const char *data, size_t count
) noexcept nogil:
    """Take `count` bytes that came. 0, or -1 where the connection is to be closed."""
    cdef size_t part
    cdef ssize_t before
    cdef int status = 0
    while count > 0 and status == 0:
        if peer.stage == STAGE_PREAMBLE:
            before = peer_preamble(server, thread, peer, data, count)
            if before < 0:
                return -1
            data += before
            count -= <size_t>before
            continue
        if peer.stage == STAGE_ANSWERED:
            thread.counts[REUSED] += 1
            peer.stage = STAGE_HELLO
        if peer.stage == STAGE_HELLO:
            if peer.have == 0 and count >= 5 and memcmp(data, b"GET /", 5) == 0:
                # The check of a forwarder with a group of servers: a hello does not begin so.
                send(peer.fd, <const char *>CHECK_ANSWER, CHECK_ANSWER_BYTES, MSG_DONTWAIT | MSG_NOSIGNAL)
                return -1
            part = peer_collect(&peer.hello, HELLO_BYTES, peer, data, count)
            if peer.have == HELLO_BYTES:
                status = peer_begin(server, thread, peer)
            data += part
            count -= part
            continue
        if peer.stage == STAGE_REQUESTS:
            part = peer_request(server, thread, peer, data, count)
        elif peer.stage == STAGE_UPLOAD:
            part = count
            status = peer_upload(server, thread, peer, data, count)
        elif peer.stage == STAGE_START or peer.stage == STAGE_DOWNLOAD:
            part = peer_collect(peer.word, WORD_BYTES, peer, data, count)
            if peer.have == WORD_BYTES:
                if peer.stage == STAGE_START:
                    thread.counts[REQUESTS] += 1
                    thread.counts[ANSWERS] += 1
                    thread.counts[WRONG] += not word_is(server, peer, WORD_START)
                    peer.stage = STAGE_DOWNLOAD
                else:
                    thread.counts[WRONG] += not word_is(server, peer, WORD_STOP)
                    peer.stopping = True
        else:
            part = count
            thread.counts[WRONG] += 1  # nothing was to come any more
        thread.counts[BYTES_IN] += part
        data += part
        count -= part
    return status


cdef inline void peer_rewind(Server *server, Peer *peer, uint64_t at) noexcept nogil:
    """What was made beyond `at` is made again later."""
    peer.down.at = at
    peer.down.mask = keyed_word(&server.secret, peer.hello.connection, DOWN, at // BLOCK_BYTES)


cdef inline int peer_answer(Server *server, ServerThread *thread, Peer *peer) noexcept nogil:
    """Send answers that are owed: 1 all of them, 0 the client takes no more now, -1 it is gone."""
    cdef Stream before
    cdef size_t part
    cdef ssize_t sent
    while peer.owed > 0:
        before = peer.down
        part = SERVER_SEND_BYTES if peer.owed > SERVER_SEND_BYTES else <size_t>peer.owed
        stream_fill(&server.secret, &peer.down, thread.output, part)
        sent = send(peer.fd, thread.output, part, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            peer.down = before
            if errno != EINTR:
                return 0 if errno == EAGAIN else -1
            continue
        peer.owed -= <uint64_t>sent
        thread.counts[BYTES_OUT] += <uint64_t>sent
        if <size_t>sent < part:
            peer_rewind(server, peer, before.at + <uint64_t>sent)
    return 1


cdef inline int peer_download(Server *server, ServerThread *thread, Peer *peer) noexcept nogil:
    """Send up to two blocks, or the word that ends them: 1 where that has gone out, else as `peer_answer`."""
    cdef Stream before = peer.down
    cdef size_t inside = peer.down.at % BLOCK_BYTES
    cdef size_t length = 0
    cdef uint64_t blocks = peer.down.at // BLOCK_BYTES
    cdef ssize_t sent
    cdef bint last = inside == 0 and (peer.stopping or (peer.hello.down_bytes and blocks >= peer.hello.down_bytes))
    if last:  # by itself: so short a message goes out whole, or not at all
        length = block_make(&server.secret, &peer.down, thread.output, True)
    else:
        length = BLOCK_BYTES - inside
        stream_fill(&server.secret, &peer.down, thread.output, length)
        if not peer.stopping and (not peer.hello.down_bytes or blocks + 1 < peer.hello.down_bytes):
            length += block_make(&server.secret, &peer.down, thread.output + length, False)
    sent = send(peer.fd, thread.output, length, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        peer.down = before
        return 0 if errno == EAGAIN or errno == EINTR else -1
    thread.counts[BYTES_OUT] += <uint64_t>sent
    if <size_t>sent < length:
        peer_rewind(server, peer, before.at + <uint64_t>sent)
        return 0
    return 1 if last else 0
