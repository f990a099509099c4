"""A module imports only from layers above its own: one table, and the one exception by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "oinetd"

LAYERS = (
    "bounds errors safe_open systemlog",
    "model _fastpath descriptors logfile",
    "record pattern gate poller linewriter notify background inherited eventloop greeter privileges engine.cores "
    "engine.datagrams connect_result",
    "config access client_watch forking hooks sockets logline refusals pidfile messages process_context engine.buffers "
    "engine.running",
    "engine resolver journal invocation hosts capacity address_order address_health",
    "destination ports namecheck",
    "loops name_wait",
    "dialer account destinations announcement engine.flow engine.native",
    "engine.serving",
    "engine.rows",
    "engine.portable engine.lane summary limits revocation",
    "session",
    "listener udp reactors",
    "retired",
    "lanes",
    "unresolved datagrams",
    "forwarder",
    "",  # the package itself: the public names
    "demo daemon",
    "cli",
    "__main__",
)
"""From the top down."""

PACKAGES = ("config", "udp")
"""Packages with an order of their own, which count as one."""

LAYER = {module: number for number, layer in enumerate(LAYERS) for module in layer.split() or [""]}

EXCEPTIONS = {("model", "config")}
"""`Rule.parse` is what a program looks for in the model; the language it takes belongs to `config`."""

MODULES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """The module's name within the package, as the table has it."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
    return next((package for package in PACKAGES if name.startswith(f"{package}.")), name)


def imports(tree: ast.AST) -> Iterator[str]:
    """What is imported of the package when the program runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a name comes from"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if _is_module(whole) else str(node.module)
        yield from imports(node)


def _is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir() or name == "oinetd._fastpath"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_it_imports_only_from_above(path: Path) -> None:
    own = name_of(path)
    assert own in LAYER, "the module has no place in the table"
    for imported in imports(ast.parse(path.read_text())):
        if imported != "oinetd" and not imported.startswith("oinetd."):
            continue
        name = imported.removeprefix("oinetd").removeprefix(".")
        name = next((package for package in PACKAGES if name.startswith(f"{package}.")), name)
        if (name == own and own in PACKAGES) or (own, name) in EXCEPTIONS:
            continue
        assert LAYER[name] < LAYER[own], f"{own} imports {name}, which is not above it"


def test_the_table_has_no_more_than_there_is() -> None:
    assert set(LAYER) - {"_fastpath"} == {name_of(path) for path in MODULES}


def test_only_its_engine_knows_the_extension() -> None:
    for path in MODULES:
        if "oinetd._fastpath" in imports(ast.parse(path.read_text())):
            assert name_of(path).startswith("engine."), path
