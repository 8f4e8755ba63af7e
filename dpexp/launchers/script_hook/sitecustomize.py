"""Runs at the start of every Python process started by a measured command: installs the step clock.

If asked to, it also lets models exchange their gradients in shared memory.

The folder of this file is on PYTHONPATH there, so Python loads it instead of the machine's `sitecustomize`, which it
then runs. A process that never imports torch only notes which settings files it reads. May run in other versions of
Python than dpexp.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

OPTIMIZER, DDP = "torch.optim.optimizer", "torch.nn.parallel.distributed"
EXCHANGE = "DPEXP_SCRIPT_EXCHANGE"  # the folder that contains dpexp, if gradients are exchanged in shared memory
SETTINGS_ENDINGS = (".yaml", ".yml", ".json", ".toml", ".ini", ".cfg")  # of files that a training depends on


class _Watch(importlib.abc.MetaPathFinder):
    """Waits for the import of torch's optimizers, and notes the settings files that are read until the first step."""

    def __init__(self) -> None:
        self._read: set[str] | None = set()
        self._installs: dict[str, Any] = {OPTIMIZER: self._install_clock}
        if EXCHANGE in os.environ:
            self._installs[DDP] = _install_exchange
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: Any) -> None:
        if event == "open" and self._read is not None:
            path, mode = arguments[0], arguments[1] or ""
            if isinstance(path, str) and path.endswith(SETTINGS_ENDINGS) and mode.startswith("r") and "+" not in mode:
                self._read.add(os.path.abspath(path))  # noqa: PTH100

    def _take_read_files(self) -> set[str]:
        """Return the files that were read, and stop watching."""
        read, self._read = self._read or set(), None
        return read

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self._installs:
            return None
        install = self._installs.pop(name)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            install(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _install_clock(self, optimizers: ModuleType) -> None:
        import dpexp_clock  # type: ignore[import-not-found] # beside this file

        dpexp_clock.install(optimizers, self._take_read_files)


def _install_exchange(parallel: Any) -> None:
    """Let each DistributedDataParallel exchange gradients in shared memory from now on."""
    initialize = parallel.DistributedDataParallel.__init__

    def initialize_and_share(model: Any, *arguments: Any, **options: Any) -> None:
        initialize(model, *arguments, **options)
        if model._comm_hooks:
            refuse()
        sys.path.append(os.environ[EXCHANGE])  # the last: all other modules are the script's
        from dpexp.exchange import use_shared_memory

        use_shared_memory(model)
        model.register_comm_hook = refuse

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("script.exchange=shared_memory: the script has a communication hook of its own")

    parallel.DistributedDataParallel.__init__ = initialize_and_share


def _run_hidden() -> None:
    """Run the sitecustomize that Python would have found without this one."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - no need to import pathlib everywhere
    folders = [folder for folder in sys.path if os.path.abspath(folder) != here]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", folders)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _Watch())
_run_hidden()
