"""What compiler and linker were asked for is in the extensions as they were built."""

from __future__ import annotations

import importlib.util
import inspect
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENDBR64 = b"\xf3\x0f\x1e\xfa"


@pytest.fixture(params=["oinetd._fastpath"])
def extension(request: pytest.FixtureRequest) -> Path:
    found = importlib.util.find_spec(request.param)
    if found is None or found.origin is None:
        pytest.skip("the extension is not built")
    if b"__asan_init" in Path(found.origin).read_bytes() or b"__tsan_init" in Path(found.origin).read_bytes():
        pytest.skip("built with a sanitizer, which replaces what is looked for")
    return Path(found.origin)


def readelf(*words: str) -> str:
    """What readelf says."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is missing (Debian: apt install binutils)")
    return subprocess.run(["readelf", "--wide", *words], capture_output=True, text=True, check=True, timeout=60).stdout


def check_all(extension: Path) -> None:
    """Every check of an extension in this file, for one that was packed."""
    checks = [
        check
        for name, check in globals().items()
        if name.startswith("test_") and list(inspect.signature(check).parameters) == ["extension"]
    ]
    assert len(checks) >= 5
    for check in checks:
        check(extension)


def test_relocations_are_read_only_after_the_start(extension: Path) -> None:
    assert re.search(r"\bGNU_RELRO\b", readelf("--program-headers", str(extension)))
    assert re.search(r"\bBIND_NOW\b|\bFlags: NOW\b", readelf("--dynamic", str(extension)))


def test_nothing_on_the_stack_is_run(extension: Path) -> None:
    (stack,) = re.findall(r"GNU_STACK(?:\s+0x\w+){5}\s+([RWE ]+?)\s+0x", readelf("--program-headers", str(extension)))
    assert stack == "RW"


def test_libraries_are_looked_for_in_no_place_of_its_own(extension: Path) -> None:
    dynamic = readelf("--dynamic", str(extension))
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)
    needed = re.findall(r"\(NEEDED\).*\[(\S+?)[.-]", dynamic)
    assert set(needed) <= {"libc", "libpthread", "ld"}


def test_the_stack_is_guarded_and_copies_are_checked(extension: Path) -> None:
    symbols = readelf("--dyn-syms", str(extension))
    assert "__stack_chk_fail" in symbols
    if platform.libc_ver()[0] == "glibc":
        assert re.search(r"\b__\w+_chk\b", symbols)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the mark of x86")
def test_places_that_may_be_jumped_to_are_marked(extension: Path) -> None:
    assert ENDBR64 in extension.read_bytes()
    (start,) = re.findall(
        r"(\w+)\s+\d+\s+FUNC\s+GLOBAL\s+DEFAULT\s+\d+\s+PyInit_", readelf("--dyn-syms", str(extension))
    )
    sections = re.findall(r"\.text\s+PROGBITS\s+(\w+)\s+(\w+)", readelf("--sections", str(extension)))
    (address, offset) = (int(word, 16) for word in sections[0])
    assert extension.read_bytes()[int(start, 16) - address + offset :][:4] == ENDBR64


REFUSES = """\
#!/bin/sh
for word; do case $word in {pattern}) echo "unknown option $word" >&2; exit 1;; esac; done
exec {compiler} "$@"
"""


def test_a_compiler_without_the_flags_builds_too(tmp_path: Path) -> None:
    """With a small extension in place of ours, and a compiler that knows none of the flags."""
    compiler = shutil.which(os.environ.get("CC", sysconfig.get_config_var("CC") or "cc").split()[0])
    if compiler is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "_fastpath").mkdir()
    shutil.copy(ROOT / "_fastpath" / "build_ext.py", tmp_path / "_fastpath")
    (tmp_path / "small.c").write_text("int PyInit_small(void) { return 0; }\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "small"\nversion = "1"\n[tool.setuptools]\npy-modules = []\n'
        '[[tool.setuptools.ext-modules]]\nname = "small"\nsources = ["small.c"]\n'
        '[tool.setuptools.cmdclass]\nbuild_ext = "_fastpath.build_ext.BuildExt"\n'
    )
    refusing = tmp_path / "refusing-cc"
    patterns = "-fstack-*|-fcf-*|-mbranch-*|-D_FORTIFY*|-Wl,-z*"
    refusing.write_text(REFUSES.format(pattern=patterns, compiler=compiler))
    refusing.chmod(0o755)
    words = ["-c", "from setuptools import setup; setup()", "build_ext", "--inplace"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "CC": str(refusing), "LDSHARED": f"{refusing} -shared -Wl,-rpath,/nowhere"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stdout + done.stderr
    (built,) = tmp_path.glob("small*.so")
    assert "/nowhere" not in readelf("--dynamic", str(built))
