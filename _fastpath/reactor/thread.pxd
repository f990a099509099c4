"""Reactors as threads: made, started with every signal blocked, and taken apart."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from base.socket cimport fd_close
from base.atomic cimport oi_show
from base.clock cimport monotonic_us
from tcp.flow cimport SCRATCH_BYTES
from shared.gate cimport Gate
from shared.inbox cimport inbox_free, inbox_init
from base.linux cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLLET, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, SIG_SETMASK, c_epoll_create1,
    c_epoll_ctl, c_eventfd, epoll_event, pthread_cond_destroy, pthread_cond_init, pthread_create, pthread_mutex_destroy,
    pthread_mutex_init, pthread_setname_np, pthread_sigmask, sigfillset, sigset_t,
)
from shared.policy cimport policy_drop
from shared.source cimport getrandom
from state.pool cimport pool_destroy
from reactor.reactor cimport reactor_loop
from shared.ring cimport ring_free, ring_init
from state.connection_slab cimport KIND_INBOX, connections_init, event_data
from state.slab cimport slab_destroy
from state.reactor cimport Hub, LISTENERS_MAX, Listener, Reactor
from udp.listener cimport datagrams_free


cdef inline void *reactor_thread(void *argument) noexcept nogil:
    reactor_loop(<Reactor *> argument)
    return NULL


cdef inline void reactor_shut(Reactor *self) noexcept nogil:
    """Close its descriptors; what it counted can still be read. The thread has been joined."""
    self.inbox.fd = fd_close(self.inbox.fd)
    self.epoll_fd = fd_close(self.epoll_fd)
    pool_destroy(self)


cdef inline void reactor_free(Reactor *self) noexcept nogil:
    reactor_shut(self)
    if self.scratch != NULL:
        munmap(self.scratch, SCRATCH_BYTES)
    slab_destroy(&self.slab)
    datagrams_free(self.udp)
    ring_free(&self.ring)
    inbox_free(&self.inbox)
    free(self)


cdef inline Reactor *reactor_new(Hub *hub, int index) noexcept nogil:
    """A reactor that has not been started; NULL, with errno, if something could not be had."""
    cdef Reactor *self = <Reactor *> calloc(1, sizeof(Reactor))
    cdef epoll_event event
    cdef void *scratch
    if self == NULL:
        return NULL
    self.hub = hub
    self.index = index
    if getrandom(&self.draw, sizeof(self.draw), 0) != sizeof(self.draw) or self.draw == 0:
        self.draw = monotonic_us() | 1
    inbox_init(&self.inbox, c_eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC))
    self.epoll_fd = c_epoll_create1(EPOLL_CLOEXEC)
    # Of its own mapping: pages that no `buffersize` reaches are never touched.
    scratch = mmap(NULL, SCRATCH_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if scratch != MAP_FAILED:
        self.scratch = <unsigned char *> scratch
    event.events = EPOLLIN | <unsigned int> EPOLLET
    event.data.u64 = event_data(KIND_INBOX, 0, 0)
    if (
        self.inbox.fd < 0 or self.epoll_fd < 0 or self.scratch == NULL
        or not connections_init(&self.slab) or not ring_init(&self.ring)
        or c_epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.inbox.fd, &event) != 0
    ):
        reactor_free(self)
        return NULL
    return self


cdef inline int reactor_start(Reactor *self) noexcept nogil:
    """Begin to run; 0 or an errno. The thread inherits a mask with every signal in it, from its first instruction."""
    cdef sigset_t every, before
    cdef int error
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, &before)
    error = pthread_create(&self.thread, NULL, reactor_thread, self)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    if error == 0:
        self.started = True
        pthread_setname_np(self.thread, b"oinetd-reactor")
    return error


cdef inline Hub *hub_new(Gate *gate, Gate *udp_gate) noexcept nogil:
    cdef Hub *self = <Hub *> calloc(1, sizeof(Hub))
    if self == NULL:
        return NULL
    self.listeners = <Listener **> calloc(LISTENERS_MAX, sizeof(Listener *))
    self.bell.fd = c_eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    if self.listeners == NULL or self.bell.fd < 0:
        free(self.listeners)
        free(self)
        return NULL
    self.gate = gate
    self.udp_gate = udp_gate
    oi_show(&self.bell.armed, 1)
    pthread_mutex_init(&self.lock, NULL)
    pthread_mutex_init(&self.moving, NULL)
    pthread_cond_init(&self.idle, NULL)
    return self


cdef inline void hub_shut(Hub *self) noexcept nogil:
    """Close every descriptor. Every reactor has been joined."""
    cdef int i
    for i in range(self.reactor_count):
        reactor_shut(self.reactors[i])
    self.bell.fd = fd_close(self.bell.fd)


cdef inline void hub_free(Hub *self) noexcept nogil:
    """Every reactor has been joined."""
    cdef int i
    cdef uint64_t k
    for i in range(self.reactor_count):
        reactor_free(self.reactors[i])
    for k in range(self.listener_count):
        if self.listeners[k].policy != NULL:
            policy_drop(self.listeners[k].policy)
        free(self.listeners[k])
    free(self.listeners)
    free(self.own.listeners)
    fd_close(self.bell.fd)
    pthread_mutex_destroy(&self.lock)
    pthread_mutex_destroy(&self.moving)
    pthread_cond_destroy(&self.idle)
    free(self)
