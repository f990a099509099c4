"""Warnings: what they say, in full; that they prevent nothing; and that they are told once at start and reload."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from oinetd import Config, Forwarder, load_config, parse_config, render_config

ITSELF = "127.0.0.1 1 127.0.0.1 1\n"

SAID = {
    "itself": (
        "0.0.0.0 8080  127.0.0.1   8080 # oops",
        """\
oinetd.conf:1:15: the destination 127.0.0.1 8080 is the rule's own listener
    0.0.0.0 8080  127.0.0.1   8080 # oops
                  ^^^^^^^^^^^^^^^^
    hint: no client of this rule can be served; name another address or port""",
    ),
    "there-and-back": (
        "127.0.0.1 1 127.0.0.1 2/udp\n127.0.0.1 2/udp 127.0.0.1 1",
        """\
oinetd.conf:2:17: the destination 127.0.0.1 1 leads back to this rule, by oinetd.conf:1
    127.0.0.1 2/udp 127.0.0.1 1
                    ^^^^^^^^^^^
    hint: no client of this rule can be served; name another address or port""",
    ),
    "a-range": (
        "::1 8000-8009/udp localhost 8000-8009/udp",
        """\
oinetd.conf:1:19: the destination localhost 8000-8009/udp is the rule's own listener
    ::1 8000-8009/udp localhost 8000-8009/udp
                      ^^^^^^^^^^^^^^^^^^^^^^^
    hint: no client of this rule can be served; name another address or port""",
    ),
    "no-rule": (
        "logfile /var/log/rinetd.log\n",
        """\
oinetd.conf: no forwarding rule: nothing is forwarded
    hint: write a rule: bindaddress bindport connectaddress connectport""",
    ),
}


@pytest.mark.parametrize(("text", "message"), SAID.values(), ids=SAID)
def test_what_is_said(text: str, message: str) -> None:
    config = parse_config(text, "oinetd.conf")
    assert "\n".join(map(str, config.warnings)) == message


def test_they_are_in_the_order_of_the_text_and_name_their_files(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("127.0.0.1 1 127.0.0.1 1\n")
    (tmp_path / "oinetd.conf").write_text("127.0.0.1 2 127.0.0.1 2\ninclude more.conf\n127.0.0.1 3 127.0.0.1 3\n")
    config = load_config(tmp_path / "oinetd.conf")
    assert [warning.place for warning in config.warnings] == [
        f"{tmp_path}/oinetd.conf:1:13",
        f"{tmp_path}/more.conf:1:13",
        f"{tmp_path}/oinetd.conf:3:13",
    ]


def test_they_play_no_part_in_equality_and_are_not_written() -> None:
    config = parse_config(ITSELF)
    assert config.warnings
    assert config == Config(rules=config.rules)
    assert "warning" not in render_config(config) + repr(config)


async def test_a_forwarder_logs_them_at_start_and_at_each_reload(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "oinetd")
    clean = parse_config("127.0.0.1 0 127.0.0.1 9")
    warned = parse_config("127.0.0.1 4321 127.0.0.1 4321", "x.conf")
    said = [str(warning) for warning in warned.warnings]
    async with Forwarder(warned) as forwarder:
        assert caplog.messages == said
        await forwarder.reload(warned)
        assert caplog.messages == said * 2
        await forwarder.reload(clean)
        assert caplog.messages == said * 2
