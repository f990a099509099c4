"""The API: each route answers what the OpenAPI file says, and what changes something changes it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from oinetd import ConfigError, Problem
from oinetd.admin.instance import DRAINING
from oinetd.admin.print import event_line, explain_lines, session_lines
from tests.admin.echo import echo_server
from tests.admin.rig import Admin, administered
from tests.admin.schema import OPENAPI, faults
from tests.forwarding import bound, echoes
from tests.peers import Peer, dial, free_port


@contextlib.asynccontextmanager
async def with_sessions(folder: Path, count: int = 3, more: str = "") -> Any:
    """An admin interface beside a forwarder with live sessions in both lanes."""
    async with echo_server() as (host, port):
        text = f"127.0.0.1 0 {host} {port} [name=fast]\n127.0.0.1 0 {host} {port} [name=slow, engine=python]\n{more}"
        async with administered(folder, text) as admin:
            peers: list[Peer] = []
            try:
                for number in range(count):
                    peer = await dial(bound(admin.forwarder, number % 2))
                    peers.append(peer)
                    await peer.send(b"x" * (number + 1))
                    assert await peer.read(number + 1) == b"x" * (number + 1)
                yield admin
            finally:
                for peer in peers:
                    peer.close()


def schema_of(path: str, method: str = "get", status: str = "200") -> dict[str, Any]:
    content = OPENAPI["paths"][path][method]["responses"][status]["content"]
    (found,) = [each["schema"] for each in content.values()]
    assert isinstance(found, dict)
    return found


async def test_the_table_of_routes_is_that_of_the_openapi_file(tmp_path: Path) -> None:
    async with administered(tmp_path, "127.0.0.1 0 127.0.0.1 9") as admin:
        routes = {(route.pattern, route.method.lower()): route for route in admin.server.api.routes.routes}
        described = {(path, method) for path, item in OPENAPI["paths"].items() for method in item}
        assert set(routes) == described
        for (path, method), route in routes.items():
            told = {each["name"]: each["in"] for each in OPENAPI["paths"][path][method]["parameters"]}
            assert {name for name, where in told.items() if where == "query"} == set(route.query), path
            assert {name for name, where in told.items() if where == "path"} == set(route.regex.groupindex), path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/health",
        "/v1/status",
        "/v1/rules",
        "/v1/servers",
        "/v1/sessions",
        "/v1/clients?client=127.*&limit=5",
        "/v1/openapi.json",
        "/v1/explain?address=127.0.0.1&port=1",
    ],
)
async def test_an_answer_is_as_described(path: str, tmp_path: Path) -> None:
    async with with_sessions(tmp_path) as admin:
        for _ in range(2):
            status, value = await admin.json(path)
            assert status == 200
            assert faults(value, schema_of(path.partition("?")[0])) == []


async def test_sessions_of_both_lanes_are_listed_filtered_and_paged(tmp_path: Path) -> None:
    async with with_sessions(tmp_path, 6) as admin:
        _, every = await admin.json("/v1/sessions")
        assert every["total"] == len(every["sessions"]) == 6
        assert {each["rule"] for each in every["sessions"]} == {"fast", "slow"}
        _, fast = await admin.json("/v1/sessions?rule=fast&sort=bytes")
        assert [each["bytes_up"] for each in fast["sessions"]] == [5, 3, 1]
        first = (await admin.json("/v1/sessions?limit=4"))[1]
        assert (len(first["sessions"]), first["total"], first["next"]) == (4, 6, first["sessions"][-1]["id"])
        second = (await admin.json(f"/v1/sessions?limit=4&after={first['next']}"))[1]
        assert second["next"] is None
        assert [each["id"] for each in first["sessions"] + second["sessions"]] == [s["id"] for s in every["sessions"]]
        assert (await admin.json("/v1/sessions?client=10.*"))[1] == {"sessions": [], "total": 0, "next": None}
        assert (await admin.json("/v1/sessions?client=127.0.0.0/8"))[1]["total"] == 6
        assert (await admin.json("/v1/sessions?idle=1h"))[1]["total"] == 0


@pytest.mark.parametrize("engine", ["auto", "python"])
async def test_a_session_shows_the_proxy_that_its_client_came_through(tmp_path: Path, engine: str) -> None:
    async with echo_server() as (host, port):
        text = f"127.0.0.1 0 {host} {port} [accept-proxy, engine={engine}]\ntrust 127.0.0.1\n"
        async with administered(tmp_path, text) as admin:
            peer = await dial(bound(admin.forwarder))
            try:
                await peer.send(b"PROXY TCP4 192.0.2.7 198.51.100.9 40000 443\r\nx")
                assert await peer.read(1) == b"x"
                _, found = await admin.json("/v1/sessions")
                assert faults(found, schema_of("/v1/sessions")) == []
                host, port = peer.sock.getsockname()
                assert (found["sessions"][0]["peer"], found["sessions"][0]["peer_port"]) == (host, port)
                assert f" 192.0.2.7:40000 via {host}:{port} " in session_lines(found)[1]
                assert f" 192.0.2.7:40000 via {host}:{port} -> " in event_line("opened", found["sessions"][0])
            finally:
                peer.close()


async def test_clients_have_their_sessions_together(tmp_path: Path) -> None:
    async with with_sessions(tmp_path, 6) as admin:
        (client,) = (await admin.json("/v1/clients?sort=bytes"))[1]["clients"]
        assert (client["client"], client["sessions"], client["bytes_up"]) == ("127.0.0.1", 6, 21)
        (client,) = (await admin.json("/v1/clients?rule=fast"))[1]["clients"]
        assert (client["sessions"], client["bytes_down"]) == (3, 9)
        assert (await admin.json("/v1/clients?client=10.*"))[1] == {"clients": [], "total": 0}
        status, value = await admin.json("/v1/clients?sort=id")
        assert (status, "not one of sessions, bytes" in value["detail"]) == (400, True)


async def test_the_status_has_the_sessions_of_each_thread(tmp_path: Path) -> None:
    async with with_sessions(tmp_path, 6) as admin:
        _, status = await admin.json("/v1/status")
        assert [each["moved"] for each in status["reactors"]] == [0] * len(status["reactors"])
        if status["lanes"]["native"]:
            assert sum(each["sessions"] for each in status["reactors"]) == 3
            assert {each["polling"] for each in status["reactors"]} <= {"on", "paused"}


async def test_explain_knows_unix_sockets_and_rules_that_share_a_listener(tmp_path: Path) -> None:
    port, place = free_port(), f"unix:{tmp_path}/in.sock"
    text = f"{place} 127.0.0.1 9 [name=local]\n127.0.0.1 {port} 127.0.0.1 1 [name=a, sni=a.example]\n"
    text += f"127.0.0.1 {port} 127.0.0.1 2 [name=b, sni=*.b.example, alpn=h2]\n"
    async with administered(tmp_path, text) as admin:

        async def explained(query: str) -> Any:
            status, value = await admin.json(f"/v1/explain?{query}")
            assert status == 200
            assert faults(value, schema_of("/v1/explain")) == []
            return value

        assert (await explained(f"address={place}"))["rule"] == "local"
        assert "local listens on" in (await explained("address=unix:/nowhere"))["why"]
        shared = f"address=127.0.0.1&port={port}"
        assert (await explained(f"{shared}&sni=A.example"))["rule"] == "a"
        assert (await explained(f"{shared}&sni=x.b.example&alpn=h2"))["rule"] == "b"
        for hello, why in (
            ("", "none was given (--sni NAME): a is for a.example; b is for"),
            ("&sni=c", "hello c: a is"),
        ):
            found = await explained(shared + hello)
            assert (found["verdict"], why in found["why"]) == ("not served", True)


@pytest.mark.parametrize(
    "query",
    ["older=never", "sort=size", "limit=-1", "limit=x", "client=%2F%2F", "color=red", "after=99999999999999999999999"],
)
async def test_a_query_that_says_nonsense_is_refused_with_a_reason(query: str, tmp_path: Path) -> None:
    async with administered(tmp_path, "127.0.0.1 0 127.0.0.1 9") as admin:
        status, value = await admin.json(f"/v1/sessions?{query}")
        assert status == 400
        assert faults(value, OPENAPI["components"]["schemas"]["Problem"]) == []
        assert query.partition("=")[0] in value["detail"]


async def test_sessions_are_killed_one_by_one_and_by_filter(tmp_path: Path) -> None:
    async with with_sessions(tmp_path, 6) as admin:
        _, every = await admin.json("/v1/sessions")
        ids = [each["id"] for each in every["sessions"]]
        assert await admin.json(f"/v1/sessions/{ids[0]}/kill", "POST") == (200, {"killed": 1})
        assert await admin.json("/v1/sessions/kill?rule=slow", "POST") == (200, {"killed": 3})
        async with asyncio.timeout(30):
            while (await admin.json("/v1/sessions"))[1]["total"] != 2:
                pass
        assert (await admin.json(f"/v1/sessions/{ids[0]}/kill", "POST"))[0] == 404
        assert (await admin.json("/v1/sessions/x/kill", "POST"))[0] == 400
        status, value = await admin.json("/v1/sessions/kill", "POST")
        assert (status, "has to say which" in value["detail"]) == (400, True)


async def test_a_reload_is_waited_for_and_its_errors_are_told(tmp_path: Path) -> None:
    async with administered(tmp_path, "127.0.0.1 0 127.0.0.1 9") as admin:
        assert await admin.json("/v1/reload", "POST") == (200, {"reloaded": True, "rules": 1})
        admin.reloads.append(ConfigError(Problem("wrong", "a.conf", 3, 5, 2, "0.0.0.0 secret", "right")))
        status, value = await admin.json("/v1/reload", "POST")
        assert status == 422
        assert value["problems"][0]["line"] == 3
        assert "0.0.0.0 secret" in value["problems"][0]["shown"]
        admin.instance.owners = frozenset({12345})
        admin.reloads.append(ConfigError(Problem("wrong", "a.conf", 3, 5, 2, "0.0.0.0 secret", "right")))
        _, value = await admin.json("/v1/reload", "POST")
        assert "secret" not in json.dumps(value)


async def test_health_tells_a_process_that_stops(tmp_path: Path) -> None:
    async with administered(tmp_path, "127.0.0.1 0 127.0.0.1 9") as admin:
        assert await admin.json("/v1/health") == (200, {"status": "ready", "name": "test", "problems": []})
        admin.instance.state = DRAINING
        assert (await admin.json("/v1/health"))[0] == 503
        assert (await admin.json("/v1/reload", "POST"))[0] == 409


async def test_events_tell_sessions_and_nobody_listening_costs_no_record(tmp_path: Path) -> None:
    async with with_sessions(tmp_path, 0) as admin:
        hub = admin.forwarder._lanes.native.hub
        reader, writer = await admin.connect()
        writer.write(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        async with asyncio.timeout(30):
            await reader.readuntil(b": events of oinetd")
            assert not hub.totals_only
            assert await echoes(bound(admin.forwarder, 0))
            assert await echoes(bound(admin.forwarder, 1))
            got = b""
            while got.count(b"event: closed") < 2:
                got += await reader.read(65536)
            admin.server.api.events.publish("reload", {"succeeded": True})
            while b"event: reload" not in got:
                got += await reader.read(65536)
        assert got.count(b"event: opened") == 2
        values = [json.loads(line[6:]) for line in got.split(b"\n") if line.startswith(b"data: ")]
        assert {value.get("rule") for value in values} == {"fast", "slow", None}
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(30):
            while not hub.totals_only:
                admin.server.api.events.publish("reload", {})
                await asyncio.sleep(0.001)


async def test_who_listens_too_slowly_is_told_how_much_was_lost(tmp_path: Path) -> None:
    async with administered(tmp_path, "127.0.0.1 0 127.0.0.1 9") as admin:
        events = admin.server.api.events
        listening = events.listen()
        assert (await anext(listening)).startswith(b":")
        for number in range(1500):
            events.publish("reload", {"number": number})
        got = b""
        while b"event: lost" not in got:
            got += await anext(listening)
        assert got.count(b"event: reload") == 1000
        assert b'{"count":500}' in got
        await listening.aclose()


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("address=127.0.0.1&port=http", "the port is 'http'; it is a number up to 65535"),
        ("address=127.0.0.1&port=70000", "the port is '70000'; it is a number up to 65535"),
        ("address=127.0.0.1&port=80&protocol=sctp", "the protocol is 'sctp'; it is tcp or udp"),
        ("address=127.0.0.1&port=80&client=me", "the client is 'me'; it is a numeric address"),
        ("port=80", "the address is missing"),
    ],
)
async def test_what_cannot_be_explained(query: str, detail: str, tmp_path: Path) -> None:
    async with with_sessions(tmp_path, 0) as admin:
        status, value = await admin.json(f"/v1/explain?{query}")
        assert (status, value["detail"]) == (400, detail)


@pytest.mark.parametrize(
    ("query", "verdict", "why"),
    [
        ("address=127.0.0.1&port={0}&client=192.0.2.1", "served", "no line refuses"),
        ("address=127.0.0.1&port={1}&client=192.0.2.1", "not-allowed", "no allow line"),
        ("address=127.0.0.1&port={1}&client=10.0.0.9", "denied", "deny 10.0.0.9"),
        ("address=127.0.0.1&port={1}&client=10.0.0.8", "served", "allow 10.*"),
        ("address=127.0.0.9&port={1}", "not served", "listens on 127.0.0.1"),
        ("address=127.0.0.1&port=1", "not served", "no rule listens on this port"),
        ("address=127.0.0.1&port={0}&protocol=udp", "not served", "fast has another protocol (without --udp)"),
    ],
)
async def test_an_explanation_names_rule_lane_and_the_line_that_decides(
    query: str, verdict: str, why: str, tmp_path: Path
) -> None:
    async with with_sessions(tmp_path, 0, "allow 10.*\ndeny 10.0.0.9\n") as admin:
        ports = [bound(admin.forwarder, 0)[1], bound(admin.forwarder, 1)[1]]
        status, value = await admin.json("/v1/explain?" + query.format(*ports))
        assert status == 200
        assert faults(value, schema_of("/v1/explain")) == []
        assert (value["verdict"], why in value["why"]) == (verdict, True), value
        if value["rule"]:
            assert value["lane"] == {"fast": "native", "slow": "python"}[value["rule"]]


@pytest.mark.parametrize(
    ("options", "verdict", "chosen"),
    [("balance=first", "served", [2]), ("balance=random", "served", [2, 3]), ("all-down=refuse", "no-server", [])],
)
async def test_an_explanation_names_the_server(options: str, verdict: str, chosen: list[int], tmp_path: Path) -> None:
    servers = "".join(f"upstream web 10.0.0.{last} 80{' [backup]' if last == 4 else ''}\n" for last in range(1, 5))
    text = f"127.0.0.1 0 @web\n{servers}upstream web [{options}]\n"
    async with administered(tmp_path, text) as admin:
        admin.forwarder.set_server("web", "10.0.0.1:80", state="drain")
        if not chosen:
            for last in (2, 3, 4):
                admin.forwarder.set_server("web", f"10.0.0.{last}:80", state="maint")
        port = bound(admin.forwarder)[1]
        _, value = await admin.json(f"/v1/explain?address=127.0.0.1&port={port}&client=192.0.2.1")
        assert faults(value, schema_of("/v1/explain")) == []
        assert (value["verdict"], value["destination"]) == (verdict, "@web")
        assert value["addresses"] == [f"10.0.0.{last}" for last in range(1, 5)]
        found = {each["name"]: each for each in value["servers"]}
        assert [last for last in range(1, 5) if found[f"10.0.0.{last}:80"]["chosen"]] == chosen
        assert found["10.0.0.1:80"]["why"] == "drain (operator)"
        if chosen:
            assert found["10.0.0.4:80"]["why"] == "backup: used when no other server is usable"
        assert any("drain (operator)" in line for line in explain_lines(value))
        _, rules = await admin.json("/v1/rules")
        assert rules["rules"][0]["connect"] == "@web"


async def test_an_explanation_says_whose_word_about_clients_counts(tmp_path: Path) -> None:
    text = "127.0.0.1 0 127.0.0.1 9 [accept-proxy]\ntrust 192.0.2.0/24\n"
    async with administered(tmp_path, text) as admin:
        port = bound(admin.forwarder)[1]
        _, value = await admin.json(f"/v1/explain?address=127.0.0.1&port={port}&client=192.0.2.1")
    assert value["limits"] == ["accept-proxy on: peers of trust say who their client is; all others are refused"]


def test_events_of_servers_and_reloads_are_sentences() -> None:
    found = {"group": "web", "name": "192.0.2.1:80", "state": "down", "why": "check: refused", "weight": 1}
    assert event_line("server", found) == "server   web/192.0.2.1:80 is down (check: refused)"
    assert event_line("server", {**found, "state": "up", "why": ""}) == "server   web/192.0.2.1:80 is up"
    assert event_line("reload", {"succeeded": True, "error": ""}) == "reload   succeeded"
    assert event_line("reload", {"succeeded": False, "error": "a.conf:1:1: no"}) == "reload   failed: a.conf:1:1: no"


async def rates_of(admin: Admin) -> Any:
    _, value = await admin.json("/v1/rules")
    return value["rules"][0]["rate"]


async def test_rates_are_there_while_somebody_looks(tmp_path: Path) -> None:
    async with with_sessions(tmp_path, 2) as admin:
        async with asyncio.timeout(30):
            while (rate := await rates_of(admin)) is None:
                pass
        assert rate["seconds"] > 0
        assert rate["accepted"] >= 0


async def test_servers_are_shown_drained_and_weighted(tmp_path: Path) -> None:
    async with echo_server() as (host, port):
        text = f"upstream web {host} {port}\nupstream web 127.0.0.2 {port} [weight=2]\n127.0.0.1 0 @web\n"
        async with administered(tmp_path, text) as admin:
            _, value = await admin.json("/v1/servers")
            assert faults(value, schema_of("/v1/servers")) == []
            (group,) = value["groups"]
            assert (await admin.json("/v1/rules"))[1]["rules"][0]["connect"] == "@web"
            assert (group["name"], [each["weight"] for each in group["servers"]]) == ("web", [1, 2])
            server = f"/v1/servers/web/{host}:{port}"
            status, value = await admin.json(f"{server}/drain", "POST")
            assert (status, value["groups"][0]["servers"][0]["state"]) == (200, "drain")
            assert value["groups"][0]["servers"][0]["why"] == "operator"
            status, value = await admin.json(f"{server}/weight", "POST", body=b'{"weight": 7}')
            assert status == 200
            status, value = await admin.json(f"{server}/ready", "POST")
            assert (value["groups"][0]["servers"][0]["state"], value["groups"][0]["servers"][0]["weight"]) == ("up", 7)
            for path, body, code in (
                ("/v1/servers/web/nowhere:1/drain", b"{}", 404),
                ("/v1/servers/nogroup/x:1/drain", b"{}", 404),
                (f"{server}/weight", b'{"weight": 1000}', 400),
                (f"{server}/weight", b"3", 400),
            ):
                assert (await admin.json(path, "POST", body=body))[0] == code, path
            assert (await admin.json("/v1/servers?group=other"))[0] == 404
            _, _, body = await admin.ask("GET", "/metrics")
            assert f'oinetd_server_weight{{group="web",server="{host}:{port}"}} 7.0'.encode() in body
