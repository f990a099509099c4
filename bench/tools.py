"""The programs that the bench uses: their paths and versions, and the package to install if one is missing."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys

from bench.errors import ToolMissing

__all__ = ["PACKAGES", "available", "need", "need_libraries", "version"]

PACKAGES = {
    "cc": "gcc",
    "debootstrap": "debootstrap",
    "ethtool": "ethtool",
    "haproxy": "haproxy",
    "iperf3": "iperf3",
    "netperf": "netperf, which is in Debian's non-free: add that word to the sources in /etc/apt, then apt update",
    "netserver": "netperf, which is in Debian's non-free: add that word to the sources in /etc/apt, then apt update",
    "nft": "nftables",
    "nginx": "nginx and libnginx-mod-stream",
    "nsenter": "util-linux",
    "perf": "linux-perf",
    "redir": "redir",
    "rinetd": "rinetd",
    "socat": "socat",
    "strace": "strace",
    "sysctl": "procps",
    "tc": "iproute2",
    "tcpdump": "tcpdump",
    "wrk": "wrk",
}
"""Debian's name of the package that holds each program."""

VERSION_ARGUMENTS = {
    "cc": "--version",
    "haproxy": "-v",
    "iperf3": "--version",
    "netperf": "-V",
    "nft": "--version",
    "nginx": "-v",
    "perf": "--version",
    "redir": "--version",
    "rinetd": "-v",
    "socat": "-V",
    "strace": "--version",
    "tcpdump": "--version",
    "wrk": "-v",
}

# Daemons live where an ordinary user's PATH does not reach.
_SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def available(program: str) -> str | None:
    """The path of `program`, None if it is not installed."""
    return shutil.which(program, path=_SEARCH)


def need(program: str) -> str:
    """The path of `program`. Raises `ToolMissing` with the package that holds it."""
    path = available(program)
    if path is None:
        raise ToolMissing(f"{program} is not installed: apt install {PACKAGES.get(program, program)}")
    return path


def need_libraries(*modules: str) -> None:
    """Raise `ToolMissing` if one of the Python libraries of the `bench` extra is missing."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ToolMissing(f"{', '.join(missing)} not installed: {sys.executable} -m pip install -e bench")


@functools.cache
def version(program: str) -> str:
    """The version that `program` prints; empty if it is not installed or prints none."""
    path = available(program)
    argument = VERSION_ARGUMENTS.get(program)
    if path is None or argument is None:
        return ""
    try:
        done = subprocess.run([path, argument], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout + done.stderr)
    return found.group() if found else ""
