"""The configuration language: rinetd's, with additions.

Text becomes statements (`syntax`), statements become a `Config` (`compile`), and a `Config` becomes text again
(`render`). Only `loader` reads files. All directives and options are in one table (`vocabulary`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain

from oinetd.config.compile import compile_config
from oinetd.config.loader import load_statements
from oinetd.config.render import render_config
from oinetd.config.rule import RULE_USAGE
from oinetd.config.syntax import read_statements
from oinetd.config.vocabulary import DIRECTIVES
from oinetd.errors import ConfigError, Problem
from oinetd.file_state import FileSource
from oinetd.model import Config, Rule

__all__ = ["load_config", "parse_config", "parse_rule", "render_config"]


LINES = "-e"
"""The name of lines of the command line in problems and origins."""


def parse_config(text: str, file: str = "<text>") -> Config:
    """The configuration in `text`; `file` is its name in problems and origins.

    Reads no file, so `include` is an error here. Raises `ConfigError` with all problems.
    """
    return compile_config(read_statements(text, file), file)


def load_config(path: str | os.PathLike[str], lines: Sequence[str] = ()) -> Config:
    """The configuration in the file `path` (none if empty), in the files that it includes, and then in `lines`.

    The files are read as UTF-8 with surrogate escapes. Raises `ConfigError` with all problems, also if a file cannot
    be read.
    """
    file = os.fspath(path)
    sources: list[FileSource] = []
    read = load_statements(file, sources) if file else iter(())
    return compile_config(chain(read, read_statements("\n".join(lines), LINES)), file or LINES, sources)


def parse_rule(text: str) -> Rule:
    """The forwarding rule in `text`, with or without options. Raises `ConfigError` if it is anything else."""
    usage = f"a rule is: {RULE_USAGE}"
    statements = list(read_statements(text, "<rule>"))
    if not statements:
        raise ConfigError(Problem("no rule", "<rule>", hint=usage))
    if len(statements) > 1:
        line = statements[1].line
        raise ConfigError(line.problem("more than one rule", 1, len(line.text)))
    (statement,) = statements
    if statement.words and statement.words[0].text in DIRECTIVES:
        word = statement.words[0]
        raise ConfigError(
            statement.line.problem(f"'{word.text}' is a directive, not a rule", word.column, word.width, usage)
        )
    return compile_config(statements, "<rule>").rules[0]
