"""The preamble stage: what a client sends before it is admitted, and which peers may say who the client is."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from oinetd.core.access import AccessControl
from oinetd.core.record import Ending
from oinetd.model import AcceptProxy, AccessRule, Config, Protocol, Route, Settings, Verb

__all__ = ["InvalidPreambles", "Preamble", "preamble_of"]

log = logging.getLogger("oinetd")


@dataclass(frozen=True, slots=True)
class Preamble:
    """What is read of the clients of a listener before they are admitted.

    `everybody` are the access rules for all rules; of these `denied` are the deny rules, which judge the peer, too;
    `trusted` says who may send a PROXY header, and `trusts` are its rules. `timeout_s` is for that header,
    `peek_timeout_s` for a TLS hello.
    """

    accept: AcceptProxy
    timeout_s: float
    peek_timeout_s: float
    everybody: AccessControl
    denied: AccessControl
    trusted: AccessControl | None
    trusts: tuple[AccessRule, ...]

    def judge(self, peer: str, is_unix: bool) -> tuple[Ending | None, bool]:
        """Why this peer is refused before a byte is read, or None; and whether it has to send a header.

        The peers of a unix socket are judged by its mode and owner.
        """
        if is_unix:
            return None, self.accept is not AcceptProxy.OFF
        if (refusal := self.denied.decide(peer)) is not None or self.accept is AcceptProxy.OFF:
            return refusal, False
        if self.trusted is not None and self.trusted.decide(peer) is None:
            return None, True
        return (None if self.accept is AcceptProxy.OPTIONAL else Ending.NOT_TRUSTED), False


def preamble_of(config: Config, routes: Sequence[Route], settings: Settings) -> Preamble | None:
    """The preamble of a listener, with the routes that share it; None if its clients send nothing that is read."""
    named = any(route.rule.options.sni or route.rule.options.alpn for route in routes)
    if settings.accept_proxy is AcceptProxy.OFF and not named:
        return None
    denies = tuple(rule for rule in config.access if rule.verb is Verb.DENY)
    trusts = _allowing((*config.access, *(rule for route in routes for rule in route.rule.access)))
    return Preamble(
        settings.accept_proxy,
        settings.proxy_timeout_s,
        settings.peek_timeout_s,
        AccessControl(config.access),
        AccessControl(denies),
        AccessControl(trusts) if trusts else None,
        trusts,
    )


def _allowing(rules: Iterable[AccessRule]) -> tuple[AccessRule, ...]:
    """Rules that allow the peers that `rules` trust."""
    return tuple(AccessRule(Verb.ALLOW, rule.pattern) for rule in rules if rule.verb is Verb.TRUST)


class InvalidPreambles:
    """Says in the process log what was wrong with what a client sent, at most once a second for each peer."""

    EACH_S: Final = 1.0
    PEERS_MAX: Final = 1024
    """Peers that are remembered. Above it the oldest is forgotten."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def tell(self, route: Route, peer: str, what: str, fault: str) -> None:
        """`what` it was, and the place and the kind of its fault."""
        now = time.monotonic()
        if now - self._told.get(peer, -self.EACH_S) < self.EACH_S:
            return
        self._told.pop(peer, None)
        if len(self._told) >= self.PEERS_MAX:
            self._told.pop(next(iter(self._told)))
        self._told[peer] = now
        udp = route.bind.protocol is Protocol.UDP
        log.warning(
            "%s: %s from %s, %s; the %s",
            *(route, what, peer, fault, "datagram is dropped" if udp else "connection is reset"),
        )
