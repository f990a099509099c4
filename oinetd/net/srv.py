"""SRV records (RFC 2782), by dnspython, which is an extra and is imported only if a configuration asks for them."""

from __future__ import annotations

import socket
from importlib import import_module
from typing import Any, Final, NamedTuple

__all__ = ["ServiceRecord", "find_services", "missing_extra"]

LIFETIME_S: Final = 5.0
"""The time for a lookup, all name servers included."""


class ServiceRecord(NamedTuple):
    """Where a service is: the lowest priority is used first, the others are backups."""

    priority: int
    weight: int
    port: int
    target: str


def missing_extra() -> str:
    """Why there can be no lookup; empty if there can be."""
    try:
        import_module("dns.asyncresolver")
    except ImportError:
        return "resolve=srv needs dnspython: install oinetd[dns], or python3-dnspython"
    return ""


def _resolver() -> Any:
    return import_module("dns.asyncresolver").get_default_resolver()


async def find_services(name: str) -> list[ServiceRecord]:
    """The records of `name`, the lowest priority first, of equal ones by target and port.

    Raises `OSError`: `socket.gaierror` if there is no such record, another one if there was no answer.
    """
    dns = import_module("dns.resolver")
    errors = import_module("dns.exception")
    try:
        answer = await _resolver().resolve(name, "SRV", lifetime=LIFETIME_S)
    except (dns.NXDOMAIN, dns.NoAnswer):
        raise socket.gaierror(socket.EAI_NONAME, "it has no SRV record") from None
    except errors.DNSException as error:
        raise OSError(0, f"no answer from the name server ({type(error).__name__})") from None
    found = [
        ServiceRecord(record.priority, record.weight, record.port, record.target.to_text(omit_final_dot=True))
        for record in answer
    ]
    if [record.target for record in found] in ([""], ["."]):  # RFC 2782: decidedly not available at this domain
        raise socket.gaierror(socket.EAI_NONAME, "the service is not available at this domain")
    return sorted(found, key=lambda record: (record.priority, record.target, record.port))
