"""The user's files that a job depends on, by SHA-256: data, the model's module and what that imports, scripts."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import dpexp
from dpexp.config.experiment import ExperimentConfig
from dpexp.config.groups import ArraysDataConfig, CustomModelConfig
from dpexp.errors import ConfigError

CHUNK_BYTES = 2**20
LIBRARIES = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
LIBRARIES.append(Path(dpexp.__file__).resolve().parent)


def fingerprint(config: ExperimentConfig) -> dict[str, str]:
    """The SHA-256 of each file, by module name, `data.path`, or a script's word; unreadable files are left out.

    Raises ConfigError where the model's module can't be found.
    """
    files = {}
    if isinstance(config.data, ArraysDataConfig):
        files["data.path"] = Path(config.data.path)
    if isinstance(config.model, CustomModelConfig):
        module = config.model.builder.split(":")[0]
        if (path := _source(module)) is None:
            advice = "run dpexp in the folder that holds it, or add that to PYTHONPATH"
            if module.endswith(".py"):
                advice = f"write {config.model.builder.replace('.py:', ':')}"
            raise ConfigError(
                f"model.builder={config.model.builder}: no module {module} can be imported from {Path.cwd()}; {advice}"
            )
        files |= _with_imports(module, path)
    files |= {word: Path(word) for word in config.script_words if os.path.isfile(word)}  # noqa: PTH113 - any text
    digests = {}
    for name, path in files.items():
        with contextlib.suppress(OSError):  # loading it says why
            if path.is_dir():
                digests[name] = _sha256_of_folder(path)
            else:
                digests[name] = _sha256(path, path.stat().st_mtime_ns, path.stat().st_size)
    return digests


def differing(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The names of the files that differ."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


@functools.cache  # the jobs of a sweep share a file, which may be large
def _sha256(path: Path, changed_ns: int, size_bytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _sha256_of_folder(path: Path) -> str:
    """Of the names, sizes and times of its files: they may be larger than memory, and take long to read."""
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in path.glob("*.npy"))
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _with_imports(module: str, path: Path) -> dict[str, Path]:
    """A module and the user's modules that it imports, directly or not, as import statements say."""
    found, to_read = {module: path}, [module]
    while to_read:
        name = to_read.pop()
        for imported in _imports(name, found[name]):
            source = _source(imported) if imported not in found and _is_the_users(imported) else None
            if source is not None:
                found[imported] = source
                to_read.append(imported)
    return found


def _imports(module: str, path: Path) -> Iterator[str]:
    """The modules that a file's import statements may name."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # importing it says why
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                with contextlib.suppress(ImportError):
                    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                    yield base
                    source = _source(base) if _is_the_users(base) else None
                    if source is not None and source.name == "__init__.py":
                        yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def _is_the_users(module: str) -> bool:
    """Whether a module belongs to no library. To look for a submodule, Python would import the packages above it."""
    source = _source(module.partition(".")[0])
    return source is not None and not any(source.is_relative_to(folder) for folder in LIBRARIES)


def _source(module: str) -> Path | None:
    """The file of a module's source; None where there is none."""
    spec = None
    with contextlib.suppress(Exception):  # a package of the user's may raise anything
        spec = importlib.util.find_spec(module)
    return Path(spec.origin).resolve() if spec is not None and spec.origin and spec.has_location else None
