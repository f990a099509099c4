"""The directives of the admin interface: `admin`, `admin-host`, `metrics` → `AdminSettings`, and back."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import NoReturn

from oinetd.admin_settings import AdminAddress, AdminSettings, AdminSocket
from oinetd.config.address import parse_host, parse_ports
from oinetd.config.mistake import Mistake, did_you_mean, shown
from oinetd.config.syntax import Line, Option, Statement, Word
from oinetd.errors import Problem
from oinetd.model import Protocol

__all__ = ["AdminDraft", "admin_lines"]

USAGE = {
    "admin": "admin auto|off|unix:PATH [mode=600, owner=USER:GROUP], or admin ADDRESS PORT [page]",
    "admin-host": "admin-host NAME",
    "metrics": "metrics ADDRESS PORT",
}
UNIX = "unix:"
_MODE = re.compile(r"0?[0-7]{3}")
_OWNER = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)?")
_REMOTE_HINT = "use 127.0.0.1 or ::1, or protect it with admin-token-file FILE"


class _Wrong(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class AdminDraft:
    """The lines of the admin interface so far. `off` discards the lines before it."""

    def __init__(self) -> None:
        self._sockets: list[AdminSocket] | None = None  # None: nothing was said
        self._addresses: list[tuple[int, Line, Word, AdminAddress]] = []
        self._hosts: list[str] = []

    def take(self, index: int, statement: Statement) -> Problem | None:
        """Add one line; the problem if it has one."""
        line, words = statement.line, statement.words
        try:
            if statement.problems:
                return statement.problems[0]
            if len(words) < 2:
                _fail(line, words[0].end, 1, f"{words[0].text} needs a value", USAGE[words[0].text])
            if words[0].text == "admin-host":
                self._host(statement)
            elif words[0].text == "admin" and len(words) == 2:
                self._one_word(statement)
            else:
                self._address(index, statement)
        except _Wrong as wrong:
            return wrong.problem
        return None

    def settings(self, token_file: str) -> AdminSettings:
        """The settings of all lines."""
        sockets = (AdminSocket(),) if self._sockets is None else tuple(self._sockets)
        return AdminSettings(sockets, tuple(each[3] for each in self._addresses), tuple(self._hosts), token_file)

    def problems(self, token_file: str) -> Iterator[tuple[int, Problem]]:
        """The problems that show only when all lines are read."""
        for index, line, word, address in self._addresses:
            if not (token_file or address.metrics_only or _is_loopback(address.address)):
                message = f"admin on {word.text}: other machines can reach this address, and there is no token"
                yield index, line.problem(message, word.column, word.width, _REMOTE_HINT)

    def _host(self, statement: Statement) -> None:
        _no_more(statement, 2)
        word = statement.words[1]
        _read(statement.line, word, parse_host)
        self._hosts.append(word.text)

    def _one_word(self, statement: Statement) -> None:
        word = statement.words[1]
        if word.text == "off":
            _no_more(statement, 2)
            self._sockets = []
            self._addresses.clear()
            return
        path = word.text.removeprefix(UNIX)
        if word.text != "auto" and not (word.text.startswith(UNIX) and path.startswith("/")):
            hint = did_you_mean(word.text, ("auto", "off")) or USAGE["admin"]
            if word.text.startswith(UNIX):
                hint = f"write an absolute path: unix:/run/oinetd/{path or 'NAME.sock'}"
            _fail(statement.line, word.column, word.width, f"{shown(word.text)} is not where admin can listen", hint)
        mode, owner = 0o600, ""
        for name, value in _options(statement, ("mode", "owner")):
            if name.text == "mode" and value is not None and _MODE.fullmatch(value.text):
                mode = int(value.text, 8)
            elif name.text == "owner" and value is not None and _OWNER.fullmatch(value.text):
                owner = value.text
            else:
                place = value or name
                hint = "three octal digits, such as 660" if name.text == "mode" else "USER or USER:GROUP"
                _fail(statement.line, place.column, place.width, f"{name.text} has no valid value", hint)
        found = AdminSocket("" if word.text == "auto" else path, mode, owner, str(statement.line))
        self._sockets = [each for each in self._sockets or [] if each.path != found.path] + [found]

    def _address(self, index: int, statement: Statement) -> None:
        line, words = statement.line, statement.words
        keyword = words[0].text
        _no_more(statement, 3)
        if len(words) < 3:
            _fail(line, words[1].end, 1, "the port is missing", USAGE[keyword])
        _read(line, words[1], parse_host)
        ports = _read(line, words[2], parse_ports)
        if len(ports) > 1 or ports.protocol is not Protocol.TCP:
            _fail(line, words[2].column, words[2].width, f"{shown(words[2].text)} is not one TCP port", USAGE[keyword])
        page = False
        for name, value in _options(statement, ("page",) if keyword == "admin" else ()):
            page = value is None or value.text == "on"
            if value is not None and value.text not in ("on", "off"):
                _fail(line, value.column, value.width, f"{name.text} has no valid value", "on or off")
        address = AdminAddress(words[1].text, ports.first, page, keyword == "metrics", str(line))
        self._addresses = [each for each in self._addresses if each[3] != address]
        self._addresses.append((index, line, words[1], address))


def admin_lines(settings: AdminSettings) -> Iterator[str]:
    """The lines that parse to `settings`."""
    if not settings.sockets:
        yield "admin off"
    for each in settings.sockets:
        options = [f"mode={each.mode:03o}"] if each.mode != AdminSocket().mode else []
        options += [f"owner={each.owner}"] if each.owner else []
        yield f"admin {UNIX + each.path if each.path else 'auto'}" + (f" [{', '.join(options)}]" if options else "")
    for address in settings.addresses:
        word, page = ("metrics", "") if address.metrics_only else ("admin", " [page]" if address.page else "")
        yield f"{word} {address.host} {address.port}{page}"
    yield from (f"admin-host {host}" for host in settings.hosts)


def _options(statement: Statement, known: tuple[str, ...]) -> Iterator[Option]:
    for option in statement.options:
        name = option.name
        if name.text not in known:
            hint = did_you_mean(name.text, known) or (f"the options are {', '.join(known)}" if known else "")
            message = f"unknown option {shown(name.text)}"
            _fail(statement.line, name.column, name.width, message, hint or USAGE[statement.words[0].text])
        yield option


def _no_more(statement: Statement, words: int) -> None:
    line, keyword = statement.line, statement.words[0].text
    for word in statement.words[words:]:
        _fail(line, word.column, word.width, f"unexpected {shown(word.text)}", USAGE[keyword])
    if statement.options and (keyword == "admin-host" or statement.words[1].text == "off"):
        name = statement.options[0].name
        _fail(line, name.column, name.width, f"{keyword} {statement.words[1].text} has no options", USAGE[keyword])


def _read(line: Line, word: Word, parse):  # type: ignore[no-untyped-def]
    try:
        return parse(word.text)
    except Mistake as mistake:
        raise _Wrong(line.mistaken(word, mistake)) from None


def _fail(line: Line, column: int, width: int, message: str, hint: str) -> NoReturn:
    raise _Wrong(line.problem(message, column, width, hint))


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
