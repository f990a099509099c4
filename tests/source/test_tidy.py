"""House rules that can be counted, for everything that is shipped."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "oinetd").rglob("*.py"))
NATIVE = sorted(path for path in (ROOT / "_fastpath").rglob("*.p[yx]*") if path.suffix in (".pyx", ".pxd"))
SOURCES = [*MODULES, *NATIVE, *sorted((ROOT / "tests").rglob("*.py"))]

LINES_MAX = 350
FUNCTION_LINES_MAX = 70
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")  # not said: the words a reader takes for a promise


def each(paths: Sequence[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """One test for all of `paths`, which tells of every one that fails."""

    def over(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            faults = []
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    faults.append(f"{path.relative_to(ROOT)}: {error}")
            assert not faults, "\n".join(faults)

        return test

    return over


@each(MODULES)
def test_a_module_is_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX


@each(MODULES)
def test_a_module_is_in_a_package(path: Path) -> None:
    """A folder without the file works in this tree, and is in no wheel."""
    assert (path.parent / "__init__.py").exists()


@each(MODULES)
def test_functions_can_be_seen_at_once(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, node.name


@each(MODULES)
def test_what_is_public_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module"
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef) and any("enum" in ast.unparse(base).lower() for base in node.bases):
            continue  # whose members say it
        assert ast.get_docstring(node), node.name


@each(MODULES)
def test_public_names_are_listed_and_exist(path: Path) -> None:
    if path.name == "__main__.py":
        return
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    listed: list[str] | None = None
    for node in [*tree.body, *_for_type_checkers(tree)]:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            if "__all__" in {ast.unparse(target) for target in node.targets}:
                listed = ast.literal_eval(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    if not names:  # a folder that only says what is in it
        return
    assert listed is not None, "no __all__"
    assert len(listed) == len(set(listed)), "listed twice"
    assert set(listed) <= names


def _for_type_checkers(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from node.body


@each(SOURCES)
def test_nothing_is_left_for_later(path: Path) -> None:
    if path == Path(__file__):
        return
    found = UNFINISHED.search(path.read_text())
    assert found is None, found


@each(MODULES)
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except"
            assert not (ast.unparse(node.type) in ("Exception", "BaseException") and isinstance(node.body[0], ast.Pass))


@each([path for path in MODULES if path.name not in ("cli.py", "run.py")])
def test_the_library_prints_nothing(path: Path) -> None:
    if path.name in ("background.py", "commands.py", "demo.py", "top.py"):  # the program's own
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", node.lineno


@each(MODULES)
def test_event_loops_are_made_by_a_factory(path: Path) -> None:
    """`uvloop.install()` and loop policies would change the program around the library."""
    text = path.read_text()
    assert "uvloop.install" not in text
    assert "set_event_loop_policy" not in text


@each(MODULES)
def test_no_timer_is_asked_when_it_is_due(path: Path) -> None:
    assert ".when()" not in path.read_text(), "a timer of uvloop that is due at once has no such method: keep the time"
