"""The contracts of a lane and of its listeners.

A lane serves rules from accept to end. The forwarder and its reload know the lanes by these contracts only. One suite
of tests (tests/unit/test_lane_contract.py) holds every lane to them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeAlias

from oinetd.core.engine import Engine
from oinetd.core.histogram import HistogramCounts
from oinetd.core.record import SessionRecord, Totals
from oinetd.core.service import Service
from oinetd.model import AccessRule, Config, Endpoint, Rule
from oinetd.upstream.loops import Bound

__all__ = ["AccessCheck", "Departing", "Lane", "Listener"]

AccessCheck: TypeAlias = Mapping[Rule, tuple[tuple[AccessRule, ...], bool]]
"""Rules to check live connections by: the global access rules, and whether to reset those that are refused."""


class Departing(Protocol):
    """A session on its way to another process: no lane has it. It stays open until one of the methods is called."""

    @property
    def id(self) -> int: ...

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Of the client's and the upstream's socket, of a UDP session the latter; another process gets copies."""
        ...

    @property
    def pending(self) -> tuple[bytes, bytes]:
        """Bytes that were read and not yet written, up and down."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything else, for JSON."""
        ...

    def release(self) -> None:
        """The other process has it."""
        ...

    def put_back(self) -> None:
        """The other process has died, or does not want it: go on here."""
        ...


class Listener:
    """A listening socket that a lane serves, by the `service` in force for new sessions.

    Sessions of a UDP socket answer through it: `has_sessions`, `linger` and `revoke` are about those. A TCP listener
    has none: its connections have sockets of their own.
    """

    def __init__(self, lane: Lane, sock: socket.socket, service: Service) -> None:
        self.lane = lane
        self.sock = sock
        self.service = service
        self._checked = (service.global_access, service.route.rule.access)

    def start(self) -> None:
        """Accept from now on; a second call does nothing. Raises `OSError` if there is no room to watch the socket."""
        raise NotImplementedError

    def replace_service(self, service: Service) -> None:
        """Serve new sessions differently; socket, queue and live sessions stay. Lingering ends."""
        raise NotImplementedError

    def refresh(self) -> None:
        """The destination, or the source, has other addresses. Does nothing if sessions ask for them at each dial."""

    def release(self) -> None:
        """Accept no more, and end the sessions that answer through the socket; the socket and its queue stay."""
        raise NotImplementedError

    def pause(self) -> None:
        """Read the socket no more until `start`; sessions that answer through it go on."""
        self.release()

    def take_out(self, at_most: int) -> list[Departing]:
        """Sessions that answer through the socket, for another process; after `pause`."""
        return []

    def adopt(
        self, state: Mapping[str, Any], fds: tuple[int, ...], pending: tuple[bytes, bytes]
    ) -> Callable[[], object] | None:
        """Take a session of another process over, and its descriptors; None if it cannot be had here.

        It goes on when the result is called. A UDP listener may be asked before its `start`. Raises `ValueError`,
        `TypeError`, `KeyError` or `OSError` if `state` is not the document of a session; then, and with None, the
        descriptors are the caller's.
        """
        return None

    @property
    def has_sessions(self) -> bool:
        """Whether sessions live that answer through the socket."""
        return False

    def linger(self, on_closed: Callable[[], object]) -> None:
        """Let in no new client. With the last session close the socket and call `on_closed`, perhaps at once."""
        raise NotImplementedError

    def end(self) -> None:
        """End the sessions that answer through the socket; a listener that lingers closes."""
        raise NotImplementedError

    def revoke(self, access: tuple[AccessRule, ...], *, anew: bool = False) -> int:
        """End sessions that the global rules `access`, or the rule's own, now refuse; returns their number.

        Rules that have not changed are not looked at, but `anew`.
        """
        rules = (access, self.service.route.rule.access)
        if rules == self._checked and not anew:
            return 0
        self._checked = rules
        return self._end_refused(rules)

    def _end_refused(self, access: tuple[tuple[AccessRule, ...], tuple[AccessRule, ...]]) -> int:
        return 0


class Lane(Protocol):
    """A way to serve rules. Until `running`, only `eligible` may be called."""

    @property
    def running(self) -> bool:
        """Whether it can serve; `eligible` starts a lane that a rule needs."""
        ...

    @property
    def name(self) -> str:
        """Its name, as commands and metrics say it."""
        ...

    @property
    def reactors(self) -> int:
        """The number of native threads."""
        ...

    def eligible(self, config: Config, rule: Rule) -> str | None:
        """None if this lane can serve `rule`, otherwise the reason.

        Raises `EngineUnavailable` if the rule insists on what this lane cannot give.
        """
        ...

    def label(self, engine: Engine) -> str:
        """The lane in the log; `engine` relays connections that a lane in Python accepted."""
        ...

    def serve(self, sock: socket.socket, service: Service, *, start: bool = True) -> Listener:
        """Serve `sock` from now on, or with its `start`. Raises `OSError` if the machine has no room for it."""
        ...

    def reconfigure(self, config: Config) -> None:
        """Apply the settings that belong to no listener."""
        ...

    def set_own_listeners(self, datagrams: Iterable[Bound]) -> None:
        """The UDP listeners of all lanes: a datagram from one of them is a forwarding loop."""
        ...

    def trim_datagrams(self) -> None:
        """End the UDP sessions above the limit of their gate."""
        ...

    def check_access(self, rules: AccessCheck) -> Mapping[Rule, int]:
        """The number of live connections of each rule that its access rules refuse; some are reset, see there."""
        ...

    def report_each_session(self, each: bool) -> None:
        """Whether the watcher is to hear of each session; otherwise totals are enough."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a client waits or a session lives that the registry does not know."""
        ...

    def settle(self) -> None:
        """Bring the counters of the registry up to date."""
        ...

    def totals(self) -> Mapping[Endpoint | Rule, Totals]:
        """The sums of sessions that the registry does not know, by the `identity` of rules; looks at no session."""
        ...

    def histograms(self) -> Mapping[Endpoint | Rule, tuple[HistogramCounts, HistogramCounts]]:
        """Durations and connect times of sessions that the registry does not know, by the `identity` of rules."""
        ...

    def sessions(self) -> Iterable[SessionRecord]:
        """The live sessions, each with its counts of the moment when it is reached. One that has ended meanwhile may
        be among them."""
        ...

    def kill(self, session_id: int, *, known: bool = False) -> bool:
        """End one session with a reset for both peers; False if it is not one of this lane. A `known` one is not
        searched for."""
        ...

    def take_out(self, at_most: int) -> tuple[list[Departing], int]:
        """Take out connections that can move to another process; the second value is how many of the others may be able
        to soon."""
        ...

    def end_quiet(self) -> None:
        """End the UDP sessions that wait for no answer."""
        ...

    def abort_all(self) -> None:
        """End every session with a reset for both peers."""
        ...

    async def close(self) -> None:
        """Report every session as ended and free everything; listeners are released and sessions aborted before."""
        ...
