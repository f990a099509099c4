"""What is in the source distribution and in the wheel, and that they install."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tests.packages.building import ROOT, build, copy_of_the_tree, run, run_online, unpack
from tests.unit import test_hardening

WHEEL_BYTES_MAX = 1_000_000
"""Packed: 340 KB are the extension, 460 KB the modules. Debug information alone would be 4 MB more."""
DATA = {
    "share/bash-completion/completions/oinetd",
    "share/fish/vendor_completions.d/oinetd.fish",
    "share/man/man5/oinetd.conf.5",
    "share/man/man8/oinetd.8",
    "share/oinetd/oinetd.conf",
    "share/oinetd/oinetd.logrotate",
    "share/oinetd/oinetd.service",
    "share/oinetd/oinetd.socket",
    "share/zsh/site-functions/_oinetd",
}


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def extension_of(wheel: Path, place: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"oinetd/_fastpath\.[\w-]+\.so", name))
        return Path(archive.extract(name, place))


def test_the_source_distribution_has_what_the_repository_has(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a repository")
    left_out = re.compile(r"\.gitignore$|\.ci/|bench/results/|docs/.*\.html$|.*\.html$")
    assert [name for name in tracked if name not in inside and not left_out.match(name)] == []
    assert [name for name in inside if re.search(r"\.(c|so|pyc)$", name) and name not in tracked] == []


def test_the_wheel_has_the_package_its_manual_and_nothing_else(wheel: Path) -> None:
    inside = names(wheel)
    (base,) = {name.split(".dist-info/")[0] for name in inside if ".dist-info/" in name}
    assert {name.removeprefix(f"{base}.data/data/") for name in inside} >= DATA
    assert {"oinetd/py.typed", "oinetd/_fastpath.pyi"} <= inside
    assert not [name for name in inside if re.match(r"(bench|tests|_fastpath|_package)/|.*\.(c|pyx|pxd)$", name)]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "oinetd").rglob("*.py")}
    assert modules <= inside
    assert wheel.stat().st_size < WHEEL_BYTES_MAX


def test_two_builds_in_two_places_are_equal(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    other = unpack(sdist, tmp_path / "somewhere" / "else")
    assert build(other, "--wheel", tmp_path / "again").read_bytes() == wheel.read_bytes()


def test_two_source_distributions_are_equal(sdist: Path, tmp_path: Path) -> None:
    other = copy_of_the_tree(tmp_path / "somewhere" / "else")
    for path in [other, *other.rglob("*")]:
        os.utime(path, (1_600_000_000, 1_600_000_000))  # a checkout of another day
    assert build(other, "--sdist", tmp_path / "again").read_bytes() == sdist.read_bytes()


def test_the_index_takes_both(sdist: Path, wheel: Path) -> None:
    assert "FAILED" not in run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)


def test_the_description_leads_to_the_repository(wheel: Path) -> None:
    said = metadata(wheel)
    urls = dict(line.split(", ", 1) for line in said.get_all("Project-URL", []))
    assert {"Source", "Documentation", "Changelog", "Issues"} <= set(urls)
    text = said.get_payload()
    assert isinstance(text, str)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    assert [link for link in links if not re.match(r"https://|#", link)] == []


def test_the_extension_is_small_and_hardened(wheel: Path, tmp_path: Path) -> None:
    extension = extension_of(wheel, tmp_path)
    sections = test_hardening.readelf("--sections", str(extension))
    assert not re.search(r"\.debug_|\.symtab", sections)
    test_hardening.check_all(extension)


def test_auditwheel_makes_it_one_for_many_systems(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", tmp_path, wheel)
    (repaired,) = tmp_path.iterdir()
    assert "manylinux_2_" in repaired.name
    # Nothing had to be copied into it: the extension needs the C library alone.
    assert not [name for name in names(repaired) if ".libs/" in name]


def test_the_wheel_installs_without_compiler_and_network(wheel: Path, environment: Path) -> None:
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", wheel, PATH="/nowhere")
    assert run(environment / "bin" / "oinetd", "--version").startswith("oinetd ")
    run(python, "-c", "import oinetd._fastpath")
    for place in DATA:
        assert (environment / place).is_file()


def test_a_package_built_without_a_compiler_says_how_to_get_the_extension(
    sdist: Path, environment: Path, tmp_path: Path
) -> None:
    """pip keeps such a wheel, and installs it again when there is a compiler: the remedy goes around its cache."""
    poor = build(unpack(sdist, tmp_path / "tree"), "--wheel", tmp_path / "poor", CC="/bin/false")
    assert not [name for name in names(poor) if name.endswith(".so")]
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", poor)
    reason = run(python, "-c", "from oinetd.lanes.native.plane import available; print(available())")
    assert "apt install gcc python3-dev" in reason
    assert "--no-cache-dir" in reason


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_read_the_completions(wheel: Path, shell: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if re.search(rf"/share/{shell}/|/share/{shell}-completion/", n))
        script = Path(archive.extract(name, tmp_path))
    assert "conf-file" in script.read_text()
    if subprocess.run(["sh", "-c", f"command -v {shell}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{shell} is missing (Debian: apt install {shell})")
    run(shell, "-n", script)


def test_the_bill_of_materials_names_what_is_installed(tmp_path: Path) -> None:
    run_online("make", "-C", ROOT, "--silent", "sbom", f"SBOM={tmp_path}/sbom.json", MAKEFLAGS="", MAKELEVEL="")
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "oinetd"
    assert "uvloop" in {part["name"] for part in bill["components"]}
