"""The commands that ask a running oinetd: `oinetd status`, `rules`, `sessions`, `kill`, `reload` and others."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from oinetd.admin.client import Answer, Client, NoInstance, SeveralInstances, find_instance
from oinetd.admin.print import event_line, explain_lines, rule_lines, server_lines, session_lines, status_lines

__all__ = ["COMMANDS", "run"]

EX_OK: Final = 0
EX_FAILED: Final = 1
EX_USAGE: Final = 64
EX_TEMPFAIL: Final = 75
EX_NOPERM: Final = 77
EX_CONFIG: Final = 78


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
    _ARGUMENTS.get(name, _nothing)(parser)
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
    """Check the health: exit code 0 if it serves, 1 if it starts, stops, or has a problem."""
    answer = client.get("/v1/health")
    found = answer.value
    if not isinstance(found, dict) or "status" not in found:
        raise _Refused(answer)
    print("\n".join([found["status"], *found["problems"]]), flush=True)
    return EX_OK if answer.status == 200 else EX_FAILED


def status(client: Client, said: argparse.Namespace) -> int:
    """Show the overview: uptime, sessions, descriptors, threads, reloads."""
    return _show(_sound(client.get("/v1/status")), status_lines, said.json)


def rules(client: Client, said: argparse.Namespace) -> int:
    """Show the rules with their lanes, counters and rates."""
    return _show(_sound(client.get("/v1/rules")), rule_lines, said.json)


def sessions(client: Client, said: argparse.Namespace) -> int:
    """List live sessions."""
    return _show(_sound(client.get("/v1/sessions", _query(said))), session_lines, said.json)


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
    print(f"{count} session{'s' * (count != 1)} ended")
    return EX_OK


def reload(client: Client, said: argparse.Namespace) -> int:
    """Reload the configuration and wait for the end; errors are printed, exit code 78."""
    answer = client.post("/v1/reload")
    if answer.status == 200:
        count = answer.value["rules"]
        print(f"reloaded, {count} rule{'s' * (count != 1)}")
        return EX_OK
    if answer.status != 422:
        raise _Refused(answer)
    problems = answer.value["problems"]
    for problem in problems:
        place = ":".join(str(part) for part in (problem["file"], problem["line"], problem["column"]) if part)
        print(problem.get("shown") or f"{place}: {problem['message']}", file=sys.stderr)
    print(f"oinetd reload: nothing was changed: {answer.value['detail']}", file=sys.stderr)
    return EX_CONFIG if problems else EX_TEMPFAIL


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
    if found["dry_run"]:
        print(f"{moved} sessions would move, {staying} would stay")
    else:
        print(f"process {found['pid']} serves; {moved} sessions moved, {staying} stay with the old process")
    return EX_OK


def events(client: Client, said: argparse.Namespace) -> int:
    """Print events as they happen: sessions, servers, reloads."""
    for name, value in client.events():
        if name == "listening":
            continue
        print(json.dumps({"event": name, **value}) if said.json else event_line(name, value), flush=True)
    return EX_FAILED  # the process has ended


def top(client: Client, said: argparse.Namespace) -> int:
    """Show rules, sessions and rates, live; keys sort, filter and kill. Needs the extra `top`."""
    from oinetd.process.top import top

    return top(client)


def explain(client: Client, said: argparse.Namespace) -> int:
    """Show the rule that serves an address and port, its lane with the reason, and whether it admits a client."""
    query = {"address": said.address, "port": said.port, "protocol": said.protocol}
    if said.client:
        query["client"] = said.client
    found = _sound(client.get("/v1/explain", query))
    _show(found, explain_lines, said.json)
    return EX_OK if found["verdict"] == "served" else EX_FAILED


def _query(said: argparse.Namespace) -> dict[str, str]:
    names = ("rule", "client", "server", "older", "idle", "sort", "limit", "after")
    return {name: str(value) for name in names if (value := getattr(said, name, None)) is not None}


def _nothing(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments of its own."""


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the document of the API")


def _filters(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rule", metavar="NAME", help="of this rule (see oinetd rules)")
    add("--client", metavar="PATTERN", help="of these clients: an address, a network, a pattern as in allow")
    add("--server", metavar="ADDRESS", help="to this server: an address, or address:port")
    add("--older", metavar="TIME", help="older than this, such as 90s, 5m, 1h")
    add("--idle", metavar="TIME", help="without a byte for longer than this")


def _of_sessions(parser: argparse.ArgumentParser) -> None:
    _filters(parser)
    parser.add_argument("--sort", choices=("id", "age", "idle", "bytes", "rate"), help="the order (default: id)")
    parser.add_argument("--limit", type=int, metavar="N", help="show at most N")
    parser.add_argument("--after", type=int, metavar="ID", help="only those with a higher id")
    _json(parser)


def _of_kill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", type=int, metavar="ID", help="the id of a session (see oinetd sessions)")
    _filters(parser)


def _of_upgrade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="PATH", help="start this program in place of the present one")
    parser.add_argument("--dry-run", action="store_true", help="start it, and say what would move")


def _of_servers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("group", nargs="?", metavar="GROUP", help="only this group")
    _json(parser)


def _of_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", metavar="GROUP/SERVER", help="as `oinetd servers` shows them")


def _of_weight(parser: argparse.ArgumentParser) -> None:
    _of_server(parser)
    parser.add_argument("weight", type=int, metavar="N", help="from 0 to 256")


def _of_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="the address that the client connects to")
    parser.add_argument("port", metavar="PORT", help="the port")
    parser.add_argument("--client", metavar="ADDRESS", help="the address that the client has")
    parser.add_argument("--udp", dest="protocol", action="store_const", const="udp", default="tcp", help="over UDP")
    _json(parser)


_ARGUMENTS: Final[Mapping[str, Callable[[argparse.ArgumentParser], None]]] = {
    "status": _json,
    "rules": _json,
    "sessions": _of_sessions,
    "kill": _of_kill,
    "servers": _of_servers,
    "drain": _of_server,
    "maint": _of_server,
    "ready": _of_server,
    "weight": _of_weight,
    "events": _json,
    "explain": _of_explain,
    "upgrade": _of_upgrade,
}

UPGRADE_S: Final = 300.0
"""An upgrade waits for the new process and for sessions that are connecting."""

COMMANDS: Final[Mapping[str, Callable[[Client, argparse.Namespace], int]]] = {
    "health": health,
    "status": status,
    "rules": rules,
    "sessions": sessions,
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
