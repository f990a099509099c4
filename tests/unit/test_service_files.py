"""The files for the service manager and logrotate: they agree with each other and with the program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from oinetd.process import invocation

CONF = Path(__file__).parents[2] / "conf"
UNIT = (CONF / "oinetd.service").read_text()

EXPOSURE_MAX = 1.5
"""Of systemd-analyze: 0 is nothing at all, 10 everything. A forwarder needs the network, which is 0.8 of it."""


def values(name: str) -> list[str]:
    """What the unit assigns to `name`, in order."""
    return re.findall(rf"^{name}=(.*)$", UNIT, flags=re.MULTILINE)


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is missing (Debian: apt install systemd)")
    return found


def test_what_the_unit_exposes(analyze: str) -> None:
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(CONF / "oinetd.service")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    level = re.search(r"exposure level for oinetd\.service: ([\d.]+)", done.stdout)
    if level is None:
        pytest.skip(f"systemd-analyze cannot look at a file: {done.stderr[:200]}")
    assert float(level[1]) <= EXPOSURE_MAX, done.stdout


def test_the_unit_has_no_mistake(analyze: str, tmp_path: Path) -> None:
    # With a command that is there, and without the manual pages.
    text = UNIT.replace("/usr/bin/oinetd", shutil.which("true") or "/bin/true")
    for name, said in (("oinetd.service", text), ("oinetd.socket", (CONF / "oinetd.socket").read_text())):
        (tmp_path / name).write_text(re.sub(r"^Documentation=.*\n", "", said, flags=re.MULTILINE))
    done = subprocess.run(
        [analyze, "verify", str(tmp_path / "oinetd.service"), str(tmp_path / "oinetd.socket")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "oinetd" not in done.stderr, done.stderr


def test_only_what_passes_by_itself_is_tried_again() -> None:
    (codes,) = values("RestartPreventExitStatus")
    permanent = {invocation.EX_USAGE, invocation.EX_NOINPUT, invocation.EX_NOPERM, invocation.EX_CONFIG}
    assert set(map(int, codes.split())) == permanent
    assert values("Restart") == ["on-failure"]
    assert values("RestartSec") == ["1"]
    assert values("StartLimitIntervalSec") == ["0"]


def test_the_network_is_not_waited_for() -> None:
    assert values("Wants") == []
    assert values("After") == ["network.target nss-lookup.target"]


def test_a_reload_is_checked_first() -> None:
    assert values("ExecReload") == ["/usr/bin/oinetd -t", "/bin/kill -HUP $MAINPID"]


def test_the_log_of_the_example_is_one_that_the_unit_may_write_and_logrotate_rotates() -> None:
    (log,) = re.findall(r"^#logfile (\S+)$", (CONF / "oinetd.conf").read_text(), flags=re.MULTILINE)
    assert Path(log).parent in map(Path, values("ReadWritePaths"))
    rotated = re.search(r"^(/.*) \{$", (CONF / "oinetd.logrotate").read_text(), flags=re.MULTILINE)
    assert rotated is not None
    assert rotated[1].split() == [log, f"/var/log/{values('LogsDirectory')[0]}/*.log"]


def test_the_time_to_stop_is_longer_than_that_to_drain() -> None:
    (seconds,) = values("TimeoutStopSec")
    assert float(seconds.removesuffix("s")) > 10.0
