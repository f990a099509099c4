"""What an upgrade asks of a forwarder besides its sessions: servers, access rules, the log, the listening sockets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from oinetd.inspection import Inspection
from oinetd.net.sockets import bound_address
from oinetd.observe.connection_log import ConnectionLog

__all__ = ["Succession"]

log = logging.getLogger("oinetd")


class Succession(Inspection):
    """The part of a `Forwarder` by which one process follows another."""

    _connection_log: ConnectionLog

    def server_documents(self) -> list[dict[str, Any]]:
        """What is known of servers, for `restore_servers` of another process."""
        groups = self._reload.groups if self._stopped is not None else None
        return groups.documents() if groups is not None else []

    def restore_servers(self, documents: Iterable[Mapping[str, Any]], *, counters: bool) -> None:
        """Let servers be as another process has said: their health, or later their `counters` and an operator's words.

        What is not understood is logged.
        """
        groups = self._reload.groups
        if groups is None:
            return
        for said in documents:
            try:
                groups.restore(said, counters=counters)
            except (LookupError, ValueError, TypeError, OverflowError) as error:
                log.warning("upgrade: a server keeps nothing of its state: %s", error)

    def settle_in(self, *, reopen: bool) -> None:
        """The other process is done: let the access rules in force hold for sessions that it let in; see `on-deny`.

        `reopen` is whether it was told to reopen the log after it had handed the descriptor over.
        """
        if reopen:
            self._connection_log.reopen()
        self._reload.check_access()

    @property
    def log_reopened(self) -> int:
        """How often the log was reopened."""
        return self._connection_log.reopened

    def log_descriptor(self) -> int:
        """A copy of the descriptor of the log file; -1 if the log is no open file."""
        return self._connection_log.descriptor()

    def flush_log(self) -> bool:
        """Have the lines written that are queued; waits for the file, two seconds at most. Whether all are."""
        return self._connection_log.flush()

    def stored(self) -> dict[str, socket.socket]:
        """The listening sockets of the internet by names, for a service manager that keeps them over a crash."""
        found = {}
        for key, listener in self._listeners.items():
            address = bound_address(listener.sock)
            if not address.is_unix:
                host = address.host.replace(":", "_")
                found[f"oinetd-{key.protocol.value}-{host}-{address.port}"[:255]] = listener.sock
        return found
