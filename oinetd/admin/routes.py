"""The table of routes: which handler answers which method and path, and who may ask."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from oinetd.admin.message import Refusal, Request, Response

__all__ = ["Handler", "Route", "Routes"]

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One row: `pattern` has names in braces, `query` the parameters that are known.

    `open` needs no token; `metrics` is served by listeners for metrics, too; `page` only by listeners with the page.
    """

    method: str
    pattern: str
    handler: Handler
    query: tuple[str, ...] = ()
    open: bool = False
    metrics: bool = False
    page: bool = False
    regex: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = re.split(r"\{(\w+)\}", self.pattern)
        text = "".join(
            f"(?P<{part}>{'.+' if part == 'server' else '[^/]+'})" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )
        object.__setattr__(self, "regex", re.compile(text))


class Routes:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)

    def find(self, request: Request, *, metrics_only: bool, page: bool) -> tuple[Route, Request]:
        """The route, and the request with the values of its path. Raises `Refusal` (404, 405, 400)."""
        allowed = []
        for route in self.routes:
            if (metrics_only and not route.metrics) or (route.page and not page):
                continue
            match = route.regex.fullmatch(request.path)
            if match is None:
                continue
            if request.method not in (("GET", "HEAD") if route.method == "GET" else (route.method,)):
                allowed.append(route.method)
                continue
            for name in request.query:
                if name not in route.query:
                    known = ", ".join(route.query) or "none"
                    raise Refusal(400, f"unknown parameter {name[:64]!r}; known: {known}")
            return route, replace(request, values=match.groupdict())
        if allowed:
            raise Refusal(405, f"{request.path} knows {', '.join(allowed)}", headers=(("allow", ", ".join(allowed)),))
        raise Refusal(404, f"there is nothing at {request.path[:200]!r}; see /v1/openapi.json")
