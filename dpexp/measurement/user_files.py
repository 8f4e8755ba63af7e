"""The user's files that a job depends on, by SHA-256: data, the model's module and what that imports, scripts.

They are checked before results are added, so that times of an edited model aren't mixed with those of the old one.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import sysconfig
from collections.abc import Iterable, Sequence
from modulefinder import ModuleFinder
from pathlib import Path

from dpexp.config.built_in import BuiltInConfig
from dpexp.config.groups import ArraysDataConfig, CustomModelConfig
from dpexp.config.job import JobConfig
from dpexp.config.script import ScriptConfig
from dpexp.errors import ConfigError, DataError

CHUNK_BYTES = 2**20
_imported: dict[str, str] = {}  # SHA-256 of the user's modules, as this process has imported them
LIBRARIES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


def fingerprint(config: JobConfig) -> dict[str, str]:
    """Return the SHA-256 of each file, by module name, `data.path`, or a script's word; unreadable files are left out.

    Raises ConfigError if the model's module can't be found.
    """
    files = _modules(config)
    if isinstance(config, ScriptConfig):
        words = {*config.command_words, *config.baseline().command_words}
        files = {word: Path(word) for word in words if os.path.isfile(word)}  # noqa: PTH113 - any text
    if isinstance(config.data, ArraysDataConfig):
        files["data.path"] = Path(config.data.path)
    return _digests(files)


def refuse_edited_modules(config: JobConfig) -> None:
    """Raise ConfigError if a model's file was edited after this process imported it."""
    for name, sha256 in _digests(_modules(config)).items():
        if _imported.setdefault(name, sha256) != sha256:
            raise ConfigError(f"{name} has changed since this Python process imported it; restart it, or the notebook")


def digests_of(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files by their paths; those in the current folder are named relative to it."""
    paths, here = [Path(name) for name in names], Path.cwd()
    return _digests({str(path.relative_to(here) if path.is_relative_to(here) else path): path for path in paths})


def _digests(files: dict[str, Path]) -> dict[str, str]:
    digests = {}
    for name, path in files.items():
        with contextlib.suppress(OSError):  # loading it reports the error
            if path.is_dir():
                digests[name] = _sha256_of_folder(path)
            else:
                digests[name] = _sha256(path, path.stat().st_mtime_ns, path.stat().st_size)
    return digests


def changed_files(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the names of the files that differ."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def refuse_changes(names: Sequence[str]) -> None:
    """Raise DataError if there are any: each training loads its files again, so all must find the same content."""
    if names:
        raise DataError(
            f"{', '.join(names)} changed while this command was running; start it again, and edit only copies meanwhile"
        )


@functools.cache  # the jobs of a sweep share a file, which may be large
def _sha256(path: Path, changed_ns: int, size_bytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _sha256_of_folder(path: Path) -> str:
    """Return the SHA-256 of names, sizes and times of a folder's files, which may be too large to read."""
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in path.glob("*.npy"))
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _modules(config: JobConfig) -> dict[str, Path]:
    """Return the module of a model's builder, and the modules beside it that it imports, directly or not."""
    if not isinstance(config, BuiltInConfig) or not isinstance(config.model, CustomModelConfig):
        return {}
    builder = config.model.builder
    module, spec = builder.split(":")[0], None
    with contextlib.suppress(Exception):  # a package of the user's may raise anything
        spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.has_location:
        advice = "run dpexp in the folder that contains it, or add that folder to PYTHONPATH"
        if module.endswith(".py"):
            advice = f"write {builder.replace('.py:', ':')}"
        raise ConfigError(f"model.builder={builder}: no module {module} can be imported from {Path.cwd()}; {advice}")
    path = Path(spec.origin).resolve()
    return {**_imports(module, path.parents[module.count(".") + (path.name == "__init__.py")]), module: path}


@functools.cache  # an import can only be added by editing a known file
def _imports(module: str, folder: Path) -> dict[str, Path]:
    """Return the modules below a folder that one of them imports, found without running any."""
    finder = ModuleFinder([str(folder)], excludes=["dpexp"])
    if not any(folder.is_relative_to(library) for library in LIBRARIES):
        with contextlib.suppress(Exception):  # importing it reports why
            finder.import_hook(module)
    files = {name: getattr(imported, "__file__", None) for name, imported in finder.modules.items()}
    return {name: Path(file).resolve() for name, file in files.items() if file}
