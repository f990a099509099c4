"""Loops: what would come back to a listener of this process is not sent.

The control plane marks the addresses of a policy that close a circle of rules, if they are addresses of this machine;
that is asked of the kernel when one is dialled, at most once in LOOK_MS, because addresses move from one machine to
another. Others are not looked at. Between two looks a TCP connect shows it, after one connection too many.

What a client of a rule to `original` wants is looked at each time: the client has chosen it.
"""

from libc.stdint cimport uint64_t

from base.socket cimport connected_locally
from base.address cimport Address
from base.atomic cimport oi_get, oi_put, oi_swap
from state.report cimport record_begin, record_push
from shared.own cimport is_forbidden, is_local
from shared.policy cimport Policy
from shared.target cimport Target
from shared.ring cimport RECORD_LOOPED, Record
from state.reactor cimport Reactor

cdef enum:
    LOOK_MS = 1000


cdef inline void loop_say(Reactor *reactor, Policy *policy, const Address *address, bint source) noexcept nogil:
    """Tell Python, once for each policy: a destination, or the source of a datagram, is ours."""
    cdef Record *record
    if oi_get(&policy.loops_said[source]) or oi_swap(&policy.loops_said[source], 1):
        return
    record = record_begin(reactor, RECORD_LOOPED, policy)
    if record == NULL:
        oi_put(&policy.loops_said[source], 0)
        return
    if source:
        record.client = address[0]
    else:
        record.upstream = address[0]
    record_push(reactor)


cdef inline int leads_back(
    Reactor *reactor, Policy *policy, Target *target, const Address *address, bint from_source
) noexcept nogil:
    """Whether connecting to this address would come back to us; `from_source` is from an address of our choice. -errno
    if that cannot be found out for want of a descriptor or memory, and is not to be guessed."""
    cdef uint64_t looked
    cdef int answer
    if policy.to_original:
        answer = is_forbidden(address)
        if answer > 0:
            loop_say(reactor, policy, address, False)
        return answer
    if not target.looping:
        return False
    looked = oi_get(&target.looked)     # when, and the answer in the lowest bit; 0 is never
    # From a source of our choice a connect does not show it.
    if from_source or looked == 0 or reactor.now_ms - (looked >> 1) >= LOOK_MS:
        looked = (reactor.now_ms << 1) | <uint64_t> is_local(address)
        oi_put(&target.looked, looked)
    if not looked & 1:
        return False
    loop_say(reactor, policy, address, False)
    return True


cdef inline bint came_back(
    Reactor *reactor, Policy *policy, Target *target, int fd, const Address *address, bint from_source
) noexcept nogil:
    """Whether a connect to this address, under way on `fd`, comes back to us: it was not ours before."""
    if not target.looping or from_source or not connected_locally(fd, address):
        return False
    oi_put(&target.looked, (reactor.now_ms << 1) | 1)
    loop_say(reactor, policy, address, False)
    return True
