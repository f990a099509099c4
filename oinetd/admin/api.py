"""What each route answers: the handlers, and the table that `openapi.json` describes."""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import json
import logging
import sys
from collections.abc import AsyncIterator, Hashable
from dataclasses import replace
from importlib.resources import files
from typing import Any, Final

from oinetd.admin.clients import stream_clients
from oinetd.admin.documents import health, rule_document, status
from oinetd.admin.events import Events
from oinetd.admin.explain import explain
from oinetd.admin.instance import DRAINING, READY, Instance, Replaced
from oinetd.admin.message import Refusal, Request, Response, document
from oinetd.admin.routes import Route, Routes
from oinetd.admin.selection import FILTERS, PAGING, Selection
from oinetd.admin.servers import STATES, change_state, change_weight, group_documents
from oinetd.admin.sessions import kill_sessions, stream_sessions
from oinetd.errors import ConfigError, OinetdError
from oinetd.model import Protocol
from oinetd.observe.machine import reactor_times
from oinetd.observe.rates import MINUTE_S, Rates
from oinetd.observe.rules import RuleState

__all__ = ["Api"]

PAGE_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
PAGE_HEADERS: Final = (
    ("content-security-policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),
)

EXPLAINED: Final = ("address", "port", "protocol", "client", "sni", "alpn")

logger = logging.getLogger("oinetd")


class Api:
    """The handlers, for one process."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.events = Events(instance.forwarder)
        self._rates = Rates(self._sample)
        read = FILTERS + PAGING
        self.routes = Routes(
            (
                Route("GET", "/v1/health", self._health, open=True),
                Route("GET", "/v1/status", self._status),
                Route("GET", "/v1/rules", self._rules),
                Route("GET", "/v1/sessions", self._sessions, query=read),
                Route("GET", "/v1/clients", self._clients, query=(*FILTERS, "sort", "limit")),
                Route("POST", "/v1/sessions/kill", self._kill_selected, query=FILTERS),
                Route("POST", "/v1/sessions/{id}/kill", self._kill),
                Route("GET", "/v1/servers", self._servers, query=("group",)),
                *(Route("POST", f"/v1/servers/{{group}}/{{server}}/{state}", self._set_server) for state in STATES),
                Route("POST", "/v1/servers/{group}/{server}/weight", self._set_weight),
                Route("GET", "/v1/events", self._events),
                Route("GET", "/v1/explain", self._explain, query=EXPLAINED),
                Route("POST", "/v1/reload", self._reload),
                Route("POST", "/v1/upgrade", self._upgrade),
                Route("GET", "/metrics", self._metrics, metrics=True),
                Route("GET", "/v1/openapi.json", self._openapi),
                *(Route("GET", path, self._page, page=True, open=True) for path in PAGE_FILES),
            )
        )

    def start(self) -> None:
        """The forwarder has started."""
        self._rates.start()

    def stop(self) -> None:
        self._rates.stop()

    # Rates

    def _sample(self) -> dict[Hashable, tuple[float, ...]]:
        taken: dict[Hashable, tuple[float, ...]] = {}
        for rule, counts in self.instance.forwarder.stats().rules.items():
            taken[rule.identity] = (
                counts.accepted,
                counts.bytes_up,
                counts.bytes_down,
                counts.datagrams_up,
                counts.datagrams_down,
            )
        for times in reactor_times():
            taken[times.thread] = (times.running_s, times.waiting_s)
        return taken

    def status(self) -> dict[str, Any]:
        """The document of `/v1/status`."""
        self._rates.ask()
        times = reactor_times()
        loads = {each.thread: self._rates.of(each.thread, (each.running_s, each.waiting_s)) for each in times}
        return status(self.instance, *self.instance.forwarder.overview(), loads, times)

    def rules(self) -> list[dict[str, Any]]:
        """The rules of `/v1/rules`."""
        self._rates.ask()
        return [self._rule(state) for state in self.instance.forwarder.rules()]

    def _rule(self, state: RuleState) -> dict[str, Any]:
        counts, identity = state.counts, state.rule.identity
        now = (counts.accepted, counts.bytes_up, counts.bytes_down, counts.datagrams_up, counts.datagrams_down)
        return rule_document(state, self._rates.of(identity, now), self._rates.of(identity, now, MINUTE_S))

    # What can be seen

    async def _health(self, request: Request) -> Response:
        found = health(self.instance)
        response = document(found)
        return Response(response.body, 200 if found["status"] == "ready" else 503, headers=response.headers)

    async def _status(self, request: Request) -> Response:
        return document(self.status())

    async def _rules(self, request: Request) -> Response:
        return document({"rules": self.rules()})

    async def _sessions(self, request: Request) -> Response:
        return Response(stream_sessions(self.instance.forwarder, Selection.of(request.query)))

    async def _clients(self, request: Request) -> Response:
        return Response(stream_clients(self.instance.forwarder, request.query))

    async def _servers(self, request: Request) -> Response:
        return document({"groups": group_documents(self.instance.forwarder, request.query.get("group", ""))})

    async def _set_server(self, request: Request) -> Response:
        done = change_state(self.instance.forwarder, request, request.path.rpartition("/")[2])
        self._log(request, done)
        return await self._servers(replace(request, query={"group": request.values["group"]}))

    async def _set_weight(self, request: Request) -> Response:
        self._log(request, change_weight(self.instance.forwarder, request))
        return await self._servers(replace(request, query={"group": request.values["group"]}))

    async def _events(self, request: Request) -> Response:
        headers = (("cache-control", "no-store"),)
        return Response(self._listen(), content_type="text/event-stream", headers=headers, endless=True)

    async def _listen(self) -> AsyncIterator[bytes]:
        async for part in self.events.listen():
            yield part

    async def _explain(self, request: Request) -> Response:
        query = request.query
        is_unix = query.get("address", "").startswith("unix:")
        said = query.get("port") or ("0" if is_unix else "")
        if not (said.isascii() and said.isdecimal() and len(said) < 10 and int(said) <= 65535):
            raise Refusal(400, f"the port is {said[:40]!r}; it is a number up to 65535")
        port, kind, client = int(said), query.get("protocol", "tcp"), query.get("client", "")
        if kind not in [each.value for each in Protocol]:
            raise Refusal(400, f"the protocol is {kind[:40]!r}; it is tcp or udp")
        protocol = Protocol(kind)
        try:
            client = client and str(ipaddress.ip_address(client))
        except ValueError:
            raise Refusal(400, f"the client is {client[:60]!r}; it is a numeric address") from None
        if not query.get("address"):
            raise Refusal(400, "the address is missing")
        hello = None
        if query.get("sni") or query.get("alpn"):
            hello = query.get("sni", ""), tuple(query.get("alpn", "").split())
        forwarder = self.instance.forwarder
        states, names = forwarder.rules(), forwarder.destinations()
        servers_of, place = forwarder.servers_of, query["address"]
        return document(explain(forwarder.config, states, names, servers_of, place, port, protocol, client, hello))

    async def _metrics(self, request: Request) -> Response:
        if "oinetd.observe.metrics" not in sys.modules:  # 50 ms, only for those who want metrics, not on the loop
            await asyncio.to_thread(importlib.import_module, "oinetd.observe.metrics")
        from oinetd.admin.scrape import scrape

        await asyncio.sleep(0)  # the request took time already
        collector = self.instance.forwarder.collector().with_more(self._reload_metrics)
        return await scrape(collector, request.headers.get("accept", ""))

    def _reload_metrics(self) -> list[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        reloads = self.instance.reloads
        done = CounterMetricFamily("oinetd_reloads", "Reloads by their result.", labels=("result",))
        done.add_metric(("success",), reloads.succeeded)
        done.add_metric(("failure",), reloads.failed)
        gauges = (
            ("last_reload_success", "1 if the last reload succeeded, or there was none.", not reloads.last_error),
            ("last_reload_duration_seconds", "How long the last reload took.", reloads.last_duration_s),
            ("last_reload_timestamp_seconds", "Unix time of the last reload, 0 if there was none.", reloads.last_at),
            ("start_time_seconds", "Unix time of the start.", self.instance.started),
        )
        return [done, *(GaugeMetricFamily(f"oinetd_{name}", text, value=value) for name, text, value in gauges)]

    async def _openapi(self, request: Request) -> Response:
        text = await asyncio.to_thread((files("oinetd.admin") / "openapi.json").read_bytes)
        return Response(text)

    async def _page(self, request: Request) -> Response:
        name, kind = PAGE_FILES[request.path]
        content = await asyncio.to_thread((files("oinetd.admin") / "page" / name).read_bytes)
        return Response(content, content_type=kind, headers=PAGE_HEADERS)

    # What changes something

    async def _kill(self, request: Request) -> Response:
        text = request.values["id"]
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise Refusal(400, "the id of a session is a number")
        if not self.instance.forwarder.kill(int(text)):
            raise Refusal(404, f"there is no session {int(text)}")
        self._log(request, f"kill session {int(text)}")
        return document({"killed": 1})

    async def _kill_selected(self, request: Request) -> Response:
        selection = Selection.of(request.query)
        if not selection.is_filtered:
            raise Refusal(400, f"at least one of {', '.join(FILTERS)} has to say which sessions")
        killed = await kill_sessions(self.instance.forwarder, selection)
        self._log(request, f"kill {killed} sessions ({', '.join(f'{k}={v}' for k, v in request.query.items())})")
        return document({"killed": killed})

    async def _reload(self, request: Request) -> Response:
        if self.instance.state == DRAINING:
            raise Refusal(409, "the process is stopping")
        self._log(request, "reload")
        try:
            await self.instance.reload()
        except Replaced as error:
            raise Refusal(503, f"{error.strerror}: ask that one") from None
        except (OinetdError, OSError) as error:
            trusted = request.peer.uid in self.instance.owners
            if not isinstance(error, ConfigError):
                raise Refusal(422, str(error), problems=[]) from None
            raise Refusal(
                422,
                "the configuration has errors; nothing was changed",
                problems=[_problem(each, trusted) for each in error.problems],
            ) from None
        return document({"reloaded": True, "rules": len(self.instance.forwarder.config.rules)})

    async def _upgrade(self, request: Request) -> Response:
        if request.peer.uid not in self.instance.owners:
            raise Refusal(403, "an upgrade is for root and the user of oinetd, on the unix socket")
        if self.instance.upgrade is None or self.instance.state != READY:
            raise Refusal(409, "this process cannot be replaced now")
        try:
            wanted = json.loads(request.body or b"{}")
            program, dry_run = wanted.get("to", ""), wanted.get("dry_run", False)
        except (ValueError, AttributeError, RecursionError):
            raise Refusal(400, "the body is a JSON object with `to` and `dry_run`") from None
        if not isinstance(program, str) or not isinstance(dry_run, bool):
            raise Refusal(400, "`to` is a path, `dry_run` true or false")
        self._log(request, " ".join(filter(None, ("upgrade", program, "(dry run)" * dry_run))))
        try:
            return document(await self.instance.upgrade(program, dry_run))
        except OinetdError as error:
            raise Refusal(422, str(error), code=getattr(error, "code", 75)) from None

    @staticmethod
    def _log(request: Request, action: str) -> None:
        logger.info("admin: %s by %s", json.dumps(action)[1:-1], request.peer)


def _problem(problem: Any, with_text: bool) -> dict[str, Any]:
    """One error of a configuration; its source line is only for root and the user of the daemon."""
    shown = {
        "message": problem.message,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "hint": problem.hint,
    }
    return {**shown, "shown": str(problem)} if with_text else shown
