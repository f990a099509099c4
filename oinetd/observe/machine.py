"""Figures of the kernel about this process: descriptors, the load of the reactor threads, accept queues."""

from __future__ import annotations

import os
import resource
import socket
import struct
from dataclasses import dataclass
from typing import Final

__all__ = ["ThreadTimes", "accept_queue", "descriptor_limit", "descriptors_open", "reactor_times"]

REACTOR_COMM: Final = "oinetd-reactor"
_BACKLOG: Final = struct.Struct("=II")
_BACKLOG_AT: Final = 24
"""In `struct tcp_info`, tcpi_unacked and tcpi_sacked: for a listening socket the queue and its limit."""


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """The times of a thread since its start: seconds on a core, and seconds of waiting for a core."""

    thread: int
    running_s: float
    waiting_s: float


def reactor_times() -> list[ThreadTimes]:
    """The times of the reactor threads of this process, in the order of their start; empty without schedstats."""
    found = []
    try:
        threads = sorted(map(int, os.listdir("/proc/self/task")))
    except OSError:
        return []
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/comm", encoding="ascii", errors="replace") as file:
                if file.read().strip() != REACTOR_COMM:
                    continue
            with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
                running, waiting, *_ = map(int, file.read().split())
        except (OSError, ValueError):
            continue  # it has ended, or the kernel keeps no such figures
        found.append(ThreadTimes(thread, running / 1e9, waiting / 1e9))
    return found


def descriptors_open() -> int:
    """The number of open descriptors; the kernel counts them without listing them (Linux 6.2), else they are listed."""
    try:
        size = os.stat("/proc/self/fd").st_size
        return size or len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def descriptor_limit() -> int:
    """The soft limit of descriptors; 0 if there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft


def accept_queue(sock: socket.socket) -> tuple[int, int]:
    """The number of connections in the accept queue of a listening TCP socket, and its limit."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG_AT + _BACKLOG.size)
    except OSError:
        return 0, 0
    if len(info) < _BACKLOG_AT + _BACKLOG.size:
        return 0, 0
    queued, most = _BACKLOG.unpack_from(info, _BACKLOG_AT)
    return queued, most
