"""The configuration language: rinetd's, and oinetd's own words.

Text becomes statements (`syntax`), statements become a `Config` (`compile`), and a `Config` becomes text
again (`render`). Only `loader` reads files. The words of the language stand in one table (`vocabulary`).
"""

from __future__ import annotations

import os

from oinetd.config.compile import compile_config
from oinetd.config.loader import load_statements
from oinetd.config.render import render_config
from oinetd.config.rule import RULE_USAGE
from oinetd.config.syntax import read_statements
from oinetd.config.vocabulary import DIRECTIVES
from oinetd.errors import ConfigError, Problem
from oinetd.model import Config, Rule

__all__ = ["load_config", "parse_config", "parse_rule", "render_config"]


def parse_config(text: str, file: str = "<text>") -> Config:
    """The configuration in `text`; `file` is how its problems and origins call it.

    Reads no file, so that `include` is a problem here. Raises `ConfigError` with all problems.
    """
    return compile_config(read_statements(text, file), file)


def load_config(path: str | os.PathLike[str]) -> Config:
    """The configuration in the file `path` and in the files it includes.

    The files are read as UTF-8; bytes that are not are carried through. Raises `ConfigError` with all
    problems, also where a file cannot be read.
    """
    file = os.fspath(path)
    return compile_config(load_statements(file), file)


def parse_rule(text: str) -> Rule:
    """The one forwarding rule in `text`, options allowed. Raises `ConfigError` where it is anything else."""
    usage = f"a rule is: {RULE_USAGE}"
    statements = list(read_statements(text, "<rule>"))
    if not statements:
        raise ConfigError(Problem("there is no rule", "<rule>", hint=usage))
    if len(statements) > 1:
        line = statements[1].line
        raise ConfigError(line.problem("more than one rule", 1, len(line.text)))
    (statement,) = statements
    if statement.words and statement.words[0].text in DIRECTIVES:
        word = statement.words[0]
        raise ConfigError(
            statement.line.problem(f"'{word.text}' is a directive and not a rule", word.column, word.width, usage)
        )
    return compile_config(statements, "<rule>").rules[0]
