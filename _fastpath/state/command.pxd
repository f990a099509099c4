"""What the control plane's thread does to the data plane. It may wait for reactors; they never wait for it."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memset

from base.atomic cimport oi_get, oi_put, oi_see, oi_show, oi_swap, oi_take
from shared.inbox cimport MESSAGE_RETRY, Message, inbox_post
from base.linux cimport (
    EMFILE, EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL,
    c_epoll_ctl, epoll_event, errno, pthread_cond_wait, pthread_mutex_lock, pthread_mutex_unlock, usleep,
)
from shared.policy cimport Policy, policy_drop, policy_hold
from state.connection_slab cimport KIND_LISTENER, event_data
from state.reactor cimport Hub, LISTENERS_MAX, Listener, Reactor, Snapshot

cdef enum:
    POST_PAUSE_US = 50          # between two tries to put a message into a full inbox


cdef inline void post(Reactor *reactor, const Message *message) noexcept nogil:
    """Post, waiting for room: a reactor empties its inbox each time around, so that this is a matter of a moment."""
    while not inbox_post(&reactor.inbox, message):
        usleep(POST_PAUSE_US)


cdef inline void post_to_all(Hub *hub, const Message *message) noexcept nogil:
    cdef int i
    pthread_mutex_lock(&hub.moving)
    for i in range(hub.reactor_count):
        post(hub.reactors[i], message)
    pthread_mutex_unlock(&hub.moving)


cdef inline void post_all(Hub *hub, int kind, uint64_t id) noexcept nogil:
    cdef Message message
    memset(&message, 0, sizeof(message))
    message.kind = kind
    message.id = id
    post_to_all(hub, &message)


cdef inline int listener_register(Reactor *reactor, const Listener *listener) noexcept nogil:
    """Have a reactor accept from a listener; 0 or an errno."""
    cdef epoll_event event
    event.events = EPOLLIN | <unsigned int> EPOLLET | <unsigned int> EPOLLEXCLUSIVE
    event.data.u64 = event_data(KIND_LISTENER, listener.index, listener.generation)
    return errno if c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_ADD, listener.fd, &event) != 0 else 0


cdef inline int listener_watch(Hub *hub, Listener *listener) noexcept nogil:
    """Register with every reactor that serves; 0 or an errno, and then with none."""
    cdef int error
    cdef uint64_t i
    for i in range(hub.serving):
        error = listener_register(hub.reactors[i], listener)
        if error:
            while i > 0:
                i -= 1
                c_epoll_ctl(hub.reactors[i].epoll_fd, EPOLL_CTL_DEL, listener.fd, NULL)
            return error
    return 0


cdef inline int reactor_joins(Hub *hub) noexcept nogil:
    """The next reactor accepts from every listener; 0 or an errno, and then it does from none."""
    cdef Reactor *reactor = hub.reactors[hub.serving]
    cdef Listener *listener
    cdef uint64_t i
    cdef int error
    for i in range(oi_get(&hub.listener_count)):
        listener = hub.listeners[i]
        if listener.fd < 0:
            continue
        error = listener_register(reactor, listener)
        if error:
            reactor_ignores(hub, reactor)
            return error
    oi_show(&hub.serving, hub.serving + 1)
    return 0


cdef inline void reactor_ignores(Hub *hub, Reactor *reactor) noexcept nogil:
    """It accepts from no listener; its connections and UDP listeners stay."""
    cdef uint64_t i
    for i in range(oi_get(&hub.listener_count)):
        if hub.listeners[i].fd >= 0:
            c_epoll_ctl(reactor.epoll_fd, EPOLL_CTL_DEL, hub.listeners[i].fd, NULL)


cdef inline void reactor_leaves(Hub *hub) noexcept nogil:
    """The last reactor that serves gets no new connections; clients that wait in a queue are for the others."""
    oi_show(&hub.serving, hub.serving - 1)
    reactor_ignores(hub, hub.reactors[hub.serving])
    post_all(hub, MESSAGE_RETRY, 0)


cdef inline int listener_add(Hub *hub, int fd, Policy *policy) noexcept nogil:
    """Serve a listening socket; its number, or -errno. What is in its queue already is accepted too."""
    cdef Listener *listener
    cdef int i, error
    pthread_mutex_lock(&hub.lock)
    listener = hub.free_listeners
    if listener != NULL:
        hub.free_listeners = listener.next_free
    elif oi_get(&hub.listener_count) < LISTENERS_MAX:
        listener = <Listener *> calloc(1, sizeof(Listener))
        if listener != NULL:
            listener.index = <unsigned int> oi_get(&hub.listener_count)
            hub.listeners[listener.index] = listener
            oi_show(&hub.listener_count, listener.index + 1)
    if listener == NULL:
        pthread_mutex_unlock(&hub.lock)
        return -EMFILE
    listener.fd = fd
    listener.generation += 1
    listener.dead = False
    listener.policy = policy
    policy_hold(policy)
    for i in range(hub.reactor_count):
        oi_put(&listener.ready[i], 0)
    pthread_mutex_unlock(&hub.lock)
    error = listener_watch(hub, listener)
    if error:
        listener_remove(hub, listener.index)
        return -error
    return <int> listener.index


cdef inline void listener_replace(Hub *hub, int index, Policy *policy) noexcept nogil:
    """Put another policy in force for the connections to come. Socket and queue stay."""
    cdef Listener *listener = hub.listeners[index]
    cdef Policy *before
    policy_hold(policy)
    pthread_mutex_lock(&hub.lock)
    before = listener.policy
    listener.policy = policy
    pthread_mutex_unlock(&hub.lock)
    policy_drop(before)
    # A higher bound may admit a client.
    post_all(hub, MESSAGE_RETRY, 0)


cdef inline void listener_remove(Hub *hub, int index) noexcept nogil:
    """Accept no more from it. On return no reactor touches the socket; what is left in its queue is still there."""
    cdef Listener *listener = hub.listeners[index]
    cdef int i
    for i in range(hub.reactor_count):
        c_epoll_ctl(hub.reactors[i].epoll_fd, EPOLL_CTL_DEL, listener.fd, NULL)
    pthread_mutex_lock(&hub.lock)
    listener.dead = True
    while listener.users:   # bounded: a reactor accepts sixteen and lets go
        pthread_cond_wait(&hub.idle, &hub.lock)
    policy_drop(listener.policy)
    listener.policy = NULL
    listener.fd = -1
    listener.next_free = hub.free_listeners
    hub.free_listeners = listener
    pthread_mutex_unlock(&hub.lock)


cdef inline void snapshot_take(Hub *hub, Snapshot *snapshot, int kind) noexcept nogil:
    """Have every reactor write its live connections down, or put them to the judges of their gates."""
    cdef Message message
    cdef int i
    memset(&message, 0, sizeof(message))
    message.kind = kind
    message.answer = snapshot
    snapshot.count = 0
    snapshot.missing = hub.reactor_count
    pthread_mutex_lock(&hub.moving)
    for i in range(hub.reactor_count):
        post(hub.reactors[i], &message)
    pthread_mutex_unlock(&hub.moving)
    pthread_mutex_lock(&snapshot.lock)
    while snapshot.missing:
        pthread_cond_wait(&snapshot.done, &snapshot.lock)
    pthread_mutex_unlock(&snapshot.lock)


cdef inline void tell_of_room(Hub *hub) noexcept nogil:
    """Records were taken out of the rings: reactors that waited for that go on."""
    if oi_see(&hub.ring_full) and oi_swap(&hub.ring_full, 0):
        post_all(hub, MESSAGE_RETRY, 0)


cdef inline bint all_exited(Hub *hub) noexcept nogil:
    cdef int i
    for i in range(hub.reactor_count):
        if hub.reactors[i].started and oi_take(&hub.reactors[i].exited) == 0:
            return False
    return True
