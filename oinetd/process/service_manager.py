"""Notifications to the service manager: the protocol of sd_notify(3), a datagram of `NAME=value` lines."""

from __future__ import annotations

import array
import contextlib
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Final, Self

__all__ = ["STORED", "ServiceManager"]

STORED: Final = re.compile(r"oinetd-(tcp|udp)-.+-[0-9]+")
"""The names of stored listeners. A socket unit has another one by default: its own, which ends with `.socket`."""

UNKNOWN: Final = 0
"""An inode."""

SEND_WAIT_S: Final = 1.0
"""How long a change of state waits for a manager whose queue is full. A status or a keep-alive does not wait."""


class ServiceManager:
    """The service manager of this process. Without one, every method does nothing.

    Nothing is raised if the manager has gone. `watchdog_s` is the interval of keep-alive notifications, half of the
    watchdog's timeout; 0 means none. `stores` is whether it keeps descriptors for the process that follows a crash.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0, *, stores: bool = False) -> None:
        # A leading @ is an abstract socket. Other kinds (vsock) are for virtual machines.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s if address else 0.0
        self.stores = stores and bool(address)
        self._stored: dict[str, int] = {}

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int) -> Self:
        """The manager that `environ` names for the process `pid`. Its variables are removed, so no child uses them."""
        address = environ.pop("NOTIFY_SOCKET", "")
        period_us = environ.pop("WATCHDOG_USEC", "")
        watched_pid = environ.pop("WATCHDOG_PID", "")
        mine = watched_pid in ("", str(pid))
        stores = environ.pop("FDSTORE", "").strip("0").isdecimal()
        return cls(address, int(period_us) / 2e6 if mine and period_us.isdecimal() else 0.0, stores=stores)

    def __bool__(self) -> bool:
        return bool(self._address)

    def ready(self, status: str) -> None:
        """The start or a reload is complete. Sends the process id too: a process that forked has another one."""
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={_line(status)}", SEND_WAIT_S)

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it. `Type=notify-reload` needs the time to match the two."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", SEND_WAIT_S)

    def replaced_by(self, pid: int) -> None:
        """Another process serves from now on; only the present main process may say so."""
        self._send(f"MAINPID={pid}", SEND_WAIT_S)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which another process of this service finds the manager."""
        if not self._address:
            return {}
        address = "@" + self._address[1:] if self._address.startswith("\0") else self._address
        period = {"WATCHDOG_USEC": str(round(self.watchdog_s * 2e6))} if self.watchdog_s else {}
        store = {"FDSTORE": "1"} if self.stores else {}
        return {"NOTIFY_SOCKET": address, **period, **store}

    def store(self, sockets: Mapping[str, socket.socket]) -> None:
        """Have these kept, by name, and none of earlier calls that are not among them."""
        if not self.stores:
            return
        now = {name: os.fstat(sock.fileno()).st_ino for name, sock in sockets.items()}
        # A listener with other options has another socket, and the same name.
        kept = {name for name, inode in self._stored.items() if inode in (UNKNOWN, now.get(name)) and name in now}
        for name in self._stored.keys() - kept:
            self._send(f"FDSTOREREMOVE=1\nFDNAME={name}", SEND_WAIT_S)
        for name in now.keys() - kept:
            # Not polled: a listener is ready as long as a client waits, and an event would take it out of the store.
            self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", SEND_WAIT_S, sockets[name].fileno())
        self._stored = now

    @property
    def stored(self) -> dict[str, int]:
        """What it keeps: the names, each with the inode of the socket."""
        return dict(self._stored)

    def keeps(self, names: Iterable[str] | Mapping[str, int]) -> None:
        """The manager has these in its store already; with inodes if those are known."""
        self._stored.update(names if isinstance(names, Mapping) else dict.fromkeys(names, UNKNOWN))

    def stopping(self, status: str) -> None:
        """A stop has begun. Nothing is kept over it: listeners refuse clients from now on, also for who has copies."""
        self.store({})
        self._send(f"STOPPING=1\nSTATUS={_line(status)}", SEND_WAIT_S)

    def status(self, status: str) -> None:
        self._send(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """The keep-alive of the watchdog, due every `watchdog_s`."""
        self._send("WATCHDOG=1")

    def _send(self, text: str, wait_s: float = 0.0, descriptor: int = -1) -> None:
        if not self._address:
            return
        # A new socket for each notification: they are rare, and an idle process keeps no descriptor for them.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))] if descriptor >= 0 else []
        # The manager may have gone or be too busy; it has timeouts of its own.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(wait_s)
            sender.sendmsg([text.encode()], rights, 0, self._address)


def _line(text: str) -> str:
    return " ".join(text.split())
