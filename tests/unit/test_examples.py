"""The Python examples of README.md and docs/: typed as strictly as the package, run, and printing what is shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(
    r"^```python\n(.*?)^```(?:\n\nIt prints:\n\n```text\n(.*?)^```)?", flags=re.DOTALL | re.MULTILINE
)  # an example, and what it prints if the page says so
PRINTED = {
    f"{page.relative_to(ROOT)}-{number}": (text, printed)
    for page in PAGES
    for number, (text, printed) in enumerate(PYTHON.findall(page.read_text()))
}
EXAMPLES = {name: text for name, (text, _) in PRINTED.items()}


def test_there_are_some() -> None:
    assert EXAMPLES


@pytest.mark.skipif(shutil.which("mypy", path=str(Path(sys.executable).parent)) is None, reason="mypy is not installed")
def test_the_examples_are_typed(tmp_path: Path) -> None:
    for name, text in EXAMPLES.items():
        (tmp_path / re.sub(r"\W", "_", name)).with_suffix(".py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path / 'cache'}", *tmp_path.glob("*.py")]
    environ = {**os.environ, "MYPYPATH": str(ROOT)}
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environ)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXAMPLES[name]], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == PRINTED[name][1] or not PRINTED[name][1]
