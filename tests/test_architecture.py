"""Who may import whom: the layers of the design, read from the source of every module.

An import counts wherever it stands, in a function or for type checkers as well, except where a test says otherwise.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"errors", "console", "storage", "records", "signals"},
    {"config", "job", "run_folder", "cpu_shares", "allocator", "ray_cluster"},
    {"images"},
    {"dicomweb"},
    {"model"},
    {"phantom"},
    {"anatomy"},
    {"data"},
    {"explain"},
    {"evaluate"},
    {"site"},
    {"readers"},
    {"score"},
    {"train"},
    {"tune"},
    {"report", "pacs"},
)
"""From the bottom; a module imports from its own layer or a lower one."""

ROOMS_OF_RAY = ("train.", "tune.", "score.", "data.cluster_tasks", "ray_cluster")
"""Where `import ray` may stand at the top of a module; the rest works in a notebook without Ray."""

# ---- what is known to be wrong: take a line out when its reason is gone; a line without one fails --------------------

UPWARD = set[tuple[str, str]]()
PRIVATE = {
    "pneumo_ray": {
        ("ray_cluster", "ray._private"),  # keeps Ray to loopback, and counts attempts: Ray has no public way
        ("model.compiled", "torch._inductor"),  # the switch that freezes weights while compiling
    },
    "jobs": set[tuple[str, str]](),
    "benchmarks": {
        (
            "requests",
            "containers._index",
        ),  # these are cleared, so that requests are counted as a new process makes them
        ("requests", "containers._opened"),
        ("requests", "cache._open_shard"),
    },
}


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    module: str
    """Who imports: `data.split`, `data` for its __init__.py."""
    source: str
    """What it imports from, in full: `pneumo_ray.errors`, `ray.data`."""
    name: str | None
    """The name after `from source import`."""
    at_top: bool
    """Whether it runs as soon as the module is imported."""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def modules() -> dict[str, Path]:
    """Return the modules of the package by their names without `pneumo_ray.`."""
    package = ROOT / "pneumo_ray"
    names = {path.relative_to(package).with_suffix(""): path for path in package.rglob("*.py")}
    return {".".join(name.parts).removesuffix("__init__").removesuffix("."): path for name, path in names.items()}


def statements(node: ast.AST, at_top: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_top
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from ((found, False) for found, _ in statements(child))
        else:
            yield from statements(child, at_top and not isinstance(child, ast.FunctionDef | ast.Lambda))


def imports_of(module: str, path: Path) -> Iterator[Import]:
    for node, at_top in statements(tree_of(path)):
        for alias in node.names:
            if isinstance(node, ast.Import):
                yield Import(module, alias.name, None, at_top)
            else:
                assert node.level == 0, f"{path} has a relative import"
                yield Import(module, node.module or "", alias.name, at_top)


MODULES = modules()
IMPORTS = [found for module, path in MODULES.items() for found in imports_of(module, path)]


def target(found: Import) -> str | None:
    """Return the module of ours that an import reads, or None if it is not ours."""
    if found.source != "pneumo_ray" and not found.source.startswith("pneumo_ray."):
        return None
    inner = found.source.removeprefix("pneumo_ray").removeprefix(".")
    if found.name is None:
        return inner
    deeper = f"{inner}.{found.name}".removeprefix(".")
    return deeper if deeper in MODULES else inner


def layer(module: str) -> int:
    room = module.partition(".")[0]
    found = [number for number, rooms in enumerate(LAYERS) if room in rooms]
    assert found, f"pneumo_ray/{room} has no place in the layers of the design; give it one"
    return found[0]


OURS = [(found.module, inner, found.at_top) for found in IMPORTS if (inner := target(found))]
"""Who imports which module of ours, and whether at the top."""


def test_no_import_points_up():
    upward = {(module, inner) for module, inner, _ in OURS if layer(inner) > layer(module)}
    assert upward == UPWARD


def test_modules_import_each_other_in_no_circle():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, inner, _ in OURS:
        graph[module].add(inner)
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


@pytest.mark.parametrize("folder", PRIVATE)
def test_private_names_stay_in_their_module(folder):
    private = set()
    for path in (ROOT / folder).rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
        known = set()
        for found in imports_of(module, path):
            known.add(found.name or found.source.partition(".")[0])
            if is_private(found.source) or is_private(found.name or ""):
                private.add((module, found.source))
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) in known:
                private.add((module, ast.unparse(node)))
    assert private == PRIVATE[folder]


def test_ray_is_imported_in_its_rooms_only():
    at_top: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, inner, top in OURS:
        if top:
            at_top[module].add(inner)
    reaches_ray = {found.module for found in IMPORTS if found.at_top and found.source.partition(".")[0] == "ray"}
    while more := {module for module, inner in at_top.items() if inner & reaches_ray} - reaches_ray:
        reaches_ray |= more
    assert {module for module in reaches_ray if not f"{module}.".startswith(ROOMS_OF_RAY)} == set()


def test_the_package_knows_neither_jobs_nor_tests():
    outside = {found.source.partition(".")[0] for found in IMPORTS} & {"jobs", "benchmarks", "tests"}
    assert not outside


def test_jobs_are_short():
    assert {
        path.name: n for path in (ROOT / "jobs").glob("*.py") if (n := len(path.read_text().splitlines())) > 80
    } == {}
