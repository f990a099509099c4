"""Clients whose questions stay without an answer: when they are led to another address, and what that tells of both.

A client goes from address to address as long as none answers. Back at the first one it stays ROUND_TIMES as long as
before, and its next round is as quick as the first: traffic in one direction, which is never answered, mostly stays
where it was. `oinetd.upstream.silence` does the same for the Python lane.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp, memset

from base.atomic cimport oi_get
from base.linux cimport ETIMEDOUT
from shared.group cimport Group, group_members
from shared.policy cimport Policy, policy_server_tag
from state.reactor cimport Reactor
from shared.target cimport ADDRESSES_MAX, Targets, targets_same_places, targets_find, targets_pick
from tcp.target_report cimport note_failed, note_server_failed
from state.udp_state cimport Session, Trail

cdef enum:
    ANSWERED_TIMES = 5          # as in `oinetd.upstream.silence`
    ROUND_DIGITS = 4            # binary, of ROUND_TIMES, 16
    ROUNDS_MAX = 2
    NOT_AGAIN = 3               # rounds of a client that has nowhere to go, and the name was looked up for each


cdef inline bint same_places(const Policy *one, const Policy *other) noexcept nogil:
    """Whether sessions of both policies write to the same addresses, and from the same ones."""
    if one == other:
        return True
    return (
        targets_same_places(one.targets, other.targets)
        and memcmp(one.sources, other.sources, sizeof(one.sources)) == 0
    )


cdef inline bint waits_too_long(const Session *session, bint same, uint64_t now_ms) noexcept nogil:
    """Whether the question of its client has waited for as long as an address gets. If an answer came before, that
    is no less than the rule's timeout: it says how much silence is normal."""
    cdef uint64_t patience_ms = session.policy.silence_ms
    if session.answered:
        if session.policy.idle_ms == 0:
            return False
        patience_ms = max(ANSWERED_TIMES * patience_ms, <uint64_t> session.policy.idle_ms)
    elif session.trail.left == 0 and same:
        if session.trail.rounds == NOT_AGAIN:
            return False
        patience_ms <<= ROUND_DIGITS * session.trail.rounds
    return now_ms >= session.asked_ms + patience_ms


cdef inline void trail_make(Trail *trail, const Session *session, const Policy *policy, bint same) noexcept nogil:
    """The trail of a client that leaves the address of its session, for one of `policy`."""
    cdef const Targets *before = session.policy.targets
    cdef uint16_t left = <uint16_t> (session.trail.left | 1 << session.address)
    cdef int i, at
    trail[0] = session.trail
    if session.trail.left == 0:
        trail.home = session.address
        trail.since_ms = session.asked_ms
    trail.left = left
    if not same:
        trail.rounds = 0
    if policy.targets == before:
        return
    trail.left = 0
    at = targets_find(policy.targets, &before.items[trail.home].place) if trail.home < before.count else -1
    trail.home = <uint8_t> at if at >= 0 else <uint8_t> ADDRESSES_MAX
    for i in range(before.count):
        if left >> i & 1:
            at = targets_find(policy.targets, &before.items[i].place)
            if at >= 0:
                trail.left |= <uint16_t> (1 << at)


cdef inline int trail_return(
    Trail *trail, Targets *targets, uint64_t turn, uint64_t now_ms, uint64_t *tried
) noexcept nogil:
    """Every other address was tried: the first one again, or -1 if the client comes from nowhere."""
    cdef int at = trail.home
    if trail.left == 0:
        return -1
    tried[0] = ~<uint64_t> trail.left
    if not trail.left >> trail.home & 1:
        at = targets_pick(targets, tried[0], turn, now_ms)
    trail.left = 0
    trail.rounds = <uint8_t> min(trail.rounds + 1, ROUNDS_MAX)
    return at


cdef inline void trail_of_servers(Trail *trail, const Session *session) noexcept nogil:
    """The trail of a client that leaves the server of its session, which is silent. A round is over when there are as
    many moves as servers."""
    trail[0] = session.trail
    trail.server = policy_server_tag(session.policy, session.member)
    trail.since_ms = session.asked_ms
    trail.left += 1
    if session.policy.group == NULL or trail.left >= session.policy.group.count:
        trail.left = 0
        trail.rounds = <uint8_t> min(trail.rounds + 1, ROUNDS_MAX)


cdef inline void server_trail_answered(Reactor *reactor, Session *session) noexcept nogil:
    """The server that the client left last fails, unless it has answered another client meanwhile."""
    cdef const Group *group = session.policy.group
    cdef Targets *targets
    cdef int at, i
    for at in range(group.count):
        if group_members(group)[at].server.tag != session.trail.server or at + 1 == session.member:
            continue
        targets = group_members(group)[at].targets
        for i in range(targets.count):
            if oi_get(&targets.items[i].answered_ms) > session.trail.since_ms:
                return
        note_server_failed(reactor, session.policy, <uint16_t> (at + 1), ETIMEDOUT, 0)
        return


cdef inline void trail_answered(Reactor *reactor, Session *session) noexcept nogil:
    """Its first answer: the addresses that it left fail, but for those that have answered another client meanwhile."""
    cdef Targets *targets = session.policy.targets
    cdef int i
    if session.member:
        server_trail_answered(reactor, session)
        memset(&session.trail, 0, sizeof(Trail))
        return
    for i in range(targets.count):
        if session.trail.left >> i & 1 and oi_get(&targets.items[i].answered_ms) <= session.trail.since_ms:
            note_failed(reactor, session.policy, 0, i, ETIMEDOUT)
    memset(&session.trail, 0, sizeof(Trail))
