"""Whether a download failed because there is no network: the only reason to skip a test that downloads."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from typing import Final

import pytest

__all__ = ["OFFLINE", "reachable", "without_network"]

OFFLINE: Final = re.compile(
    # The resolver and the kernel, as pip and apt quote them.
    r"Temporary failure in name resolution|Name or service not known|Temporary failure resolving '\S+'"
    r"|Could not resolve '\S+'|Network is unreachable|Connection refused"
    # pip, of an index or proxy that does not answer; apt, of a mirror.
    r"|Connection to \S+ timed out|Read timed out|Cannot connect to proxy|connection timed out"
    # The Makefile, which has read pip's page.
    r"|the package index cannot be reached"
)
"""What pip, apt and the Makefile say where there is no network. A misspelled name is none of it."""


def reachable(host: str, port: int, patience_s: float = 10.0) -> bool:
    """Whether something listens there: debootstrap says the same of no network and of a release that does not exist."""
    try:
        socket.create_connection((host, port), patience_s).close()
    except OSError:
        return False
    return True


def without_network() -> list[str]:
    """What goes before a command so that it has no network; skips the test if there are no namespaces."""
    words = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("there are no network namespaces here")
    return words
