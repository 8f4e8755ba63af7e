"""The environment of a measurement: machine, libraries, code. Imports no torch."""

import contextlib
import functools
import hashlib
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
from pydantic.dataclasses import dataclass

from dpexp.errors import pluralize
from dpexp.machine import cgroups

# Environment variables that set the threads of libraries.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def usable_cores() -> int:
    """Return the cores that this process may use, by affinity and the cgroup's CPU quota (at least 1)."""
    cores = len(os.sched_getaffinity(0))
    quota = cgroups.cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def available_memory_bytes() -> int:
    """Return the memory that this process may still take, limited by the machine and the cgroup."""
    left = [limit - used for limit, used in cgroups.memory_limits()]
    return max(0, min([psutil.virtual_memory().available, *left]))


@dataclass(frozen=True)
class Environment:
    """Machine, libraries and code of a measurement, as stored in its result."""

    cpu_model: str
    logical_cores: int
    usable_cores: int
    memory_bytes: int
    local_world_size: int | None  # ranks on this machine, if torchrun started them; None: all
    versions: dict[str, str]
    code_sha256: str  # SHA-256 of this package's Python modules

    @property
    def machine(self) -> str:
        """What two timings must have in common to be comparable, in words."""
        versions = ", ".join(f"{name} {self.versions.get(name)}" for name in ("torch", "Python", "dpexp"))
        ranks = "" if self.local_world_size is None else f", {pluralize(self.local_world_size, 'rank')} per machine"
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        return f"{self.cpu_model}, {self.usable_cores} usable cores, {memory}, {versions}{ranks}"


def current_environment(local_world_size: int | None = None) -> Environment:
    """Describe the environment of this process."""
    return Environment(
        cpu_model=_cpu_model(),
        logical_cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        local_world_size=local_world_size,
        versions={
            "Python": platform.python_version(),
            **{name: metadata.version(name) for name in ("dpexp", "torch", "numpy", "hydra-core")},
        },
        code_sha256=_code_sha256(),
    )


@contextlib.contextmanager
def modified_environment(**values: str) -> Iterator[None]:
    """Set environment variables while the context is open."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _code_sha256() -> str:
    digest = hashlib.sha256()
    folder = Path(__file__).resolve().parent.parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()
