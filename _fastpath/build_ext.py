"""The command that compiles the extension, with the hardening flags that the compiler and the linker have.

What is installed for use has no debug information and no symbols beyond those that are needed: two thirds of its size.
An editable installation keeps both for perf and gdb, and OINETD_KEEP_SYMBOLS=1 asks for them (debian/rules does).

Which flags exist depends on the processor and the compiler, and pyproject.toml cannot ask for them. So each is tried
on a small file. A flag that is refused is left out with a warning: with it the build would fail, and since the
extension is optional, the package would be installed without it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from setuptools.command.build_ext import build_ext

__all__ = ["BuildExt"]

COMPILER_FLAGS = (
    ("-fstack-protector-strong",),
    ("-fstack-clash-protection",),
    ("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"),  # Python's own flags may define it
)
BRANCH_FLAGS = (("-fcf-protection=full",), ("-mbranch-protection=standard",))
"""Indirect branches only to marked places: x86 has the one, 64-bit ARM the other."""
LINKER_FLAGS = (("-Wl,-z,relro", "-Wl,-z,now"), ("-Wl,-z,noexecstack",))
SMALL_COMPILER_FLAGS = (("-g0",),)
SMALL_LINKER_FLAGS = (("-Wl,--strip-all",),)
SOURCES = Path(__file__).parent


class BuildExt(build_ext):
    """`build_ext` with hardened flags, and without a run-time search path for libraries."""

    def finalize_options(self) -> None:
        """As usual; a change of any file of the data plane compiles it again."""
        super().finalize_options()
        for extension in self.extensions or ():
            extension.depends = [*extension.depends, *sorted(map(str, SOURCES.rglob("*.pxd")))]

    def build_extensions(self) -> None:
        """Find out which flags there are, then build."""
        # Those that Python was built with: the extension needs the C library alone, and must not look elsewhere.
        self.compiler.linker_so = [word for word in self.compiler.linker_so if not word.startswith("-Wl,-rpath")]
        compiler = [*self.compiler.compiler_so, "-O2", "-Werror", "-c"]
        linker = [*self.compiler.linker_so, "-fPIC", "-O2"]
        # A sanitizer replaces the functions that fortification checks.
        sanitized = any(word.startswith("-fsanitize") for word in compiler)
        small = not (self.inplace or self.editable_mode or sanitized or os.environ.get("OINETD_KEEP_SYMBOLS"))
        wanted = [flags for flags in COMPILER_FLAGS if not (sanitized and "-U_FORTIFY_SOURCE" in flags)]
        compile_flags = [flag for flags in wanted if self._has(compiler, flags) for flag in flags]
        branches = [flag for flags in BRANCH_FLAGS if _accepts(compiler, flags) for flag in flags]
        if not branches:
            self.warn("the compiler cannot protect indirect branches on this processor")
        link_flags = [flag for flags in LINKER_FLAGS if self._has(linker, flags) for flag in flags]
        if small:
            compile_flags += [flag for flags in SMALL_COMPILER_FLAGS if self._has(compiler, flags) for flag in flags]
            link_flags += [flag for flags in SMALL_LINKER_FLAGS if self._has(linker, flags) for flag in flags]
        for extension in self.extensions:
            extension.extra_compile_args = [*compile_flags, *branches, *extension.extra_compile_args]
            extension.extra_link_args = [*link_flags, *extension.extra_link_args]
        super().build_extensions()

    def _has(self, command: list[str], flags: tuple[str, ...]) -> bool:
        found = _accepts(command, flags)
        if not found:
            self.warn(f"left out, {command[0]} does not have it: {' '.join(flags)}")
        return found


def _accepts(command: list[str], flags: tuple[str, ...]) -> bool:
    """Whether the command makes something of a small C file with these flags."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "probe.c"
        source.write_text("#include <string.h>\nint probe(char *to) { return (int)strlen(strcpy(to, to + 1)); }\n")
        done = subprocess.run([*command, *flags, str(source), "-o", f"{place}/probe"], capture_output=True, cwd=place)
    return done.returncode == 0
