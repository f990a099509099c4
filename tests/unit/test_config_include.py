"""Reading files: `include`, and what can be wrong with a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oinetd.config import load_config
from oinetd.config.loader import FILE_BYTES_MAX, INCLUDE_DEPTH_MAX
from oinetd.errors import ConfigError, Problem
from oinetd.model import LogFormat


def write(folder: Path, **files: str) -> Path:
    """Write `name=text` as `name.conf`, and answer the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.conf").write_text(text)
    return folder / f"{next(iter(files))}.conf"


def problems_of(path: Path) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return caught.value.problems


def ports(path: Path) -> list[int]:
    return [rule.bind.port for rule in load_config(path).rules]


def test_relative_to_the_including_file_and_sorted(tmp_path: Path) -> None:
    path = write(tmp_path / "etc", main="0 1 h 1\ninclude d/*.conf\n0 9 h 9\n")
    write(tmp_path / "etc/d", b="0 3 h 3", a="0 2 h 2", c="include sub/x.conf\n0 5 h 5\n")
    write(tmp_path / "etc/d/sub", x="0 4 h 4\n")
    assert ports(path) == [1, 2, 3, 4, 5, 9]


def test_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, main="include other.conf\n", other="0 1 h 1\n")
    monkeypatch.chdir(tmp_path)
    assert ports(Path("main.conf")) == [1]


def test_absolute_quoted_and_with_blanks(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    path = write(tmp_path, main=f'include "{folder}/*.conf" # x\n')
    write(folder, x="0 1 h 1\n")
    assert ports(path) == [1]


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, main="include d/*\n")
    write(tmp_path / "d", x="0 1 h 1\n")
    (tmp_path / "d/.x.conf.swp").write_text("garbage")
    assert ports(path) == [1]


def test_wildcards_may_match_nothing(tmp_path: Path) -> None:
    assert ports(write(tmp_path, main="include d/*.conf\n0 1 h 1\n")) == [1]


def test_a_name_has_to_exist(tmp_path: Path) -> None:
    path = write(tmp_path, main="\ninclude d/x.conf\n0 80 h\n")
    missing, other = problems_of(path)
    assert str(missing) == (
        f"{path}:2:9: {tmp_path}/d/x.conf cannot be included: No such file or directory\n"
        "    include d/x.conf\n"
        "            ^^^^^^^^"
    )
    assert other.line == 3


def test_state_flows_through(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        main="include global.conf\n0 1 h 1\ninclude own.conf\nallow 3.*\ninclude rule.conf\nallow 5.*\n",
        **{"global": "allow 1.*\nlogcommon\n", "own": "allow 2.*\n", "rule": "allow 4.*\n0 2 h 2\nlogformat json\n"},
    )
    config = load_config(path)
    assert [str(rule) for rule in config.access] == ["allow 1.*"]
    assert [[str(access) for access in rule.access] for rule in config.rules] == [
        ["allow 2.*", "allow 3.*", "allow 4.*"],
        ["allow 5.*"],
    ]
    assert config.log.format is LogFormat.JSON
    assert [str(rule.origin) for rule in config.rules] == [f"{path}:2", f"{tmp_path}/rule.conf:2"]


def test_all_mistakes_of_all_files_in_the_order_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path, main="threads x\ninclude a.conf\nthreads y\n0 80 h 80\n", a="\nallow z\n0 80 h 80\n")
    found = problems_of(path)
    assert [(os.path.basename(problem.file), problem.line) for problem in found] == [
        ("main.conf", 1),
        ("a.conf", 2),
        ("main.conf", 3),
        ("main.conf", 4),
    ]
    assert f"already used by {tmp_path}/a.conf:3" in found[-1].message


def test_circle(tmp_path: Path) -> None:
    path = write(tmp_path, main="include a.conf\n", a="include *.conf\n0 1 h 1\n")
    first, second = problems_of(path)
    assert first.file == second.file == f"{tmp_path}/a.conf"
    assert "includes itself" in first.message


def test_circle_through_a_link(tmp_path: Path) -> None:
    path = write(tmp_path, main="include link.conf\n")
    (tmp_path / "link.conf").symlink_to(path)
    assert "includes itself" in problems_of(path)[0].message


def test_the_same_file_twice_is_no_circle(tmp_path: Path) -> None:
    path = write(tmp_path, main="include a.conf\ninclude a.conf\n", a="logcommon\n")
    assert load_config(path).log.format is LogFormat.COMMON


def test_depth(tmp_path: Path) -> None:
    chain = {f"f{level}": f"include f{level + 1}.conf\n" for level in range(INCLUDE_DEPTH_MAX)}
    path = write(tmp_path, **chain, **{f"f{INCLUDE_DEPTH_MAX}": "0 1 h 1\n"})
    assert ports(path) == [1]
    write(tmp_path, **{f"f{INCLUDE_DEPTH_MAX}": "include f.conf\n", "f": "0 1 h 1\n"})
    (problem,) = problems_of(path)
    assert "deep" in problem.message


@pytest.mark.timeout(60)
def test_files_that_double_on_every_level_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oinetd.config.loader.INCLUDE_FILES_MAX", 100)
    levels = {f"f{level}": f"include f{level + 1}.conf\n" * 2 for level in range(INCLUDE_DEPTH_MAX)}
    path = write(tmp_path, **levels, **{f"f{INCLUDE_DEPTH_MAX}": "# end\n"})
    assert all("more than 100 files" in problem.message for problem in problems_of(path))


@pytest.mark.parametrize("line", ["include", "include a b", 'include "a', 'include ""'])
def test_mistakes_of_the_directive(tmp_path: Path, line: str) -> None:
    (problem,) = problems_of(write(tmp_path, main=line))
    assert problem.line == 1


def test_pipes_and_folders_are_not_included(tmp_path: Path) -> None:
    path = write(tmp_path, main="include pipe\ninclude folder\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert ["not a regular file" in problem.message for problem in problems_of(path)] == [True, True]


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.conf"
    (problem,) = problems_of(path)
    assert str(problem) == f"{path}: cannot be read: No such file or directory"
    assert (problem.file, problem.line) == (str(path), 0)


def test_a_folder(tmp_path: Path) -> None:
    assert "Is a directory" in str(problems_of(tmp_path)[0])


def test_something_without_an_end() -> None:
    (problem,) = problems_of(Path("/dev/zero"))
    assert f"{FILE_BYTES_MAX >> 20} MiB" in problem.message


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin1.conf"
    path.write_bytes(b"# caf\xe9\r\nlogfile /var/log/caf\xe9\r\n0 80 h 80 # \xfc")
    config = load_config(path)
    assert os.fsencode(config.log.file) == b"/var/log/caf\xe9"
    assert len(config.rules) == 1


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "bom.conf"
    path.write_bytes(b"\xef\xbb\xbf0 80 h 80\n")
    assert ports(path) == [80]


def test_utf16(tmp_path: Path) -> None:
    path = tmp_path / "utf16.conf"
    path.write_text("0 80 h 80\n", encoding="utf-16")
    assert str(problems_of(path)[0]) == f"{path}: cannot be read: it is in UTF-16\n    hint: save it as UTF-8"


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "damaged.conf"
    path.write_bytes(b"\0" * 4096)
    (problem,) = problems_of(path)
    assert "NUL" in problem.message
