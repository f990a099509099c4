"""A group of servers: which one the next session gets. `oinetd.upstream.balance` does the same for the Python lane.

A group is never changed once made. The control plane makes another one when servers come or go, or have other
addresses, and puts it in force with new policies; the servers themselves, with their counts, stay.
"""

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy

from base.address cimport MAPPED_PREFIX, SocketAddress
from base.atomic cimport oi_add, oi_get, oi_put, oi_raise_by, oi_replace, oi_see, oi_show
from shared.server cimport (
    SERVER_DOWN, SERVER_EJECTED, SERVER_UP, STRIDE, Server, server_drop, server_enter, server_has_room, server_is_full,
    server_is_silent, server_is_usable, server_weight,
)
from shared.target cimport Targets, targets_drop

cdef extern from *:
    """
    #ifndef OI_ROTL
    #define OI_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
    #endif
    #define OI_SIPROUND_24 do { \\
        v0 += v1; v1 = OI_ROTL(v1, 13) ^ v0; v0 = OI_ROTL(v0, 32); v2 += v3; v3 = OI_ROTL(v3, 16) ^ v2; \\
        v0 += v3; v3 = OI_ROTL(v3, 21) ^ v0; v2 += v1; v1 = OI_ROTL(v1, 17) ^ v2; v2 = OI_ROTL(v2, 32); \\
    } while (0)
    /* SipHash-2-4 of 16 bytes, with the key `oinetd-maglev-01`. */
    static inline uint64_t oi_maglev_hash(const uint8_t *data) {
        uint64_t k0, k1, word[3] = {0, 0, (uint64_t) 16 << 56};
        memcpy(&k0, "oinetd-m", 8);
        memcpy(&k1, "aglev-01", 8);
        memcpy(word, data, 16);
        #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        k0 = __builtin_bswap64(k0); k1 = __builtin_bswap64(k1);
        word[0] = __builtin_bswap64(word[0]); word[1] = __builtin_bswap64(word[1]);
        #endif
        uint64_t v0 = k0 ^ 0x736f6d6570736575ULL, v1 = k1 ^ 0x646f72616e646f6dULL;
        uint64_t v2 = k0 ^ 0x6c7967656e657261ULL, v3 = k1 ^ 0x7465646279746573ULL;
        for (int i = 0; i < 3; i++) {
            v3 ^= word[i]; OI_SIPROUND_24; OI_SIPROUND_24; v0 ^= word[i];
        }
        v2 ^= 0xff; OI_SIPROUND_24; OI_SIPROUND_24; OI_SIPROUND_24; OI_SIPROUND_24;
        return v0 ^ v1 ^ v2 ^ v3;
    }
    """
    uint64_t maglev_hash "oi_maglev_hash"(const uint8_t *data) nogil

cdef enum:
    BALANCE_LEASTCONN = 0       # in the order of `oinetd.servers.Balance`
    BALANCE_ROUNDROBIN = 1
    BALANCE_RANDOM = 2
    BALANCE_SOURCE = 3
    BALANCE_FIRST = 4

    SERVERS_MAX = 1024
    TABLE_SIZE = 65537          # Maglev's
    TRIES_MAX = 5               # servers that are tried for one client
    RETRY_PERCENT = 20          # of the live sessions of a group may be at a retry ...
    RETRIES_MIN = 64            # ... and always this many, or a group with few sessions would never retry

    PICKED_NONE = -1            # every usable server was tried
    PICKED_FULL = -2            # those that were not tried have no room
    PICKED_REFUSED = -3         # none is usable, and `all-down` is `refuse`

cdef struct Member:
    Server *server
    Targets *targets            # its addresses at present
    bint backup
    bint has_source             # its own `src`, which stands before the rule's
    SocketAddress sources[2]    # as in `Policy`
    uint32_t connect_ms         # its own connect-timeout; 0 is none
    uint8_t proxy_version       # of the header that it gets first; 0 is none

cdef struct Table:              # Maglev's; all policies with the same servers share one
    uint64_t references         # atomic
    int highest                 # of its entries
    int16_t entries[TABLE_SIZE]     # numbers of members; -1 in all of them if there is none

cdef struct Group:              # its members follow it
    uint64_t references         # atomic
    uint64_t cursor             # atomic: behind the member that was chosen last, where ties begin
    uint64_t retrying           # atomic: sessions that try their second server, or a later one
    uint64_t waiters            # atomic: clients that were accepted and wait for room in a server
    uint64_t full_ms            # atomic: when it was last told that every usable server is full; 0 is never
    int balance
    bint refuse                 # if no server is usable; else those that are down are tried
    bint all_backups            # balance the backups as well; else the first usable one is taken
    bint bounded                # a server has a bound of sessions
    uint32_t slow_ms            # a slow start takes this long; 0 is none
    uint32_t failures_told      # connects to a server that failed in a row before the control plane is told
    bint ejects                 # a server is ejected then, and passed over while that many connects are overdue
    Table *tables[2]            # of the primaries and of the backups; NULL if `balance` is not by source
    int count

cdef struct Search:             # what a session asks a group for
    const uint8_t *ip           # of the client, in mapped form
    const uint16_t *tried       # members that are not to be tried again
    int tried_count
    uint64_t now_ms
    uint64_t draw               # 64 random bits
    bint answering              # servers that say nothing at present are not wanted at all
    bint pass_over              # such servers are passed over in this step of the search
    bint passed_over            # one was, in the tier of the answer


cdef inline Member *group_members(const Group *self) noexcept nogil:
    return <Member *> (self + 1)


cdef inline void table_hold(Table *self) noexcept nogil:
    oi_add(&self.references, 1)


cdef inline void table_drop(Table *self) noexcept nogil:
    if oi_raise_by(&self.references, <uint64_t> -1) == 1:
        free(self)


cdef inline void group_drop(Group *self) noexcept nogil:
    cdef int i
    if oi_raise_by(&self.references, <uint64_t> -1) != 1:
        return
    for i in range(self.count):
        if group_members(self)[i].targets != NULL:
            targets_drop(group_members(self)[i].targets)
        if group_members(self)[i].server != NULL:
            server_drop(group_members(self)[i].server)
    for i in range(2):
        if self.tables[i] != NULL:
            table_drop(self.tables[i])
    free(self)


cdef inline bint was_tried(Search *search, int at) noexcept nogil:
    cdef int i
    for i in range(search.tried_count):
        if search.tried[i] == at:
            return True
    return False


cdef inline bint member_is_usable(const Member *self) noexcept nogil:
    return server_is_usable(self.server) and self.targets.count != 0


cdef inline bint member_is_open(
    const Group *self, int at, bint backup, Search *search, uint64_t *live
) noexcept nogil:
    """Whether a member of a tier can be chosen; `live` are its sessions."""
    cdef const Member *member = &group_members(self)[at]
    if member.backup != backup or not member_is_usable(member) or was_tried(search, at):
        return False
    live[0] = oi_get(&member.server.live)
    if not server_has_room(member.server, live[0]):
        return False
    if search.pass_over and self.ejects and server_is_silent(member.server, self.failures_told):
        search.passed_over = True
        return False
    return True


# One picker for each balance. Each answers with the number of a member, or -1, and with its sessions in `seen`.

cdef inline int pick_least_loaded(const Group *self, bint backup, Search *search, uint64_t *seen) noexcept nogil:
    """The lowest (live + 1) / weight, of equal ones the first from the cursor on."""
    cdef int best = -1
    cdef int at = <int> oi_get(&self.cursor)
    cdef uint64_t best_load = 0, best_weight = 1, live, weight
    cdef int _step
    for _step in range(self.count):
        if at >= self.count:
            at = 0
        if member_is_open(self, at, backup, search, &live):
            weight = server_weight(group_members(self)[at].server, self.slow_ms, search.now_ms)
            if best < 0 or (live + 1) * best_weight < best_load * weight:
                best = at
                best_load = live + 1
                best_weight = weight
        at += 1
    seen[0] = best_load - 1
    return best


cdef inline int pick_least_passed(const Group *self, bint backup, Search *search, uint64_t *seen) noexcept nogil:
    """`roundrobin`: the one that has come least far, the first of equal ones. Distances may wrap around."""
    cdef int best = -1
    cdef uint64_t best_passed = 0, passed, live
    cdef int at
    for at in range(self.count):
        if member_is_open(self, at, backup, search, &live):
            passed = oi_get(&group_members(self)[at].server.passed)
            if best < 0 or <int64_t> (passed - best_passed) < 0:
                best = at
                best_passed = passed
                seen[0] = live
    return best


cdef inline int pick_of_two(const Group *self, bint backup, Search *search, uint64_t *seen) noexcept nogil:
    """`random`: two different ones by the bits of the draw, the less loaded of them; ties as in `leastconn`."""
    cdef uint16_t places[SERVERS_MAX]
    cdef uint64_t lives[2]
    cdef uint64_t weights[2]
    cdef uint64_t live
    cdef int count = 0, at, one, other, i
    cdef int start = <int> oi_get(&self.cursor)
    cdef int pair[2]
    for at in range(self.count):
        if member_is_open(self, at, backup, search, &live):
            places[count] = <uint16_t> at
            count += 1
    if count <= 2:
        return pick_least_loaded(self, backup, search, seen)
    one = <int> (<uint64_t> <uint32_t> search.draw * <uint64_t> count >> 32)
    other = <int> ((search.draw >> 32) * <uint64_t> (count - 1) >> 32)
    if other >= one:
        other += 1
    pair[0] = places[one]
    pair[1] = places[other]
    if (pair[1] + self.count - start) % self.count < (pair[0] + self.count - start) % self.count:
        at = pair[0]
        pair[0] = pair[1]
        pair[1] = at
    for i in range(2):
        lives[i] = oi_get(&group_members(self)[pair[i]].server.live)
        weights[i] = server_weight(group_members(self)[pair[i]].server, self.slow_ms, search.now_ms)
    i = (lives[1] + 1) * weights[0] < (lives[0] + 1) * weights[1]
    seen[0] = lives[i]
    return pair[i]


cdef inline uint32_t maglev_entry(const uint8_t *ip) noexcept nogil:
    """The entry of the table for a client: all of an IPv4 address counts, of an IPv6 address the first 64 bits."""
    cdef uint8_t key[16]
    memcpy(key, ip, 16)
    if memcmp(ip, MAPPED_PREFIX, 12) != 0:
        memcpy(&key[8], b"\0\0\0\0\0\0\0\0", 8)
    return <uint32_t> (maglev_hash(key) % TABLE_SIZE)


cdef inline int pick_by_source(const Group *self, bint backup, Search *search, uint64_t *seen) noexcept nogil:
    """The server of the client's entry, or of the next entry whose server can be chosen."""
    cdef const Table *table = self.tables[backup]
    cdef uint32_t entry
    cdef int _step
    if table == NULL or table.highest < 0:
        return -1
    entry = maglev_entry(search.ip)
    for _step in range(TABLE_SIZE):
        if member_is_open(self, table.entries[entry], backup, search, seen):
            return table.entries[entry]
        entry += 1
        if entry == TABLE_SIZE:
            entry = 0
    return -1


cdef inline int pick_first(const Group *self, bint backup, Search *search, uint64_t *seen) noexcept nogil:
    cdef int at
    for at in range(self.count):
        if member_is_open(self, at, backup, search, seen):
            return at
    return -1


cdef inline int pick_by_balance(const Group *self, bint backup, Search *search, uint64_t *seen) noexcept nogil:
    if self.balance == BALANCE_FIRST or (backup and not self.all_backups):
        return pick_first(self, backup, search, seen)
    if self.balance == BALANCE_LEASTCONN:
        return pick_least_loaded(self, backup, search, seen)
    if self.balance == BALANCE_ROUNDROBIN:
        return pick_least_passed(self, backup, search, seen)
    if self.balance == BALANCE_RANDOM:
        return pick_of_two(self, backup, search, seen)
    return pick_by_source(self, backup, search, seen)


cdef inline int pick_in_tier(const Group *self, bint backup, Search *search, uint64_t *seen) noexcept nogil:
    """The choice among the primaries or among the backups; -1 if none of them is open. A server that says nothing at
    present is only chosen if there is no other."""
    cdef int at
    search.pass_over = True
    search.passed_over = False
    at = pick_by_balance(self, backup, search, seen)
    if at < 0 and search.passed_over and not search.answering:
        search.pass_over = False
        at = pick_by_balance(self, backup, search, seen)
    return at


cdef inline bint tier_is_full(const Group *self, bint backup, Search *search) noexcept nogil:
    """Whether none of a tier is open only because they have no room."""
    cdef int at
    for at in range(self.count):
        if group_members(self)[at].backup == backup and member_is_usable(&group_members(self)[at]):
            if not was_tried(search, at):
                return True
    return False


cdef inline bint group_has_usable(const Group *self) noexcept nogil:
    """Whether a server takes new sessions, room or not."""
    cdef int at
    for at in range(self.count):
        if member_is_usable(&group_members(self)[at]):
            return True
    return False


cdef inline bint group_eject(Group *self, Server *server) noexcept nogil:
    """Eject a server, unless it is the last usable one. The control plane, which hears of it, may take that back."""
    cdef int at
    for at in range(self.count):
        if group_members(self)[at].server != server and member_is_usable(&group_members(self)[at]):
            return oi_replace(&server.state, SERVER_UP, SERVER_EJECTED)
    return False


cdef inline int pick_when_down(const Group *self, Search *search, uint64_t *seen) noexcept nogil:
    """No server is usable: a check can be wrong. The one that is down and whose last failure is oldest."""
    cdef int best = -1, at
    cdef uint64_t best_failed = 0, failed, state, live
    cdef const Member *member
    for at in range(self.count):
        member = &group_members(self)[at]
        state = oi_get(&member.server.state)
        if (state != SERVER_DOWN and state != SERVER_EJECTED) or was_tried(search, at):
            continue
        live = oi_get(&member.server.live)
        if member.targets.count == 0 or oi_get(&member.server.weight) == 0 or not server_has_room(member.server, live):
            continue
        failed = oi_get(&member.server.failed_ms)
        if best < 0 or failed < best_failed:
            best = at
            best_failed = failed
            seen[0] = live
    return best


cdef inline int group_pick(const Group *self, Search *search, uint64_t *seen) noexcept nogil:
    """The member to try next, and its sessions in `seen`; or PICKED_NONE, PICKED_FULL, PICKED_REFUSED."""
    cdef int at, backup
    for backup in range(2):
        at = pick_in_tier(self, backup, search, seen)
        if at >= 0:
            return at
        if tier_is_full(self, backup, search):
            return PICKED_FULL
    if group_has_usable(self):
        return PICKED_NONE
    if self.refuse:
        return PICKED_REFUSED
    return pick_when_down(self, search, seen)


cdef inline void turns_missed(Group *self, int chosen, uint64_t passed) noexcept nogil:
    """`roundrobin`: those that are passed over in the tier of the `chosen` one, which has come so far, miss this turn.
    They do not catch up when they answer again."""
    cdef Member *member
    cdef int at
    for at in range(self.count):
        member = &group_members(self)[at]
        if member.backup == group_members(self)[chosen].backup and server_is_silent(member.server, self.failures_told):
            if <int64_t> (oi_get(&member.server.passed) - passed) < 0:
                oi_put(&member.server.passed, passed)


cdef inline int group_select(Group *self, Search *search) noexcept nogil:
    """Pick a member and count the session there. The caller leaves the server again, whatever happens."""
    cdef uint64_t seen = 0, passed, weight
    cdef Server *server
    cdef int at
    while True:     # ends: each failure means that another thread succeeded
        at = group_pick(self, search, &seen)
        if at < 0:
            return at
        server = group_members(self)[at].server
        if self.balance == BALANCE_ROUNDROBIN:
            weight = server_weight(server, self.slow_ms, search.now_ms)
            passed = oi_get(&server.passed)
            if weight and not oi_replace(&server.passed, passed, passed + STRIDE // weight):
                continue
            if search.passed_over:
                turns_missed(self, at, passed)
        if server_enter(server, seen):
            if self.balance == BALANCE_LEASTCONN or self.balance == BALANCE_RANDOM:
                oi_put(&self.cursor, <uint64_t> at + 1)
            return at


cdef inline bint group_is_full(Group *self) noexcept nogil:
    """Whether a client that is accepted now would have to wait for room: every usable server is full, or the room is
    for clients that wait already. The next session that ends then wakes a reactor."""
    cdef uint64_t waiters = oi_see(&self.waiters)
    cdef uint64_t room = 0, live
    cdef int at, backup
    cdef bint usable = False
    cdef Server *server
    for backup in range(2):
        for at in range(self.count):
            if group_members(self)[at].backup != backup or not member_is_usable(&group_members(self)[at]):
                continue
            usable = True
            server = group_members(self)[at].server
            if waiters:     # they take what room there is, and tell nobody: the next one that leaves is to tell
                oi_show(&server.waiting, 1)
            if not server_is_full(server):
                if oi_get(&server.live_max) == 0:
                    return False
                live = oi_see(&server.live)
                if live < oi_get(&server.live_max):
                    room += oi_get(&server.live_max) - live
                if room > waiters:
                    return False
        if usable:
            return True
    return False


cdef inline bint group_may_retry(Group *self) noexcept nogil:
    """Take the right to try another server for a session; it is given back by `group_retried`."""
    cdef uint64_t live = 0, bound
    cdef int at
    for at in range(self.count):
        live += oi_get(&group_members(self)[at].server.live)
    bound = live * RETRY_PERCENT // 100
    if oi_add(&self.retrying, 1) < (bound if bound > RETRIES_MIN else <uint64_t> RETRIES_MIN):
        return True
    oi_add(&self.retrying, <uint64_t> -1)
    return False


cdef inline void group_retried(Group *self) noexcept nogil:
    oi_add(&self.retrying, <uint64_t> -1)
