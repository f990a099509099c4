"""Messages for the UDP listeners of a reactor: the control plane sends them and waits until they were carried out."""

from libc.stdint cimport uint32_t, uint64_t

from base.atomic cimport oi_get
from state.command cimport post
from shared.inbox cimport (
    MESSAGE_UDP_ADD, MESSAGE_UDP_LINGER, MESSAGE_UDP_PAUSE, MESSAGE_UDP_PUT_IN, MESSAGE_UDP_QUIET, MESSAGE_UDP_REMOVE,
    MESSAGE_UDP_RENEW, MESSAGE_UDP_REPLACE, MESSAGE_UDP_RESUME, MESSAGE_UDP_REVOKE, MESSAGE_UDP_TAKE_OUT,
    MESSAGE_UDP_TRIM, Message,
)
from base.linux cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_t, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from state.reactor cimport Hub, Reactor
from udp.end cimport sessions_end_quiet, sessions_trim
from udp.listener cimport listener_at, sessions_revoke, udp_listener_add, udp_listener_remove, udp_listener_replace
from state.udp_state cimport Session, UdpListener
from udp.passport cimport Leaving, session_put_in, sessions_take_out, udp_listener_pause, udp_listener_resume

cdef struct Answer:
    long value                  # -errno is an error
    bint done
    pthread_mutex_t lock
    pthread_cond_t carried_out


cdef inline long udp_message_obey(Reactor *reactor, const Message *message) noexcept nogil:
    """What is to be done, on the reactor's own thread; the value of the answer."""
    cdef UdpListener *listener
    if message.kind == MESSAGE_UDP_ADD:
        return udp_listener_add(reactor, message.fd, message.policy, message.counted != 0)
    if message.kind == MESSAGE_UDP_TRIM:
        sessions_trim(reactor)
        return 0
    if message.kind == MESSAGE_UDP_QUIET:
        return sessions_end_quiet(reactor)
    listener = listener_at(reactor, <uint32_t> message.id)
    if message.kind == MESSAGE_UDP_REPLACE or message.kind == MESSAGE_UDP_RENEW:
        return udp_listener_replace(reactor, listener, message.policy, message.kind == MESSAGE_UDP_RENEW)
    if message.kind == MESSAGE_UDP_REVOKE:
        return sessions_revoke(reactor, listener, &message.policy.access)
    if message.kind == MESSAGE_UDP_REMOVE:
        udp_listener_remove(reactor, listener)
        return 0
    if message.kind == MESSAGE_UDP_PAUSE:
        udp_listener_pause(reactor, listener)
    elif message.kind == MESSAGE_UDP_RESUME:
        return udp_listener_resume(reactor, listener)
    elif message.kind == MESSAGE_UDP_TAKE_OUT:
        return sessions_take_out(reactor, listener, <Leaving *> message.passed)
    elif message.kind == MESSAGE_UDP_PUT_IN:
        return session_put_in(reactor, listener, <Session *> message.passed)
    elif message.kind == MESSAGE_UDP_LINGER:
        listener.lingering = True
    return <long> listener.sessions


cdef inline void udp_message_read(Reactor *reactor, const Message *message) noexcept nogil:
    cdef Answer *answer = <Answer *> message.answer
    cdef long value = udp_message_obey(reactor, message)
    pthread_mutex_lock(&answer.lock)
    answer.value = value
    answer.done = True
    pthread_cond_broadcast(&answer.carried_out)
    pthread_mutex_unlock(&answer.lock)


cdef inline long udp_message_send(Reactor *reactor, Message *message) noexcept nogil:
    """Have a reactor do something, and wait for its answer, which takes a turn of it."""
    cdef Answer answer
    answer.value = 0
    answer.done = False
    pthread_mutex_init(&answer.lock, NULL)
    pthread_cond_init(&answer.carried_out, NULL)
    message.answer = &answer
    post(reactor, message)
    pthread_mutex_lock(&answer.lock)
    while not answer.done:
        pthread_cond_wait(&answer.carried_out, &answer.lock)
    pthread_mutex_unlock(&answer.lock)
    pthread_cond_destroy(&answer.carried_out)
    pthread_mutex_destroy(&answer.lock)
    return answer.value


cdef inline Reactor *least_listening(Hub *hub) noexcept nogil:
    """The reactor for one more UDP listener: that with the fewest of them, then with the fewest sockets."""
    cdef Reactor *best = hub.reactors[0]
    cdef Reactor *other
    cdef uint64_t i
    for i in range(1, hub.most):
        other = hub.reactors[i]
        if oi_get(&other.udp_listeners) > oi_get(&best.udp_listeners):
            continue
        if oi_get(&other.udp_listeners) < oi_get(&best.udp_listeners) or (
            oi_get(&other.udp_sessions) + oi_get(&other.live) < oi_get(&best.udp_sessions) + oi_get(&best.live)
        ):
            best = other
    return best
