"""The errors that oinetd raises, by their cause.

A mistake of the operator is a `ConfigError`, a refusal of the system a `BindError`, a missing engine an
`EngineUnavailable`. The behaviour of a peer is never an exception; it is an `oinetd.Ending`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SHOWN_MAX", "BindError", "ConfigError", "EngineUnavailable", "OinetdError", "Problem"]


class OinetdError(Exception):
    """The base class of all errors of oinetd."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error or a warning (`Config.warnings`) about a configuration: what is wrong, its position, and the remedy.

    `line` and `column` count from 1; both are 0 without a position (an unreadable file). `width` is the length of the
    wrong words in characters, `text` is the line without its end.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    width: int = 1
    text: str = ""
    hint: str = ""

    @property
    def place(self) -> str:
        """`file:line:column`, without unknown parts."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part)

    def __str__(self) -> str:
        rows = [f"{self.place}: {self.message}" if self.place else self.message]
        if self.text and self.column:
            # Tabs are repeated, so that the caret is below its word in any terminal.
            lead = "".join("\t" if char == "\t" else " " for char in self.text[: self.column - 1])
            rows += [f"    {self.text}", f"    {lead}{'^' * max(1, self.width)}"]
        if self.hint:
            rows.append(f"    hint: {self.hint}")
        return "\n".join(rows)


SHOWN_MAX = 200
"""Errors of one configuration that its message shows: a file of another kind has one in each line, and the log is for
people."""


class ConfigError(OinetdError):
    """A configuration that cannot be used; `problems` has all its errors, in the order of the text.

    The message shows the first `SHOWN_MAX` of them and how many more there are.
    """

    def __init__(self, *problems: Problem) -> None:
        if not problems:
            raise ValueError("a ConfigError needs at least one Problem")
        lines = [str(problem) for problem in problems[:SHOWN_MAX]]
        if len(problems) > SHOWN_MAX:
            lines.append(f"and {len(problems) - SHOWN_MAX} more errors, not shown")
        super().__init__("\n".join(lines))
        self.problems = problems

    @property
    def line(self) -> int:
        """The line of the first problem, counted from 1; 0 if it has none."""
        return self.problems[0].line

    @property
    def column(self) -> int:
        """The column of the first problem, counted from 1; 0 if it has none."""
        return self.problems[0].column

    @property
    def hint(self) -> str:
        """The suggested remedy of the first problem; empty if there is none."""
        return self.problems[0].hint


class BindError(OinetdError):
    """A listening socket could not be opened; `errno` has the reason."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class EngineUnavailable(OinetdError):
    """The configured engine is not available; the message has the reason."""
