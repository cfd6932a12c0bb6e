"""Who may import whom: the contracts of pyproject.toml hold, each of them can fail, and the house is tidy."""

from __future__ import annotations

import ast
import itertools
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = ["api", "cli", "errors", "plan.plan", "plan.schedule", "store.prune", "store.store", "sweep.grid", "sweep.spec"]
HEAVY = ["ray", "torch", "transformers", "deepspeed", "datasets", "nltk", "pandas", "scipy"]
ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LAYERS = next(one["layers"] for one in CONTRACTS if one["type"] == "layers")
PROTECTED = [one for one in CONTRACTS if one["type"] == "protected"]
SMALL = 60  # lines below which a module with one importer belongs into that importer, unless it is a seam
SEAMS = {
    "raysweep.cluster.metrics": "what Ray's metrics show",
    "raysweep.cluster.scheduler": "what Tune runs a sweep with",
    "raysweep.commands.doctor": "a command",
    "raysweep.data.texts": "a mixer's corpus",
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the checkout in `folder`, whatever else is installed."""
    environment = {
        **os.environ,
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "COLUMNS": "200",
    }
    command = ["lint-imports", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture
def copy(tmp_path, root) -> Path:
    """A copy of the code and its contracts, to plant imports in."""
    shutil.copytree(root / "raysweep", tmp_path / "raysweep", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def plant(folder: Path, layer: str, *lines: str) -> str:
    """Put imports into a layer of a copy: at the end of a module, or in a new one of a folder. Where they stand now."""
    package = folder / "raysweep" / layer
    file = package / "planted.py" if package.is_dir() else package.with_suffix(".py")
    with file.open("a") as stream:
        stream.write("\n".join(["", *lines, ""]))
    return f"raysweep.{layer}.planted" if package.is_dir() else f"raysweep.{layer}"


def test_the_contracts_hold(root):
    found = lint(root)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_import_upwards_is_seen(copy):
    """Of all pairs of layers: one import from the lower to the higher."""
    planted = []
    for place, layer in enumerate(LAYERS):
        name = plant(copy, layer, *(f"import raysweep.{higher}" for higher in LAYERS[:place]))
        planted += [(name, f"raysweep.{higher}") for higher in LAYERS[:place]]
    found = lint(copy)
    assert found.returncode == 1, found.stdout + found.stderr
    seen = " ".join(found.stdout.split())
    missed = [(low, high) for low, high in planted if f"{low} -> {high} (l." not in seen]
    assert not missed, missed
    assert len(planted) == len(LAYERS) * (len(LAYERS) - 1) // 2


def test_every_import_of_a_heavy_library_elsewhere_is_seen(copy):
    """Of all layers, and inside functions too."""
    modules = {layer: plant(copy, layer, "def later():", *(f"    import {one}" for one in HEAVY)) for layer in LAYERS}
    found = lint(copy)
    assert found.returncode == 1, found.stdout + found.stderr
    for contract, layer in itertools.product(PROTECTED, LAYERS):
        allowed = f"raysweep.{layer}" in contract["allowed_importers"]
        for library in contract["protected_modules"]:
            assert (f"{modules[layer]} -> {library} (l." in found.stdout) != allowed, (modules[layer], library)
    assert sorted(library for one in PROTECTED for library in one["protected_modules"]) == sorted(HEAVY)


@pytest.mark.parametrize("layer", ["sweep", "plan", "store", "errors"])
def test_a_heavy_library_behind_the_core_is_seen(copy, layer):
    """By way of a module that may import it."""
    plant(copy, layer, "def later():", "    import raysweep.learn.loss")
    found = lint(copy)
    assert "the core needs no heavy library, at any remove BROKEN" in found.stdout, found.stdout + found.stderr


def test_the_core_runs_without_heavy_libraries(root):
    """Blocked, not just unused: `plan` of a file of 486 trials works where none of them is installed."""
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY}))\n"
        f"import {', '.join(f'raysweep.{name}' for name in CORE)}\n"
        "from raysweep.sweep.grid import Grid\n"
        "from raysweep.plan.plan import Sources, make_plan\n"
        "from raysweep.sweep.file import load\n"
        "nothing = Sources(lambda model: None, lambda name: None, lambda name: None)\n"
        "plan = make_plan([(Grid(*load('experiments/table2.yaml')), nothing)])\n"
        "print(len(plan.trials), len(plan.stages))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["486", "513"]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(root, command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_two_modules_import_each_other():
    """At any remove, imports inside functions included."""
    imports = {name: set(_imported(tree)) for name, tree in MODULES.items()}
    behind = {name: _behind(name, imports) for name in imports}
    assert not [(one, other) for one in imports for other in behind[one] if one in behind[other]]


def test_a_class_name_has_one_meaning():
    names: dict[str, list[str]] = defaultdict(list)
    for module, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                names[node.name.lstrip("_")].append(module)
            elif (
                isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_type(node.targets[0].id)
            ):
                names[node.targets[0].id].append(module)
    assert not {name: modules for name, modules in names.items() if len(modules) > 1}


def test_a_module_name_has_one_place():
    """Commands are called after the rooms that they show, and two rooms after what they are about."""
    names = Counter(name.rsplit(".", 1)[-1] for name in MODULES if not name.startswith("raysweep.commands."))
    assert {name for name, count in names.items() if count > 1} == {"plan", "store"}


def test_a_small_module_has_several_importers_or_is_a_seam():
    importers: dict[str, set[str]] = defaultdict(set)
    for name, tree in MODULES.items():
        for imported in _imported(tree):
            importers[imported].add(name)
    alone = {
        name
        for name in MODULES
        if not _is_package(name) and len(importers[name]) <= 1 and len(_file(name).read_text().splitlines()) < SMALL
    }
    assert alone == set(SEAMS)


def _name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _file(name: str) -> Path:
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


MODULES = {_name_of(file): ast.parse(file.read_text()) for file in sorted((ROOT / "raysweep").rglob("*.py"))}


def _is_package(name: str) -> bool:
    return _file(name).name == "__init__.py"


def _is_type(name: str) -> bool:
    return name[0].isupper() and not name.isupper()


def _imported(tree: ast.Module) -> Iterator[str]:
    """The modules of ours that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in within if node.module in MODULES)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def _behind(name: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [name]
    while ahead:
        new = imports[ahead.pop()] - found
        found |= new
        ahead += new
    return found
