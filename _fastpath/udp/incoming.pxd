"""Datagrams of a batch on their way to the sessions of their clients.

A client is the sender, or, where senders begin each datagram with a PROXY header (`accept-proxy`), the one in it. Each
datagram is read by itself, also those of a train; payloads of neighbours with one header go on together.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from base.address cimport Address, address_read
from base.atomic cimport oi_add
from preamble.fault cimport FOUND_WHOLE
from preamble.proxy cimport ProxyHeader, proxy_read_datagram
from shared.ending cimport ENDING_BAD_PROXY_HEADER
from shared.group cimport group_has_usable
from shared.policy cimport policy_member
from shared.server cimport server_has_gone
from state.datagram cimport Datagram, Group
from state.reactor cimport Reactor
from state.report cimport ring_has_reserve
from state.return_address cimport mix
from state.udp_client cimport heading_hash, heading_read, heading_same
from state.udp_state cimport Heading, Session, UdpListener
from state.udp_table cimport session_find
from tcp.admit cimport peer_judge
from udp.header cimport heading_note
from udp.session cimport forward, session_begin, session_change, session_move, turn_away


cdef inline uint64_t group_hash(const UdpListener *listener, const Group *group) noexcept nogil:
    """Of the sender of a group, with that of the listener."""
    return mix(group.hash ^ listener.salt, listener.salt | 1)


cdef inline bint session_needs_server(const UdpListener *listener, const Session *session) noexcept nogil:
    """Whether the server of a session must not be used any more, and there is another one."""
    if not server_has_gone(policy_member(session.policy, session.member).server):
        return False
    return listener.policy.group == NULL or group_has_usable(listener.policy.group)


cdef inline void serve(
    Reactor *reactor, UdpListener *listener, const Group *group, uint64_t hash, const Heading *heading, int first,
    int count,
) noexcept nogil:
    """Give datagrams of one client, in the batch, to its session. `heading` is NULL if they have no PROXY header."""
    cdef Session *session = session_find(reactor.udp, listener, &group.sender, hash, heading)
    if session == NULL:
        session = session_begin(reactor, listener, group, hash, heading, NULL)
    elif session.member and session_needs_server(listener, session):
        session = session_change(reactor, listener, session, group, hash, heading, False)
    elif session.asked_ms and reactor.now_ms >= session.asked_ms + session.policy.silence_ms:
        session = session_move(reactor, listener, session, group, hash, heading)
    if session == NULL:
        oi_add(&listener.policy.gate.lost, <uint64_t> count)
        return
    if heading != NULL:
        heading_note(session, heading)
    forward(reactor, session, first, count)


# With PROXY headers

cdef inline void peer_refuse(
    Reactor *reactor, UdpListener *listener, const Address *peer, int ending, uint64_t fault, int lost
) noexcept nogil:
    """Datagrams of a peer are lost before it is known whose they are."""
    oi_add(&listener.policy.gate.lost, <uint64_t> lost)
    if not listener.lingering and ring_has_reserve(reactor):
        turn_away(reactor, listener, peer, NULL, ending, 0, fault)


cdef inline void run_serve(
    Reactor *reactor, UdpListener *listener, const Group *group, const Heading *heading, int first, int count
) noexcept nogil:
    """Serve payloads that have one header."""
    cdef uint64_t hash
    if count:
        hash = heading_hash(heading, group_hash(listener, group), reactor.udp.batch.seed)
        serve(reactor, listener, group, hash, heading, first, count)


cdef inline void runs_serve(
    Reactor *reactor, UdpListener *listener, const Group *group, const Address *peer
) noexcept nogil:
    """Take the headers off, and serve what is behind the valid ones; the other datagrams are lost."""
    cdef ProxyHeader header
    cdef Heading heading
    cdef Datagram *here
    cdef Datagram *there
    cdef uint64_t fault = 0
    cdef int first = group.first, count = 0, lost = 0, at
    heading.size = 0
    for at in range(group.first, group.first + group.count):
        here = &reactor.udp.batch.datagrams[at]
        if heading.size == 0 or not heading_same(&heading, <uint8_t *> here.data, here.size):
            if proxy_read_datagram(&header, <uint8_t *> here.data, here.size) != FOUND_WHOLE:
                if lost == 0:
                    fault = <uint64_t> header.fault << 32 | header.at
                lost += 1
                continue
            run_serve(reactor, listener, group, &heading, first, count)
            first += count
            count = 0
            heading_read(&heading, &header, peer, <uint8_t *> here.data)
        there = &reactor.udp.batch.datagrams[first + count]     # payloads with one header are neighbours
        there.data = here.data + heading.size
        there.size = here.size - heading.size
        count += 1
    run_serve(reactor, listener, group, &heading, first, count)
    if lost:
        peer_refuse(reactor, listener, peer, ENDING_BAD_PROXY_HEADER, fault, lost)


cdef inline bint headed_take(Reactor *reactor, UdpListener *listener, const Group *group) noexcept nogil:
    """Serve a sender that has to write headers, or that may not write at all; False if it is a plain client."""
    cdef Address peer
    cdef bint headed
    cdef int refusal
    address_read(&peer, &group.sender.place)
    refusal = peer_judge(listener.policy, &peer, &headed)
    if headed:
        runs_serve(reactor, listener, group, &peer)
        return True
    if refusal == 0:
        return False
    if session_find(reactor.udp, listener, &group.sender, group_hash(listener, group), NULL) != NULL:
        return False        # it was a plain client before a reload
    peer_refuse(reactor, listener, &peer, refusal, 0, group.count)
    return True
