"""What `import oinetd` costs: the public names are there, and what is behind them only when it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import oinetd

HEAVY = {"asyncio", "uvloop", "oinetd._fastpath"}
CONF = Path(__file__).parents[2] / "conf" / "oinetd.conf"


def loaded(program: str) -> set[str]:
    """The modules that are there after `program`."""
    source = f"import sys\n{program}\nprint('modules:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("modules:")[2].split())


@pytest.mark.parametrize(
    "program",
    [
        "import oinetd; oinetd.__version__, dir(oinetd)",
        "from oinetd import Config, ConfigError, parse_config, parse_rule; parse_rule('127.0.0.1 1 h.example 1')",
        "from oinetd.process.cli import main; main(['-v'])",
        f"from oinetd.process.cli import main; assert main(['-t', '-c', {str(CONF)!r}]) == 0",
    ],
)
def test_it_is_light(program: str) -> None:
    assert not HEAVY & loaded(program)


def test_the_engine_comes_with_the_forwarder() -> None:
    assert "asyncio" in loaded("from oinetd import Forwarder")


def test_every_name_is_there_and_where_it_says() -> None:
    assert set(oinetd.__all__) <= set(dir(oinetd))
    for name in oinetd.__all__:
        value = getattr(oinetd, name)
        assert value is getattr(sys.modules[value.__module__], name)
        assert vars(oinetd)[name] is value  # asked for once
    assert not hasattr(oinetd, "nonsense")


def test_types_are_of_what_is_there(tmp_path: Path) -> None:
    """A type checker knows each name, and none that is not there."""
    program = tmp_path / "program.py"
    names = ", ".join(oinetd.__all__)
    program.write_text(f"from oinetd import {names}\nimport oinetd\noinetd.nonsense\nreveal_type(Forwarder.stats)\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stdout
    assert "nonsense" in errors[0]
    assert "-> oinetd.core.stats.Stats" in done.stdout
