"""Text → statements: words with their positions, without their meaning. No I/O.

Lines end with LF or CRLF. Words are separated by blanks and tabs, and `#` begins a comment, even directly after a word.
A line whose first word is a directive is a directive. Any other line is a forwarding rule; it may end with options in
brackets, also directly after the last word.

File names are an exception, as in rinetd: `#` in a file name is part of it, and a file name in double quotes may
contain blanks. The value of an option may be a text in double quotes, too; a backslash in it escapes the next
character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from oinetd.config.mistake import Mistake, printable, shown
from oinetd.config.privacy import HIDDEN_HINT, without_words_of
from oinetd.config.values.common import FileName
from oinetd.config.vocabulary import DIRECTIVES, Duty
from oinetd.errors import Problem

__all__ = ["Line", "Option", "Statement", "Word", "read_statements"]

LINE_CHARS_MAX = 4096
"""No rule needs more. It limits the work and the message for one line; comment lines have no limit."""

OPTIONS_MAX = 64
"""Several times the number of known options; it limits the number of problems of one line."""

_BLANKS = " \t"
_WORD = re.compile(r"[^ \t]+")
_UNGLUED = re.compile(r"[^ \t#]+")
_BRACKETED = r"\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[^] \t#]*)?\]?"
# In a list of hosts a bracket after a comma begins an address, not the options.
_RULE_WORD = re.compile(rf"(?:[^ \t#\[]|(?<=,){_BRACKETED})+")
# An IPv6 address in brackets, with text directly after it. The closing bracket may be missing; this is reported later.
_IPV6_WORD = re.compile(rf"{_BRACKETED}(?:[^ \t#\[]|(?<=,){_BRACKETED})*")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_VALUE_QUOTE = re.compile(r'=[ \t]*"')
_QUOTED_VALUE = re.compile(r'(?<==)[ \t]*"(?:[^"\\]|\\.)*"|#.*')
_RULE_WORDS = 4


class Word(NamedTuple):
    """One word: `column` counts from 1, `width` is its length in the line (with quotes)."""

    text: str
    column: int
    width: int

    @property
    def end(self) -> int:
        """The column after the word."""
        return self.column + self.width


class Option(NamedTuple):
    """One option of a rule; `value` is None without `=`."""

    name: Word
    value: Word | None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file; `number` counts from 1. No message shows the text of a `hidden` one."""

    file: str
    number: int
    text: str
    hidden: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"

    def problem(self, message: str, column: int, width: int = 1, hint: str = "") -> Problem:
        """A problem at a position in this line."""
        shown_text = printable(self.text)
        if self.hidden:
            return Problem(without_words_of(shown_text, message), self.file, self.number, column, hint=HIDDEN_HINT)
        return Problem(printable(message), self.file, self.number, column, width, shown_text, printable(hint))

    def mistaken(self, word: Word, mistake: Mistake) -> Problem:
        """The problem for a mistake in `word`."""
        quote = 1 if word.width > len(word.text) else 0
        width = mistake.width or word.width - mistake.start
        return self.problem(
            mistake.message,
            word.column + mistake.start + quote * (mistake.start > 0),
            max(1, width),
            mistake.hint,
        )


@dataclass(frozen=True, slots=True)
class Statement:
    """A line that is neither empty nor a comment.

    `problems` are errors of its form; `words` may then be empty.
    """

    line: Line
    words: tuple[Word, ...] = ()
    options: tuple[Option, ...] = ()
    problems: tuple[Problem, ...] = ()


def read_statements(text: str, file: str, *, hidden: bool = False) -> Iterator[Statement]:
    """The statements of `text`, in order, without empty lines and comments.

    No message shows a part of a `hidden` text.
    """
    for number, row in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        row = row.rstrip("\r")
        content = row.lstrip(_BLANKS)
        if content and content[0] != "#":
            yield _statement(Line(file, number, row, hidden), len(row) - len(content))


def _statement(line: Line, start: int) -> Statement:
    text = line.text
    damage = _damage(line)
    if damage is not None:
        return Statement(line, problems=(damage,))
    first = _UNGLUED.match(text, start)
    assert first is not None  # the line begins with neither a blank nor '#'
    entry = DIRECTIVES.get(first[0])
    if entry is not None and isinstance(entry.value, FileName):
        return _file_directive(line, first)
    if (entry is not None and entry.duty not in (Duty.ADMIN, Duty.UPSTREAM)) or "[" not in text:
        return Statement(line, tuple(_words(text, start)))
    return _rule(line, start)


def _damage(line: Line) -> Problem | None:
    """The problem of a line that cannot be parsed at all; None if it can."""
    text = line.text
    if len(text) > LINE_CHARS_MAX:
        return Problem(f"a line of {len(text)} characters; the limit is {LINE_CHARS_MAX}", line.file, line.number)
    nul = text.find("\0")
    if nul >= 0:
        return line.problem("a NUL byte", nul + 1, hint="the file is damaged, or is not text in UTF-8")
    carriage_return = text.find("\r")
    if carriage_return >= 0:
        return line.problem(
            "a carriage return inside the line", carriage_return + 1, hint="lines end with LF or with CRLF"
        )
    return None


def _words(text: str, start: int) -> Iterator[Word]:
    comment = text.find("#", start)
    for match in _WORD.finditer(text, start, comment if comment >= 0 else len(text)):
        yield Word(match[0], match.start() + 1, len(match[0]))


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at


def _ends(text: str, at: int) -> bool:
    return at == len(text) or text[at] == "#"


def _file_directive(line: Line, keyword: re.Match[str]) -> Statement:
    text, at = line.text, keyword.end()
    words = [Word(keyword[0], keyword.start() + 1, len(keyword[0]))]
    while not _ends(text, at := _skip_blanks(text, at)):
        if text[at] != '"':
            match = _WORD.match(text, at)
            assert match is not None  # not a blank, and not the end
            end = match.end()
            words.append(Word(match[0], at + 1, end - at))
        else:
            close = text.find('"', at + 1)
            if close < 0:
                problem = line.problem("the closing quote is missing", at + 1, len(text) - at)
                return Statement(line, tuple(words), problems=(problem,))
            end = close + 1
            if end < len(text) and text[end] not in " \t#":
                problem = line.problem(
                    "text directly after the closing quote", end + 1, hint="quotes go around the whole name"
                )
                return Statement(line, tuple(words), problems=(problem,))
            words.append(Word(text[at + 1 : close], at + 1, end - at))
        at = end
    return Statement(line, tuple(words))


def _rule(line: Line, at: int) -> Statement:
    text = line.text
    words: list[Word] = []
    while not _ends(text, at := _skip_blanks(text, at)):
        match = _RULE_WORD.match(text, at)
        if match is None and len(words) < _RULE_WORDS and text[at - 1 : at] in ("", " ", "\t"):
            match = _IPV6_WORD.match(text, at)
        if match is None and not words:
            match = _UNGLUED.match(text, at)
        if match is None:
            options, problems = _block(line, at)
            return Statement(line, tuple(words), tuple(options), tuple(problems))
        words.append(Word(match[0], at + 1, match.end() - at))
        at = match.end()
    return Statement(line, tuple(words))


def _block(line: Line, start: int) -> tuple[list[Option], list[Problem]]:
    """The options in the brackets that begin at `start`."""
    text = _without_quoted(line.text, start)
    unclosed = _VALUE_QUOTE.search(text, start)
    if unclosed is not None and "#" not in text[start : unclosed.end()]:
        return [], [line.problem("the closing quote is missing", unclosed.end(), len(text) - unclosed.end() + 1)]
    end, depth = start, 0
    while not _ends(text, end):
        # Brackets nest once, for src=[::1].
        depth += {"[": 1, "]": -1}.get(text[end], 0)
        if depth == 0:
            break
        end += 1
    else:
        width = len(text[start:end].rstrip(_BLANKS))
        return [], [line.problem("the ']' that closes the options is missing", start + 1, width)]
    options: list[Option] = []
    problems: list[Problem] = []
    if not text[start + 1 : end].strip(_BLANKS):
        problems.append(line.problem("no options between the brackets", start + 1, end + 1 - start))
    elif (semicolon := text.find(";", start, end)) >= 0:
        pairs = zip(line.text[start : end + 1], text[start : end + 1], strict=True)
        write = "".join("," if masked == ";" else char for char, masked in pairs)
        problems.append(line.problem("options are separated by commas", semicolon + 1, hint=f"write {write}"))
    elif text.count(",", start, end) >= OPTIONS_MAX:
        message = f"more than {OPTIONS_MAX} options"
        problems.append(line.problem(message, start + 1, end + 1 - start))
    else:
        at = start + 1
        for part in text[at:end].split(","):
            found = _option(line, line.text[at : at + len(part)], at)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                options.append(found)
            at += len(part) + 1
    text = line.text
    rest = _skip_blanks(text, end + 1)
    if not _ends(text, rest):
        word = _UNGLUED.match(text, rest)
        assert word is not None  # not the end, and neither a blank nor '#'
        hint = "a rule has one block of options, with commas between them" if text[rest] == "[" else ""
        problems.append(line.problem(f"unexpected {shown(word[0])} after the options", rest + 1, len(word[0]), hint))
    return options, problems


def _without_quoted(text: str, start: int) -> str:
    """`text` with dots in place of the quoted values behind `start`: what they hold has no meaning for the syntax."""
    if '"' not in text:
        return text
    return text[:start] + _QUOTED_VALUE.sub(
        lambda found: found[0] if found[0][0] == "#" else "." * len(found[0]), text[start:]
    )


def _option(line: Line, part: str, at: int) -> Option | Problem:
    """The option in `part`, which begins at the index `at`."""
    content = part.strip(_BLANKS)
    at += len(part) - len(part.lstrip(_BLANKS))
    if not content:
        return line.problem("an option is missing before or after the comma", at + 1)
    name, equals, value = content.partition("=")
    name = name.rstrip(_BLANKS)
    word = Word(name, at + 1, max(1, len(name)))
    if not equals:
        return Option(word, None)
    stripped = value.lstrip(_BLANKS)
    at += len(content) - len(stripped)
    quoted = _QUOTED.match(stripped)
    gap = next((index for index, char in enumerate(stripped) if char in _BLANKS), -1)
    if quoted is not None:
        gap = quoted.end() if quoted.end() < len(stripped) else -1
    if gap >= 0:
        rest = _skip_blanks(stripped, gap)
        return line.problem(
            f"unexpected {shown(stripped[rest:])} after the option's value",
            at + rest + 1,
            len(stripped) - rest,
            "options are separated by commas",
        )
    return Option(word, Word(stripped, at + 1, max(1, len(stripped))))
