"""oinetd(8) says what the code says, and the unit files what the manual says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from oinetd.cli import _parser
from oinetd.linewriter import HELD_BYTES_MAX
from oinetd.logline import STATUS
from oinetd.record import Ending

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "man" / "oinetd.8").read_text()


def test_every_option_has_its_entry() -> None:
    entries = "\n".join(re.findall(r"(?m)^\.It Fl .*$", PAGE))
    for action in _parser()._actions:
        for option in action.option_strings:
            assert re.search(rf"\bFl {re.escape(option[1:])}( |$)", entries, re.M), option


def test_every_ending_and_status_is_named() -> None:
    log = PAGE[PAGE.index(".Sh CONNECTION LOG") : PAGE.index(".Sh SERVICE MANAGER")]
    for ending in Ending:
        assert re.search(rf"[ \n]{ending.value}[ ,\n]", log), ending
    for status in STATUS.values():
        assert f".It Li {status} Ta" in log or f'.It Li "{status}" Ta' in log, status


def test_the_bound_of_held_lines() -> None:
    assert f"up to {HELD_BYTES_MAX >> 20} MiB of lines are\nheld" in PAGE


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
