"""Messages about a file that their reader may not be allowed to read: its place, and nothing of its text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oinetd import ConfigError, load_config
from oinetd.config.privacy import HIDDEN_HINT, without_words_of
from tests.unit.test_config_errors import MISTAKES

SECRET = "root:$6$salt$hash.of/a/password:19000:0:99999:7:::"
OTHERS = [SECRET, "include s3cret", "logfile s3cret s3cret", "0 s3cret s3cret s3cret [s3cret=s3cret]", "deny s3cret"]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads what not everyone may read")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with a secret in a line, and a configuration that includes a link to it."""
    path = tmp_path / "shadow"
    path.write_text("\n".join(OTHERS))
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "x.conf").symlink_to(path)
    (tmp_path / "oinetd.conf").write_text("include conf/*.conf\nlogfiel x\n")
    return path


def error_of(folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "oinetd.conf")
    return caught.value


@as_root
def test_a_line_of_a_file_that_only_root_may_read_is_not_shown(tmp_path: Path, secret: Path) -> None:
    secret.chmod(0o640)
    error = error_of(tmp_path)
    place = tmp_path / "conf" / "x.conf"
    first, *_, last = error.problems
    assert str(first) == f"{place}:1:1: '…' is not a valid IPv6 address\n    hint: {HIDDEN_HINT}"
    assert {problem.line for problem in error.problems if problem.file == str(place)} == {1, 2, 3, 4, 5}
    for word in ("salt", "19000", "s3cret"):
        assert word not in str(error)
    # The file around it, which everyone may read, is shown as ever.
    assert "    logfiel x\n" in str(last)


@as_root
def test_a_file_that_everyone_may_read_is_shown(tmp_path: Path, secret: Path) -> None:
    secret.chmod(0o644)
    assert f"    {SECRET}\n" in str(error_of(tmp_path))


@as_root
def test_a_folder_that_not_everyone_may_enter_counts(tmp_path: Path, secret: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    secret.rename(closed / "shadow")
    (closed / "shadow").chmod(0o644)
    link = tmp_path / "conf" / "x.conf"
    link.unlink()
    link.symlink_to(closed / "shadow")
    assert SECRET not in str(error_of(tmp_path))


@as_root
def test_a_user_without_privileges_sees_what_this_user_could_read(tmp_path: Path, secret: Path) -> None:
    for path in (secret, tmp_path / "oinetd.conf"):
        os.chown(path, 65534, 65534)
        path.chmod(0o600)
    opened = [*tmp_path.parents][:-1]
    modes = [(path, path.stat().st_mode) for path in (tmp_path, *opened) if str(path).startswith("/tmp/")]
    for path, mode in modes:
        path.chmod(mode | 0o711)
    os.seteuid(65534)
    try:
        error = error_of(tmp_path)
    finally:
        os.seteuid(0)
        for path, mode in modes:
            path.chmod(mode)
    assert f"    {SECRET}\n" in str(error)


@as_root
def test_the_main_file_is_no_exception(tmp_path: Path) -> None:
    (tmp_path / "oinetd.conf").write_text(f"{SECRET}\n")
    (tmp_path / "oinetd.conf").chmod(0o600)
    error = error_of(tmp_path)
    assert error.line == 1
    assert "salt" not in str(error)


@as_root
@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_no_message_gives_a_word_away(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "oinetd.conf"
    path.write_text(text)
    path.chmod(0o600)
    error = error_of(tmp_path)
    for problem in error.problems:
        assert problem.text == ""
        assert problem.hint in ("", HIDDEN_HINT)


def test_words_are_hidden_wherever_they_stand() -> None:
    line = "0.0.0.0 80 s3cret 70000 [src=other]"
    assert without_words_of(line, "port 70000 is out of range") == "port … is out of range"
    assert without_words_of(line, "'s3cret' and 'other': two") == "'…': two"
    assert without_words_of(line, "/etc/s3cret cannot be included: no") == "… cannot be included: no"
