"""Imports between packages run in one direction; small folders, Hydra at the edge, no torch where results are read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dpexp

PACKAGE = Path(dpexp.__file__).parent

# A package imports from those on lines above its own, and from itself; its __main__ is a program, above all packages.
ORDER = """
errors phases
machine
entry_point
config
results
processes
exchange
train
launchers
analysis
measurement
report
cli
calibrate
compare project
__main__
""".strip().splitlines()
LEVEL = {name: level for level, line in enumerate(ORDER) for name in line.split()}
LIGHT = ("analysis", "report", "results")  # read results without torch, processes or launchers
MAX_FILES = 10

MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.name != "__init__.py"]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path: Path) -> set[str]:
    """The packages of dpexp that a module imports from."""
    parts = [name.split(".") for name in imports(path)]
    return {part[1] for part in parts if part[0] == "dpexp" and len(part) > 1 and part[1] in LEVEL}


def name(path: Path) -> str:
    if path.name == "__main__.py":
        return "__main__"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def users(library: str) -> set[str]:
    """The modules that import a library."""
    found = {path for path in MODULES if any(one.split(".")[0] == library for one in imports(path))}
    return {str(path.relative_to(PACKAGE).with_suffix("")) for path in found}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_packages_import_one_way(path):
    above = {other for other in packages(path) if other != name(path) and LEVEL[other] >= LEVEL[name(path)]}
    assert not above


def test_every_module_has_its_place_in_the_order():
    assert {name(path) for path in MODULES} == set(LEVEL)


def test_modules_do_not_import_in_a_circle():
    names = (".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES)
    needs = {one.removesuffix(".__init__"): imports(path) for one, path in zip(names, MODULES, strict=True)}
    while needs:
        free = [module for module, others in needs.items() if not others & needs.keys()]
        assert free, f"{sorted(needs)} import each other"
        for module in free:
            del needs[module]


def test_folders_stay_small():
    for folder in {path.parent for path in MODULES} - {PACKAGE}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MAX_FILES, folder


def test_hydra_is_known_at_the_edge_only():
    edge = {"config/compose", "config/overrides", "config/explain", "config/yaml_files"}
    assert users("hydra") | users("omegaconf") == edge


def test_only_figures_and_their_panels_know_matplotlib():
    assert users("matplotlib") == {"report/figures", "report/panels"}


@pytest.mark.parametrize("package", LIGHT)
def test_reading_results_needs_no_torch_no_processes_and_no_launchers(package):
    modules = [path for path in MODULES if name(path) == package]
    heavy = {"processes", "train", "launchers", "measurement"}
    assert not [path for path in modules if packages(path) & heavy]
    assert not [path for path in modules if any(one.split(".")[0] == "torch" for one in imports(path))]


@pytest.mark.parametrize("module", ["dpexp.report.__main__", "dpexp.cli.app"])
def test_reading_results_and_composing_do_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_strategies_ask_whether_a_training_is_distributed():
    """Elsewhere no branch depends on the number of workers or on the strategy's name."""
    for folder in ("train", "measurement"):
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.If | ast.IfExp | ast.While):
                    condition = ast.unparse(node.test)
                    assert "config.workers" not in condition, path
                    assert "strategy" not in condition, path
