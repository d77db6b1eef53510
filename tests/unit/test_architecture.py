"""The rules that hold the package together, read from its source: who may import whom, how long things may be."""

import ast
import importlib
import inspect
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "wmrl").rglob("*.py"))

LAYERS = [
    {"wmrl", "errors", "limits", "stdout", "spec", "seeding", "interrupts", "run", "protocols"},
    {
        "config",
        "sources",
        "environment",
        "iteration",
        "online",
        "pipeline",
        "files",
        "locking",
        "progress",
        "streams",
        "sinks",
        "log",
        "artifact",
        "memory",
    },
    {"stats", "recording", "video", "traces", "curves", "images"},
    {"precision", "optimizers", "schedule", "gauge"},
    {"nn"},
    {"representations", "dynamics", "controllers", "data", "envs"},
    {"world"},
    {"rollout", "population"},
    {"trainers"},
    {"store", "continuing", "agreement", "fit", "draws", "dream", "dream_env", "evaluation", "scoring", "panels"},
    {"stages"},
    {"comparison"},
    {"session", "launch", "describe", "status", "status_text", "doctor", "pipelines_rules"},
    {"cli", "cli_stage", "cli_data", "cli_compare", "__main__"},
]
"""A module imports from its own layer and from those above it in this list, never from one below."""

APART = {"representations", "dynamics", "controllers", "data", "envs"}
"""Packages of one layer that do not know each other."""

REGISTRIES = {
    "representations": "REPRESENTATIONS",
    "dynamics": "DYNAMICS",
    "controllers": "CONTROLLERS",
    "trainers": "TRAINERS",
}
SHARED = {"trainers.grounds", "trainers.learner"}
"""Modules of registered packages that are interfaces, not models."""

UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
TO_WORKERS = {"envs.processes"}
"""Sends functions to processes that it started itself, through pipes; nothing of it reaches a file."""
BOTTOM = {unit: depth for depth, layer in enumerate(LAYERS) for unit in layer}


def name_of(path: Path) -> str:
    """wmrl/nn/conv.py -> nn.conv; wmrl/nn/__init__.py -> nn; wmrl/__init__.py -> wmrl."""
    parts = path.relative_to(ROOT / "wmrl").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "wmrl"


TREES = {name_of(path): ast.parse(path.read_text()) for path in FILES}


def imports(node: ast.AST, *, in_functions: bool = True) -> Iterator[str]:
    """The modules that are imported at run time, as written: not those for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if not in_functions and (isinstance(child, ast.FunctionDef) or _is_main(child)):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports name the whole path"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child, in_functions=in_functions)


def _is_main(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def own_imports(name: str, *, in_functions: bool = True) -> set[str]:
    """The modules of wmrl that a module imports."""
    found = set()
    for full in imports(TREES[name], in_functions=in_functions):
        head, _, rest = full.partition(".")
        if head == "wmrl":
            parent = rest.rpartition(".")[0]
            found.add(rest if rest in TREES else parent if parent in TREES else "wmrl")
    return found - {name}


def unit(name: str) -> str:
    return name.split(".")[0]


def test_every_module_has_a_layer():
    assert {unit(name) for name in TREES} == set(BOTTOM), "a new module needs a place in LAYERS, a removed one none"


@pytest.mark.parametrize("name", TREES)
def test_imports_point_one_way(name):
    for other in own_imports(name):
        assert BOTTOM[unit(other)] <= BOTTOM[unit(name)], f"wmrl.{name} may not import wmrl.{other}"
        both = {unit(name), unit(other)}
        assert len(both) == 1 or not both <= APART, f"wmrl.{name} may not know wmrl.{other}"


@pytest.mark.parametrize("name", TREES)
def test_models_are_reached_through_their_registry(name):
    for other in own_imports(name):
        inside = unit(other) == unit(name) or other == unit(other) or other in SHARED
        assert unit(other) not in REGISTRIES or inside, f"wmrl.{name} may not import wmrl.{other}: use the registry"


def test_no_module_imports_itself_through_others():
    edges = {name: own_imports(name, in_functions=False) for name in TREES}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in edges[name]:
                walk(other, (*path, name))
            done.add(name)

    for name in TREES:
        walk(name, ())


@pytest.mark.parametrize("name", ["cli", "session", "config", "pipeline", "describe", "doctor", "protocols"])
def test_nothing_heavy_is_loaded_before_it_is_needed(name):
    heavy = {"torch", "h5py", "gymnasium", "envpool", "cv2", "cma"} - ({"torch"} if name == "protocols" else set())
    code = f"import sys, wmrl.{name}; print(*sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_the_script_of_the_makefile_needs_the_standard_library_only():
    assert {full.split(".")[0] for full in imports(TREES["pipelines_rules"])} <= sys.stdlib_module_names


def registered() -> list[tuple[str, str, str]]:
    packages = {name: importlib.import_module(f"wmrl.{name}") for name in REGISTRIES}
    return [(n, kind, a) for n, module in packages.items() for kind, a in getattr(module, REGISTRIES[n]).items()]


@pytest.mark.parametrize(("package", "kind", "address"), registered())
def test_every_registered_kind_exists_and_names_its_source(package, kind, address):
    module, _, name = address.partition(":")
    target = getattr(importlib.import_module(module), name)
    doc = inspect.getdoc(target) or ""
    said = f"{doc}\n{inspect.getdoc(sys.modules[module]) or ''}"
    assert doc and not target.__doc__.startswith(f"{name}("), f"{address} has no docstring"
    if kind != "pixels":  # the identity is nobody's idea
        assert re.search(r"\b(19|20)\d\d\b|arXiv|paper", said), f"{address}: name the paper or the code it follows"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", kind), "kinds are written in kebab-case"


@pytest.mark.parametrize("package", REGISTRIES)
def test_a_registry_loads_no_model(package):
    assert own_imports(package) == set()
    assert not {"torch", "cma"} & {full.split(".")[0] for full in imports(TREES[package])}


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: p.name)
def test_files_stay_short(path):
    lines, most = path.read_text().count("\n"), 300 if path in FILES else 450
    assert lines <= most, f"{path.relative_to(ROOT)} has {lines} lines"


def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [(n, f) for n, tree in TREES.items() for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]


def length(function: ast.FunctionDef) -> int:
    """Lines of code: without the docstring."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 2 if body else 1  # type: ignore[operator]


def test_functions_stay_short():
    long = [f"wmrl.{name}.{f.name}: {length(f)} lines" for name, f in functions() if length(f) > 60]
    assert not long
    assert statistics.median(length(f) for _, f in functions()) < 12


@pytest.mark.parametrize("name", TREES)
def test_public_things_are_described(name):
    assert ast.get_docstring(TREES[name]), f"wmrl.{name} has no docstring"
    for node in TREES[name].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"wmrl.{name}.{node.name} has no docstring"


@pytest.mark.parametrize("name", TREES)
def test_nothing_is_pickled(name):
    """Opening a stranger's file must run no code."""
    assert name in TO_WORKERS or not UNPICKLERS & {full.split(".")[0] for full in imports(TREES[name])}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save"), f"wmrl.{name}: {called}"
            allowed = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
            assert not allowed, f"wmrl.{name}: {called} may unpickle"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_left_for_later(path):
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())


def test_the_rules_can_fail():
    tree = ast.parse("def f():\n    from wmrl.cli import main\nif TYPE_CHECKING:\n    import pickle\n")
    assert list(imports(tree)) == ["wmrl.cli.main"]
    assert list(imports(tree, in_functions=False)) == []
