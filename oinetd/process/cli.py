"""The command line: rinetd's options and more; see oinetd(8)."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import oinetd
from oinetd.errors import ConfigError, EngineUnavailable
from oinetd.model import Config
from oinetd.process.context import HELD_SIGNALS, prepare
from oinetd.process.invocation import EX_CONFIG, EX_NOINPUT, EX_NOPERM, EX_OK, EX_OSERR, EX_TEMPFAIL, EX_USAGE, Options
from oinetd.process.privileges import Identity

__all__ = ["command_parser", "main"]

CONF_FILES: Final = ("/etc/oinetd.conf", "/etc/rinetd.conf")
"""Where the configuration is searched; the second path lets oinetd replace rinetd without any change."""

NAMES_SHOWN: Final = 5

COMMANDS: Final = (
    "clients",
    "drain",
    "events",
    "explain",
    "health",
    "kill",
    "maint",
    "ready",
    "reload",
    "rules",
    "servers",
    "sessions",
    "status",
    "top",
    "upgrade",
    "weight",
)
"""They ask a running oinetd."""

RINETD_NAME: Final = "rinetd"
RINETD_PID_FILE: Final = "/run/rinetd.pid"
"""If the program is called `rinetd` (a link to oinetd), it prefers rinetd's configuration file and writes rinetd's pid
file, which rinetd's unit waits for."""

EPILOGUE: Final = """\
oinetd demo      forwards to a small embedded service and needs no configuration
oinetd forward 8080 db.example.org:80     forwards in the foreground, without a file

These ask a running oinetd (-n NAME or --admin PATH if there are several):
oinetd status, rules, sessions, clients, events   what there is, and what happens
oinetd top                                 the same, live
oinetd servers, drain, maint, ready, weight GROUP/SERVER   of groups
oinetd health                              exit code 0 if it serves, 1 if not
oinetd kill ID, reload, upgrade            what changes something
oinetd transparent [-c FILE] [--redirect]  what routing needs for src=client, transparent
oinetd explain ADDRESS PORT                which rule serves it, and why so

signals:         HUP reloads, TERM and INT drain and exit, USR1 reopens the log,
                 USR2 logs the status
exit codes:      0 | 64 usage | 66 no configuration file | 71 a socket could not be
                 opened | 75 may succeed later | 77 no permission | 78 bad configuration
manual:          oinetd(8), oinetd.conf(5)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run oinetd with the arguments `argv`; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command, rest = _command(words)
    if argv is None:  # not called by another program
        prepare(() if words[:1] == ["demo"] or command else HELD_SIGNALS)
    if command:
        from oinetd.process import commands

        return commands.run(command, rest)
    try:
        if words[:1] == ["demo"]:
            return _demo(words[1:])
        forward, transparent = words[:1] == ["forward"], words[:1] == ["transparent"]
        parser = command_parser(forward=forward, transparent=transparent)
        said, extra = parser.parse_known_args(words[1:] if forward or transparent else words)
        if extra:
            from oinetd.process.command_arguments import unexpected

            known = () if forward or transparent else (*COMMANDS, "demo", "forward", "transparent")
            parser.error(unexpected(extra[0], known, parser.format_help().split()))
        lines = said.lines or []
        if forward:
            lines = [*_forward(parser, said.pairs), *lines]
        if said.strict and not (said.test or said.show):
            parser.error("--strict needs -t")
    except SystemExit as end:  # argparse has printed the message
        return int(end.code or 0)
    if said.version:
        print(f"oinetd {oinetd.__version__}")
        return EX_OK
    if said.resolve and not said.test:
        print("oinetd: --resolve needs -t", file=sys.stderr)
        return EX_USAGE
    as_rinetd = argv is None and os.path.basename(sys.argv[0]) == RINETD_NAME
    conf_file, fault, code = "", "", EX_OK
    if said.conf_file or not lines:
        conf_file, fault, code = _find(said.conf_file, CONF_FILES[::-1] if as_rinetd else CONF_FILES)
    if code:
        from oinetd.upgrade.take import refuse

        if not refuse(os.environ, code, f"oinetd: {fault}"):
            print(f"oinetd: {fault}", file=sys.stderr)
        return code
    options = Options(
        conf_file=conf_file,
        lines=tuple(lines),
        foreground=said.foreground or forward,
        pid_file=said.pidfile,
        # Like rinetd: not in the foreground. Only root can write to /run.
        default_pid_file=RINETD_PID_FILE if as_rinetd and not said.foreground and os.geteuid() == 0 else "",
        identity=said.user,
        engine=said.engine,
        relay=said.relay,
        threads=said.threads,
        log_level=said.log_level,
        log_format=said.log_format,
        name=said.name or "",
        admin_path=said.admin or "",
    )
    if transparent:
        from oinetd.process.transparent import show

        return show(options, redirect=said.redirect)
    if said.test or said.show:
        return _look(options, show=said.show, strict=said.strict, resolve=said.resolve)
    # Imported here: the event loop takes longer to import than the rest of the start.
    from oinetd.process.run import run

    return run(options)


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The command that asks a running oinetd, and the other words; `-n` and `--admin` may stand before it."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        if words[at] in ("-n", "--name", "--admin"):
            at += 2
        elif words[at].startswith(("-n", "--name=", "--admin=")):
            at += 1
        else:
            return "", words
    if at < len(words) and words[at] in COMMANDS:
        return words[at], [*words[:at], *words[at + 1 :]]
    return "", words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EX_USAGE, f"{self.prog}: {message}\n{self.format_usage()}")


def _forward(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    from oinetd.process.forward import forward_lines

    try:
        return forward_lines(words)
    except ValueError as error:
        parser.error(str(error))


def command_parser(*, forward: bool = False, transparent: bool = False) -> argparse.ArgumentParser:
    """The parser of the command line, or of one of these commands; completions of shells are made from it."""
    parser = _Parser(
        prog="oinetd forward" if forward else "oinetd transparent" if transparent else "oinetd",
        description="Print the rules of routing and nftables that src=client and transparent need, and what is missing."
        if transparent
        else "Forwards TCP connections and UDP datagrams as its configuration says.",
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    if forward:
        add("pairs", nargs="*", metavar="LISTEN DESTINATION", help="such as 8080 db.example.org:80")
    if transparent:
        add("--redirect", action="store_true", help="the lines for NAT in place of tproxy")
    add("-e", "--line", dest="lines", action="append", metavar="LINE", help="a line of a configuration, after the file")
    add("-c", "--conf-file", metavar="FILE", type=_file, help=f"the configuration (default: {' or '.join(CONF_FILES)})")
    add("-f", "--foreground", action="store_true", help="stay in the foreground, with messages on standard error")
    add("-t", "--test", action="store_true", help="check the configuration, print its errors or OK, and exit")
    add("--strict", action="store_true", help="with -t: treat warnings as errors")
    add("--resolve", action="store_true", help="with -t: resolve the names, too")
    add("-T", dest="show", action="store_true", help="print the configuration in force, and exit")
    add("-p", "--pidfile", metavar="FILE", type=_file, help="write the process id to this file")
    add("-u", "--user", metavar="USER[:GROUP]", type=_identity, help="become this user after the files are opened")
    add("-n", "--name", metavar="NAME", type=_name, help="the name of this instance for commands")
    add("--admin", metavar="PATH", type=_path, help="the admin socket, in place of those configured")
    add("--engine", metavar="ENGINE", type=_value_of("engine"), help="engine of all rules: auto, native or python")
    add("--relay", metavar="MODE", type=_value_of("relay"), help="how the native engine copies: auto, copy or splice")
    add("--threads", metavar="N", type=_value_of("threads"), help="threads of the native engine: a number or auto")
    levels = ("debug", "info", "warning", "error")
    add(
        "--log-level",
        metavar="LEVEL",
        choices=levels,
        default="info",
        help=f"lowest level to log: {', '.join(levels)}",
    )
    formats = ("text", "json")
    add("--log-format", choices=formats, default="text", help="messages as text, or as one JSON object a line")
    add("-v", "--version", action="store_true", help="print the version, and exit")
    return parser


def _file(word: str) -> str:
    if not word:
        raise argparse.ArgumentTypeError("the file name is empty")
    return word


def _name(word: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", word):
        raise argparse.ArgumentTypeError("a name has at most 64 letters, digits, '-', '_' or '.'")
    return word


def _path(word: str) -> str:
    if not word.startswith("/"):
        raise argparse.ArgumentTypeError(f"{word} is not an absolute path")
    return word


def _value_of(directive: str) -> Callable[[str], Any]:
    """A parser of an option's value: the one of the directive with this name."""

    def parse(word: str) -> Any:
        from oinetd.config.mistake import Mistake
        from oinetd.config.vocabulary import DIRECTIVES

        value = DIRECTIVES[directive].value
        assert value is not None
        try:
            return value.parse(word)
        except Mistake as mistake:
            hint = f"; {mistake.hint}" if mistake.hint else ""
            raise argparse.ArgumentTypeError(f"{mistake.message}{hint}") from None

    return parse


def _identity(word: str) -> Identity:
    try:
        return Identity.parse(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _find(asked: str | None, usual: tuple[str, ...]) -> tuple[str, str, int]:
    """The configuration file to use, `asked` or the first of `usual`; or the error and its exit code."""
    places = usual if asked is None else (asked,)
    for path in places:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except FileNotFoundError:
            continue
        except PermissionError as error:
            return "", f"{path}: {error.strerror}", EX_NOPERM
        except OSError as error:
            return "", f"{path}: {error.strerror}", EX_NOINPUT
        return path, "", EX_OK
    return "", f"no configuration file found: {' or '.join(places)}", EX_NOINPUT


def _look(options: Options, *, show: bool, strict: bool, resolve: bool) -> int:
    """`-t` and `-T`: check the configuration, or print it. `strict` treats warnings as errors."""
    from oinetd.config import render_config
    from oinetd.observe.connection_log import ConnectionLog
    from oinetd.process.pidfile import PidFile
    from oinetd.process.trial import try_out
    from oinetd.upstream.hosts import names_of

    try:
        config = options.with_overrides(options.load())
        ConnectionLog.check(config.log)
        PidFile.check(config.pid_file)
        untried = [] if show else try_out(config)
        unanswered = _unanswered(config) if resolve else []
    except (ConfigError, EngineUnavailable) as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if strict and config.warnings:
        return EX_CONFIG
    if unanswered:
        print("\n".join(unanswered), file=sys.stderr)
        print("oinetd: the rest of the configuration is valid; try again when the name server answers", file=sys.stderr)
        return EX_TEMPFAIL
    if show:
        return _print(render_config(config))
    text = "OK\n"
    if not resolve and (names := names_of(config)):
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        listed = ", ".join(list(names)[:NAMES_SHOWN]) + more
        text += f"names not resolved (use -t --resolve): {listed}\n"
    return _print(text + "".join(f"{line}\n" for line in untried))


def _print(text: str) -> int:
    """Write to standard output, which may be a full disk or a closed pipe."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        print(f"oinetd: standard output: {error.strerror}", file=sys.stderr)
        # The interpreter flushes it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return EX_OSERR
    return EX_OK


def _unanswered(config: Config) -> list[str]:
    """Resolve the names; a message for each name that got no answer."""
    import asyncio

    from oinetd.upstream.namecheck import check_names

    return asyncio.run(check_names(config))


def _demo(words: Sequence[str]) -> int:
    parser = _Parser(
        prog="oinetd demo",
        description="Forwards to a small embedded service, and prints what happens.",
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=_port, help="the port to listen on (default: 8080, or a free one)")
    said = parser.parse_args(words)
    from oinetd.process.demo import run

    return run(said.port)


def _port(word: str) -> int:
    if word.isascii() and word.isdecimal() and int(word) <= 65535:
        return int(word)
    raise argparse.ArgumentTypeError(f"{word!r} is not a valid port (0 to 65535)")
