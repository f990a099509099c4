"""What the folders promise: a module imports only downwards, nothing goes in circles, the lanes do not know each other.

Three trees are held to it: `oinetd/`, the Cython sources of `_fastpath/`, and `bench/`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = (
    "bounds enums errors file_state safe_open admin_settings _fastpath",
    "quantities",
    "endpoint",
    "servers",
    "model preamble",
    "net",
    "upstream",
    "core",
    "config",
    "observe",
    "lanes.python lanes.native",
    "lanes",
    "reload",
    "inspection",
    "succession",
    "forwarder",
    "blocking",
    "",  # the package itself: the public names
    "admin upgrade",
    "process",
    "__main__",
)
"""Folders and single modules of `oinetd/`, the lowest first. Those of one line do not import each other."""

NATIVE_FLOORS = ("base", "preamble", "shared", "state", "tcp", "udp", "reactor")
"""Folders of `_fastpath/`, the lowest first."""

EXTENSION_KNOWN_TO = ("lanes.native.", "net.offload", "net.datagrams", "net.forged")
"""The only importers of the extension: the native lane, and the batches of datagrams."""

FLOOR = {place: number for number, floor in enumerate(FLOORS) for place in floor.split() or [""]}


def modules(package: str) -> dict[str, Path]:
    """The modules of a package by their dotted names."""
    root = ROOT / package
    found = {}
    for path in sorted(root.rglob("*.py")):
        if ".venv" not in path.parts:
            name = ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
            found[name] = path
    return found


OINETD = modules("oinetd")
BENCH = modules("bench")


def imports(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of `known` that are imported when the program runs, also inside functions; not for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a name comes from"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known or whole.endswith("._fastpath") else str(node.module)
        yield from imports(node, known)


def graph(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """What each module of `known` imports of the others."""
    return {
        name: {found for found in imports(ast.parse(path.read_text()), known) if found in known} - {name}
        for name, path in known.items()
    }


def native_graph() -> dict[str, set[str]]:
    """What each file of `_fastpath/` cimports of the others."""
    root = ROOT / "_fastpath"
    found = {}
    for path in sorted(root.rglob("*.pxd")):
        if path.stem != "__init__" and path.parent != root:
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            cimports = re.findall(r"^from ([\w.]+) cimport", path.read_text(), re.MULTILINE)
            found[name] = {each for each in cimports if root.joinpath(*each.split(".")).with_suffix(".pxd").exists()}
    return found


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """One circle of `edges`, or nothing."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(edges.get(name, ())):
            if found := visit(other):
                return found
        path.pop()
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name))), [])


def floor_of(name: str) -> tuple[int, str]:
    """The floor of a module of `oinetd`, and the place in the table that it belongs to."""
    parts = name.split(".")[1:]
    for length in range(len(parts), -1, -1):
        place = ".".join(parts[:length])
        if place in FLOOR and (place or not parts):
            return FLOOR[place], place
    raise AssertionError(f"{name} has no place in the table")


@pytest.mark.parametrize("name", sorted(OINETD))
def test_a_module_imports_only_downwards(name: str) -> None:
    floor, place = floor_of(name)
    for imported in imports(ast.parse(OINETD[name].read_text()), OINETD):
        if imported == "oinetd" or imported.startswith("oinetd."):
            other, its_place = floor_of(imported)
            assert other < floor or its_place == place, f"{name} imports {imported}, which is not below it"


def test_the_table_has_no_more_than_there_is() -> None:
    assert {floor_of(name)[1] for name in OINETD} | {"_fastpath"} == set(FLOOR)


@pytest.mark.parametrize("known", [OINETD, BENCH], ids=["oinetd", "bench"])
def test_nothing_goes_in_circles(known: Mapping[str, Path]) -> None:
    assert circle(graph(known)) == []


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


def test_only_its_lane_knows_the_extension() -> None:
    for name, path in OINETD.items():
        if "oinetd._fastpath" in imports(ast.parse(path.read_text()), OINETD):
            assert name.removeprefix("oinetd.").startswith(EXTENSION_KNOWN_TO), name


def test_the_product_does_not_know_the_bench() -> None:
    for name, path in OINETD.items():
        assert not any(found.partition(".")[0] == "bench" for found in imports(ast.parse(path.read_text()), {})), name


def test_native_files_cimport_only_downwards() -> None:
    floors = {folder: number for number, folder in enumerate(NATIVE_FLOORS)}
    edges = native_graph()
    assert {name.partition(".")[0] for name in edges} == set(NATIVE_FLOORS)
    for name, cimports in edges.items():
        for other in cimports:
            mine, its = floors[name.partition(".")[0]], floors[other.partition(".")[0]]
            assert its <= mine, f"{name} cimports {other}, which is not below it"
    assert circle(edges) == []
