"""The pages say what is there: links lead somewhere, files and folders that they name exist, no warning is left out."""

from __future__ import annotations

import ast
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(ROOT.glob("*.md")) + sorted(DOCS.rglob("*.md")) + [ROOT / "bench" / "README.md"]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED_FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|pyi|pxd|pyx|dot|conf|service|socket|logrotate|toml|md|txt))`")
NAMED_FOLDER = re.compile(r"`((?:[\w-]+/)+[\w-]*)`")
CODE_NAME = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\([^`]*\))?`")
DESCRIBING = [page for page in PAGES if page.name != "CHANGELOG.md"]
NOT_TRACKED = ("dist", "build", "share", "n")
"""Parts of names that are not in the sources: built files, installed files, and `n/a`."""
SOURCES = ("oinetd", "_fastpath", "bench", "tests", "conf", "deploy")
SOURCE_SUFFIXES = (".py", ".pyi", ".pxd", ".pyx", ".toml", ".conf", ".yaml", ".sh")
PLACES = ("", "oinetd", "_fastpath", "oinetd/config", "oinetd/lanes/python", "tests", "docs")
"""Folders in which a file that a page names may be: pages leave out what is clear from the sentence."""


def anchors(page: Path) -> set[str]:
    """The anchors that a reader's browser has for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} has a link to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} has a link to {link}"


@pytest.mark.parametrize("page", DESCRIBING, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = FENCED.sub("", page.read_text())
    for name in NAMED_FILE.findall(text) + NAMED_FOLDER.findall(text):
        if not set(NOT_TRACKED) & set(name.split("/")):
            assert any((ROOT / place / name).exists() for place in PLACES) or list(ROOT.glob(f"*/**/{name}")), name


def words_of_the_sources() -> set[str]:
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES]
    return set(re.findall(r"\w+", "\n".join(path.read_text() for path in [*files, ROOT / "Makefile"])))


OTHERS = ("app.", "oinetd_")
"""The beginnings of names that are not in the sources: objects of other libraries in examples, and metrics."""


def is_there(name: str, words: set[str]) -> bool:
    """Whether a name of a page exists: `oinetd.model.Rule` as that object, others by their words in the sources."""
    if name.startswith(OTHERS) or (not name.startswith("oinetd.") and set(name.split(".")) <= words):
        return True
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_names_of_the_code_that_a_page_has_exist() -> None:
    sources = words_of_the_sources()
    assert is_there("SessionRecord.ending", sources)
    assert is_there("oinetd.model.Rule", sources)
    assert not is_there("oinetd.model.Nothing", sources)
    count = 0
    for page in DESCRIBING:
        for name in CODE_NAME.findall(FENCED.sub("", page.read_text())):
            is_code = re.search(r"[._]|^[A-Z][a-z]|[a-z][A-Z]", name) and not NAMED_FILE.fullmatch(f"`{name}`")
            if is_code and not re.match(r"(?:net|fs|kernel)\.|.*\.h$", name):
                count += 1
                assert is_there(name, sources), f"{page.name}: {name}"
    assert count > 50


def labels() -> list[str]:
    return re.findall(r'label="([^"]+)"', (DOCS / "architecture.dot").read_text())


def test_the_words_of_the_drawing_are_folders_and_files() -> None:
    named = [
        word.strip("(),") for label in labels() for word in re.split(r"\\n|\s", label) if re.search(r"/|\.py", word)
    ]
    assert len(named) >= 8
    for word in named:
        assert (ROOT / word).exists() or (ROOT / "oinetd" / word).exists(), word


def test_the_drawing_is_that_of_its_text() -> None:
    drawn = (DOCS / "architecture.svg").read_text()
    for label in labels():
        for line in label.split("\\n"):
            text = line.strip().replace("<", "&lt;").replace(">", "&gt;").replace("-", "&#45;")
            assert f">{text}</text>" in drawn, f"{line}: make docs"


def test_the_drawing_has_the_stages_of_the_page() -> None:
    page = (DOCS / "architecture.md").read_text()
    stages = re.search(r"\*\*(accept → .*?)\*\*", page)
    assert stages is not None
    drawn = {label.split("\\n")[0] for label in labels()}
    assert set(stages[1].split(" → ")) <= drawn


def test_the_layout_in_the_readme_is_what_is_there() -> None:
    layout = (ROOT / "README.md").read_text().partition("## Where things are")[2]
    block = FENCED.findall(layout)[0]
    told = set(re.findall(r"^  (\w+)/", block, re.MULTILINE))
    there = {path.name for path in (ROOT / "oinetd").iterdir() if (path / "__init__.py").exists()}
    assert told == there
    native = {path.name for path in (ROOT / "_fastpath").iterdir() if (path / "__init__.pxd").exists()}
    (line,) = re.findall(r"^_fastpath/.*$", block, re.MULTILINE)
    assert set(re.findall(r"(\w+)/", line)) == native | {"_fastpath"}


def warnings() -> Iterator[tuple[str, str]]:
    """The file and the format of each message that is logged as a warning or an error."""
    for path in sorted((ROOT / "oinetd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("warning", "error", "exception")
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("log", "logger")
                and isinstance(node.args[0], ast.Constant)
            ):
                yield path.name, str(node.args[0].value)


def test_every_message_that_warns_is_explained() -> None:
    """By the longest part of it that does not vary."""
    told = " ".join((DOCS / "operations.md").read_text().split())
    found = list(warnings())
    assert len(found) > 15
    for name, text in found:
        part = max(re.split(r"%[sdg]", text), key=len).strip(" :;,(")
        if len(part) > 3:
            assert part in told, f"docs/operations.md does not have this message of {name}: {text}"


def test_an_anchor_and_a_warning_are_found() -> None:
    assert "messages-that-warn" in anchors(DOCS / "operations.md")
    assert any("reload failed" in text for _, text in warnings())


def test_the_commands_of_the_makefile_are_explained() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    elsewhere = {"install", "install-files", "wheel", "clean"}  # of those who install, and of nobody
    for target in set(phony[1].split()) - elsewhere:
        assert f"`make {target}`" in text, target


def test_pages_name_no_place_of_a_developer() -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for name in tracked.split():
        assert not re.search(r"(?<![\w/])/(?:work|home|root)/", (ROOT / name).read_text()), name
