"""One listening socket of the Python lane: a place first, then accept, in batches.

While the process or the rule is at its limit nothing is accepted: clients wait in the kernel's queue and lose nothing.
If the machine has no descriptor or memory left, accepting pauses and tries again; what is open goes on. So the socket
is in the poller's epoll, not in the loop's: libuv ends the process if the kernel has no memory for a watch
(src/unix/linux.c, uv__io_poll).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from oinetd.core.lane import Lane, Listener
from oinetd.core.service import Service
from oinetd.lanes.python.departure import service_of
from oinetd.lanes.python.session import Session
from oinetd.net.poller import LEVEL_READ

__all__ = ["StreamListener"]

log = logging.getLogger("oinetd")

ACCEPT_BATCH = 64
"""Connections taken in one wake, so that a flood of new ones leaves time for those that are open."""
PAUSE_S = 0.1
"""First pause after a shortage; it doubles up to `PAUSE_MAX_S`, so that a lasting one costs nothing."""
PAUSE_MAX_S = 1.0
CALM_S = 3.0
"""Time without a shortage before "accepts again" is logged: at the limit of descriptors each session that ends lets
one in, and the next accept fails."""

_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
_CLIENT_GONE = frozenset({
    errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENONET, errno.EPERM, errno.ETIMEDOUT,
})  # fmt: skip


class StreamListener(Listener):
    """Accepts on `sock` for `service`, which a reload replaces; earlier sessions keep theirs."""

    def __init__(
        self,
        lane: Lane,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        service: Service,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        super().__init__(lane, sock, service)
        self._loop = loop
        self._tasks = tasks
        self._reading = False
        self._pause_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._calm: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on. A second call does nothing. Raises `OSError` if it cannot be watched."""
        if not self._reading and self.sock.fileno() >= 0:
            self.service.dialer.poller.watch(self.sock.fileno(), self._accept, LEVEL_READ)
            self._reading = True

    def replace_service(self, service: Service) -> None:
        """Serve the connections to come differently."""
        self._forget_waiting()
        self.service = service
        self.start()

    def release(self) -> None:
        """Accept no more; the socket and its queue stay."""
        self._pause()
        self._forget_waiting()
        for timer in (self._timer, self._calm):
            if timer is not None:
                timer.cancel()
        self._timer = self._calm = None

    def adopt(
        self, state: Mapping[str, Any], fds: tuple[int, ...], pending: tuple[bytes, bytes]
    ) -> Callable[[], object] | None:
        if "relayed" not in state:
            return None  # of the native lane
        service = service_of(self.service, state)
        if service is None or state["engine"] != service.engine.name:
            return None
        client, upstream = fds
        session = Session.adopted(service, state, (client, upstream), pending)
        return lambda: session.start(self._loop, self._tasks)

    def empty_queue(self) -> None:
        """Serve those who are in the queue already, as far as there is room: a client that was let in stays."""
        registry, rule = self.service.registry, self.service.rule
        # The kernel's queue holds one more than asked for.
        for _ in range(self.service.settings.listen_backlog + 1):
            if not registry.take_place(rule) or not self._accept_one():
                return

    def _forget_waiting(self) -> None:
        self.service.registry.forget_waiting(self._start_again)
        if self.service.group is not None:
            self.service.group.forget_waiting(self._start_again)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self.service.dialer.poller.forget(self.sock.fileno())

    def _accept(self, _events: int = 0) -> None:
        registry, rule, group = self.service.registry, self.service.rule, self.service.group
        for _ in range(ACCEPT_BATCH):
            if self.service.preamble is not None and registry.gate.preamble_full:
                self._pause()
                self._look_later()
                return
            if group is not None and group.is_full:
                group.found_full()
                self._pause()
                group.when_room(self._start_again)
                return
            if due := rule.buckets.connect_at():
                self._pause()
                self._look_later(due - time.monotonic())
                return
            if not registry.take_place(rule):
                rule.buckets.connect_given_back()
                self._pause()
                registry.when_room(self._start_again)
                if registry.gate.is_full:  # pipes may give way, of which no session's end tells
                    self._look_later()
                return
            if not self._accept_one():
                return

    def _look_later(self, pause_s: float = PAUSE_S) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(pause_s, self._start_again)

    def _accept_one(self) -> bool:
        """Take one connection, into a place that was taken; whether there may be another."""
        service = self.service
        try:
            client, peer = self.sock.accept()
        except OSError as error:
            service.registry.give_back(service.rule)
            service.rule.buckets.connect_given_back()
            if error.errno in _CLIENT_GONE:
                # accept(2): errors of the client's network are told here and concern only the one that has gone.
                return True
            if error.errno != errno.EAGAIN:
                # A shortage, or an unknown error: trying again at once would only use processor time.
                self._back_off(error)
            return False
        self._pause_s = 0.0
        service.rule.buckets.connected()
        client.setblocking(False)
        session_id = service.registry.gate.next_id()
        Session(service, session_id, client, peer, lambda: self.service).start(self._loop, self._tasks)
        return True

    def _start_again(self) -> None:
        """Accept again after a pause; what has no memory now is tried later."""
        try:
            self.start()
        except OSError as error:
            self._tell(error)
            self._wait()

    def _back_off(self, error: OSError) -> None:
        self._tell(error)
        if self._reading:
            self._pause()
            self._wait()

    def _wait(self) -> None:
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S) or PAUSE_S
        self._look_later(self._pause_s)

    def _tell(self, error: OSError) -> None:
        """Log a shortage once, until it is over."""
        if self._calm is not None:
            self._calm.cancel()
        else:
            remedy = " Raise the limit of descriptors or lower max-connections" if error.errno in _NO_DESCRIPTOR else ""
            log.warning(
                "%s: cannot accept (%s); trying again until it works.%s", self.service.route, error.strerror, remedy
            )
        self._calm = self._loop.call_later(CALM_S, self._recovered)

    def _recovered(self) -> None:
        self._calm = None
        log.info("%s accepts again", self.service.route)
