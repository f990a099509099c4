"""The errors oinetd raises, split by who is at fault.

The operator's mistakes are `ConfigError`, the machine's refusals are `BindError`, a missing engine is
`EngineUnavailable`. What a peer does is never an exception: it is an `oinetd.Ending`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BindError", "ConfigError", "EngineUnavailable", "OinetdError", "Problem"]


class OinetdError(Exception):
    """The base of every error that oinetd raises."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration: what is wrong, where, and the remedy. An error, or a warning (`Config.warnings`).

    `line` and `column` count from 1; both are 0 where the mistake has no place in a text (an unreadable file).
    `width` is the length of the offending words in characters, `text` the line as written, without its end.
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
        """`file:line:column`, as much of it as is known."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part)

    def __str__(self) -> str:
        rows = [f"{self.place}: {self.message}" if self.place else self.message]
        if self.text and self.column:
            # Tabs are kept under the line, so that the caret stands below its word in any terminal.
            lead = "".join("\t" if char == "\t" else " " for char in self.text[: self.column - 1])
            rows += [f"    {self.text}", f"    {lead}{'^' * max(1, self.width)}"]
        if self.hint:
            rows.append(f"    hint: {self.hint}")
        return "\n".join(rows)


class ConfigError(OinetdError):
    """A configuration that cannot be used; `problems` holds all its mistakes, in the order of the text."""

    def __init__(self, *problems: Problem) -> None:
        if not problems:
            raise ValueError("a ConfigError needs at least one Problem")
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems

    @property
    def line(self) -> int:
        """The line of the first problem, counted from 1; 0 where it has none."""
        return self.problems[0].line

    @property
    def column(self) -> int:
        """The column of the first problem, counted from 1; 0 where it has none."""
        return self.problems[0].column

    @property
    def hint(self) -> str:
        """The suggested remedy of the first problem; empty where there is none."""
        return self.problems[0].hint


class BindError(OinetdError):
    """A listening socket could not be opened; `errno` is the kernel's reason."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class EngineUnavailable(OinetdError):
    """The engine that was asked for cannot serve here; the message names what is missing."""
