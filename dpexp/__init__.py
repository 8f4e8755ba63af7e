"""dpexp: how well does data-parallel training scale for my model, my data and my machine, and why?"""

import importlib
from importlib import metadata
from typing import Any

__all__ = ["load", "plot", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """Return the version, or import a notebook function on first use; `run` and `sweep` load torch when called."""
    if name == "__version__":
        return metadata.version("dpexp")
    if name not in __all__:
        raise AttributeError(f"module dpexp has no attribute {name}")
    module = "dpexp.report.figures" if name == "plot" else "dpexp.cli.api"
    return getattr(importlib.import_module(module), name)
