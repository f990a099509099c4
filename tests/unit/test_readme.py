"""The examples of README.md run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
PRINTS = ["listening: 127.0.0.1 PORT\n0 connections\n"]


def test_there_is_one() -> None:
    assert len(EXAMPLES) == len(PRINTS)


@pytest.mark.parametrize("number", range(len(PRINTS)))
def test_example_runs(number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXAMPLES[number]], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert re.sub(r"127\.0\.0\.1 \d+", "127.0.0.1 PORT", done.stdout) == PRINTS[number]


def test_the_configuration_is_one(tmp_path: Path) -> None:
    text = re.search(r"^```\n(# /etc/oinetd\.conf.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert text is not None
    (tmp_path / "oinetd.conf").write_text(text[1])
    check = [sys.executable, "-m", "oinetd", "-t", "-c", str(tmp_path / "oinetd.conf")]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
