"""Rules that share a listener by server names, in the form of the data plane: a policy for each, and one that chooses.

A client has no rule until its TLS hello is there. Until then it goes by the policy of the listener, which has a gate of
its own: no limit of a rule holds for it. What is counted there is counted for the first of the rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from oinetd.core.names import NameTable
from oinetd.core.service import Service
from oinetd.lanes.native.plane import compile_policy

try:
    from oinetd import _fastpath
except ImportError:  # then no lane asks for it; `plane.available` says why
    if TYPE_CHECKING:
        raise

__all__ = ["Chosen", "compile_chooser", "compile_names"]


class Chosen(NamedTuple):
    """A rule that shares a listener: the tag of its policy, and what that was compiled from.

    `addresses` are those of then; None if the policy has to be compiled again whenever something changes.
    """

    tag: int
    service: Service
    addresses: object
    policy: _fastpath.Policy

    @classmethod
    def of(cls, service: Service, tag: int, policy: _fastpath.Policy) -> Chosen:
        """For a policy that was compiled just now."""
        return cls(tag, service, _addresses(service), policy)

    def is_of(self, service: Service) -> bool:
        """Whether the policy would be the same."""
        return self.service is service and self.addresses is not None and self.addresses == _addresses(service)


def _addresses(service: Service) -> object:
    if service.group is not None:
        return None
    looping = None if service.guard is None else service.guard.addresses
    return service.destination.at(service.route.place), service.source, looping


def compile_names(table: NameTable[Service], policies: tuple[_fastpath.Policy, ...]) -> _fastpath.Names:
    """The table in the form of the data plane; `policies` are those of its entries."""
    return _fastpath.Names(
        [
            (name.encode(), protocol.encode(), number)
            for number, (names, protocols, _) in enumerate(table.entries)
            for name in names or ("",)
            for protocol in protocols or ("",)
        ],
        policies,
    )


def compile_chooser(
    tag: int, gate: _fastpath.Gate, service: Service, policies: tuple[_fastpath.Policy, ...]
) -> _fastpath.Policy:
    """The policy of a listener that rules share: it decides what is decided before one of them is chosen."""
    assert service.names is not None
    assert service.preamble is not None
    return compile_policy(
        tag,
        gate,
        service.settings,
        access=(service.global_access, ()),
        source_prefix=service.source_prefix,
        trusts=service.preamble.trusts,
        names=compile_names(service.names, policies),
    )
