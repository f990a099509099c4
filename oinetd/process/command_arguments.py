"""The arguments of the commands that ask a running oinetd."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from oinetd.config.mistake import Mistake, nearest
from oinetd.config.values.common import Time

__all__ = ["add_arguments", "unexpected"]

HEALTH_TIMEOUT: Final = "5s"
"""A process that is frozen accepts, and says nothing."""

NO_COMMANDS: Final = {
    "start": "oinetd without a command starts",
    "stop": "kill -TERM PID stops; oinetd status has the PID",
    "restart": "oinetd upgrade replaces the running program, oinetd reload reads the configuration again",
}


def add_arguments(name: str, parser: argparse.ArgumentParser) -> None:
    """Add what the command `name` takes."""
    if name in _ARGUMENTS:
        _ARGUMENTS[name](parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the document of the API")


def _of_health(parser: argparse.ArgumentParser) -> None:
    text = f"how long an answer may take, such as 500ms (default: {HEALTH_TIMEOUT})"
    parser.add_argument("--timeout", type=_time, default=HEALTH_TIMEOUT, metavar="TIME", help=text)


def _time(text: str) -> float:
    try:
        return Time(never=False).parse(text)
    except Mistake as mistake:
        raise argparse.ArgumentTypeError(str(mistake)) from None


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


def _of_clients(parser: argparse.ArgumentParser) -> None:
    _filters(parser)
    orders = ("sessions", "bytes", "age", "idle")
    parser.add_argument("--sort", choices=orders, help="the order (default: sessions)")
    parser.add_argument("--limit", type=int, metavar="N", help="show at most N")
    _json(parser)


def _of_kill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", type=int, metavar="ID", help="the id of a session (see oinetd sessions)")
    _filters(parser)


def _of_upgrade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="PATH", help="start this program in place of the present one")
    parser.add_argument("--dry-run", action="store_true", help="start it, and say what would move")
    _json(parser)


def _of_servers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("group", nargs="?", metavar="GROUP", help="only this group")
    _json(parser)


def _of_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", metavar="GROUP/SERVER", help="as `oinetd servers` shows them")


def _of_weight(parser: argparse.ArgumentParser) -> None:
    _of_server(parser)
    parser.add_argument("weight", type=int, metavar="N", help="from 0 to 256")


def _of_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="the address that the client connects to, or unix:PATH")
    parser.add_argument("port", nargs="?", metavar="PORT", help="the port; a unix socket has none")
    parser.add_argument("--client", metavar="ADDRESS", help="the address that the client has")
    parser.add_argument("--sni", metavar="NAME", help="the server name that it wants by TLS")
    parser.add_argument("--alpn", metavar="PROTOCOL", help="the protocol that it wants by TLS, such as h2")
    parser.add_argument("--udp", dest="protocol", action="store_const", const="udp", default="tcp", help="over UDP")
    _json(parser)


_ARGUMENTS: Final[Mapping[str, Callable[[argparse.ArgumentParser], None]]] = {
    "health": _of_health,
    "status": _json,
    "rules": _json,
    "sessions": _of_sessions,
    "clients": _of_clients,
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


def unexpected(word: str, commands: Iterable[str], options: Iterable[str]) -> str:
    """The error for a word that is neither an option nor the value of one, nor one of `commands`."""
    known = [each for each in options if each.startswith("--")] if word.startswith("-") else commands
    if word in NO_COMMANDS:
        return f"there is no command {word}: {NO_COMMANDS[word]}"
    meant = nearest(word, known, 0.75)
    hint = f"; did you mean {meant}?" if meant else ""
    if word.startswith("-"):
        return f"unknown option {word}{hint}"
    if meant == word:
        return f"the command {word} stands before its options: oinetd {word}"
    if meant:
        return f"unknown command {word}{hint}"
    return f"unexpected argument {word}; a configuration file needs -c: oinetd -c {word}"
