"""The command line's word over the configuration's, and the exit codes."""

from __future__ import annotations

import errno

import pytest

from oinetd.errors import BindError, ConfigError, EngineUnavailable, OinetdError, Problem
from oinetd.model import Config, Endpoint, EngineChoice, RelayMode, Rule, RuleOptions, Settings
from oinetd.process.invocation import Options, exit_code

RULE = Rule(
    Endpoint("0", 80),
    Endpoint("x", 80),
    RuleOptions(engine=EngineChoice.PYTHON, relay=RelayMode.COPY, max_connections=5),
)
CONFIG = Config(rules=(RULE,), settings=Settings(engine=EngineChoice.PYTHON, buffer_bytes=1), threads=2, pid_file="a")


def test_no_word_changes_nothing() -> None:
    assert Options(conf_file="x").with_overrides(CONFIG) is CONFIG


def test_every_word_counts_for_every_rule() -> None:
    options = Options(conf_file="x", pid_file="b", engine=EngineChoice.NATIVE, relay=RelayMode.SPLICE, threads=0)
    config = options.with_overrides(CONFIG)
    assert (config.pid_file, config.threads, config.settings.buffer_bytes) == ("b", 0, 1)
    in_force = config.settings_of(config.rules[0])
    assert (in_force.engine, in_force.relay) == (EngineChoice.NATIVE, RelayMode.SPLICE)
    assert config.rules[0].options.max_connections == 5


def test_the_usual_pid_file_is_for_a_configuration_without_one() -> None:
    assert Options(conf_file="x", default_pid_file="b").with_overrides(CONFIG).pid_file == "a"
    assert Options(conf_file="x", default_pid_file="b").with_overrides(Config()).pid_file == "b"
    assert Options(conf_file="x", default_pid_file="b", pid_file="c").with_overrides(Config()).pid_file == "c"


def test_one_word_leaves_the_others() -> None:
    config = Options(conf_file="x", relay=RelayMode.AUTO).with_overrides(CONFIG)
    in_force = config.settings_of(config.rules[0])
    assert (in_force.engine, in_force.relay) == (EngineChoice.PYTHON, RelayMode.AUTO)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(Problem("bad")), 78),
        (EngineUnavailable("not built"), 78),
        (BindError("taken", errno.EADDRINUSE), 71),
        (BindError("low", errno.EACCES), 77),
        (PermissionError(errno.EPERM, "no"), 77),
        (FileNotFoundError(errno.ENOENT, "no"), 71),
        (OinetdError("held"), 71),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert exit_code(error) == code
