"""Orders for the UDP listeners of a reactor: written by the control plane, which waits until they were carried out."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from base.atomic cimport oi_get
from state.command cimport post
from shared.inbox cimport LETTER_UDP, Letter
from base.linux cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_t, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from shared.policy cimport Policy
from state.reactor cimport Hub, Reactor
from udp.end cimport sessions_end_quiet, sessions_trim
from udp.listener cimport listener_at, sessions_revoke, udp_listener_add, udp_listener_remove, udp_listener_replace
from state.udp_state cimport UdpListener

cdef enum:
    ORDER_ADD = 1               # serve `fd` by `policy`
    ORDER_REPLACE = 2           # `policy` is in force for new sessions, and nothing else changes
    ORDER_RENEW = 3             # the same after a reload: it lingers no more, and the refused are told of again
    ORDER_LINGER = 4            # let nobody new in
    ORDER_COUNT = 5
    ORDER_REMOVE = 6            # abort its sessions and let go of its socket
    ORDER_TRIM = 7              # end the sessions above the bound
    ORDER_QUIET = 9             # end the sessions in which nothing is under way
    ORDER_REVOKE = 8            # end the sessions of clients whom `policy` refuses

cdef struct Order:
    int verb
    int fd
    uint32_t index              # of the listener
    Policy *policy
    long answer                 # of add: the index; of linger, count and revoke: the sessions; -errno is an error
    bint done
    pthread_mutex_t lock
    pthread_cond_t carried_out


cdef inline long order_obey(Reactor *reactor, const Order *order) noexcept nogil:
    """What is to be done, on the reactor's own thread."""
    cdef UdpListener *listener
    if order.verb == ORDER_ADD:
        return udp_listener_add(reactor, order.fd, order.policy)
    if order.verb == ORDER_TRIM:
        sessions_trim(reactor)
        return 0
    if order.verb == ORDER_QUIET:
        return sessions_end_quiet(reactor)
    listener = listener_at(reactor, order.index)
    if order.verb == ORDER_REPLACE or order.verb == ORDER_RENEW:
        return udp_listener_replace(reactor, listener, order.policy, order.verb == ORDER_RENEW)
    if order.verb == ORDER_REVOKE:
        return sessions_revoke(reactor, listener, &order.policy.access)
    if order.verb == ORDER_REMOVE:
        udp_listener_remove(reactor, listener)
        return 0
    if order.verb == ORDER_LINGER:
        listener.lingering = True
    return <long> listener.sessions


cdef inline void order_read(Reactor *reactor, Order *order) noexcept nogil:
    cdef long answer = order_obey(reactor, order)
    pthread_mutex_lock(&order.lock)
    order.answer = answer
    order.done = True
    pthread_cond_broadcast(&order.carried_out)
    pthread_mutex_unlock(&order.lock)


cdef inline long order_give(Reactor *reactor, int verb, uint32_t index, int fd, Policy *policy) noexcept nogil:
    """Have a reactor do something, and wait for its answer, which takes a turn of it."""
    cdef Order order
    cdef Letter letter
    memset(&order, 0, sizeof(order))
    order.verb = verb
    order.index = index
    order.fd = fd
    order.policy = policy
    pthread_mutex_init(&order.lock, NULL)
    pthread_cond_init(&order.carried_out, NULL)
    memset(&letter, 0, sizeof(letter))
    letter.kind = LETTER_UDP
    letter.answer = &order
    post(reactor, &letter)
    pthread_mutex_lock(&order.lock)
    while not order.done:
        pthread_cond_wait(&order.carried_out, &order.lock)
    pthread_mutex_unlock(&order.lock)
    pthread_cond_destroy(&order.carried_out)
    pthread_mutex_destroy(&order.lock)
    return order.answer


cdef inline Reactor *least_listening(Hub *hub) noexcept nogil:
    """The reactor for one more UDP listener: that with the fewest of them, then with the fewest sockets."""
    cdef Reactor *best = hub.reactors[0]
    cdef Reactor *other
    cdef uint64_t i
    for i in range(1, hub.serving):
        other = hub.reactors[i]
        if oi_get(&other.udp_listeners) > oi_get(&best.udp_listeners):
            continue
        if oi_get(&other.udp_listeners) < oi_get(&best.udp_listeners) or (
            oi_get(&other.udp_sessions) + oi_get(&other.live) < oi_get(&best.udp_sessions) + oi_get(&best.live)
        ):
            best = other
    return best
