"""What is known of a job so far, written after each block: whatever ends the job, finished blocks are kept."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import cast

from dpexp.config.experiment import AnyConfig
from dpexp.config.job import JobConfig
from dpexp.errors import DataError, DpexpError, WorkerError
from dpexp.machine.environment import Environment
from dpexp.machine.files import remove_leftovers, write_atomically
from dpexp.measurement.user_files import differing
from dpexp.results import storage
from dpexp.results.schema import VERSION, Block, RunResult, Status, Training

CHECKPOINT, ERROR_LOG = "model.pt", "error.log"
OTHER_EACH_TIME = "other in each start"  # in the place of a SHA-256: a script has written its settings itself


class Record:
    """One job's files: result.json, and with an error its details in error.log."""

    def __init__(
        self,
        config: JobConfig,
        folder: Path,
        environment: Environment,
        user_files: dict[str, str],
        earlier: RunResult | None,
    ) -> None:
        self._now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.blocks: list[Block] = [] if earlier is None else list(earlier.blocks)
        self.trainings: dict[str, list[Training]] = {} if earlier is None else dict(earlier.trainings)
        self.data_seconds = 0.0
        self._config, self._folder, self._environment, self._user_files = config, folder, environment, user_files
        self._started_at = self._now if earlier is None else earlier.started_at
        self._resumed_at = [] if earlier is None else [*earlier.resumed_at, self._now]
        self.replaces = (folder / storage.FILE_NAME).exists() and not self.blocks  # an earlier result, by a new one
        with storage.write_errors(folder):
            remove_leftovers(folder)
            (folder / ERROR_LOG).unlink(missing_ok=True)

    def add(self, block: Block, files: dict[str, str]) -> None:
        """Write with another finished block, and the SHA-256 of the user's files that it depends on.

        Raises DataError for a program that has changed, ResultError.
        """
        for name in differing({name: self._user_files.get(name, files[name]) for name in files}, files):
            if name.endswith(".py"):
                raise DataError(f"{name} changed while this command was running; start it again, and edit copies")
            files = {**files, name: OTHER_EACH_TIME}
        self._user_files = self._user_files | files
        self.blocks.append(block)
        self.write("unfinished")

    def add_training(self, name: str, training: Training) -> None:
        """Write with another whole training. Raises ResultError."""
        self.trainings[name] = [*self.trainings.get(name, []), training]
        self.write("unfinished")

    @property
    def diverged(self) -> bool:
        """Whether a loss of a whole training was not a finite number."""
        return self._result("unfinished", None).diverged

    def write(self, status: Status, error: DpexpError | None = None) -> None:
        """Write everything. Raises ResultError."""
        result = self._result(status, error)
        storage.write(result, self._folder)
        if result.details:
            with storage.write_errors(self._folder):
                write_atomically(self._folder / ERROR_LOG, result.details)

    def _result(self, status: Status, error: DpexpError | None) -> RunResult:
        return RunResult(
            format="dpexp-result",
            version=VERSION,
            status=status,
            error=None if error is None else str(error),
            details=error.details or None if isinstance(error, WorkerError) else None,
            started_at=self._started_at,
            resumed_at=self._resumed_at,
            config_sha256=self._config.sha256,
            config=cast(AnyConfig, self._config),
            environment=self._environment,
            data_seconds=self.data_seconds,
            blocks=self.blocks,
            trainings=self.trainings,
            user_files=self._user_files,
        )
