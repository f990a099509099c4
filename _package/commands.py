"""What setuptools does otherwise for this package.

Completions are made, links of README.md lead to the repository, and two source distributions of one tree are equal.

The command that compiles is in `_fastpath/build_ext.py`.
"""

from __future__ import annotations

import gzip
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Final

from setuptools.command.egg_info import egg_info  # before distutils: setuptools brings its own
from setuptools.command.sdist import sdist

from distutils.command.install_data import install_data  # isort: skip

__all__ = ["EggInfo", "InstallData", "SourceDistribution"]

ROOT: Final = Path(__file__).resolve().parents[1]

COMPLETIONS: Final = {
    "bash": "share/bash-completion/completions/oinetd",
    "zsh": "share/zsh/site-functions/_oinetd",
    "fish": "share/fish/vendor_completions.d/oinetd.fish",
}
"""Where each shell looks, below the prefix of the installation."""

RELATIVE_LINK: Final = re.compile(r"\]\((?!https?://|#)([^)\s]+)\)")


class InstallData(install_data):
    """`install_data` that makes the completions of the shells as well, from the parser of the command line."""

    def run(self) -> None:
        """Install the files, then write the completions."""
        super().run()
        import shtab

        sys.path.insert(0, str(ROOT))  # the parser of this tree, not that of an installed oinetd
        try:
            from oinetd.process.cli import command_parser
        finally:
            sys.path.remove(str(ROOT))
        for shell, place in COMPLETIONS.items():
            path = Path(self.install_dir, place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shtab.complete(command_parser(), shell), encoding="utf-8")
            self.outfiles.append(os.fspath(path))


class EggInfo(egg_info):
    """`egg_info` with the links of README.md made absolute: the package index has none of the files they name."""

    def finalize_options(self) -> None:
        """Change the description, then go on as usual."""
        metadata = self.distribution.metadata
        source = (metadata.project_urls or {}).get("Source")
        if source and metadata.long_description:
            metadata.long_description = absolute_links(metadata.long_description, f"{source}/blob/v{metadata.version}/")
        super().finalize_options()


class SourceDistribution(sdist):
    """`sdist` that writes the same archive wherever it is made, if SOURCE_DATE_EPOCH says of when."""

    def make_archive(
        self,
        base_name: str,
        format: str,
        root_dir: str | None = None,
        base_dir: str | None = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> str:
        """Pack the tree `base_dir`: its names in order, all files root's and as old as SOURCE_DATE_EPOCH."""
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if not epoch or format != "gztar" or root_dir or not base_dir:
            return str(super().make_archive(base_name, format, root_dir, base_dir, owner, group))

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = int(epoch), 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        path = f"{base_name}.tar.gz"
        with (
            open(path, "wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=int(epoch)) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for each in sorted([Path(base_dir), *Path(base_dir).rglob("*")]):
                archive.add(each, recursive=False, filter=plain)
        return path


def absolute_links(text: str, base: str) -> str:
    """`text` with each relative link of Markdown below `base`."""
    return RELATIVE_LINK.sub(lambda link: f"]({base}{link[1]})", text)
