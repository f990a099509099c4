"""The kinds of values of groups of servers: their names, the texts of checks, HTTP status codes, passive limits."""

from __future__ import annotations

import re

from oinetd.bounds import CHECKS_MAX
from oinetd.config.mistake import Mistake, shown
from oinetd.config.values.common import Count, Time
from oinetd.servers import Passive, StatusRange

__all__ = ["GroupName", "HeaderText", "PassiveForm", "PathText", "StatusRanges", "Text", "Token"]

NAME_CHARS_MAX = 64
TEXT_BYTES_MAX = 256
"""The limit of what a check sends or expects: it fits into one packet, and escaped into one line."""

_NAME = re.compile(r"[-0-9A-Za-z_.]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, 5.6.2."""
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\", '"': '"'}
_WRITTEN = {ord(char): f"\\{name}" for name, char in _ESCAPES.items()}
_PLAIN = re.compile(r"[-0-9A-Za-z_./:?=&%~+*@!$]+")
_STATUS = re.compile(r"([0-9]{3})(?:-([0-9]{3}))?")


class GroupName:
    """The name of a group of servers."""

    form = "NAME"

    def parse(self, text: str) -> str:
        if not _NAME.fullmatch(text):
            raise Mistake(f"{shown(text)} is not a valid name of a group", "letters, digits, '-', '_' and '.'")
        if len(text) > NAME_CHARS_MAX:
            raise Mistake(f"the name has {len(text)} characters; the limit is {NAME_CHARS_MAX}")
        return text

    def format(self, value: str) -> str:
        return value


class Text:
    """Bytes: a text in double quotes with escapes, or a word without blanks."""

    form = "TEXT"

    def parse(self, text: str) -> bytes:
        content = self._unquoted(text) if text.startswith('"') else text.encode("utf-8", "surrogateescape")
        if len(content) > TEXT_BYTES_MAX:
            raise Mistake(f"a text of {len(content)} bytes; the limit is {TEXT_BYTES_MAX}")
        return content

    @staticmethod
    def _unquoted(text: str) -> bytes:
        content, at = bytearray(), 1
        while at < len(text) - 1:
            char = text[at]
            if char != "\\":
                content += char.encode("utf-8", "surrogateescape")
                at += 1
                continue
            name = text[at + 1 : at + 2]
            if name in _ESCAPES and at + 1 < len(text) - 1:
                content += _ESCAPES[name].encode()
                at += 2
            elif name == "x" and re.fullmatch("[0-9A-Fa-f]{2}", text[at + 2 : at + 4]):
                content.append(int(text[at + 2 : at + 4], 16))
                at += 4
            else:
                hint = r"\r \n \t \\ \" and \xNN are known"
                raise Mistake(f"unknown escape {shown(text[at : at + 2])}", hint, start=at, width=2)
        if at >= len(text) or text[-1] != '"':
            raise Mistake("the closing quote is missing")
        return bytes(content)

    def format(self, value: bytes) -> str:
        plain = value.decode("ascii", "replace")
        if _PLAIN.fullmatch(plain):
            return plain
        return '"' + "".join(_WRITTEN.get(b) or (chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in value) + '"'


class HeaderText:
    """The value of a header field: printable ASCII without control characters, quoted or not."""

    form = "TEXT"
    what = "the text of a check"

    def parse(self, text: str) -> str:
        content = Text().parse(text)
        for byte, name in ((0x0D, "CR"), (0x0A, "LF"), (0x00, "NUL")):
            if byte in content:
                raise Mistake(f"{self.what} cannot have a {name}", "only check-send may have line ends")
        if any(not 32 <= byte < 127 for byte in content):
            raise Mistake(f"{self.what} has characters other than printable ASCII")
        return content.decode("ascii")

    def format(self, value: str) -> str:
        return Text().format(value.encode("ascii"))


class PathText(HeaderText):
    """The target of a request."""

    form = "PATH"
    what = "the path of a check"

    def parse(self, text: str) -> str:
        path = super().parse(text)
        if not path.startswith("/") and path != "*":
            raise Mistake(f"{shown(text)} is not a path", "it begins with '/'")
        if " " in path:
            raise Mistake("the path of a check cannot have a blank", "write %20")
        return path


class Token(HeaderText):
    """The method of a request."""

    form = "METHOD"
    what = "the method of a check"

    def parse(self, text: str) -> str:
        method = super().parse(text)
        if not _TOKEN.fullmatch(method):
            raise Mistake(f"{shown(text)} is not a method", "such as GET, HEAD or OPTIONS")
        return method


class StatusRanges:
    """HTTP status codes and ranges of them, joined by `+`."""

    form = "CODES"

    def parse(self, text: str) -> tuple[StatusRange, ...]:
        ranges, start = [], 0
        for part in text.split("+"):
            found = _STATUS.fullmatch(part)
            low, high = (int(found[1]), int(found[2] or found[1])) if found is not None else (0, 0)
            if not 100 <= low <= high <= 599:
                raise Mistake(
                    f"{shown(part)} is not a status code or a range of them",
                    "from 100 to 599, such as 200-299+404",
                    start=start,
                    width=max(1, len(part)),
                )
            ranges.append(StatusRange(low, high))
            start += len(part) + 1
        return tuple(ranges)

    def format(self, value: tuple[StatusRange, ...]) -> str:
        return "+".join(str(low) if low == high else f"{low}-{high}" for low, high in value)


class PassiveForm:
    """The number of failed connects in a row that ejects a server, and the time of the ejection."""

    form = "off|FAILURES/TIME"

    def parse(self, text: str) -> Passive:
        if text == "off":
            return Passive(0, 0.0)
        failures, slash, hold = text.partition("/")
        if not slash:
            raise Mistake(f"{shown(text)} is not a limit of failures", "failures in a row and a time, such as 3/10s")
        parsed: list[float] = []
        for part, kind, start in (
            (failures, Count(1, CHECKS_MAX, {}), 0),
            (hold, Time(never=False), len(failures) + 1),
        ):
            try:
                parsed.append(kind.parse(part))
            except Mistake as mistake:
                raise Mistake(mistake.message, mistake.hint, start=start, width=max(1, len(part))) from None
        return Passive(int(parsed[0]), parsed[1])

    def format(self, value: Passive) -> str:
        return f"{value.failures}/{Time().format(value.hold_s)}" if value.failures else "off"
