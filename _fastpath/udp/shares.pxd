"""Which session makes room: one that never had an answer, of the rule that has most of them; then one of the rule that
has most sessions. `oinetd.lanes.python.udp.shares` says more, and does the same; here it is all of one reactor.
"""

from libc.stdint cimport uint64_t

from shared.gate cimport Gate
from base.linux cimport c_assert
from state.udp_state cimport BY_AGE, Datagrams, Ranking, RuleSessions, Session
from state.udp_table cimport line_append, line_cut, rule_find

cdef extern from * nogil:
    """
    static inline int oi_digits(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }
    """
    int binary_digits "oi_digits"(uint64_t value)


cdef inline void _rank_cut(Ranking *self, RuleSessions *rule, int which, int rank) noexcept nogil:
    if rule.prev[which] != NULL:
        rule.prev[which].next[which] = rule.next[which]
    else:
        c_assert(self.first[rank] == rule)
        self.first[rank] = rule.next[which]
    if rule.next[which] != NULL:
        rule.next[which].prev[which] = rule.prev[which]
    else:
        self.last[rank] = rule.prev[which]
    if self.first[rank] == NULL:
        self.filled &= ~(<uint64_t> 1 << rank)


cdef inline void _rank_append(Ranking *self, RuleSessions *rule, int which, int rank) noexcept nogil:
    rule.next[which] = NULL
    rule.prev[which] = self.last[rank]
    if self.last[rank] != NULL:
        self.last[rank].next[which] = rule
    else:
        self.first[rank] = rule
    self.last[rank] = rule
    self.filled |= <uint64_t> 1 << rank


cdef inline void _count(Datagrams *self, RuleSessions *rule, int which, int more) noexcept nogil:
    """One session more or less that is answered or not; counts stay far below 2 to the 63rd."""
    cdef int before = binary_digits(rule.counts[which])
    cdef int rank
    rule.counts[which] += <uint64_t> more
    rank = binary_digits(rule.counts[which])
    if rank == before:
        return
    if before:
        _rank_cut(&self.rankings[which], rule, which, before)
    if rank:
        _rank_append(&self.rankings[which], rule, which, rank)


cdef inline void share_enter(Datagrams *self, Session *session) noexcept nogil:
    """A session begins."""
    cdef RuleSessions *rule = session.queue.rule
    line_append(&rule.lines[session.answered], BY_AGE, session)
    _count(self, rule, session.answered, 1)


cdef inline void share_leave(Datagrams *self, Session *session) noexcept nogil:
    """It ends; its queue is still there."""
    cdef RuleSessions *rule = session.queue.rule
    line_cut(&rule.lines[session.answered], BY_AGE, session)
    _count(self, rule, session.answered, -1)


cdef inline void share_answered(Datagrams *self, Session *session) noexcept nogil:
    """The first answer came for it."""
    share_leave(self, session)
    session.answered = 1
    share_enter(self, session)


cdef inline Session *share_victim(Datagrams *self, const Gate *newcomer) noexcept nogil:
    """The session that makes room for one of the rule of this gate, or of any rule if it is NULL; NULL if none does."""
    cdef RuleSessions *own = NULL if newcomer == NULL else rule_find(self, newcomer)
    cdef RuleSessions *rule
    cdef int which, rank
    for which in range(2):
        if self.rankings[which].filled == 0:
            continue
        rank = binary_digits(self.rankings[which].filled) - 1
        rule = own
        if own == NULL or binary_digits(own.counts[which]) != rank:
            rule = self.rankings[which].first[rank]
            _rank_cut(&self.rankings[which], rule, which, rank)     # rules of one rank take turns
            _rank_append(&self.rankings[which], rule, which, rank)
        return rule.lines[which].first
    return NULL


cdef inline Session *share_victim_of(Datagrams *self, const Gate *gate) noexcept nogil:
    """The session of a rule that makes room; NULL if this reactor has none of the rule."""
    cdef RuleSessions *rule = rule_find(self, gate)
    if rule == NULL:
        return NULL
    return rule.lines[0].first if rule.lines[0].first != NULL else rule.lines[1].first
