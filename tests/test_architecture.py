"""The way of the imports: one direction, Hydra at the edge, no torch where results are read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dpexp

PACKAGE = Path(dpexp.__file__).parent

# A module may import from modules of the layers above its own, and from its own.
LAYERS = [
    {"errors", "progress", "frozen", "cgroups", "interrupts", "files"},
    {"conditions", "environment", "resume", "position", "server", "phases", "config", "config_groups", "stats"},
    {"shared_memory"},
    {
        "compose",
        "commandline",
        "torchrun",
        "efficiency",
        "series",
        "own_files",
        "data",
        "results",
        "doubts",
        "kernels",
        "in_place",
        "optimizers",
    },
    {"models", "strategies", "measures", "recorded", "baselines", "aggregate"},
    {"training", "tables", "panels"},
    {"worker", "terminal", "figures"},
    {"launch", "report"},
    {"groups", "torchrun_group"},
    {"measurement", "faults"},
    {"job", "calibrate"},
    {"session"},
    {"app"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = part(path)
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] == "dpexp" and len(pieces) > 1 and pieces[1] in LEVEL:
            assert LEVEL[pieces[1]] <= LEVEL[own], name


def test_hydra_is_known_at_the_edge_only():
    users = {part(path) for path in MODULES if any(n.split(".")[0] in ("hydra", "omegaconf") for n in imports(path))}
    assert users == {"app", "calibrate", "commandline", "compose"}


def test_only_figures_and_their_panels_know_matplotlib():
    assert {part(p) for p in MODULES if any(n.split(".")[0] == "matplotlib" for n in imports(p))} == {
        "figures",
        "panels",
    }


@pytest.mark.parametrize("module", ["dpexp.report", "dpexp.app"])
def test_reading_results_and_composing_do_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_loop_does_not_ask_whether_it_is_distributed():
    """No branch of the loop depends on the number of workers or on the strategy's name."""
    for name in ("training", "worker", "measurement"):
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.If | ast.IfExp | ast.While):
                condition = ast.unparse(node.test)
                assert "workers" not in condition
                assert "strategy" not in condition
