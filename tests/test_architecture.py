"""The house, checked: imports point one way, files are short, and each has its tests."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"app", "models", "training"}
WEB = {"fastapi", "starlette", "pydantic", "prometheus_client", "uvicorn", "httpx"}
# What the scheduler is made of.
PURE = {
    *("app.engine.cost", "app.engine.forecast", "app.engine.jobs", "app.engine.limits", "app.engine.places"),
    "app.engine.promises",
}

# A layer to those of our packages that it may import. A module belongs to the longest name that fits.
ALLOWED: dict[str, set[str]] = {
    "app": set(),
    "app.errors": set(),
    "app.settings": {"app.errors"},
    "app.timings": set(),
    "app.colormaps": set(),
    "app.logs": set(),
    "app.traces": {"app.timings"},
    "app.metrics": {"app.errors", "app.timings"},
    "app.imaging": {"app.errors"},
    "app.results": {"app.errors"},
    "app.description": {"models"},
    "app.catalog": {"app.description", "models"},
    "app.regions": {"app.imaging"},
    "app.engine": {"app.engine", "app.errors", "app.imaging", "app.metrics", "app.timings", "models"},
    **dict.fromkeys(PURE, PURE),
    "app.engine.scheduler": {*PURE, "app.errors"},
    "app.api": {"app", "models"},
    "app.connection": set(),
    "app.server": {"app.api.dependencies", "app.connection", "app.settings"},
    "app.main": {"app", "models"},
    "app.__main__": {"app", "models"},
    "models": {"models"},
    "models.errors": set(),
    "models.classes": set(),
    "models.traces": set(),
    "models.layers": set(),
    "models.ops": {"models.ops"},
    "models.transforms": {"models.ops"},
    "models.data_sets": {"models.classes"},
    "models.zoo": {"models.data_sets"},
    "models.files": {"models.errors"},
    "models.card": {"models.classes", "models.ops", "models.windows"},
    "models.mmseg_meta": {"models.card", "models.errors"},
    "models.layouts": {"models.builder"},
    "models.windows": {"models.ops", "models.transforms"},
    "models.attention_maps": {"models.ops", "models.traces"},
    "models.attention_totals": {"models.attention_maps", "models.traces"},
    "models.attention_matrices": {"models.attention_maps", "models.attention_totals", "models.ops", "models.traces"},
    "models.backbones": {"models.backbones", "models.layers", "models.ops", "models.errors"},
    "models.heads": {"models.heads", "models.layers", "models.ops", "models.traces", "models.errors"},
    "training": {"training", "models"},
}
# A layer to what it must not import, whatever the above says.
FORBIDDEN: dict[str, set[str]] = {
    "models": WEB,
    "training": WEB,
    "app.api": {"torch", "app.main", "app.server", "app.__main__"},
    "app.main": {"app.server", "app.__main__"},
    "app.server": {"torch", "app.main", "app.__main__"},
    "app.engine": WEB,
    **{layer: {"torch", "asyncio", "time", "threading"} for layer in (*PURE, "app.engine.scheduler")},
    "app.catalog": {"torch", "asyncio", *WEB},
    "app.description": {"torch", "asyncio"},
    "app.errors": {"torch", "asyncio", *WEB},
    "app.settings": {"torch", "asyncio", "fastapi", "starlette"},
    "app.metrics": {"torch", "asyncio", "fastapi", "starlette"},
    "app.imaging": {"torch", "asyncio", *WEB},
    "app.results": {"torch", "asyncio", *WEB},
    "app.regions": {"torch", "asyncio", *WEB},
    "app.logs": {"torch", "asyncio", *WEB},
    "app.traces": {"torch", "asyncio", *WEB},
    "app.connection": {"torch", "fastapi", "starlette"},
}
# Modules without a test file of their own, and what tests them instead.
TESTED_ELSEWHERE: dict[str, str] = {
    "app/engine/accounts.py": "numbers of what the engine does, read in tests/app/engine/test_engine.py",
    "app/engine/changes.py": "every load and unload of tests/app/engine/test_residents.py goes through it",
    "app/engine/loaded.py": "who holds a model, and when it goes, is in tests/app/engine/test_residents.py",
    "app/errors.py": "names and numbers alone; each becomes a reply in tests/app/api/test_errors.py",
    "app/main.py": "wiring alone; every test under tests/app/api runs the app that it builds",
    "app/api/segmenting.py": "every test of tests/app/api/routes/test_segment*.py goes through it",
    "app/api/schemas.py": "bodies alone; read field by field in tests/app/api/routes and test_openapi.py",
    "models/classes.py": "data alone; names and palettes are compared in tests/models/test_data_sets.py",
    "models/errors.py": "names alone; raised in test_registry.py and test_checkpoint.py",
}

MODULES = sorted(path.relative_to(ROOT) for package in OURS for path in (ROOT / package).rglob("*.py"))
each_module = pytest.mark.parametrize("path", MODULES, ids=str)


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in MODULES}


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of what a module imports, wherever in it: `a.b` for `import a.b` and `from a import b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def module_of(name: str) -> str:
    """The module of ours that an imported name is, or is in."""
    return name if name in NAMES else name.rpartition(".")[0]


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@each_module
def test_imports_point_inwards(path: Path) -> None:
    module = name_of(path)
    layer = max((name for name in ALLOWED if within(module, {name})), key=len)
    for name in imported(path):
        if name.split(".")[0] in OURS and name != "app.__version__":
            assert within(name, ALLOWED[layer]), f"{layer} may not import {name}"


@each_module
def test_layers_know_no_foreign_frameworks(path: Path) -> None:
    for layer, outsiders in FORBIDDEN.items():
        if within(name_of(path), {layer}):
            found = [name for name in imported(path) if within(name, outsiders)]
            assert not found, f"{layer} may not import {', '.join(found)}"


@each_module
def test_imports_are_absolute(path: Path) -> None:
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    assert not [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def test_papers_do_not_know_each_other() -> None:
    """Heads and backbones meet in the builder alone."""
    for path in MODULES:
        for here, there in (("models.heads", "models.backbones"), ("models.backbones", "models.heads")):
            if within(name_of(path), {here}):
                assert not [name for name in imported(path) if within(name, {there})], path


def test_no_cycles() -> None:
    graph = {
        name_of(path): {module_of(name) for name in imported(path) if name.split(".")[0] in OURS} for path in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


@each_module
def test_files_are_short(path: Path) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= 300


@each_module
def test_each_module_has_tests_of_its_name(path: Path) -> None:
    if path.name == "__init__.py":
        return
    name = "test_main_module.py" if path.name == "__main__.py" else f"test_{path.stem}.py"
    has = (ROOT / "tests" / path.parent / name).is_file()
    assert has != (str(path) in TESTED_ELSEWHERE), f"no tests, or an exception that is none: {path}"


def test_exceptions_exist() -> None:
    assert set(TESTED_ELSEWHERE) <= {str(path) for path in MODULES}
