"""dpexp: how well does data-parallel training scale for my model, my data and my machine, and why?"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["load", "plot", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """The functions of `dpexp.api`, imported when first used, since that imports torch."""
    if name not in __all__:
        raise AttributeError(f"module dpexp has no attribute {name}")
    return getattr(importlib.import_module("dpexp.api"), name)
