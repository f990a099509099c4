"""The native data plane (see `_fastpath/`). Imported by `oinetd.lanes.native` and, for batches of
datagrams, by `oinetd.net`.

Addresses are numeric text. Durations are milliseconds where the name says so, 0 being "off"; a refused system call is
an `OSError`. What reactors report are `Record`s.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, final

from typing_extensions import Buffer, disjoint_base

_Place = tuple[str, int] | tuple[str, int, int, int] | str
_Patterns = Sequence[tuple[int, bytes]]

class Record(NamedTuple):
    """What a reactor reports of a session. `kind` and `ending` are numbered as in `shared/ring.pxd` and
    `shared/ending.pxd`.

    `tag` is that of the policy, `token` that of a pair handed over; of a UDP session, 1 for the last one of a listener
    that lingers. `started` is Unix time. `moved_by` are bits: 1 copy, 2 splice. In a count of ended sessions `id` is
    their number.
    """

    kind: int
    id: int
    tag: int
    token: int
    started: float
    client: str
    client_port: int
    upstream: str
    upstream_port: int
    connect_s: float
    duration_s: float
    bytes_up: int
    bytes_down: int
    ending: int
    errno: int
    moved_by: int
    datagrams_up: int
    datagrams_down: int
    datagrams_lost: int
    idle_s: float
    tries: tuple[tuple[str, int, int, int], ...]
    """Addresses that did not take the connection, in order: host, port, errno, and the tag of the server."""
    credentials: tuple[int, int, int] | None
    """Process, user and group of a client of a unix socket, whose `client` is `unix:`. A unix `upstream` is `unix:`,
    too, and `upstream_port` the number of the address in the policy; so are those of `tries`."""
    server: int
    """The tag of the server that took the session; 0 if none did, or the destination is no group. In a record of the
    kind for servers it is the one whose connects fail (`errno`, `id` of them in a row) or work again (errno 0). In
    that of an invalid PROXY header it is the fault, 32 bits above the byte that shows it."""
    peer: tuple[str, int] | None
    """Who connected, if the client is the one of a PROXY header, and the port."""
    hello: tuple[str, bytes] | None
    """What a TLS hello wants: the server by name, and the protocols, a length byte before each, the last one perhaps
    cut."""

def kernel_features() -> dict[str, int]:
    """What this kernel and this process offer to the data plane.

    `splice_errno` is 0, or the errno with which splice is refused (a seccomp filter); sizes are bytes, -1 is unknown.
    """

@final
class Budget:
    """Descriptors that the sessions and pipes of a process may have. Of any thread."""

    total: int
    """0 is no bound."""
    def __new__(cls) -> Budget: ...
    @property
    def used(self) -> int: ...
    @property
    def pipes(self) -> int:
        """How many of those in use are pipes."""

@final
class Gate:
    """A gate: it counts who is inside and lets nobody in above its bounds; 0 is no bound. Of any thread."""

    def __new__(
        cls, max_connections: int = 0, max_per_source: int = 0, budget: Budget | None = None, cost: int = 0
    ) -> Gate:
        """Each place takes `cost` descriptors from `budget`."""
    def set_limits(self, max_connections: int, max_per_source: int) -> None:
        """Change the bounds. Who is inside stays. Sessions that began while `max_per_source` was 0 are not counted."""
    def set_rates(
        self,
        bytes: int = 0,
        source_bytes: int = 0,
        connects: tuple[int, int] = (0, 0),
        source_connects: tuple[int, int] = (0, 0),
    ) -> None:
        """Bound bytes a second, of all together and of one source, and connections: nanoseconds between two of them,
        and how many may come at once."""
    def enter(self) -> bool:
        """Take a place; False if all are taken."""
    def leave(self) -> None:
        """Give a place back; reactors that waited for one accept again."""
    @property
    def preamble_full(self) -> bool:
        """Whether half of the places have clients whose preamble is being read."""

    def enter_preamble(self) -> None:
        """The preamble of one more client is being read."""

    def leave_preamble(self) -> None:
        """It was read, or the client has gone."""

    def take_spare(self) -> bool:
        """Take one descriptor more than a session has; False if the next session would miss it."""
    def give_spare(self) -> None:
        """Give such a descriptor back; reactors that waited for one accept again."""
    def enter_source(self, host: str, prefix: tuple[int, int]) -> bool:
        """Count one more connection of a client's source; False if it has all it may have.

        A source is the network of the address: `prefix` is how many bits of an IPv4 and of an IPv6 address make one.
        """
    def leave_source(self, host: str, prefix: tuple[int, int]) -> None:
        """Count one connection of a client's source less."""
    def of_source(self, host: str, prefix: tuple[int, int]) -> int:
        """The connections of a client's source that are counted."""
    def source_steps(self, host: str, prefix: tuple[int, int]) -> int:
        """How many entries of the table a look-up of this source compares."""
    def next_id(self) -> int:
        """A number for a session; no other session of this gate has it."""
    def skip_ids(self, least: int) -> None:
        """Number the sessions to come from `least` on, at least."""
    def take_lost(self) -> int:
        """Datagrams that were dropped for clients who have no UDP session, since the last call."""
    def take_forged(self) -> int:
        """How many of these had a source address that cannot be true, since the last call."""
    def force(self) -> None:
        """Take a place whether there is one or not: for a session that another process let in."""
    def calm(self) -> None:
        """The next time that clients have to wait here is told again."""
    @property
    def rate_waits(self) -> int:
        """Connections that waited for their turn by the rate, ever."""
    @property
    def full(self) -> int:
        """How often somebody found no place."""
    @property
    def live_max(self) -> int:
        """The bound; 0 is none."""
    @property
    def is_full(self) -> bool:
        """Whether the next one would find no place."""
    @property
    def live(self) -> int:
        """Who is inside."""
    @property
    def admitted(self) -> int:
        """Connections of the native lane that were let in, ever; those that ended too."""
    @property
    def histograms(self) -> tuple[tuple[tuple[int, ...], float], tuple[tuple[int, ...], float]]:
        """How long sessions lasted, and how long connects took: the counts of the buckets, and the sum in seconds."""
    @property
    def totals(self) -> tuple[int, int, int, int, int, int, int]:
        """Of the sessions of the native lane: admitted ever, live, and what they moved: bytes up and down, datagrams up
        and down, datagrams lost. A session that has ended, and whose record was handed out, is in it to the last byte.
        """

@final
class Server:
    """A server of a group as the reactors and the Python lane know it. Of any thread.

    The control plane keeps one for each server of a group (by the group's and the server's name) as long as either a
    configuration names it or sessions live on it, over reloads, and sets `state`, `weight`, `max_connections`. Both
    lanes count here. `tag` comes back in `Record.server`.
    """

    def __new__(cls, tag: int, weight: int = 1) -> Server:
        """A server that is up and has no bound; `tag` is not 0."""
    @property
    def tag(self) -> int: ...
    state: int
    """0 up, 1 down, 2 ejected, 3 drain, 4 maint. Only a server that is up gets new sessions; a UDP session of a server
    that is down, ejected or in maint gets another one with its next datagram."""
    weight: int
    """0 to 256; 0 is drain."""
    max_connections: int
    """The bound of its live sessions; 0 is none. A group looks when it is made whether any of its servers has one."""
    slow_since_ms: int
    """When a slow start began, in milliseconds of the monotonic clock; 0 is no slow start."""
    passed: int
    """How far it has come in the round of `roundrobin`; see `oinetd.upstream.balance`. Modulo 2 to the 64th."""
    failures: int
    """Connects that failed in a row. The reactors report a server once this reaches `failures_told` of the group, and
    each failure after that. To put a server on trial, set it to `failures_told` - 1 and `state` to 0; a success is
    then reported, too."""
    failed_ms: int
    """When the last connect failed, in milliseconds of the monotonic clock; 0 is never. With `all-down try` the lowest
    is tried first; a check that fails may set it."""
    @property
    def live(self) -> int:
        """Sessions that have selected it, also those that are still connecting."""
    @property
    def selected(self) -> int:
        """How often it was selected, ever."""
    @property
    def failed(self) -> int:
        """Connects that failed, ever."""
    def enter(self) -> bool:
        """Select it for a session of the Python lane; False if it is full."""
    def leave(self) -> None:
        """A session of the Python lane that selected it has ended, or tries another one."""
    def note_failed(self, now_ms: int) -> int:
        """A connect of the Python lane failed; returns how many failed in a row."""
    def note_worked(self) -> None:
        """It took a connection of the Python lane: no connect is overdue any more."""
    def took(self, took_ms: int) -> None:
        """It took a connection after this time."""
    @property
    def took_ms(self) -> int | None:
        """What connects took of late; None if none has been made."""
    @property
    def patience_ms(self) -> int:
        """After which time a connect to it is overdue."""
    @property
    def overdue(self) -> int:
        """Connects that are overdue since one succeeded."""
    def is_silent(self, limit: int) -> bool:
        """Whether the overdue connects would eject it if they failed, which takes `limit` in a row; 0 is never."""
    def wait(self, limit: int) -> int:
        """Count a connect as overdue that may wait on; the mark for `wait_over`, or 0 if enough wait already."""
    def wait_over(self, mark: int) -> None:
        """An overdue connect has ended."""
    def force(self) -> None:
        """Count a session that another process has given to it."""
    def count_on(self, selected: int, failed: int) -> None:
        """Add what another process has counted."""
    def calm(self) -> None:
        """The next failure that is reported by a reactor is followed by a report that it works again."""

def fill_table(places: array[int], steps: array[int], turns: array[int], members: array[int]) -> array[int]:
    """Maglev's table, for servers in the order of their names; see `oinetd.upstream.maglev.Turns`.

    Raises `ValueError` without a server, and for a value out of range.
    """

class _Entries(Protocol):
    """A `Table`, or a buffer of 16-bit numbers."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> int: ...

@final
class Table:
    """A table of Maglev that groups share: 65,537 indices of their members, or -1 in all of them.

    Raises `ValueError` for another number of entries, and if only some are -1.
    """

    def __new__(cls, entries: Buffer) -> Table: ...
    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> int: ...
    @property
    def users(self) -> int:
        """How many groups have it."""

class Member(NamedTuple):
    """A server in a group: its present addresses, at most 16, and what the configuration says of it there.

    Without addresses it is passed over. `sources` and `connect_ms` are its own, and stand before the rule's; empty and
    0 if it has none. `proxy_version` is that of the header that it gets first; 0 is none. `looping`, `may_self_connect`
    and `may_broadcast` are as in `Policy`.
    """

    server: Server
    addresses: Sequence[_Place] = ()
    backup: bool = False
    looping: Sequence[bool] = ()
    may_self_connect: bool = False
    may_broadcast: bool = False
    sources: Sequence[_Place] = ()
    connect_ms: int = 0
    proxy_version: int = 0

@final
class Group:
    """The servers of a group in the order written; immutable. Another one is made when servers come or go or have other
    addresses, and put in force with new policies; what `before` knows of addresses is kept.

    `balance` is 0 leastconn, 1 roundrobin, 2 random, 3 source, 4 first. `refuse` is `all-down refuse`. `failures_told`:
    see `Server.failures`; also with `passive off`, as names are resolved again then. With `ejects` a reactor ejects the
    server at once, unless it is the last usable one; the reader of the report may set `state` back. `tables` are those
    of Maglev, of the primaries and of the backups, for `source`: each a `Table`, or what one is made of, or None.
    """

    def __new__(
        cls,
        members: Sequence[Member],
        *,
        balance: int = 0,
        refuse: bool = False,
        all_backups: bool = False,
        slow_ms: int = 0,
        failures_told: int = 3,
        ejects: bool = False,
        tables: tuple[_Entries | None, _Entries | None] = (None, None),
        before: Group | None = None,
    ) -> Group: ...
    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers of its members."""
    def pick(
        self, host: str, tried: Sequence[int] = (), now_ms: int = 0, draw: int = 0, answering: bool = False
    ) -> int:
        """The index of the member for a client, without those in `tried` (at most five); nothing is counted.

        `draw` are 64 random bits. -1: every usable server was tried. -2: those that were not are full. -3: no server is
        usable, and `refuse` is set.
        """
    def select(self, host: str, tried: Sequence[int] = (), now_ms: int = 0, draw: int = 0) -> int:
        """As `pick`, and a session is counted there, until `Server.leave`."""
    @property
    def is_full(self) -> bool:
        """Whether a client that is accepted now would have to wait for room in a server."""

@final
class Names:
    """Which rule serves a client of a listener that rules share, by the server name and the protocols of its hello.

    `entries` are a name (`*.` for any first label, empty for whatever name), a protocol (empty for any), and the number
    of the rule, of which no two have a name and a protocol in common. `policies` are those of the rules.
    """

    def __new__(cls, entries: Sequence[tuple[bytes, bytes, int]], policies: tuple[Policy, ...] = ()) -> Names: ...
    def choose(self, name: bytes, protocols: bytes) -> int:
        """The number of the rule, -1 if there is none; each of the protocols is behind its length."""

@final
class Policy:
    """What is in force for a listener or a pair; immutable. `tag` comes back in every record that goes by it.

    `access` is global allow, global deny, own allow, own deny: pairs of kind and bytes as
    `oinetd.core.pattern` makes them.
    `relay` is 0 auto, 1 copy, 2 splice. More than 16 addresses are a `ValueError`. What `before` knows of its addresses
    is kept for those that are the same.
    Connections come from the first of `sources` that is of the destination's family, if there are any, and from
    a port of the kernel's choice. `may_self_connect` says that this may be a destination's port: each connect is then
    looked at, and one that came back to its own socket counts as refused. `may_broadcast` lets UDP sessions write to a
    destination that is a broadcast address. `looping` says of each address whether it leads back to a listener of ours
    if it is one of this machine: then it is not connected to, and that is ELOOP. With a `group` its servers are
    selected, and `addresses` is empty. With an `original_port`, which is the port of the listener, each client goes to
    where it was going, and `addresses` is empty.
    """

    def __new__(
        cls,
        tag: int,
        gate: Gate | None,
        *,
        addresses: Sequence[_Place] = (),
        looping: Sequence[bool] = (),
        may_self_connect: bool = False,
        may_broadcast: bool = False,
        group: Group | None = None,
        sources: Sequence[_Place] = (),
        access: Sequence[_Patterns] = ((), (), (), ()),
        relay: int = 0,
        buffer_bytes: int = 65536,
        pipe_bytes: int = 262144,
        connect_ms: int = 0,
        idle_ms: int = 0,
        half_close_ms: int = 0,
        stall_ms: int = 0,
        lifetime_ms: int = 0,
        keepalive: tuple[int, int, int] = (0, 0, 0),
        proxy: tuple[int, int, int, bool] = (0, 0, 0, False),
        accept: tuple[int, int, Sequence[tuple[int, bytes]]] = (0, 0, ()),
        flip_bytes: int = 0,
        move_turns: int = 0,
        silence_ms: int = 4000,
        source_prefix: tuple[int, int] = (32, 64),
        peer_uid: int = -1,
        protocol: int = 0,
        options: Sequence[tuple[int, bool, int, int, bytes]] = (),
        bandwidth: int = 0,
        names: Names | None = None,
        peek_ms: int = 0,
        from_client: bool = False,
        original_port: int = -1,
        before: Policy | None = None,
    ) -> Policy: ...
    @property
    def group(self) -> Group | None:
        """Its group."""
    @property
    def names(self) -> Names | None:
        """The table of a listener that rules share."""
    def address(self, at: int, server: int = 0) -> tuple[str, int]:
        """Host and port of address number `at` of the destination, or of the server with this tag in its group."""
    def begin_search(self) -> int:
        """The number of a search's turn."""
    def pick_address(self, tried: int, turn: int, now_ms: int) -> int:
        """The number of the address to try next, of those without a bit in `tried`; -1 if there is none."""
    def note_failed(self, at: int, now_ms: int) -> None:
        """Address number `at` did not take a connection."""
    def note_worked(self, at: int) -> None:
        """Address number `at` took a connection."""
    @property
    def in_use(self) -> bool:
        """Whether a listener or a connection still goes by it."""
    def decide(self, host: str) -> int:
        """The number of the ending of a client that the access rules refuse, by its numeric address; 0 lets it in."""

@final
class Passport:
    """A connection that no reactor has: taken out of one here, or made of what another process said of it.

    One that is forgotten is closed, and its places under the limits are given back.
    """

    @property
    def descriptors(self) -> tuple[int, int]:
        """Those of the client's and the upstream's socket. They belong to the connection."""
    @property
    def pending(self) -> tuple[bytes, bytes]:
        """Bytes that were read and not yet written, up and down."""
    @property
    def id(self) -> int:
        """The number of the session."""
    @property
    def tag(self) -> int:
        """That of its policy."""
    @property
    def token(self) -> int:
        """That of the pair; 0 of a connection of a listener."""
    @property
    def server(self) -> int:
        """The tag of its server; 0 if it has none."""
    def state(self) -> dict[str, Any]:
        """Everything else, for JSON: what `Hub.adopt` takes. `texts` has client and upstream, each with its port."""
    def release(self) -> None:
        """Another process has it: close its descriptors here, and give its places back."""

@final
class DatagramPassport:
    """The same of a UDP session."""

    @property
    def descriptor(self) -> int:
        """That of the upstream socket. It belongs to the session."""
    @property
    def id(self) -> int: ...
    @property
    def tag(self) -> int: ...
    def state(self) -> dict[str, Any]:
        """Everything else, for JSON: what `Hub.adopt_udp_session` takes."""
    def release(self) -> None:
        """Another process has it: close its descriptor here, and give its places back."""

@disjoint_base
class Hub:
    """Running reactor threads. To be called from one thread; `spin_us` 0 never polls before sleep.

    `slots_max` is for tests: a reactor has memory for so many connections, in multiples of 64, and no more.
    `gate` is the gate of connections, `udp_gate` that of UDP sessions.
    """

    def __new__(
        cls,
        gate: Gate,
        threads: int,
        spin_us: int = 0,
        slots_max: int = 0,
        udp_gate: Gate | None = None,
    ) -> Self: ...
    @property
    def threads(self) -> int:
        """The reactors that get new connections."""
    @property
    def reactors(self) -> int:
        """The reactors that there are: also those that only serve what they have."""
    @property
    def thread_ids(self) -> list[int]:
        """The kernel's number of each reactor's thread; 0 for one that has not begun to run."""
    def set_most(self, most: int) -> None:
        """Let at most this many reactors get new connections and UDP listeners; those that are missing are started.

        Raises `OSError` if one cannot be had.
        """
    def set_threads(self, threads: int) -> None:
        """Have this many reactors get new connections, at most as many as `set_most` said.

        Those above keep what they have. Raises `OSError` if one cannot watch the listening sockets.
        """
    def shed(self, index: int, to: int, share: int) -> None:
        """Move connections from reactor `index` to reactor `to` that do `share` thousandths of the work, busiest first.

        At most 256 at once. Raises `IndexError` if there is no such reactor.
        """
    def take_out(self, at_most: int, pairs: bool = False) -> tuple[list[Passport], int]:
        """Connections that relay, without those whose record of opening is unread; and how many are left.

        With `pairs`, those of `relay` instead of those of listeners.
        """
    def put_in(self, passport: Passport) -> None:
        """Go on with a connection, in one of the reactors."""
    def adopt(
        self,
        policy: Policy,
        state: Mapping[str, Any],
        client_fd: int,
        upstream_fd: int,
        up: bytes,
        down: bytes,
        token: int = 0,
        server: int = 0,
        address_at: int = 0,
    ) -> Passport:
        """A connection that another process took out, under this policy; it takes places here, limits or not.

        With a `token` it is one of a pair of sockets, as of `relay`, and takes none.

        It counts for the server of the policy's group that has the tag `server`; if that is 0, its address. Of a unix
        socket, `address_at` is the number of the address.

        The descriptors belong to it from here. Raises `ValueError`, `KeyError` or `TypeError` if `state` is not what
        `Passport.state` says, and then they do not.
        """
    def cpu_seconds(self) -> list[float]:
        """Processor time of each reactor's thread since it began, in seconds."""
    def set_loads(self, loads: Sequence[int]) -> None:
        """Say how loaded each reactor is, in thousandths of a core: a reactor that sleeps does not measure itself."""
    spin_us: int
    def fileno(self) -> int:
        """The bell: readable when there are records and the last `drain` was empty."""
    def hush(self) -> None:
        """Take the ring of the bell: to be called when its descriptor is readable."""
    def add_listener(self, fd: int, policy: Policy) -> int:
        """Serve a listening socket; the answer is its index."""
    def replace_listener(self, index: int, policy: Policy) -> None:
        """Put another policy in force for the connections to come."""
    def remove_listener(self, index: int) -> None:
        """Accept no more; on return no reactor touches the socket."""
    def add_udp_listener(self, fd: int, policy: Policy, beside: int | None = None, paused: bool = False) -> int:
        """Serve a bound UDP socket, in one of the reactors; the answer is the key for the other calls.

        One that is `paused` is not read before `resume_udp_listener`.

        It is the reactor that has, or had, the UDP socket with the key `beside`; else the one with the fewest of them.

        `idle_ms` of the policy is the life of a silent session. The record of the last
        session of a listener that lingers has `token` 1.
        """
    def pause_udp_listener(self, key: int) -> None:
        """Read the socket no more; its sessions go on."""
    def resume_udp_listener(self, key: int) -> None:
        """Read it again. Raises `OSError` if it cannot be watched."""
    def take_out_udp_sessions(self, key: int, at_most: int) -> list[DatagramPassport]:
        """Sessions of a paused listener. Their records of opening are to be read before."""
    def put_in_udp_session(self, key: int, passport: DatagramPassport) -> None:
        """Go on with a session, which answers through this listener. Raises `OSError` if there is no room for it."""
    def adopt_udp_session(self, policy: Policy, state: Mapping[str, Any], fd: int) -> DatagramPassport | None:
        """A UDP session that another process took out, under this policy; it takes places here, limits or not.

        None if the policy has no such destination, or there is no memory. The descriptor, a connected socket, belongs
        to the session from here. Raises `ValueError`, `KeyError` or `TypeError` if `state` is not what
        `DatagramPassport.state` says, `OSError` if the socket is not connected; then, and with None, it does not.
        """
    def replace_udp_listener(self, key: int, policy: Policy, anew: bool) -> None:
        """Put another policy in force for sessions to come; `anew` ends lingering and reports refused clients again."""
    def linger_udp_listener(self, key: int) -> int:
        """Let nobody new in; how many sessions there are."""
    def udp_sessions_of(self, key: int) -> int:
        """How many sessions a listener has."""
    def revoke_udp_sessions(self, key: int, policy: Policy) -> int:
        """End the sessions of clients whom the access lists of `policy` refuse; how many those were."""
    def remove_udp_listener(self, key: int) -> None:
        """Abort its sessions; on return no reactor touches the socket."""
    def end_quiet_udp_sessions(self) -> None:
        """End the UDP sessions that wait for no answer, or have done so for two seconds."""
    def trim_udp_sessions(self) -> None:
        """End the sessions above the bound of `udp_gate`, those that were silent for longest."""
    def epolls(self) -> list[int]:
        """The descriptors of the reactors' epolls."""
    def abandon(self) -> None:
        """To be called in a child of the process, which has no reactor: nothing waits for one from here."""
    def set_own_listeners(self, listeners: Sequence[tuple[_Place, bool]]) -> None:
        """The UDP sockets of this process, in the order of their ports, and whether they take no IPv4.

        Datagrams from one of them begin no session: they count as lost.
        """
    def relay(self, client_fd: int, upstream_fd: int, policy: Policy, token: int) -> int:
        """Relay between two connected sockets, which belong to the reactors from here; the answer is its id."""
    def kill(self, id: int) -> None:
        """Reset both peers of a session, if there is one of this number."""
    def end_sessions(self, server: Server, ending: int, part: int = 0, parts: int = 1) -> None:
        """End the sessions that have selected a server, with a reset: those whose number modulo `parts` is `part`.

        To spread them over a time, call it for one part after the other. `ending` is the number of an `Ending`.
        """
    def abort_all(self) -> None:
        """Reset both peers of every session."""
    totals_only: bool
    """Report no session one by one: openings have no record, and ends are added up."""
    def drain(self, at_most: int) -> list[Record]:
        """Records in the order of each reactor; an empty answer means that the bell will ring for the next.

        A record of the kind for counted sessions has their number in place of an id.
        """
    @property
    def emptied(self) -> bool:
        """Whether each ring was seen empty by the last `drain`, behind what that has answered."""
    def snapshot(self) -> list[Record]:
        """Live connections as they are now."""
    def snapshot_parts(self) -> LiveRecords:
        """Live connections of this moment, to be taken in parts."""
    def judge(self, cases: Sequence[tuple[Gate, Policy, bool]]) -> list[int]:
        """For each gate of a rule: how many of its live connections the access lists of the policy refuse.

        If the third of a case is true, these end with a reset.
        """
    def reactor_counts(self) -> list[tuple[int, int, int, int, str]]:
        """Of each reactor: the number of its thread, its connections, its UDP sessions, how many connections it has
        given to others, and whether it may poll before it sleeps: "off", "on" or "paused".
        """
    def stats(self) -> dict[str, Any]:
        """Counters of all reactors together; `live` is a list with the connections of each.

        `udp_sessions` and `udp_listeners` are such lists, too; `udp_session_bytes` is what a UDP session takes.
        `connection_bytes` is what an idle connection takes of the process's memory, `splice_errno` why splice is no
        longer used, 0 if it is.
        """
    def stop(self) -> list[Record]:
        """Abort everything, end the threads, and return the records that are left. A second call returns none."""

@final
class LiveRecords:
    """The live connections of a moment."""

    def take(self, at_most: int) -> list[Record]:
        """The next ones, none at the end."""

@final
class DatagramBatch:
    """Datagrams of one `receive`, until the next one; see `_fastpath/state/datagram.pxd`. Of one thread.

    The bytes that name a sender are the same for the same client and the same address of ours that it wrote to, and
    for no other; they are what `send` takes.
    """

    def __new__(cls) -> DatagramBatch: ...
    @property
    def forged(self) -> int:
        """How many datagrams the last `receive` dropped because their source address cannot be true."""
    def take_trains(self, fd: int) -> bool:
        """Let the kernel hand over several datagrams of one sender in one go; False if it cannot."""
    def receive(self, fd: int, at_most: int, named: bool) -> list[tuple[bytes, int, int]]:
        """Take what there is: for each sender its name, and the first and the number of its datagrams.

        At most 64 messages of the kernel, each of which is a datagram or a train of them. Without `named`, for a
        connected socket, all is of one sender.
        """
    def take(self, first: int, count: int) -> list[bytes]:
        """Copies of datagrams."""
    def send(
        self, fd: int, first: int, count: int, to: bytes | None = None, single: bool = False
    ) -> tuple[int, int, int]:
        """Send datagrams on; how many and how many bytes the kernel took, and the last errno of the others, or 0.

        `single` makes no trains.
        """
    def send_headed(self, fd: int, first: int, count: int, head: bytes, once: bool = False) -> tuple[int, int, int]:
        """The same to where the socket is connected to, each behind `head`, which is not in the bytes; with `once`
        only the first one that the kernel takes. What does not fit behind it into 65,507 bytes is lost."""
    @staticmethod
    def explain(sender: bytes) -> tuple[bytes, bytes]:
        """The sockaddr of a sender, and the pktinfo for an answer, empty on a socket that is bound to one address."""

def is_forbidden_destination(host: str) -> bool:
    """Whether a client of `original` may not choose this address now."""

def read_proxy_header(data: bytes, datagram: bool = False) -> tuple[Any, ...]:
    """What `oinetd.preamble.proxy_protocol` makes of the bytes: (0, fewest bytes), (2, fault, byte), or 1 with length,
    version, source and destination (or None), and the bytes of the TLVs."""

def read_tls_hello(data: bytes) -> tuple[Any, ...]:
    """What `oinetd.preamble.tls_hello` makes of the bytes: (0, fewest bytes), (2, fault, byte), or 1 with the server
    name and the bytes of the list of protocols."""

def write_proxy_header(
    version: int,
    source: tuple[str, int] | None,
    destination: tuple[str, int] | None,
    tlvs: Iterable[tuple[int, bytes]] = (),
    *,
    checksum: bool = False,
    datagram: bool = False,
) -> bytes:
    """The header that `oinetd.preamble.proxy_writer` writes."""
