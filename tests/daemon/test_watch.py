"""`watch on`: a changed configuration is read again, a bad one changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.daemon.process import Client, Oinetd, until
from tests.unit.test_file_watch import configmap

Start = Callable[..., Oinetd]


def texts(daemon: Oinetd, pattern: str) -> int:
    return len(re.findall(pattern, daemon.said))


def test_a_configmap_is_read_again_and_a_bad_one_changes_nothing(oinetd: Start, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    configmap(mount, 1, "watch on\nthreads 1\n")
    daemon = oinetd("UPSTREAM", "-c", str(mount / "oinetd.conf")).ready()
    upstream = daemon.conf.read_text()  # the fixture has put the server's address in place of the word
    configmap(mount, 2, f"watch on\nthreads 1\n127.0.0.1 0 {upstream}\n")
    daemon.wait_said("reloaded ")
    with Client(daemon.address) as client:
        assert client.echo(b"hello") == b"hello"
        configmap(mount, 3, "watch on\nnonsense\n")
        daemon.wait_said(r"reload failed, configuration unchanged: .*oinetd\.conf:2")
        assert client.echo(b"again") == b"again"
        with Client(daemon.address) as another:
            assert another.echo(b"hello") == b"hello"
        configmap(mount, 4, f"threads 1\n127.0.0.1 0 {upstream}\n")
        until(lambda: texts(daemon, "reloaded ") == 2, "the reload of the corrected file")
        assert client.echo(b"still") == b"still"
    # It no longer says `watch on`.
    configmap(mount, 5, "nonsense\n")
    assert "reload failed" in daemon.reload()
    assert texts(daemon, "watch: the configuration has changed") == 3
    assert daemon.stop() == 0


def test_a_mistake_in_an_included_file_is_corrected_there(oinetd: Start, tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    daemon = oinetd("watch on\ninclude conf.d/*.conf\n127.0.0.1 0 UPSTREAM\n").ready()
    (tmp_path / "conf.d" / "one.conf").write_text("nonsense\n")
    daemon.wait_said(r"reload failed, configuration unchanged: .*one\.conf:1")
    (tmp_path / "conf.d" / "one.conf").write_text("max-connections 5\n")
    daemon.wait_said("reloaded ")
    assert daemon.stop() == 0
