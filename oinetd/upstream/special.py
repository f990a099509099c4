"""Addresses that a name server or a file must not choose for us: this machine, its link, or many machines.

An operator who writes an address means it, and so does one who writes `localhost`. A name of others, such as that of an
SRV record, could otherwise lead clients to a service of this machine, or to the metadata of a cloud (169.254.169.254).
"""

from __future__ import annotations

import errno
import ipaddress
import logging

from oinetd.net.sockets import Address

__all__ = ["is_special", "without_special"]

log = logging.getLogger("oinetd")

_REMEDY = "allow-special would let them be used"


def is_special(host: str) -> bool:
    """Whether a numeric address is loopback, link-local, unspecified, multicast or broadcast."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or str(address) == "255.255.255.255"
    )


def without_special(name: str, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    """The addresses of `name` that may be used. Raises `OSError` if there is none left."""
    if name.rstrip(".").lower() == "localhost":
        return addresses
    left = tuple(address for address in addresses if not is_special(address.host))
    if len(left) == len(addresses):
        return addresses
    refused = ", ".join(address.host for address in addresses if address not in left)
    if not left:
        raise OSError(errno.EPERM, f"only special addresses, {refused}; {_REMEDY}")
    log.warning("DNS: %s: left out %s, special addresses; %s", name, refused, _REMEDY)
    return left
