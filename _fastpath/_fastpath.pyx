# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""The native data plane of oinetd: what of it Python can see.

Everything that runs without Python is in the `.pxd` files beside this one, as inline functions; `reactor.pxd` begins
with the facts it stands on. The classes here are called from one thread, that of the event loop, except `Gate`,
which may be called from any. The stub `oinetd/_fastpath.pyi` says what everything is for.
"""

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strerror

import socket
from array import array
from collections import namedtuple

cimport cython

from shared.access cimport Access, Pattern, access_decide
from shared.attempt cimport Attempt, Attempts, attempts_items, attempts_new
from base.address cimport (
    ADDRESS_TEXT_BYTES, Address, MAPPED_PREFIX, SocketAddress, UNIX_MARK, address_is_unix, address_read, address_text,
)
from base.clock cimport monotonic_us
from base.atomic cimport oi_add, oi_get, oi_put, oi_raise_by, oi_see, oi_show, oi_swap
from state.command cimport (
    all_exited, listener_add, listener_remove, listener_replace, post, post_all, post_to_all, reactor_joins,
    reactor_leaves, snapshot_take, tell_of_room,
)
from state.datagram cimport Batch, batch_free, batch_new, batch_receive, take_trains
from state.datagram_send cimport Sent, batch_send, batch_send_headed
from shared.gate cimport (
    Budget as BudgetState, Gate as GateState, Rates, budget_drop, budget_give, budget_is_short, budget_new, budget_take,
    gate_drop, gate_enter, gate_force, gate_hold, gate_leave, gate_new, preamble_enter, preamble_is_full,
    preamble_leave, source_count, source_enter, source_leave,
)
from shared.ending cimport ENDING_BAD_PROXY_HEADER, ENDING_BAD_TLS_HELLO
from shared.facts cimport Facts, facts_name, facts_named, facts_new, facts_protocols
from shared.group cimport (
    BALANCE_FIRST, SERVERS_MAX, TABLE_SIZE, TRIES_MAX, Group as GroupState, Member as Member_t, Search,
    Table as TableState, group_drop, group_is_full, group_members, group_pick, group_select, table_drop, table_hold,
)
from shared.maglev cimport maglev_fill
from shared.names cimport (
    NAME_EXACT, NAME_NONE, NAME_WILDCARD, Names as NamesState, names_add, names_choose, names_new,
)
from shared.inbox cimport (
    MESSAGE_ABORT_ALL, MESSAGE_JUDGE, MESSAGE_KILL, MESSAGE_LEAVE, MESSAGE_MOVED, MESSAGE_PAIR, MESSAGE_PIPES,
    MESSAGE_RETRY, MESSAGE_SHED, MESSAGE_SNAPSHOT, MESSAGE_STOP, MESSAGE_TAKE_OUT, MESSAGE_UDP_ADD, MESSAGE_UDP_COUNT,
    MESSAGE_UDP_LINGER, MESSAGE_UDP_PAUSE, MESSAGE_UDP_PUT_IN, MESSAGE_UDP_QUIET, MESSAGE_UDP_REMOVE, MESSAGE_UDP_RENEW,
    MESSAGE_UDP_REPLACE, MESSAGE_UDP_RESUME, MESSAGE_UDP_REVOKE, MESSAGE_UDP_TAKE_OUT, MESSAGE_UDP_TRIM, Message,
)
from base.linux cimport (
    AF_INET, AF_INET6, AF_UNIX, EAGAIN, EINVAL, F_GETPIPE_SZ, F_SETPIPE_SZ, O_CLOEXEC, O_NONBLOCK, SPLICE_F_NONBLOCK,
    clock_gettime, clockid_t, pthread_getcpuclockid, timespec,
    c_close, c_fcntl, c_getpeername, c_pipe2, c_read, c_splice, errno, htons, pthread_cond_init, pthread_cond_wait,
    pthread_join, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, sockaddr, sockaddr_in, sockaddr_in6,
    sockaddr_storage, socklen_t, usleep,
)
from preamble.fault cimport FOUND_INVALID, FOUND_MORE, FOUND_WHOLE
from preamble.hello cimport MESSAGE_BYTES_MAX, Hello, hello_read
from preamble.proxy cimport HEADER_BYTES_MAX, ProxyHeader, proxy_read, proxy_read_datagram
from preamble.proxy_write cimport LINE_ROOM_BYTES, proxy_begin_v2, proxy_end_v2, proxy_write_v1, tlv_put
from tcp.listener cimport unix_time
from shared.policy cimport (
    OPTION_BYTES_MAX, SOCKET_OPTIONS_MAX, Policy as PolicyState, SocketOption, names_drop, policy_drop, policy_hold,
    policy_server_tag,
)
from tcp.flow cimport SCRATCH_BYTES
from shared.own cimport EVERY_FOUR, EVERY_SIX, OwnListener, is_forbidden, own_set
from state.return_address cimport ReturnAddress
from shared.ring cimport (
    RECORD_CLOSED, RECORD_COUNTED, RING_RECORDS, Record as RecordState, bell_arm, ring_peek, ring_pop,
)
from state.connection_slab cimport CLIENT, MODE_COPY, MODE_SPLICE, UPSTREAM, Conn, Dir, conn_targets
from state.pool cimport block_bytes
from tcp.passport cimport Departure, address_number, member_force, passport_free, passport_new
from state.slab cimport CHUNK_SLOTS
from shared.source cimport Prefix
from state.load cimport reactor_for_new
from state.reactor cimport Block, REACTORS_MAX, Hub as HubState, Reactor, Snapshot
from shared.server cimport (
    SERVER_MAINT, WEIGHT_MAX, Server as ServerState, server_drop, server_enter, server_failed, server_has_room,
    server_hold, server_is_silent, server_leave, server_new, server_overdue, server_patience_ms, server_took,
    server_wait, server_wait_over, server_worked,
)
from shared.target cimport (
    ADDRESSES_MAX, Target, Targets, target_failed, target_worked, targets_begin, targets_equal, targets_hold,
    targets_pick, targets_rank, targets_remember,
)
from shared.histogram cimport BOUNDS, Histogram
from shared.totals cimport TOTALS_PLACES, Totals, totals_add
from reactor.thread cimport hub_free, hub_new, hub_shut, reactor_free, reactor_new, reactor_start
from udp.message cimport least_listening, udp_message_send
from state.udp_client cimport heading_read, session_client
from state.udp_state cimport Heading, Session
from udp.passport cimport Leaving, udp_passport_free, udp_passport_new


def _number(path):
    """The number in a file of /proc; -1 if there is none."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return -1


def kernel_features():
    cdef int ends[2]
    cdef int refused = 0
    cdef int default_bytes, raised_bytes
    if c_pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0:
        raise OSError(errno, "no pipe can be made")
    default_bytes = c_fcntl(ends[1], F_GETPIPE_SZ)
    raised_bytes = c_fcntl(ends[1], F_SETPIPE_SZ, <int> (256 * 1024))
    # Both ends of one pipe: a kernel that has splice answers EINVAL, a filter answers for itself.
    if c_splice(ends[0], NULL, ends[1], NULL, 1, SPLICE_F_NONBLOCK) < 0:
        refused = errno
    c_close(ends[0])
    c_close(ends[1])
    return {
        "splice_errno": 0 if refused in (0, EINVAL, EAGAIN) else refused,
        "pipe_default_bytes": default_bytes,
        "pipe_raised_bytes": raised_bytes,
        "pipe_max_bytes": _number("/proc/sys/fs/pipe-max-size"),
        "pipe_user_pages_soft": _number("/proc/sys/fs/pipe-user-pages-soft"),
    }


cdef int _parse_address(str host, Address *address) except -1:
    """Read a numeric address, with or without a scope; `unix:` and a number is a user at a unix socket."""
    cdef bytes packed
    cdef uint32_t uid
    memset(address, 0, sizeof(Address))
    if host.startswith("unix:"):
        uid = int(host[5:] or "0")
        memcpy(address.ip, UNIX_MARK, 4)
        memcpy(&address.ip[4], &uid, 4)
        address.family = AF_UNIX
        return 0
    plain, percent, scope = host.partition("%")
    if ":" in plain:
        packed = socket.inet_pton(socket.AF_INET6, plain)
        memcpy(address.ip, <const char *> packed, 16)
        address.family = AF_INET6
        if percent:
            address.scope = int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    else:
        packed = socket.inet_pton(socket.AF_INET, plain)
        memcpy(address.ip, MAPPED_PREFIX, 12)
        memcpy(&address.ip[12], <const char *> packed, 4)
        address.family = AF_INET
    return 0


cdef int _parse_target(place, SocketAddress *target) except -1:
    """A sockaddr as Python writes it: (host, port), (host, port, flow, scope), or the path of a unix socket."""
    cdef Address address
    cdef sockaddr_in *four
    cdef bytes path
    if isinstance(place, str):
        path = place.encode("utf-8", "surrogateescape")
        memset(target, 0, sizeof(SocketAddress))
        if not 0 < len(path) < <int> sizeof(target.place.local.sun_path):
            raise ValueError("the path of a unix socket is too long")
        target.place.local.sun_family = AF_UNIX
        memcpy(target.place.local.sun_path, <const char *> path, len(path))
        # The NUL at the end belongs to a path, but not to an abstract name.
        target.size = <uint32_t> (sizeof(target.place.local.sun_family) + len(path) + (path[0] != 0))
        return 0
    _parse_address(place[0], &address)
    memset(target, 0, sizeof(SocketAddress))
    if address.family == AF_INET:
        four = <sockaddr_in *> &target.place
        four.sin_family = AF_INET
        four.sin_port = htons(place[1])
        memcpy(&four.sin_addr, &address.ip[12], 4)
        target.size = sizeof(sockaddr_in)
    else:
        target.place.six.sin6_family = AF_INET6
        target.place.six.sin6_port = htons(place[1])
        memcpy(&target.place.six.sin6_addr, address.ip, 16)
        target.place.six.sin6_scope_id = place[3] if len(place) > 3 and place[3] else address.scope
        target.size = sizeof(sockaddr_in6)
    return 0


cdef str _text(const Address *address):
    cdef char text[ADDRESS_TEXT_BYTES]
    if address_is_unix(address):
        return "unix:"
    address_text(address, text, False)
    if address.scope:
        try:
            return f"{text.decode()}%{socket.if_indextoname(address.scope)}"
        except OSError:
            pass    # the interface has gone; the address is still the address
    return text.decode()


cdef Prefix _prefix(said) except *:
    cdef Prefix prefix
    prefix.four, prefix.six = said
    if prefix.four > 32 or prefix.six > 128:
        raise ValueError("a prefix has at most 32 bits of an IPv4 address and 128 of an IPv6 address")
    return prefix


@cython.final
cdef class Budget:
    cdef BudgetState *budget

    def __cinit__(self):
        self.budget = budget_new()
        if self.budget == NULL:
            raise MemoryError

    def __dealloc__(self):
        budget_drop(self.budget)

    @property
    def total(self):
        return oi_get(&self.budget.total)

    @total.setter
    def total(self, uint64_t value):
        oi_put(&self.budget.total, value)

    @property
    def used(self):
        return oi_get(&self.budget.used)

    @property
    def pipes(self):
        return oi_get(&self.budget.pipes)


@cython.final
cdef class Gate:
    cdef GateState *gate
    cdef Hub hub

    def __cinit__(
        self, uint64_t max_connections=0, uint64_t max_per_source=0, Budget budget=None, uint64_t cost=0,
    ):
        self.gate = gate_new(max_connections, max_per_source, NULL if budget is None else budget.budget, cost)
        if self.gate == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.gate != NULL:
            gate_drop(self.gate)

    def set_limits(self, uint64_t max_connections, uint64_t max_per_source):
        oi_put(&self.gate.live_max, max_connections)
        oi_put(&self.gate.source_max, max_per_source)
        self._room()

    def set_rates(
        self, uint64_t bytes=0, uint64_t source_bytes=0, connects=(0, 0), source_connects=(0, 0),
    ):
        cdef Rates *rates = &self.gate.rates
        oi_put(&rates.bytes, bytes)
        oi_put(&rates.source_bytes, source_bytes)
        # In this order: nobody meets an interval with the depth of another.
        oi_put(&rates.connect_depth_ns, connects[0] * connects[1])
        oi_put(&rates.connect_ns, connects[0])
        oi_put(&rates.source_connect_depth_ns, source_connects[0] * source_connects[1])
        oi_put(&rates.source_connect_ns, source_connects[0])
        self._room()

    cdef _room(self):
        if self.hub is not None:
            self.hub._retry()

    def enter(self):
        if gate_enter(self.gate):
            return True
        oi_add(&self.gate.full, 1)
        if self.hub is not None and budget_is_short(self.gate.budget, self.gate.cost):
            self.hub._reclaim()
        return False

    def leave(self):
        if gate_leave(self.gate):
            self._room()

    @property
    def preamble_full(self):
        return preamble_is_full(self.gate)

    def enter_preamble(self):
        preamble_enter(self.gate)

    def leave_preamble(self):
        if preamble_leave(self.gate):
            self._room()

    def take_spare(self):
        return budget_take(self.gate.budget, 1, self.gate.cost)

    def give_spare(self):
        if budget_give(self.gate.budget, 1):
            self._room()

    def enter_source(self, str host, prefix):
        cdef Address address
        cdef uint64_t bound = oi_get(&self.gate.source_max)
        _parse_address(host, &address)
        return source_enter(self.gate, address.ip, _prefix(prefix), bound if bound else <uint64_t> -1)

    def leave_source(self, str host, prefix):
        cdef Address address
        _parse_address(host, &address)
        source_leave(self.gate, address.ip, _prefix(prefix))

    def of_source(self, str host, prefix):
        cdef Address address
        cdef uint32_t steps
        _parse_address(host, &address)
        return source_count(self.gate, address.ip, _prefix(prefix), &steps)

    def source_steps(self, str host, prefix):
        cdef Address address
        cdef uint32_t steps
        _parse_address(host, &address)
        source_count(self.gate, address.ip, _prefix(prefix), &steps)
        return steps

    def force(self):
        gate_force(self.gate)

    def next_id(self):
        return oi_add(&self.gate.next_id, 1)

    def skip_ids(self, uint64_t least):
        if oi_get(&self.gate.next_id) < least:
            oi_put(&self.gate.next_id, least)

    def take_lost(self):
        return oi_swap(&self.gate.lost, 0)

    def take_forged(self):
        return oi_swap(&self.gate.forged, 0)

    def calm(self):
        oi_put(&self.gate.full_told, 0)

    @property
    def rate_waits(self):
        return oi_get(&self.gate.rate_waits)

    @property
    def full(self):
        return oi_get(&self.gate.full)

    @property
    def live_max(self):
        return oi_get(&self.gate.live_max)

    @property
    def is_full(self):
        cdef uint64_t live_max = oi_get(&self.gate.live_max)
        return (live_max != 0 and oi_get(&self.gate.live) >= live_max) or budget_is_short(
            self.gate.budget, self.gate.cost)

    @property
    def live(self):
        return oi_get(&self.gate.live)

    @property
    def admitted(self):
        return oi_get(&self.gate.admitted)

    @property
    def histograms(self):
        return _counted(&self.gate.durations), _counted(&self.gate.connects)

    @property
    def totals(self):
        # In this order, so that a session is never seen as ended and not yet admitted.
        cdef uint64_t ended = oi_see(&self.gate.ended)
        cdef uint64_t admitted = oi_get(&self.gate.admitted)
        return (
            admitted, admitted - ended, oi_get(&self.gate.bytes[0]), oi_get(&self.gate.bytes[1]),
            oi_get(&self.gate.datagrams[0]), oi_get(&self.gate.datagrams[1]), oi_get(&self.gate.datagrams_lost),
        )


cdef tuple _counted(Histogram *histogram):
    return tuple([oi_get(&histogram.counts[i]) for i in range(BOUNDS + 1)]), oi_get(&histogram.sum_us) * 1e-6


cdef int _compile(Access *access, list lists) except -1:
    """Copy four lists of (kind, bytes); kinds are those of `oinetd.core.pattern.Kind`."""
    cdef Pattern *pattern
    cdef bytes data
    access.empty = not any(lists)
    for which in range(4):
        patterns = lists[which]
        access.lists[which].items = <Pattern *> calloc(len(patterns) + 1, sizeof(Pattern))
        if access.lists[which].items == NULL:
            raise MemoryError
        for kind, data in patterns:
            pattern = &access.lists[which].items[access.lists[which].count]
            if kind == 1:
                pattern.text = <char *> malloc(len(data) + 1)
                if pattern.text == NULL:
                    raise MemoryError
                memcpy(pattern.text, <const char *> data, len(data) + 1)
            elif kind == 2:
                memcpy(pattern.network, MAPPED_PREFIX, 12)
                memcpy(&pattern.network[12], <const char *> data, 4)
                pattern.bits = 96 + data[4]
                pattern.four = True
            else:
                memcpy(pattern.network, <const char *> data, 16)
                pattern.bits = data[16]
            access.lists[which].count += 1
    return 0


cdef Targets *_targets(
    addresses, looping, bint may_self_connect, bint may_broadcast, Targets *before
) except NULL:
    """The addresses of a destination; those of `before` if they are the same, else with what it knows of them."""
    cdef Targets *targets
    if len(addresses) > ADDRESSES_MAX:
        raise ValueError(f"a destination has at most {ADDRESSES_MAX} addresses")
    targets = <Targets *> calloc(1, sizeof(Targets) - (ADDRESSES_MAX - len(addresses)) * sizeof(Target))
    if targets == NULL:
        raise MemoryError
    try:
        for place in addresses:
            _parse_target(place, &targets.items[targets.count].place)
            targets.count += 1
    except BaseException:
        free(targets)
        raise
    for at, loops in enumerate(looping[:ADDRESSES_MAX]):
        targets.items[at].looping = loops
    targets.references = 1
    targets.may_self_connect = may_self_connect
    targets.may_broadcast = may_broadcast
    targets_rank(targets)
    if before != NULL:
        if targets_equal(targets, before):
            free(targets)
            targets_hold(before)
            return before
        targets_remember(targets, before)
    return targets


cdef bint _sources(places, SocketAddress *sources) except -1:
    """The first address of each family of ours; whether there is one."""
    for place in places:
        which = ":" in place[0]
        if sources[which].size == 0:
            _parse_target(place, &sources[which])
    return len(places) > 0


@cython.final
cdef class Server:
    cdef ServerState *server
    cdef Hub hub

    def __cinit__(self, uint64_t tag, uint64_t weight=1):
        if weight > WEIGHT_MAX:
            raise ValueError(f"a weight is at most {<int> WEIGHT_MAX}")
        self.server = server_new(tag, weight)
        if self.server == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.server != NULL:
            server_drop(self.server)

    cdef _room(self):
        if self.hub is not None:
            self.hub._retry()

    @property
    def tag(self):
        return self.server.tag

    @property
    def state(self):
        return oi_get(&self.server.state)

    @state.setter
    def state(self, uint64_t value):
        if value > SERVER_MAINT:
            raise ValueError("there is no such state of a server")
        oi_put(&self.server.state, value)
        self._room()

    @property
    def weight(self):
        return oi_get(&self.server.weight)

    @weight.setter
    def weight(self, uint64_t value):
        if value > WEIGHT_MAX:
            raise ValueError(f"a weight is at most {<int> WEIGHT_MAX}")
        oi_put(&self.server.weight, value)
        self._room()

    @property
    def max_connections(self):
        return oi_get(&self.server.live_max)

    @max_connections.setter
    def max_connections(self, uint64_t value):
        oi_put(&self.server.live_max, value)
        self._room()

    @property
    def slow_since_ms(self):
        return oi_get(&self.server.ramp_ms)

    @slow_since_ms.setter
    def slow_since_ms(self, uint64_t value):
        oi_put(&self.server.ramp_ms, value)

    @property
    def passed(self):
        return oi_get(&self.server.passed)

    @passed.setter
    def passed(self, uint64_t value):
        oi_put(&self.server.passed, value)

    @property
    def failures(self):
        return oi_get(&self.server.failures)

    @failures.setter
    def failures(self, uint64_t value):
        oi_put(&self.server.failures, value)
        if value:
            oi_put(&self.server.told, 1)     # on trial: its success is to be told

    @property
    def failed_ms(self):
        return oi_get(&self.server.failed_ms)

    @failed_ms.setter
    def failed_ms(self, uint64_t value):
        oi_put(&self.server.failed_ms, value)

    @property
    def live(self):
        return oi_get(&self.server.live)

    @property
    def selected(self):
        return oi_get(&self.server.selected)

    @property
    def failed(self):
        return oi_get(&self.server.failed)

    def enter(self):
        cdef uint64_t live
        while True:     # ends: each failure means that another thread succeeded
            live = oi_get(&self.server.live)
            if not server_has_room(self.server, live):
                return False
            if server_enter(self.server, live):
                return True

    def force(self):
        oi_raise_by(&self.server.live, 1)

    def leave(self):
        if server_leave(self.server):
            self._room()

    def count_on(self, uint64_t selected, uint64_t failed):
        oi_raise_by(&self.server.selected, selected)
        oi_raise_by(&self.server.failed, failed)

    def note_failed(self, uint64_t now_ms):
        return server_failed(self.server, now_ms)

    def note_worked(self):
        server_worked(self.server)

    def took(self, uint64_t took_ms):
        server_took(self.server, took_ms)

    @property
    def took_ms(self):
        cdef uint64_t took_ms = oi_get(&self.server.took_ms)
        return took_ms - 1 if took_ms else None

    @property
    def patience_ms(self):
        return server_patience_ms(self.server)

    @property
    def overdue(self):
        return server_overdue(self.server)

    def is_silent(self, uint64_t limit):
        return server_is_silent(self.server, limit)

    def wait(self, uint64_t limit):
        return server_wait(self.server, limit)

    def wait_over(self, uint8_t mark):
        server_wait_over(self.server, mark)

    def calm(self):
        oi_put(&self.server.told, 0)


Member = namedtuple("Member", (
    "server", "addresses", "backup", "looping", "may_self_connect", "may_broadcast", "sources", "connect_ms",
    "proxy_version",
), defaults=((), False, (), False, False, (), 0, 0), module="oinetd._fastpath")


def fill_table(places, steps, turns, members):
    cdef uint32_t[::1] starts
    cdef const uint32_t[::1] strides, rounds
    cdef const int16_t[::1] numbers
    cdef int16_t[::1] table
    cdef int i, count = len(places)
    starts, strides, rounds, numbers = array("I", places), steps, turns, members
    if count == 0 or strides.shape[0] != count or rounds.shape[0] != count or numbers.shape[0] != count:
        raise ValueError("a table is for servers, each with all of its values")
    for i in range(count):
        if starts[i] >= TABLE_SIZE or not 0 < strides[i] < TABLE_SIZE or rounds[i] == 0 or numbers[i] < 0:
            raise ValueError(f"the values of server {i} are out of range")
    filled = array("h", bytes(TABLE_SIZE * sizeof(int16_t)))
    table = filled
    maglev_fill(&table[0], &starts[0], &strides[0], &rounds[0], &numbers[0], count)
    return filled


@cython.final
cdef class Table:
    cdef TableState *table

    def __cinit__(self, entries):
        cdef const int16_t[::1] numbers = entries
        cdef int lowest = 0
        cdef int i
        if numbers.shape[0] != TABLE_SIZE:
            raise ValueError(f"a table has {TABLE_SIZE} entries")
        self.table = <TableState *> malloc(sizeof(TableState))
        if self.table == NULL:
            raise MemoryError
        self.table.references = 1
        self.table.highest = -1
        for i in range(TABLE_SIZE):
            self.table.entries[i] = max(numbers[i], <int16_t> -1)
            self.table.highest = max(self.table.highest, <int> numbers[i])
            lowest = min(lowest, <int> numbers[i])
        if lowest < 0 <= self.table.highest:
            raise ValueError("a table has members in all entries, or in none")

    def __dealloc__(self):
        if self.table != NULL:
            table_drop(self.table)

    def __len__(self):
        return TABLE_SIZE

    def __getitem__(self, int at):
        if not 0 <= at < TABLE_SIZE:
            raise IndexError(at)
        return self.table.entries[at]

    @property
    def users(self):
        return oi_get(&self.table.references) - 1


@cython.final
cdef class Group:
    cdef GroupState *group
    cdef readonly tuple servers

    def __cinit__(
        self, members, *, int balance=0, bint refuse=False, bint all_backups=False, uint32_t slow_ms=0,
        uint32_t failures_told=3, bint ejects=False,
        tables=(None, None), Group before=None,
    ):
        cdef Member_t *member
        cdef Server server
        cdef Table table
        cdef Targets *known
        members = [Member(*each) for each in members]
        if len(members) > SERVERS_MAX:
            raise ValueError(f"a group has at most {<int> SERVERS_MAX} servers")
        if not 0 <= balance <= BALANCE_FIRST:
            raise ValueError("there is no such balance")
        self.servers = tuple([each.server for each in members])
        self.group = <GroupState *> calloc(1, sizeof(GroupState) + len(members) * sizeof(Member_t))
        if self.group == NULL:
            raise MemoryError
        self.group.references = 1
        self.group.balance = balance
        self.group.refuse = refuse
        self.group.all_backups = all_backups
        self.group.slow_ms = slow_ms
        self.group.failures_told = max(failures_told, 1)
        self.group.ejects = ejects
        for each in members:
            server = each.server
            member = &group_members(self.group)[self.group.count]
            known = NULL if before is None else before._targets_of(server)
            member.targets = _targets(
                each.addresses, each.looping, each.may_self_connect, each.may_broadcast, known)
            server_hold(server.server)
            member.server = server.server
            self.group.count += 1
            member.backup = each.backup
            member.connect_ms = each.connect_ms
            member.proxy_version = each.proxy_version
            member.has_source = _sources(each.sources, member.sources)
            self.group.bounded |= oi_get(&server.server.live_max) != 0
        for at in range(2):
            if tables[at] is None:
                continue
            table = tables[at] if isinstance(tables[at], Table) else Table(tables[at])
            if table.table.highest >= self.group.count:
                raise ValueError(f"the table has a member {table.table.highest}, and the group none")
            table_hold(table.table)
            self.group.tables[at] = table.table
        if before is not None:
            oi_put(&self.group.cursor, oi_get(&before.group.cursor))

    def __dealloc__(self):
        if self.group != NULL:
            group_drop(self.group)

    cdef Targets *_targets_of(self, Server server):
        cdef int i
        for i in range(self.group.count):
            if group_members(self.group)[i].server == server.server:
                return group_members(self.group)[i].targets
        return NULL

    cdef int _search(self, str host, tried, uint64_t now_ms, uint64_t draw, bint answering, bint select) except? -9:
        cdef Address address
        cdef uint16_t places[TRIES_MAX]
        cdef Search search
        cdef uint64_t seen = 0
        _parse_address(host, &address)
        search.ip = address.ip
        search.tried = places
        search.tried_count = 0
        search.now_ms = now_ms
        search.draw = draw
        search.answering = answering
        for at in tried[:TRIES_MAX]:
            places[search.tried_count] = at
            search.tried_count += 1
        return group_select(self.group, &search) if select else group_pick(self.group, &search, &seen)

    def pick(self, str host, tried=(), uint64_t now_ms=0, uint64_t draw=0, bint answering=False):
        return self._search(host, tried, now_ms, draw, answering, False)

    def select(self, str host, tried=(), uint64_t now_ms=0, uint64_t draw=0):
        return self._search(host, tried, now_ms, draw, False, True)

    @property
    def is_full(self):
        return group_is_full(self.group)


@cython.final
cdef class Names:
    cdef NamesState *names
    cdef tuple policies

    def __cinit__(self, entries, tuple policies=()):
        cdef bytes name, protocol
        cdef Policy policy
        cdef uint32_t kind
        room = sum([len(name) + len(protocol) for name, protocol, _ in entries])
        self.names = names_new(<uint32_t> len(entries), room, <uint32_t> len(policies))
        if self.names == NULL:
            raise MemoryError
        self.policies = policies
        for policy in policies:
            policy_hold(policy.policy)
            self.names.policies[self.names.policy_count] = policy.policy
            self.names.policy_count += 1
        for name, protocol, number in entries:
            kind = NAME_EXACT if name else NAME_NONE
            if name.startswith(b"*."):
                kind = NAME_WILDCARD
                name = name[2:]
            names_add(self.names, kind, <const uint8_t *> <const char *> name, <uint32_t> len(name),
                      <const uint8_t *> <const char *> protocol, <uint32_t> len(protocol), number)

    def __dealloc__(self):
        if self.names != NULL:
            names_drop(self.names)

    def choose(self, bytes name, bytes protocols):
        return names_choose(self.names, <const uint8_t *> <const char *> name, <uint32_t> len(name),
                            <const uint8_t *> <const char *> protocols, <uint32_t> len(protocols))


@cython.final
cdef class Policy:
    cdef PolicyState *policy
    cdef readonly Group group
    cdef readonly Names names

    def __cinit__(
        self, uint64_t tag, Gate gate, *, addresses=(), looping=(), bint may_self_connect=False,
        bint may_broadcast=False, Group group=None,
        sources=(), access=((), (), (), ()), int relay=0,
        uint32_t buffer_bytes=65536, uint32_t pipe_bytes=262144, uint32_t connect_ms=0, uint32_t idle_ms=0,
        uint32_t half_close_ms=0, uint32_t stall_ms=0, uint32_t lifetime_ms=0, keepalive=(0, 0, 0),
        uint32_t flip_bytes=0, uint32_t move_turns=0, uint32_t silence_ms=4000,
        source_prefix=(32, 64), Policy before=None, int64_t peer_uid=-1,
        int protocol=0, options=(), proxy=(0, 0, 0, False), accept=(0, 0, ()), uint64_t bandwidth=0,
        Names names=None, uint32_t peek_ms=0, bint from_client=False, int original_port=-1,
    ):
        cdef SocketOption *option
        cdef bytes value
        self.policy = <PolicyState *> calloc(1, sizeof(PolicyState))
        if self.policy == NULL:
            raise MemoryError
        self.policy.references = 1
        self.policy.tag = tag
        if gate is not None:
            gate_hold(gate.gate)
            self.policy.gate = gate.gate
        self.policy.source_prefix = _prefix(source_prefix)
        self.policy.to_original = original_port >= 0
        if self.policy.to_original:
            addresses = (("0.0.0.0", 0),)
            self.policy.bound_port = <uint16_t> original_port
        self.policy.targets = _targets(
            addresses, looping, may_self_connect, may_broadcast, NULL if before is None else before.policy.targets)
        self.policy.peer_uid = peer_uid
        self.policy.protocol = protocol
        self.policy.bandwidth = bandwidth
        if len(options) > SOCKET_OPTIONS_MAX:
            raise ValueError(f"more than {SOCKET_OPTIONS_MAX} socket options")
        for family, stream, level, name, value in options:
            option = &self.policy.options[self.policy.option_count]
            option.family, option.stream, option.level, option.name = family, stream, level, name
            option.size = <uint32_t> len(value)
            if option.size > OPTION_BYTES_MAX:
                raise ValueError(f"a socket option has at most {OPTION_BYTES_MAX} bytes")
            memcpy(option.value, <const char *> value, option.size)
            self.policy.option_count += 1
        if group is not None:
            oi_add(&group.group.references, 1)
            self.policy.group = group.group
            self.group = group
        self.policy.has_source = _sources(sources, self.policy.sources)
        _compile(&self.policy.access, [list(each) for each in access])
        self.policy.relay = relay
        self.policy.buffer_bytes = min(max(buffer_bytes, 1), <uint32_t> SCRATCH_BYTES)
        self.policy.pipe_bytes = min(max(pipe_bytes, 4096), 1 << 30)
        self.policy.connect_ms = connect_ms
        self.policy.idle_ms = idle_ms
        self.policy.half_close_ms = half_close_ms
        self.policy.silence_ms = silence_ms
        self.policy.stall_ms = stall_ms
        self.policy.lifetime_ms = lifetime_ms
        self.policy.keep_idle_s, self.policy.keep_interval_s, self.policy.keep_count = keepalive
        self.policy.proxy_version, self.policy.proxy_tlv, self.policy.run_id, self.policy.proxy_first = proxy
        self.policy.accept_proxy, self.policy.proxy_ms, trusted = accept
        _compile(&self.policy.trust, [list(trusted), [], [], []])
        self.policy.peek_ms = peek_ms
        self.policy.from_client = from_client
        if names is not None:
            oi_add(&names.names.references, 1)
            self.policy.names = names.names
            self.names = names
        self.policy.flip_bytes = min(flip_bytes, <uint32_t> SCRATCH_BYTES)
        self.policy.move_turns = move_turns

    def __dealloc__(self):
        if self.policy != NULL:
            policy_drop(self.policy)

    cdef _known_to(self, Hub hub):
        """Let the servers of its group wake the reactors when they have room."""
        cdef Server server
        cdef Policy policy
        if self.names is not None:
            for policy in self.names.policies:
                policy._known_to(hub)
        if self.group is not None:
            for server in self.group.servers:
                server.hub = hub

    @property
    def in_use(self):
        """Whether a listener or a connection still goes by it."""
        return oi_get(&self.policy.references) > 1

    def pick_address(self, uint64_t tried, uint64_t turn, uint64_t now_ms):
        """The number of the address to try next, of those without a bit in `tried`; -1 if there is none."""
        return targets_pick(self.policy.targets, tried, turn, now_ms)

    def address(self, int at, uint64_t server=0):
        """Address number `at`, of a server of its group if `server` is its tag: host and port."""
        cdef Address address
        cdef Targets *targets = self.policy.targets
        cdef SocketAddress *place
        cdef int i
        for i in range(self.policy.group.count if server and self.policy.group != NULL else 0):
            if group_members(self.policy.group)[i].server.tag == server:
                targets = group_members(self.policy.group)[i].targets
        if not 0 <= at < targets.count:
            raise IndexError("there is no such address")
        place = &targets.items[at].place
        if place.place.six.sin6_family == AF_UNIX:
            path = place.place.local.sun_path[:place.size - sizeof(place.place.local.sun_family)]
            if path[0] == 0:
                path = b"@" + path[1:]
            return "unix:" + path.rstrip(b"\0").decode("utf-8", "surrogateescape"), 0
        address_read(&address, &place.place)
        return _text(&address), address.port

    def begin_search(self):
        """The number of a search's turn."""
        return targets_begin(self.policy.targets)

    def note_failed(self, int at, uint64_t now_ms):
        """Address number `at` did not take a connection."""
        target_failed(&self.policy.targets.items[at], now_ms)

    def note_worked(self, int at):
        """Address number `at` took a connection."""
        target_worked(&self.policy.targets.items[at])

    def decide(self, str host):
        """The number of the ending of a client that the access rules refuse, by its numeric address; 0 lets it in."""
        cdef Address address
        _parse_address(host, &address)
        return access_decide(&self.policy.access, &address)


Record = namedtuple("Record", (
    "kind", "id", "tag", "token", "started", "client", "client_port", "upstream", "upstream_port", "connect_s",
    "duration_s", "bytes_up", "bytes_down", "ending", "errno", "moved_by", "datagrams_up", "datagrams_down",
    "datagrams_lost", "idle_s", "tries", "credentials", "server", "peer", "hello",
), module="oinetd._fastpath")

cdef object new_tuple = tuple.__new__


cdef object _credentials(const Address *client):
    """Process, user and group of a client of a unix socket; None of another."""
    cdef uint32_t uid, gid
    if not address_is_unix(client):
        return None
    memcpy(&uid, &client.ip[4], 4)
    memcpy(&gid, &client.ip[8], 4)
    return <int> client.scope, uid, gid


cdef void record_drop(RecordState *record) noexcept:
    """Free what a record owns."""
    free(record.tries)
    free(record.facts)
    record.tries = NULL
    record.facts = NULL


cdef tuple _tries(RecordState *record):
    """The addresses that did not take the connection: host, port, errno, and the tag of the server."""
    cdef Attempt *item
    if record.tries == NULL:
        return ()
    item = attempts_items(record.tries)
    found = tuple([
        (_text(&item[i].place), item[i].place.port, item[i].error, item[i].server)
        for i in range(record.tries.count) if item[i].error
    ])
    free(record.tries)
    record.tries = NULL
    return found


cdef tuple _hello(RecordState *record):
    """The server name and the protocols of a TLS hello, freed with all that the client said; None without a hello."""
    found = None
    if record.facts == NULL:
        return None
    if record.facts.name_bytes or record.facts.protocol_bytes:
        found = (
            (<char *> facts_name(record.facts))[:record.facts.name_bytes].decode(),
            (<char *> facts_protocols(record.facts))[:record.facts.protocol_bytes],
        )
    free(record.facts)
    record.facts = NULL
    return found


cdef enum:
    TEXTS = 256     # a power of two


cdef uint32_t _text_place(const Address *address):
    """Where the text of an address is remembered (FNV-1a). Those that share a place only cost the writing."""
    cdef uint32_t value = <uint32_t> 2166136261
    cdef int i
    for i in range(16):
        value = (value ^ address.ip[i]) * 16777619
    return (value ^ (value >> 15)) & (TEXTS - 1)


@cython.final
cdef class Passport:
    cdef Conn *conn
    cdef Hub hub

    def __dealloc__(self):
        if self.conn != NULL:       # nobody wanted it: as if the process had ended
            passport_free(self.hub.gate.gate, self.conn)

    cdef Conn *_must_be_held(self) except NULL:
        if self.conn == NULL:
            raise RuntimeError("the connection is somewhere else")
        return self.conn

    @property
    def descriptors(self):
        cdef Conn *conn = self._must_be_held()
        return conn.side[CLIENT].fd, conn.side[UPSTREAM].fd

    @property
    def pending(self):
        cdef Conn *conn = self._must_be_held()
        return tuple([
            (<char *> block_bytes(<Block *> conn.dir[way].holder))[
                conn.dir[way].offset:conn.dir[way].offset + conn.dir[way].pend
            ] if conn.dir[way].pend else b""
            for way in range(2)
        ])

    @property
    def id(self):
        return self._must_be_held().id

    @property
    def tag(self):
        return self._must_be_held().policy.tag

    @property
    def token(self):
        return self._must_be_held().token

    @property
    def server(self):
        cdef Conn *conn = self._must_be_held()
        return policy_server_tag(conn.policy, conn.member)

    def state(self):
        cdef Conn *conn = self._must_be_held()
        cdef Dir *flow
        flows = []
        peer = hello = None
        if conn.facts != NULL and conn.facts.headed:
            peer = [_text(&conn.facts.peer), conn.facts.peer.port, conn.facts.unknown]
        if conn.facts != NULL and (conn.facts.name_bytes or conn.facts.protocol_bytes):
            hello = [
                (<char *> facts_name(conn.facts))[:conn.facts.name_bytes].decode(),
                (<char *> facts_protocols(conn.facts))[:conn.facts.protocol_bytes].hex(),
            ]
        for way in range(2):
            flow = &conn.dir[way]
            flows.append([
                flow.moved_out, flow.progress_ms, flow.eof, flow.fin_sent, flow.mode, flow.moved_by,
                conn.side[way].local,
            ])
        return {
            "id": conn.id, "started": conn.started_s, "started_us": conn.started_us,
            "connected_us": conn.connected_us, "kept_alive": conn.kept_alive, "first_eof": conn.first_eof,
            "client": (<char *> &conn.client)[:sizeof(Address)].hex(),
            "upstream": (<char *> &conn.upstream)[:sizeof(Address)].hex(),
            "flows": flows, "credentials": _credentials(&conn.client), "peer": peer,
            "hello": hello,
            "tries": _tried(conn.attempts),
            "texts": [_text(&conn.client), conn.client.port, _text(&conn.upstream), conn.upstream.port],
        }

    def release(self):
        cdef Conn *conn = self._must_be_held()
        self.conn = NULL
        passport_free(self.hub.gate.gate, conn)


cdef int _read_address(object state, str name, Address *address) except -1:
    cdef bytes data = bytes.fromhex(state[name])
    if len(data) != sizeof(Address):
        raise ValueError(f"{name}: not an address of this version")
    memcpy(address, <const char *> data, sizeof(Address))
    return 0


cdef list _tried(Attempts *attempts):
    """The addresses that did not take the connection: address, port, errno, and the tag of the server."""
    cdef Attempt *item
    if attempts == NULL:
        return []
    item = attempts_items(attempts)
    return [
        [_text(&item[i].place), item[i].place.port, item[i].error, item[i].server]
        for i in range(attempts.count) if item[i].error
    ]


cdef Attempts *_attempts(list tries) except? NULL:
    """Attempts of another process; NULL if there is none, or no memory."""
    cdef Attempts *attempts = attempts_new(len(tries)) if tries else NULL
    cdef Attempt *item
    if attempts == NULL:
        return NULL
    for host, port, error in tries:
        item = &attempts_items(attempts)[attempts.count]
        item.fd = -1
        item.error = error
        if host.startswith("unix:"):
            item.place.family = AF_UNIX
            memcpy(item.place.ip, UNIX_MARK, 4)
        else:
            _parse_address(host, &item.place)
        item.place.port = port
        attempts.count += 1
    return attempts


cdef tuple _try(said):
    """One of what `_tried` says; raises if it is not."""
    cdef Address address
    host, port, error = said[:3]
    host, port, error = str(host), int(port), int(error)
    if not host.startswith("unix:"):
        _parse_address(host, &address)
    if not 0 <= port <= 0xFFFF or not 0 < error < 4096:
        raise ValueError("not an address that was tried")
    return host, port, error


cdef int _parse_heading(bytes data, const ReturnAddress *key, Heading *heading) except -1:
    """The PROXY header that the peer of a UDP session writes."""
    cdef const unsigned char *place = data
    cdef ProxyHeader header
    cdef Address peer
    if proxy_read_datagram(&header, place, <uint32_t> len(data)) != FOUND_WHOLE or header.length != len(data):
        raise ValueError("not a header")
    address_read(&peer, &key.place)
    heading_read(heading, &header, &peer, place)
    return 0


@cython.final
cdef class DatagramPassport:
    cdef Session *session
    cdef Hub hub

    def __dealloc__(self):
        if self.session != NULL:
            udp_passport_free(self.hub.gate.gate, self.hub.udp_gate.gate, self.session)

    cdef Session *_must_be_held(self) except NULL:
        if self.session == NULL:
            raise RuntimeError("the session is somewhere else")
        return self.session

    @property
    def descriptor(self):
        return self._must_be_held().fd

    @property
    def id(self):
        return self._must_be_held().id

    @property
    def tag(self):
        return self._must_be_held().policy.tag

    def state(self):
        cdef Session *session = self._must_be_held()
        cdef Address client
        cdef bytes header = b""
        session_client(session, &client)
        if session.heading != NULL:
            header = (<char *> session.heading.data)[:session.heading.size]
        return {
            "id": session.id, "started": session.started_s, "started_us": session.started_us,
            "last_ms": session.last_ms, "asked_ms": session.asked_ms, "answered": bool(session.answered),
            "rounds": session.trail.rounds, "errno": session.error,
            "key": (<char *> &session.key)[:sizeof(ReturnAddress)].hex(),
            "counts": [
                session.bytes_up, session.bytes_down, session.datagrams_up, session.datagrams_down,
                session.datagrams_lost,
            ],
            "client": [_text(&client), client.port], "header": header.hex(),
        }

    def release(self):
        cdef Session *session = self._must_be_held()
        self.session = NULL
        udp_passport_free(self.hub.gate.gate, self.hub.udp_gate.gate, session)


@cython.no_gc_clear     # its gates stay until its threads have ended
cdef class Hub:
    cdef HubState *hub
    cdef Gate gate
    cdef Gate udp_gate
    cdef bint running
    cdef int turn
    cdef readonly bint emptied      # the last drain found nothing more in any ring
    cdef Address text_keys[TEXTS]
    cdef list texts
    cdef Totals totals[TOTALS_PLACES]

    def __cinit__(
        self, Gate gate not None, int threads, uint64_t spin_us=0, uint32_t slots_max=0,
        Gate udp_gate=None,
    ):
        cdef Reactor *reactor
        cdef int error
        self.gate = gate
        self.udp_gate = Gate() if udp_gate is None else udp_gate
        self.texts = [""] * TEXTS
        self.hub = hub_new(gate.gate, self.udp_gate.gate)
        if self.hub == NULL:
            raise OSError(errno, "the data plane has no descriptor or no memory")
        self.hub.spin_us = spin_us
        for index in range(max(1, min(threads, REACTORS_MAX))):
            reactor = reactor_new(self.hub, index)
            if reactor == NULL:
                raise OSError(errno, "a reactor has no descriptor or no memory")
            if slots_max:
                reactor.slab.chunk_max = (slots_max + CHUNK_SLOTS - 1) // CHUNK_SLOTS
            self.hub.reactors[index] = reactor
            oi_show(&self.hub.reactor_count, index + 1)
            oi_show(&self.hub.serving, index + 1)
            self.hub.most = index + 1
        self.running = True
        for index in range(self.hub.reactor_count):
            error = reactor_start(self.hub.reactors[index])
            if error:
                self.stop()
                raise OSError(error, "a reactor's thread cannot be started")
        gate.hub = self
        self.udp_gate.hub = self

    def __dealloc__(self):
        """A hub may go while its threads run: of a program that ends by an exception, or has lost it."""
        if self.hub == NULL:
            return
        if self.running:
            post_all(self.hub, MESSAGE_STOP, 0)
            while not all_exited(self.hub):     # bounded: a stopping reactor needs nothing but room in its ring
                self._drop_records()
                usleep(100)
            self._join()
        self._drop_records()
        hub_free(self.hub)

    cdef void _drop_records(self) noexcept:
        cdef RecordState *record
        for i in range(self.hub.reactor_count):
            while True:     # bounded: stopping reactors have an end
                record = ring_peek(&self.hub.reactors[i].ring)
                if record == NULL:
                    break
                record_drop(record)
                ring_pop(&self.hub.reactors[i].ring)

    cdef void _join(self) noexcept:
        cdef int i
        for i in range(self.hub.reactor_count):
            if self.hub.reactors[i].started:
                with nogil:
                    pthread_join(self.hub.reactors[i].thread, NULL)
        self.running = False

    cdef str _known_text(self, const Address *address):
        """`_text` with a memory: most records are of a few addresses, and writing one costs as much as the rest."""
        cdef uint32_t place
        cdef Address key
        if address.family == 0:
            return ""
        if address_is_unix(address):
            return "unix:"
        key = address[0]
        key.port = 0
        place = _text_place(&key)
        if memcmp(&self.text_keys[place], &key, sizeof(Address)) != 0:
            self.texts[place] = _text(address)
            self.text_keys[place] = key
        return self.texts[place]

    cdef tuple _peer(self, RecordState *record):
        """Who connected, if the client is the one of a header, and the port."""
        if record.facts == NULL or not record.facts.headed:
            return None
        return self._known_text(&record.facts.peer), record.facts.peer.port

    cdef object _record(self, RecordState *record):
        """A record, and what it owns is taken from it."""
        return new_tuple(Record, (
            record.kind, record.id, record.tag, record.token, record.started_s, self._known_text(&record.client),
            record.client.port, self._known_text(&record.upstream), record.upstream.port, record.connect_us * 1e-6,
            record.duration_us * 1e-6, record.up, record.down, record.ending, record.error, record.moved_by,
            record.datagrams_up, record.datagrams_down, record.datagrams_lost, record.idle_us * 1e-6,
            _tries(record), _credentials(&record.client), record.server, self._peer(record), _hello(record),
        ))

    cdef _reclaim(self):
        """Have the reactors give pipes back, if there are any."""
        if self.running and oi_get(&self.gate.gate.budget.pipes):
            with nogil:
                post_all(self.hub, MESSAGE_PIPES, 0)

    cdef _retry(self):
        if self.running:
            with nogil:
                post_all(self.hub, MESSAGE_RETRY, 0)

    cdef _must_run(self):
        if not self.running:
            raise RuntimeError("the data plane has been stopped")

    def fileno(self):
        return self.hub.bell.fd

    @property
    def threads(self):
        return self.hub.serving

    @property
    def reactors(self):
        return self.hub.reactor_count

    @property
    def spin_us(self):
        return oi_get(&self.hub.spin_us)

    @spin_us.setter
    def spin_us(self, uint64_t value):
        oi_put(&self.hub.spin_us, value)

    cdef _start_reactor(self):
        cdef uint64_t index = self.hub.reactor_count
        cdef Reactor *reactor = reactor_new(self.hub, <int> index)
        cdef int error
        if reactor == NULL:
            raise OSError(errno, "a reactor has no descriptor or no memory")
        error = reactor_start(reactor)
        if error:
            reactor_free(reactor)
            raise OSError(error, "a reactor's thread cannot be started")
        self.hub.reactors[index] = reactor
        oi_show(&self.hub.reactor_count, index + 1)

    def set_most(self, int most):
        wanted = max(1, min(most, REACTORS_MAX))
        self._must_run()
        while self.hub.reactor_count < wanted:
            self._start_reactor()
        self.hub.most = wanted
        if self.hub.serving > wanted:
            self.set_threads(wanted)

    def set_threads(self, int threads):
        cdef int error
        self._must_run()
        wanted = max(1, min(threads, self.hub.most))
        while self.hub.serving > wanted:
            with nogil:
                reactor_leaves(self.hub)
        while self.hub.serving < wanted:
            error = reactor_joins(self.hub)
            if error:
                raise OSError(error, "a reactor cannot watch the listening sockets")

    def shed(self, int index, int to, int share):
        cdef Message message
        self._must_run()
        if not (0 <= index < self.hub.reactor_count and 0 <= to < self.hub.reactor_count and index != to):
            raise IndexError("there is no such reactor")
        memset(&message, 0, sizeof(message))
        message.kind = MESSAGE_SHED
        message.fd = to
        message.token = share
        with nogil:
            post(self.hub.reactors[index], &message)

    def take_out(self, int at_most, bint pairs=False):
        cdef Departure departure
        cdef Message message
        cdef Passport passport
        cdef int i
        passports = []
        self._must_run()
        memset(&departure, 0, sizeof(departure))
        memset(&message, 0, sizeof(message))
        pthread_mutex_init(&departure.lock, NULL)
        pthread_cond_init(&departure.done, NULL)
        departure.items = <Conn **> calloc(max(at_most, 1), sizeof(Conn *))
        if departure.items == NULL:
            raise MemoryError
        departure.room = at_most
        departure.pairs = pairs
        message.kind = MESSAGE_TAKE_OUT
        message.answer = &departure
        for i in range(self.hub.reactor_count):
            with nogil:
                departure.answered = False
                post(self.hub.reactors[i], &message)
                pthread_mutex_lock(&departure.lock)
                while not departure.answered:
                    pthread_cond_wait(&departure.done, &departure.lock)
                pthread_mutex_unlock(&departure.lock)
        for i in range(departure.count):
            passport = Passport.__new__(Passport)
            passport.conn = departure.items[i]
            passport.hub = self
            passports.append(passport)
        free(departure.items)
        return passports, departure.left

    def put_in(self, Passport passport not None):
        cdef Conn *conn = passport._must_be_held()
        cdef Message message
        self._must_run()
        memset(&message, 0, sizeof(message))
        message.kind = MESSAGE_MOVED
        message.answer = conn
        passport.conn = NULL
        with nogil:
            post(reactor_for_new(self.hub), &message)

    def adopt(
        self, Policy policy not None, state, int client_fd, int upstream_fd, bytes up, bytes down, uint64_t token=0,
        uint64_t server=0, uint16_t address_at=0,
    ):
        cdef Passport passport
        cdef Address client, upstream, address
        cdef bytes server_name, protocols
        cdef Facts *named
        cdef Dir *flow
        cdef Conn *conn
        cdef bint unknown = False
        self._must_run()
        _read_address(state, "client", &client)
        _read_address(state, "upstream", &upstream)
        moved = []
        for said in state["flows"]:
            out, progress, eof, fin_sent, mode, moved_by, local = said[:7]
            moved.append((
                int(out), int(progress), bool(eof), bool(fin_sent), bool(mode), int(moved_by) & 3, bool(local),
            ))
        facts = tuple([int(state[name]) for name in ("id", "started_us", "connected_us", "kept_alive", "first_eof")])
        started = float(state["started"])
        if len(moved) != 2 or any(not 0 <= each < 1 << 63 for each in (*facts, *moved[0][:2], *moved[1][:2])):
            raise ValueError("not a connection")
        if not token and policy.policy.gate == NULL:
            raise ValueError("the policy has no gate")
        hello = state.get("hello")
        if hello is not None:
            host, alpn = hello[:2]      # an index would not be checked
            server_name = (<str?> host).encode()
            protocols = bytes.fromhex(alpn)
        peer = state.get("peer")
        if peer is not None:
            host, port, told = peer[:3]
            unknown = bool(told)
            _parse_address(str(host), &address)
            address.port = <uint16_t> (int(port) & 0xFFFF)
        tries = [_try(each) for each in state.get("tries", ())[:TRIES_MAX]]
        conn = passport_new(
            self.gate.gate, policy.policy, &client, <const unsigned char *> <char *> up, <uint32_t> len(up),
            <const unsigned char *> <char *> down, <uint32_t> len(down), token != 0,
        )
        if conn == NULL:
            raise MemoryError
        conn.id, conn.started_us, conn.connected_us = facts[:3]
        conn.token = token
        if token:
            conn.id = oi_add(&self.gate.gate.next_id, 1)
        if peer is not None:
            conn.facts = facts_new(NULL, 0)
            if conn.facts != NULL:
                conn.facts.peer = address
                conn.facts.unknown = unknown
        if hello is not None:
            named = facts_named(
                conn.facts, <const uint8_t *> <char *> server_name, <uint32_t> len(server_name),
                <const uint8_t *> <char *> protocols, <uint32_t> len(protocols))
            if named != NULL:
                free(conn.facts)
                conn.facts = named
        conn.attempts = _attempts(tries)
        conn.kept_alive = facts[3] != 0
        conn.first_eof = <unsigned char> min(facts[4], 2)
        conn.started_s = started
        conn.upstream = upstream
        if policy.policy.group != NULL:
            conn.member = member_force(policy.policy, &upstream, server)
        if address_is_unix(&upstream):
            conn.upstream.port = address_at
        conn.address = <unsigned char> max(address_number(conn_targets(conn), &upstream), 0)
        conn.side[CLIENT].fd = client_fd
        conn.side[UPSTREAM].fd = upstream_fd
        for way in range(2):
            flow = &conn.dir[way]
            flow.moved_out, flow.progress_ms = moved[way][:2]
            flow.moved_in = flow.moved_out + flow.pend
            flow.eof, flow.fin_sent = moved[way][2:4]
            flow.mode = MODE_SPLICE if moved[way][4] and flow.pend == 0 else MODE_COPY
            flow.moved_by = moved[way][5]
            conn.side[way].local = moved[way][6]
        passport = Passport.__new__(Passport)
        passport.conn = conn
        passport.hub = self
        return passport

    def cpu_seconds(self):
        """Processor time of each reactor's thread since it began."""
        cdef timespec now
        cdef clockid_t clock
        times = []
        for i in range(self.hub.reactor_count if self.running else 0):
            if pthread_getcpuclockid(self.hub.reactors[i].thread, &clock) != 0 or clock_gettime(clock, &now) != 0:
                raise OSError(errno, "a thread's clock cannot be read")
            times.append(<double> now.tv_sec + <double> now.tv_nsec * 1e-9)
        return times

    def set_loads(self, loads):
        """Thousandths of a core of each reactor, as measured by the caller; a reactor that sleeps measures nothing."""
        for i, load in enumerate(loads[:self.hub.reactor_count]):
            oi_put(&self.hub.reactors[i].load, load)

    @property
    def thread_ids(self):
        return [oi_get(&self.hub.reactors[i].thread_id) for i in range(self.hub.reactor_count)]

    def add_listener(self, int fd, Policy policy not None):
        cdef int index
        self._must_run()
        policy._known_to(self)
        with nogil:
            index = listener_add(self.hub, fd, policy.policy)
        if index < 0:
            raise OSError(-index, "the listening socket cannot be watched")
        return index

    def replace_listener(self, int index, Policy policy not None):
        self._must_run()
        policy._known_to(self)
        with nogil:
            listener_replace(self.hub, index, policy.policy)

    def remove_listener(self, int index):
        if self.running:
            with nogil:
                listener_remove(self.hub, index)

    cdef long _udp_message(
        self, int kind, uint64_t key, int fd, Policy policy, void *passed=NULL, bint paused=False
    ) except? -1:
        """Have the reactor of a UDP listener do something; the value of its answer."""
        cdef Reactor *reactor = self.hub.reactors[key >> 32]
        cdef Message message
        cdef long value
        self._must_run()
        memset(&message, 0, sizeof(message))
        message.kind = kind
        message.fd = fd
        message.id = <uint32_t> key
        message.passed = passed
        message.counted = paused
        if policy is not None:
            policy._known_to(self)
            message.policy = policy.policy
        with nogil:
            value = udp_message_send(reactor, &message)
        if value < 0:
            raise OSError(-value, strerror(-value).decode())
        return value

    def add_udp_listener(self, int fd, Policy policy not None, beside=None, bint paused=False):
        cdef uint64_t reactor = least_listening(self.hub).index if beside is None else <uint64_t> beside >> 32
        if policy.policy.gate == NULL:
            raise ValueError("the policy of a UDP listener needs a gate")
        return reactor << 32 | <uint64_t> self._udp_message(
            MESSAGE_UDP_ADD, reactor << 32, fd, policy, NULL, paused)

    def pause_udp_listener(self, uint64_t key):
        self._udp_message(MESSAGE_UDP_PAUSE, key, -1, None)

    def resume_udp_listener(self, uint64_t key):
        self._udp_message(MESSAGE_UDP_RESUME, key, -1, None)

    def take_out_udp_sessions(self, uint64_t key, int at_most):
        cdef DatagramPassport passport
        cdef Leaving leaving
        passports = []
        leaving.items = <Session **> calloc(max(at_most, 1), sizeof(Session *))
        if leaving.items == NULL:
            raise MemoryError
        leaving.room = at_most
        leaving.count = 0
        try:
            self._udp_message(MESSAGE_UDP_TAKE_OUT, key, -1, None, &leaving)
            for i in range(leaving.count):
                passport = DatagramPassport.__new__(DatagramPassport)
                passport.session = leaving.items[i]
                passport.hub = self
                passports.append(passport)
        finally:
            free(leaving.items)
        return passports

    def put_in_udp_session(self, uint64_t key, DatagramPassport passport not None):
        self._udp_message(MESSAGE_UDP_PUT_IN, key, -1, None, passport._must_be_held())
        passport.session = NULL

    def adopt_udp_session(self, Policy policy not None, state, int fd):
        cdef DatagramPassport passport
        cdef ReturnAddress key
        cdef Address upstream
        cdef sockaddr_storage place
        cdef socklen_t size = sizeof(place)
        cdef Session *session
        cdef Heading heading
        cdef bytes data = bytes.fromhex(state["key"])
        cdef bytes header = bytes.fromhex(state.get("header") or "")
        self._must_run()
        numbers = tuple([int(state[name]) for name in ("id", "started_us", "last_ms", "asked_ms", "rounds", "errno")])
        counts = tuple([int(each) for each in state["counts"]])
        started, answered = float(state["started"]), bool(state["answered"])
        if len(data) != sizeof(key) or len(counts) != 5 or any(not 0 <= each < 1 << 63 for each in (*numbers, *counts)):
            raise ValueError("not a UDP session")
        memcpy(&key, <const char *> data, sizeof(key))
        if key.place.sin6_family not in (AF_INET, AF_INET6) or key.local_size > sizeof(key.local):
            raise ValueError("not a client of a UDP session")
        if header:
            _parse_heading(header, &key, &heading)
        if policy.policy.gate == NULL:
            raise ValueError("the policy has no gate")
        if c_getpeername(fd, <sockaddr *> &place, &size) != 0:
            raise OSError(errno, strerror(errno).decode())
        address_read(&upstream, &place)
        session = udp_passport_new(
            self.gate.gate, self.udp_gate.gate, policy.policy, &key, &heading if header else NULL, &upstream)
        if session == NULL:
            return None
        session.fd = fd
        session.id, session.started_us, session.last_ms, session.asked_ms = numbers[:4]
        session.trail.rounds = <unsigned char> min(numbers[4], 3)
        session.error = <int> min(numbers[5], 4095)
        session.started_s = started
        session.answered = answered
        session.bytes_up, session.bytes_down, session.datagrams_up, session.datagrams_down = counts[:4]
        session.datagrams_lost = counts[4]
        passport = DatagramPassport.__new__(DatagramPassport)
        passport.session = session
        passport.hub = self
        return passport

    def replace_udp_listener(self, uint64_t key, Policy policy not None, bint anew):
        self._udp_message(MESSAGE_UDP_RENEW if anew else MESSAGE_UDP_REPLACE, key, -1, policy)

    def linger_udp_listener(self, uint64_t key):
        return self._udp_message(MESSAGE_UDP_LINGER, key, -1, None)

    def udp_sessions_of(self, uint64_t key):
        return self._udp_message(MESSAGE_UDP_COUNT, key, -1, None)

    def revoke_udp_sessions(self, uint64_t key, Policy policy not None):
        return self._udp_message(MESSAGE_UDP_REVOKE, key, -1, policy)

    def remove_udp_listener(self, uint64_t key):
        if self.running:
            self._udp_message(MESSAGE_UDP_REMOVE, key, -1, None)

    def end_quiet_udp_sessions(self):
        for index in range(self.hub.reactor_count):
            self._udp_message(MESSAGE_UDP_QUIET, <uint64_t> index << 32, -1, None)

    def trim_udp_sessions(self):
        # One after the other: together they would end too many.
        for index in range(self.hub.reactor_count):
            self._udp_message(MESSAGE_UDP_TRIM, <uint64_t> index << 32, -1, None)

    def epolls(self):
        return [self.hub.reactors[i].epoll_fd for i in range(self.hub.reactor_count)] if self.running else []

    def abandon(self):
        self.running = False
        self.gate.hub = None

    def set_own_listeners(self, listeners):
        cdef Address address
        cdef OwnListener *table = <OwnListener *> calloc(len(listeners) + 1, sizeof(OwnListener))
        if table == NULL:
            raise MemoryError
        try:
            for at, (place, v6only) in enumerate(listeners):
                _parse_address(place[0], &address)
                memcpy(table[at].ip, address.ip, 16)
                table[at].port = place[1]
                if place[0] == "::":
                    table[at].every = EVERY_SIX if v6only else EVERY_SIX | EVERY_FOUR
                elif place[0] == "0.0.0.0":
                    table[at].every = EVERY_FOUR
        except BaseException:
            free(table)
            raise
        pthread_mutex_lock(&self.hub.lock)
        own_set(&self.hub.own, table, len(listeners))
        pthread_mutex_unlock(&self.hub.lock)

    def relay(self, int client_fd, int upstream_fd, Policy policy not None, uint64_t token):
        cdef Message message
        self._must_run()
        memset(&message, 0, sizeof(message))
        message.kind = MESSAGE_PAIR
        message.fd = client_fd
        message.upstream_fd = upstream_fd
        message.policy = policy.policy
        message.token = token
        message.id = oi_add(&self.gate.gate.next_id, 1)
        message.started_s = unix_time()
        policy_hold(policy.policy)
        with nogil:
            post(reactor_for_new(self.hub), &message)
        return message.id

    def kill(self, uint64_t id):
        if self.running:
            with nogil:
                post_all(self.hub, MESSAGE_KILL, id)

    def end_sessions(self, Server server not None, int ending, int part=0, int parts=1):
        cdef Message message
        if not 0 <= part < parts:
            raise ValueError("there is no such part")
        if not self.running:
            return
        memset(&message, 0, sizeof(message))
        message.kind = MESSAGE_LEAVE
        message.token = server.server.tag
        message.counted = ending
        message.id = part
        message.fd = parts
        with nogil:
            post_to_all(self.hub, &message)

    def abort_all(self):
        if self.running:
            with nogil:
                post_all(self.hub, MESSAGE_ABORT_ALL, 0)

    def hush(self):
        """Take the ring of the bell: to be called when its descriptor is readable."""
        cdef uint64_t rung
        c_read(self.hub.bell.fd, &rung, sizeof(rung))

    @property
    def totals_only(self):
        return oi_get(&self.hub.totals_only) != 0

    @totals_only.setter
    def totals_only(self, bint value):
        oi_put(&self.hub.totals_only, value)

    cdef _empty_tallies(self, list records):
        """Empty the table of sums."""
        cdef Totals *each
        for i in range(TOTALS_PLACES):
            each = &self.totals[i]
            if each.count:
                records.append(new_tuple(Record, (
                    RECORD_COUNTED, each.count, each.tag, 0, 0.0, "", 0, "", 0, 0.0, 0.0, 0, 0, each.ending, 0, 0,
                    0, 0, 0, 0.0, (), None, 0, None, None,
                )))
                each.count = 0

    def drain(self, int at_most):
        """At most this many records, in the order of each reactor; an empty answer means that the bell is armed."""
        cdef list records = []
        cdef RecordState *record
        cdef Reactor *reactor
        cdef int idle
        cdef int taken
        cdef int taken_max = RING_RECORDS * self.hub.reactor_count
        cdef bint totals_only = oi_get(&self.hub.totals_only) != 0
        for armed in range(2):
            idle = 0
            taken = 0
            while idle < self.hub.reactor_count and len(records) < at_most and taken < taken_max:
                reactor = self.hub.reactors[self.turn % self.hub.reactor_count]
                record = ring_peek(&reactor.ring)
                if record == NULL:
                    idle += 1
                    self.turn = (self.turn + 1) % self.hub.reactor_count
                    continue
                idle = 0
                taken += 1
                if (
                    not totals_only or record.kind != RECORD_CLOSED or record.token
                    or record.ending in (ENDING_BAD_PROXY_HEADER, ENDING_BAD_TLS_HELLO)
                ):
                    records.append(self._record(record))
                else:
                    record_drop(record)
                    if not totals_add(self.totals, record):
                        self._empty_tallies(records)
                        totals_add(self.totals, record)
                ring_pop(&reactor.ring)
            if taken and totals_only:
                self._empty_tallies(records)
            if records or armed:
                break
            # Nothing: arm the bell, then look once more, for a record that came in between rang nothing.
            bell_arm(&self.hub.bell)
        self.emptied = idle == self.hub.reactor_count
        if records and self.running:
            oi_show(&self.hub.bell.armed, 0)
            with nogil:
                tell_of_room(self.hub)
        return records

    def snapshot(self):
        """Live connections, as records like those of `drain`."""
        return self.snapshot_parts().take(0x7FFFFFFF)

    def snapshot_parts(self):
        """Live connections of this moment, to be taken in parts."""
        cdef Snapshot snapshot
        cdef LiveRecords live = LiveRecords.__new__(LiveRecords)
        cdef int i
        live.hub = self
        if not self.running:
            return live
        memset(&snapshot, 0, sizeof(snapshot))
        pthread_mutex_init(&snapshot.lock, NULL)
        pthread_cond_init(&snapshot.done, NULL)
        snapshot.capacity = 64
        for i in range(self.hub.reactor_count):
            snapshot.capacity += <int> oi_get(&self.hub.reactors[i].live)
            snapshot.capacity += <int> oi_get(&self.hub.reactors[i].udp_sessions)
        while True:     # again with more room if many connections came in between
            snapshot.records = <RecordState *> calloc(snapshot.capacity, sizeof(RecordState))
            if snapshot.records == NULL:
                raise MemoryError
            with nogil:
                snapshot_take(self.hub, &snapshot, MESSAGE_SNAPSHOT)
            if snapshot.count <= snapshot.capacity:
                break
            for i in range(snapshot.capacity):
                record_drop(&snapshot.records[i])
            free(snapshot.records)
            snapshot.capacity = snapshot.count * 2
        live.records = snapshot.records
        live.count = snapshot.count
        return live

    def judge(self, cases):
        cdef Snapshot snapshot
        cdef Gate gate
        cdef Policy policy
        if not self.running:
            return [0] * len(cases)
        memset(&snapshot, 0, sizeof(snapshot))
        pthread_mutex_init(&snapshot.lock, NULL)
        pthread_cond_init(&snapshot.done, NULL)
        for gate, policy, ends in cases:
            gate.gate.judge = policy.policy
            gate.gate.judge_ends = ends
            oi_put(&gate.gate.judged, 0)
        with nogil:
            snapshot_take(self.hub, &snapshot, MESSAGE_JUDGE)
        found = []
        for gate, _policy, _ends in cases:
            gate.gate.judge = NULL
            found.append(oi_get(&gate.gate.judged))
        return found

    def reactor_counts(self):
        """Of each reactor: its thread, its connections, its UDP sessions, connections that moved on from it, and
        whether it may poll: "off", "on" or "paused"."""
        cdef uint64_t now_us = monotonic_us()
        allowed = "on" if oi_get(&self.hub.spin_us) else "off"
        return [
            (
                oi_get(&self.hub.reactors[i].thread_id), oi_get(&self.hub.reactors[i].live),
                oi_get(&self.hub.reactors[i].udp_sessions), oi_get(&self.hub.reactors[i].stats.moved),
                "paused" if allowed == "on" and oi_get(&self.hub.reactors[i].poll_paused_us) > now_us else allowed,
            )
            for i in range(self.hub.reactor_count)
        ]

    def stats(self):
        """Counters of all reactors together, and `live` of each."""
        cdef Reactor *reactor
        totals = {}
        live = []
        udp_sessions = []
        udp_listeners = []
        for i in range(self.hub.reactor_count):
            reactor = self.hub.reactors[i]
            live.append(oi_get(&reactor.live))
            udp_sessions.append(oi_get(&reactor.udp_sessions))
            udp_listeners.append(oi_get(&reactor.udp_listeners))
            for name, value in (
                ("accepted", oi_get(&reactor.stats.accepted)), ("opened", oi_get(&reactor.stats.opened)),
                ("closed", oi_get(&reactor.stats.closed)), ("refused", oi_get(&reactor.stats.refused)),
                ("bytes_up", oi_get(&reactor.stats.bytes_up)), ("bytes_down", oi_get(&reactor.stats.bytes_down)),
                ("loops", oi_get(&reactor.stats.loops)), ("promoted", oi_get(&reactor.stats.promoted)),
                ("demoted", oi_get(&reactor.stats.demoted)), ("handed_off", oi_get(&reactor.stats.handed_off)),
                ("pipes", oi_get(&reactor.stats.pipes)), ("spins", oi_get(&reactor.stats.spins)),
                ("poll_pauses", oi_get(&reactor.stats.poll_pauses)), ("moved", oi_get(&reactor.stats.moved)),
            ):
                totals[name] = totals.get(name, 0) + value
        totals["live"] = live
        totals["udp_sessions"] = udp_sessions
        totals["udp_listeners"] = udp_listeners
        totals["udp_session_bytes"] = sizeof(Session)
        totals["connection_bytes"] = sizeof(Conn)
        totals["splice_errno"] = oi_get(&self.hub.splice_refused)
        return totals

    def stop(self):
        """Abort everything, end the threads, and return the records that are left. A second call returns none."""
        if not self.running:
            return []
        records = []
        with nogil:
            post_all(self.hub, MESSAGE_STOP, 0)
        while not all_exited(self.hub):     # bounded: a stopping reactor needs nothing but room in its ring
            records += self.drain(1024)
            with nogil:
                usleep(100)
        self._join()
        self.gate.hub = None
        self.udp_gate.hub = None
        while True:
            more = self.drain(1024)
            if not more:
                break
            records += more
        hub_shut(self.hub)
        return records


@cython.final
cdef class LiveRecords:
    cdef Hub hub
    cdef RecordState *records
    cdef int count
    cdef int taken

    def __dealloc__(self):
        while self.taken < self.count:
            record_drop(&self.records[self.taken])
            self.taken += 1
        free(self.records)

    def take(self, int at_most):
        cdef list records = []
        while self.taken < self.count and at_most > 0:
            records.append(self.hub._record(&self.records[self.taken]))
            self.taken += 1
            at_most -= 1
        return records


@cython.final
cdef class DatagramBatch:
    cdef Batch *batch

    def __cinit__(self):
        self.batch = batch_new()
        if self.batch == NULL:
            raise MemoryError

    def __dealloc__(self):
        batch_free(self.batch)

    @property
    def forged(self):
        return self.batch.forged

    def take_trains(self, int fd):
        return take_trains(fd)

    def receive(self, int fd, int at_most, bint named):
        cdef int got, i
        with nogil:
            got = batch_receive(self.batch, fd, at_most, named)
        if got < 0:
            raise OSError(-got, strerror(-got).decode())
        return [
            (
                (<char *> &self.batch.groups[i].sender)[:sizeof(ReturnAddress)],
                self.batch.groups[i].first,
                self.batch.groups[i].count,
            )
            for i in range(self.batch.group_count)
        ]

    def take(self, int first, int count):
        cdef int i
        return [
            self.batch.datagrams[i].data[:self.batch.datagrams[i].size]
            for i in range(max(first, 0), min(first + count, self.batch.datagram_count))
        ]

    def send(self, int fd, int first, int count, bytes to=None, bint single=False):
        cdef Sent sent
        cdef ReturnAddress place
        cdef bint named = to is not None
        if first < 0 or count < 0 or first + count > self.batch.datagram_count:
            raise IndexError("the batch has no such datagrams")
        if named:
            if len(to) != sizeof(ReturnAddress):
                raise ValueError("no return address")
            memcpy(&place, <const char *> to, sizeof(ReturnAddress))
        memset(&sent, 0, sizeof(sent))
        with nogil:
            batch_send(self.batch, fd, first, count, &place if named else NULL, single, &sent)
        return sent.count, sent.bytes, sent.error

    def send_headed(self, int fd, int first, int count, bytes head, bint once=False):
        cdef Sent sent
        cdef const uint8_t *data = <const uint8_t *> <const char *> head
        cdef uint32_t size = <uint32_t> len(head)
        if first < 0 or count < 0 or first + count > self.batch.datagram_count:
            raise IndexError("the batch has no such datagrams")
        memset(&sent, 0, sizeof(sent))
        with nogil:
            batch_send_headed(self.batch, fd, first, count, data, size, once, &sent)
        return sent.count, sent.bytes, sent.error

    @staticmethod
    def explain(bytes sender):
        cdef ReturnAddress place
        if len(sender) != sizeof(ReturnAddress):
            raise ValueError("no return address")
        memcpy(&place, <const char *> sender, sizeof(ReturnAddress))
        return (
            (<const char *> &place.place)[:min(place.place_size, <uint32_t> sizeof(place.place))],
            (<const char *> place.local)[:min(place.local_size, <uint32_t> sizeof(place.local))],
        )


# The guard of `original`, and the parsers of what comes before the relay, for the tests that compare them with those of
# the Python lane.

cdef tuple _party(const Address *address):
    """An address of a header, in the form of its family, and its port."""
    cdef char text[ADDRESS_TEXT_BYTES]
    address_text(address, text, address.family == AF_INET6)
    return text.decode(), address.port


cdef int _parse_party(party, Address *address) except -1:
    memset(address, 0, sizeof(Address))
    if party is not None:
        _parse_address(party[0], address)
        address.port = party[1]
    return 0


def is_forbidden_destination(str host):
    cdef Address address
    cdef int answer
    _parse_address(host, &address)
    answer = is_forbidden(&address)
    if answer < 0:
        raise OSError(-answer, strerror(-answer).decode())
    return answer != 0


def read_proxy_header(bytes data, bint datagram=False):
    cdef ProxyHeader header
    cdef const uint8_t *bytes_ = <const uint8_t *> <const char *> data
    cdef uint32_t size = <uint32_t> len(data)
    cdef int found = proxy_read_datagram(&header, bytes_, size) if datagram else proxy_read(&header, bytes_, size)
    if found == FOUND_MORE:
        return (found, header.need)
    if found == FOUND_INVALID:
        return (found, header.fault, header.at)
    named = header.named
    return (found, header.length, header.version, _party(&header.source) if named else None,
            _party(&header.destination) if named else None, data[header.tlvs:header.length])


def read_tls_hello(bytes data):
    cdef Hello hello
    cdef uint8_t message[MESSAGE_BYTES_MAX]
    cdef int found = hello_read(&hello, <const uint8_t *> <const char *> data, <uint32_t> len(data), message)
    if found == FOUND_MORE:
        return (found, hello.need)
    if found == FOUND_INVALID:
        return (found, hello.fault, hello.at)
    return (found, hello.name[:hello.name_size].decode(), hello.protocols[:hello.protocols_size])


def write_proxy_header(int version, source, destination, tlvs=(), *, bint checksum=False, bint datagram=False):
    cdef Address from_, to
    cdef char line[LINE_ROOM_BYTES]
    cdef uint8_t header[HEADER_BYTES_MAX]
    cdef uint32_t at, then
    cdef bytes value
    _parse_party(source, &from_)
    _parse_party(destination, &to)
    if version == 1:
        return line[:proxy_write_v1(line, &from_, &to)]
    at = proxy_begin_v2(header, &from_, &to, datagram)
    for kind, value in tlvs if at else ():
        then = tlv_put(header, at, kind, <const uint8_t *> <const char *> value, <uint32_t> len(value), checksum)
        if then == at:
            break
        at = then
    return (<char *> header)[:proxy_end_v2(header, at, checksum)]
