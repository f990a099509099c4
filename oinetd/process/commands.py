"""The commands that ask a running oinetd: `oinetd status`, `rules`, `sessions`, `kill`, `reload` and others."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NoReturn

from oinetd.admin.client import Answer, Client, ConnectionLost, NoInstance, SeveralInstances, find_instance
from oinetd.admin.print import (
    client_lines,
    event_line,
    explain_lines,
    rule_lines,
    server_lines,
    session_lines,
    status_lines,
)
from oinetd.observe.text import number_of
from oinetd.process.command_arguments import add_arguments

__all__ = ["COMMANDS", "run"]

EX_OK: Final = 0
EX_FAILED: Final = 1
EX_USAGE: Final = 64
EX_TEMPFAIL: Final = 75
EX_NOPERM: Final = 77
EX_CONFIG: Final = 78

UPGRADE_S: Final = 300.0
"""An upgrade waits for the new process and for sessions that are connecting."""

AGAIN_S: Final = 0.1
AGAIN_LOOKS: Final = 20
"""How often, and how many times, events look for a process that goes on."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EX_USAGE, f"{self.prog}: {message}\n{self.format_usage()}")


class _Refused(Exception):
    """An answer that is an error; `code` is the exit code."""

    def __init__(self, answer: Answer) -> None:
        value = answer.value if isinstance(answer.value, dict) else {}
        super().__init__(str(value.get("detail", f"status {answer.status}")))
        self.code = {400: EX_USAGE, 403: EX_NOPERM}.get(answer.status, EX_FAILED)


def run(name: str, words: Sequence[str]) -> int:
    """Run the command `name` with its `words`; returns the exit code."""
    command = COMMANDS[name]
    parser = _Parser(prog=f"oinetd {name}", description=command.__doc__, allow_abbrev=False)
    parser.add_argument("-n", "--name", default="", metavar="NAME", help="the instance, if several are running")
    parser.add_argument("--admin", default="", metavar="PATH", help="its admin socket")
    add_arguments(name, parser)
    try:
        said = parser.parse_args(list(words))
        client = Client(find_instance(said.name, said.admin, os.environ))
        return command(client, said)
    except SystemExit as end:  # argparse has printed the message
        return int(end.code or 0)
    except SeveralInstances as error:
        return _fail(name, str(error), EX_USAGE)
    except NoInstance as error:
        return _fail(name, str(error), EX_FAILED)
    except _Refused as error:
        return _fail(name, str(error), error.code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return EX_OK


def _fail(name: str, message: str, code: int) -> int:
    print(f"oinetd {name}: {message}", file=sys.stderr)
    return code


def _sound(answer: Answer) -> Any:
    if answer.status != 200:
        raise _Refused(answer)
    return answer.value


def _show(value: Any, lines: Callable[[Any], list[str]], as_json: bool) -> int:
    print(json.dumps(value, indent=2) if as_json else "\n".join(lines(value)), flush=True)
    return EX_OK


def health(client: Client, said: argparse.Namespace) -> int:
    """Check the health: exit code 0 if it serves, 1 if it starts, stops, has a problem, or does not answer in time."""
    answer = client.get("/v1/health", timeout_s=said.timeout)
    found = answer.value
    if not isinstance(found, dict) or "status" not in found:
        raise _Refused(answer)
    print("\n".join([found["status"], *found["problems"]]), flush=True)
    return EX_OK if answer.status == 200 else EX_FAILED


def status(client: Client, said: argparse.Namespace) -> int:
    """Show the overview: uptime, sessions, descriptors, threads, groups, reloads."""
    return _show(_sound(client.get("/v1/status")), status_lines, said.json)


def rules(client: Client, said: argparse.Namespace) -> int:
    """Show the rules with their lanes, counters and rates."""
    return _show(_sound(client.get("/v1/rules")), rule_lines, said.json)


def sessions(client: Client, said: argparse.Namespace) -> int:
    """List live sessions."""
    return _show(_sound(client.get("/v1/sessions", _query(said))), session_lines, said.json)


def clients(client: Client, said: argparse.Namespace) -> int:
    """List clients with their live sessions together."""
    return _show(_sound(client.get("/v1/clients", _query(said))), client_lines, said.json)


def servers(client: Client, said: argparse.Namespace) -> int:
    """Show the servers of all groups, or of one: state, since when and why, sessions, weight."""
    query = {"group": said.group} if said.group else {}
    return _show(_sound(client.get("/v1/servers", query)), server_lines, said.json)


def _change_server(client: Client, said: argparse.Namespace, action: str, value: Any = None) -> int:
    group, slash, server = said.server.partition("/")
    if not (slash and group and server):
        return _fail(action, "write GROUP/SERVER, as `oinetd servers` shows them", EX_USAGE)
    answer = client.post(f"/v1/servers/{group}/{server}/{action}", value=value)
    return _show(_sound(answer), server_lines, False)


def drain(client: Client, said: argparse.Namespace) -> int:
    """Give a server no new sessions; those that it has go on. It stays so over reloads, until `ready`."""
    return _change_server(client, said, "drain")


def maint(client: Client, said: argparse.Namespace) -> int:
    """Take a server out of service: no sessions, no checks. It stays so over reloads, until `ready`."""
    return _change_server(client, said, "maint")


def ready(client: Client, said: argparse.Namespace) -> int:
    """Let a server serve again, as its checks and the configuration say."""
    return _change_server(client, said, "ready")


def weight(client: Client, said: argparse.Namespace) -> int:
    """Give a server another weight, over reloads, too; 0 drains it."""
    return _change_server(client, said, "weight", {"weight": said.weight})


def kill(client: Client, said: argparse.Namespace) -> int:
    """End one session, or all that match the filters; both peers get a reset."""
    query = _query(said)
    if said.id is None and not query:
        return _fail(
            "kill", "say which: an ID, or at least one filter (--rule, --client, --server, --older, --idle)", 64
        )
    if said.id is not None and query:
        return _fail("kill", "an ID has no filters", EX_USAGE)
    if said.id is not None:
        _sound(client.post(f"/v1/sessions/{said.id}/kill"))
        print("1 session ended")
        return EX_OK
    count = _sound(client.post("/v1/sessions/kill", query))["killed"]
    print(f"{number_of(count, 'session')} ended")
    return EX_OK


def reload(client: Client, said: argparse.Namespace) -> int:
    """Reload the configuration and wait for the end; errors are printed, exit code 78."""
    answer = _reloaded(client)
    if answer.status == 200:
        count = answer.value["rules"]
        print(f"reloaded, {number_of(count, 'rule')}")
        return EX_OK
    if answer.status != 422:
        raise _Refused(answer)
    problems = answer.value["problems"]
    for problem in problems:
        place = ":".join(str(part) for part in (problem["file"], problem["line"], problem["column"]) if part)
        print(problem.get("shown") or f"{place}: {problem['message']}", file=sys.stderr)
    print(f"oinetd reload: {answer.value['detail']}", file=sys.stderr)
    return EX_CONFIG if problems else EX_TEMPFAIL


def _reloaded(client: Client) -> Answer:
    """The answer to a reload: of the process that serves, if the first one is replaced meanwhile."""
    try:
        answer = client.post("/v1/reload")
    except ConnectionLost:
        if not _answers_again(client):
            raise
        return client.post("/v1/reload")
    if answer.status in (HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE) and _answers_again(client):
        return client.post("/v1/reload")
    return answer


def upgrade(client: Client, said: argparse.Namespace) -> int:
    """Replace the program; live sessions go on in the new process."""
    answer = client.post("/v1/upgrade", value={"to": said.to or "", "dry_run": said.dry_run}, timeout_s=UPGRADE_S)
    if answer.status == 422:
        print(answer.value["detail"], file=sys.stderr)
        print("oinetd upgrade: the running process goes on", file=sys.stderr)
        return int(answer.value.get("code", EX_TEMPFAIL))
    if answer.status != 200:
        raise _Refused(answer)
    found = answer.value
    moved, staying = found["moved"], found["staying"]
    if said.json:
        print(json.dumps(found))
    elif found["dry_run"]:
        print(f"{number_of(moved, 'session')} would move, {staying} would stay")
    else:
        stay = f"{staying} stay with the old process{_why(staying, found['declined'])}"
        print(f"process {found['pid']} serves; {number_of(moved, 'session')} moved, {stay}")
    return EX_OK


def _why(staying: int, declined: int) -> str:
    """Why sessions stay with the old process."""
    unready = max(0, staying - declined)  # some of those that were declined have ended since
    reasons = [f"{unready} not connected yet, or ending"] if unready else []
    reasons += [f"{declined} without a rule or server in the new configuration"] if declined else []
    return f": {', '.join(reasons)}" if reasons else ""


def events(client: Client, said: argparse.Namespace) -> int:
    """Print events as they happen: sessions, servers, reloads. It goes on with the new process of an upgrade."""
    pid = 0
    while True:
        before, pid = pid, _sound(client.get("/v1/status"))["pid"]
        if before:
            goes_on = f"process {pid} has taken over" if pid != before else "connected again"
            print(f"oinetd events: {goes_on}; what happened in between is not here", file=sys.stderr, flush=True)
        try:
            for name, value in client.events():
                if name != "listening":
                    print(json.dumps({"event": name, **value}) if said.json else event_line(name, value), flush=True)
        except ConnectionLost:
            pass
        if not _answers_again(client):
            print("oinetd events: the process has ended", file=sys.stderr)
            return EX_FAILED


def _answers_again(client: Client) -> bool:
    """Whether a process answers that goes on with the service; one that is stopping does not count."""
    for _ in range(AGAIN_LOOKS):
        try:
            if client.get("/v1/health").value.get("status") != "draining":
                return True
        except NoInstance:
            return False  # the socket is gone, with the process
        time.sleep(AGAIN_S)
    return False


def top(client: Client, said: argparse.Namespace) -> int:
    """Show rules, sessions and rates, live; keys sort, filter and kill. Needs the extra `top`."""
    from oinetd.process.top import top

    return top(client)


def explain(client: Client, said: argparse.Namespace) -> int:
    """Show the rule that serves an address and port, its lane with the reason, and whether it admits a client."""
    if said.port is None and not said.address.startswith("unix:"):
        return _fail("explain", "say the PORT, too", EX_USAGE)
    words = {name: getattr(said, name) for name in ("address", "port", "protocol", "client", "sni", "alpn")}
    query = {name: word for name, word in words.items() if word}
    found = _sound(client.get("/v1/explain", query))
    _show(found, explain_lines, said.json)
    return EX_OK if found["verdict"] == "served" else EX_FAILED


def _query(said: argparse.Namespace) -> dict[str, str]:
    names = ("rule", "client", "server", "older", "idle", "sort", "limit", "after")
    return {name: str(value) for name in names if (value := getattr(said, name, None)) is not None}


COMMANDS: Final[Mapping[str, Callable[[Client, argparse.Namespace], int]]] = {
    "health": health,
    "status": status,
    "rules": rules,
    "sessions": sessions,
    "clients": clients,
    "kill": kill,
    "servers": servers,
    "drain": drain,
    "maint": maint,
    "ready": ready,
    "weight": weight,
    "events": events,
    "reload": reload,
    "upgrade": upgrade,
    "explain": explain,
    "top": top,
}
