"""The manual page and the annotated example say what the table of the language says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from oinetd.config import parse_config, render_config
from oinetd.config.vocabulary import DIRECTIVES, OPTIONS, VOCABULARY
from oinetd.errors import ConfigError
from oinetd.model import Config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "man" / "oinetd.conf.5").read_text()
EXAMPLE = (ROOT / "conf" / "oinetd.conf").read_text()


def plain(macros: str) -> str:
    """The text of an mdoc line: `Cm x Ns | Ns Ar Y` → `x|Y`."""
    words = [word for word in macros.split() if word not in ("Cm", "Ar")]
    return re.sub(r" ?\bNs\b ?", "", " ".join(words)).replace(" :", ":")


ENTRIES = {plain(found[1]): found[2] for found in re.finditer(r"^\.It (Cm .*)\n((?:(?!\.It |\.El).*\n)*)", PAGE, re.M)}


def test_every_word_of_the_language_has_its_entry() -> None:
    usages = {entry.usage for entry in DIRECTIVES.values()}
    usages |= {entry.option_usage for entry in VOCABULARY if entry.name not in DIRECTIVES}
    assert set(ENTRIES) == usages


def test_the_options_are_listed() -> None:
    listing = PAGE[PAGE.index("These directives are also options") : PAGE.index(".Ss UDP")]
    listed = {
        word for line in listing.splitlines() if line.startswith(".Cm") for word in re.findall(r"[a-z-]{3,}", line)
    }
    assert listed == {name for name in OPTIONS if name in DIRECTIVES}


def test_the_defaults_are_told() -> None:
    written = [line.split(maxsplit=1) for line in render_config(Config()).splitlines() if line and line[0] != "#"]
    for name, value in written:
        text = ENTRIES[DIRECTIVES[name].usage]
        told = {value, "60s"} if value == "1m" else {value}
        assert "default" in text, name
        assert any(re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", text) for word in told), name


def test_the_error_in_the_manual_is_a_real_one() -> None:
    shown = PAGE[PAGE.index("/etc/oinetd.conf:4:") :].partition("\n.Ed")[0]
    with pytest.raises(ConfigError) as caught:
        parse_config("\n\n\n" + shown.splitlines()[1].strip(), "/etc/oinetd.conf")
    assert str(caught.value) == shown


def test_the_example_changes_nothing_as_it_stands() -> None:
    assert parse_config(EXAMPLE) == Config()


def test_the_example_is_sound_and_shows_the_defaults() -> None:
    lines = [line[1:] for line in EXAMPLE.splitlines() if re.match(r"#[^ #]", line)]
    lines = [line for line in lines if line != "logcommon" and not line.startswith("include ")]
    config = parse_config("\n".join(lines))
    assert config.settings == Config().settings
    assert len(config.rules) > 8
    for name in (
        "threads",
        "busy_poll_us",
        "max_connections",
        "max_connections_per_source",
        "source_prefix",
        "max_udp_sessions",
        "drain_timeout_s",
        "upgrade_timeout_s",
        "watch",
    ):
        assert getattr(config, name) == getattr(Config(), name)


def test_the_example_names_every_directive() -> None:
    named = {line[1:].split()[0] for line in EXAMPLE.splitlines() if re.match(r"#[^ #]", line)}
    assert set(DIRECTIVES) <= named
