"""The user's own files that a job depends on: where they changed, an earlier result is no longer this job's."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.groups import ArraysDataConfig, CustomModelConfig

CHUNK_BYTES = 2**20


def sha256(config: ExperimentConfig) -> str | None:
    """One digest of the data file and of the model's module, not of what that imports.

    None where there is neither, or one can't be read: to load it says why.
    """
    try:
        digests = [_of_file(path, path.stat().st_mtime_ns, path.stat().st_size) for path in _paths(config)]
    except OSError:
        return None
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else None


@functools.cache  # a sweep's jobs share a file, which may be large
def _of_file(path: Path, changed_ns: int, size_bytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _paths(config: ExperimentConfig) -> Iterator[Path]:
    if isinstance(config.data, ArraysDataConfig):
        yield Path(config.data.path).expanduser()
    if isinstance(config.model, CustomModelConfig):
        spec = None
        with contextlib.suppress(Exception):  # the user's package: anything; to build the model says why
            spec = importlib.util.find_spec(config.model.builder.split(":")[0])
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin)
