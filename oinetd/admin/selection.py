"""Which sessions somebody asks for: filters, order, pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from oinetd.admin.message import Refusal
from oinetd.config.mistake import Mistake
from oinetd.config.values.common import Time
from oinetd.core.access import AccessControl
from oinetd.core.pattern import PatternError
from oinetd.core.record import SessionRecord
from oinetd.model import AccessRule, Verb
from oinetd.net.address import host_and_port
from oinetd.observe.rules import RuleNames

__all__ = ["FILTERS", "PAGING", "Selection"]

FILTERS: Final = ("rule", "client", "server", "older", "idle")
PAGING: Final = ("sort", "limit", "after")
LIMIT_MAX: Final = 1_000_000


def rate_of(record: SessionRecord) -> float:
    """Bytes in a second, both ways, over the life of the session."""
    return (record.bytes_up + record.bytes_down) / max(record.duration_s, 0.001)


_ORDERS: Final[dict[str, Callable[[SessionRecord], float]]] = {
    "id": lambda record: record.id,
    "age": lambda record: -record.duration_s,
    "idle": lambda record: -record.idle_s,
    "bytes": lambda record: -(record.bytes_up + record.bytes_down),
    "rate": lambda record: -rate_of(record),
}


@dataclass(slots=True)
class Selection:
    """`rule` and `server` are names, `client` is a pattern of `allow`, times are seconds.

    `after` is the id before a page.
    """

    rule: str = ""
    client: str = ""
    server: str = ""
    older: float = 0.0
    idle: float = 0.0
    sort: str = "id"
    limit: int = 0
    after: int = 0
    _access: AccessControl | None = None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Self:
        """From the parameters of a request. Raises `Refusal`."""
        found: dict[str, Any] = {}
        for name, text in query.items():
            if name in ("older", "idle"):
                try:
                    found[name] = Time().parse(text)
                except Mistake as mistake:
                    raise Refusal(400, f"{name}: {mistake.message}; {mistake.hint}") from None
            elif name in ("limit", "after"):
                if not (text.isascii() and text.isdecimal() and len(text) < 20):
                    raise Refusal(400, f"{name}: {text[:40]!r} is not a number")
                found[name] = min(int(text), LIMIT_MAX) if name == "limit" else int(text)
            else:
                found[name] = text
        if found.get("sort", "id") not in _ORDERS:
            raise Refusal(400, f"sort: {found['sort'][:40]!r} is not one of {', '.join(_ORDERS)}")
        selection = cls(**found)
        if selection.client:
            try:
                selection._access = AccessControl((), (AccessRule(Verb.ALLOW, selection.client),))
            except PatternError as error:
                why = error.message.replace(f"'allow {selection.client}'", repr(selection.client))
                raise Refusal(400, f"client: {why}") from None
        return selection

    @property
    def is_filtered(self) -> bool:
        """Whether it has any filter at all."""
        return any(getattr(self, field.name) for field in fields(self) if field.name in FILTERS)

    def takes(self, record: SessionRecord, names: RuleNames) -> bool:
        """Whether the session is one of those."""
        if record.id <= self.after:
            return False
        if self.rule and self.rule != names.of(record.route.rule) and self.rule != str(record.route.rule):
            return False
        if self.server and self.server not in (record.upstream, host_and_port(record.upstream, record.upstream_port)):
            return False
        if record.duration_s < self.older or record.idle_s < self.idle:
            return False
        return self._access is None or self._access.decide(record.client) is None

    def ordered(self, records: list[SessionRecord]) -> list[SessionRecord]:
        """All of them, in its order."""
        return sorted(records, key=_ORDERS[self.sort])
