"""oinetd(8) says what the code says, and the unit files what the manual says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from oinetd.core.record import Ending
from oinetd.observe.formats import STATUS
from oinetd.observe.writer import HELD_BYTES_MAX
from oinetd.process.cli import command_parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "man" / "oinetd.8").read_text()


def test_every_option_has_its_entry() -> None:
    entries = "\n".join(re.findall(r"(?m)^\.It Fl .*$", PAGE))
    for action in command_parser()._actions:
        for option in action.option_strings:
            assert re.search(rf"\bFl {re.escape(option[1:])}( |$)", entries, re.M), option


def test_every_ending_and_status_is_named() -> None:
    log = PAGE[PAGE.index(".Sh CONNECTION LOG") : PAGE.index(".Sh SERVICE MANAGER")]
    for ending in Ending:
        assert re.search(rf"[ \n]{ending.value}[ ,\n]", log), ending
    for status in STATUS.values():
        assert f".It Li {status}\n" in log or f'.It Li "{status}"\n' in log, status


def rendered(command: list[str]) -> str:
    """oinetd(8) as a reader sees it, without what only a terminal understands."""
    environ = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run([*command, str(ROOT / "man" / "oinetd.8")], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    return re.sub(r".\x08|\x1b\[[0-9;]*m", "", done.stdout)


def table_of_log_words(page: str) -> dict[str, str]:
    """Each word of the connection log, and what the page says of it on one line."""
    begin = re.compile(r"\n( +)opened ").search(page, page.index("CONNECTION LOG"))
    assert begin is not None
    indent = len(begin[1])  # 5 columns, in the man-db of Debian 13 7
    rows = page[begin.start() : page.index("The format json")].strip("\n").split("\n")
    table: dict[str, str] = {}
    word = ""
    for row in filter(str.strip, rows):
        match = re.fullmatch(rf" {{{indent}}}(\S+(?: -)?) {{2,}}(\S.*)", row)
        if match is not None:
            word = match[1]
            table[word] = match[2]
        else:
            assert row.startswith(" " * (indent + 15)), row
            table[word] += " " + row.strip()
    return {word: re.sub(r"\s+", " ", re.sub("\u2010 ", "", text)) for word, text in table.items()}


RENDERERS = {"man-db": ["man", "-l"], "mandoc": ["mandoc", "-T", "utf8", "-O", "width=80"]}


@pytest.mark.parametrize("name", RENDERERS)
def test_the_table_of_log_words_is_one_in_every_renderer(name: str) -> None:
    if shutil.which(RENDERERS[name][0]) is None:
        pytest.skip(f"{name} is not installed")
    table = table_of_log_words(rendered(RENDERERS[name]))
    assert set(table) == {"opened", *STATUS.values()}
    for word, text in table.items():
        source = PAGE[re.search(rf'\.It Li "?{re.escape(word)}"?\n', PAGE).end() :]  # type: ignore[union-attr]
        lines = re.split(r"\n\.(?:It|El)", source)[0].split("\n")
        assert text == " ".join(line.removeprefix(".Cm ") for line in lines)


def test_the_table_is_the_same_in_both_renderers() -> None:
    if not all(shutil.which(command[0]) for command in RENDERERS.values()):
        pytest.skip("it takes both man-db and mandoc")
    first, second = (table_of_log_words(rendered(command)) for command in RENDERERS.values())
    assert first == second


def test_the_bound_of_held_lines() -> None:
    assert f"up to {HELD_BYTES_MAX >> 20} MiB of lines are\nqueued" in PAGE


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_it_is_well_formed() -> None:
    checked = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(ROOT / "man" / "oinetd.8")], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for name in ("oinetd.service", "oinetd.socket"):
        text = (ROOT / "conf" / name).read_text()
        # The program and its manual need not be installed here.
        text = re.sub(r"(?m)^Documentation=.*\n", "", text).replace("/usr/bin/oinetd", "/bin/true")
        (tmp_path / name).write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "oinetd.service"), str(tmp_path / "oinetd.socket")],
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is not installed")
def test_logrotate_takes_its_part() -> None:
    checked = subprocess.run(
        ["logrotate", "--debug", str(ROOT / "conf" / "oinetd.logrotate")], capture_output=True, text=True
    )
    assert checked.returncode == 0
    assert "error" not in checked.stderr
