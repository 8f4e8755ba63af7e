"""The result of a job so far, written after each block, so that finished blocks survive however the job ends."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any, cast

from dpexp.config.built_in import AnyConfig
from dpexp.config.job import JobConfig
from dpexp.errors import DpexpError, WorkerError
from dpexp.machine.environment import Environment
from dpexp.machine.files import remove_leftovers, write_atomically
from dpexp.measurement.user_files import refuse_changes
from dpexp.results import storage
from dpexp.results.schema import VERSION, Block, JobResult, Status, Training

CHECKPOINT, ERROR_LOG = "model.pt", "error.log"
VARIES = "differs between starts"  # instead of the SHA-256 of a settings file that the script itself writes


class Record:
    """One job's files: result.json, and error.log with the details of an error."""

    def __init__(
        self,
        config: JobConfig,
        folder: Path,
        environment: Environment,
        user_files: dict[str, str],
        earlier: JobResult | None,
    ) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        self._folder = folder
        self.result = JobResult(
            format="dpexp-result",
            version=VERSION,
            status="unfinished",
            error=None,
            details=None,
            started_at=now if earlier is None else earlier.started_at,
            resumed_at=[] if earlier is None else [*earlier.resumed_at, now],
            config_sha256=config.sha256,
            config=cast(AnyConfig, config),
            environment=environment,
            blocks=[] if earlier is None else earlier.blocks,
            trainings={} if earlier is None else earlier.trainings,
            user_files=user_files if earlier is None else earlier.user_files | user_files,
        )
        # Whether an earlier result would be replaced by a new one.
        self.would_replace_result = (folder / storage.FILE_NAME).exists() and not self.result.blocks
        with storage.explain_write_errors(folder):
            remove_leftovers(folder)
            (folder / ERROR_LOG).unlink(missing_ok=True)

    def add_block(self, block: Block, files: dict[str, str]) -> None:
        """Add a finished block, and the SHA-256 of the user's files that it depends on.

        Raises DataError if a program has changed, and ResultError.
        """
        known = self.result.user_files
        changed = [name for name, sha256 in files.items() if known.get(name, sha256) != sha256]
        refuse_changes([name for name in changed if name.endswith(".py")])
        user_files = known | files | dict.fromkeys(changed, VARIES)
        self.write("unfinished", blocks=[*self.result.blocks, block], user_files=user_files)

    def add_training(self, name: str, training: Training) -> None:
        """Add a whole training. Raises ResultError."""
        trainings = self.result.trainings
        self.write("unfinished", trainings=trainings | {name: [*trainings.get(name, []), training]})

    def write(self, status: Status, error: DpexpError | None = None, **changes: Any) -> None:
        """Write the result with these changes. Raises ResultError."""
        self.result = dataclasses.replace(
            self.result,
            status=status,
            error=None if error is None else str(error),
            details=error.details or None if isinstance(error, WorkerError) else None,
            **changes,
        )
        storage.write(self.result, self._folder)
        if self.result.details:
            with storage.explain_write_errors(self._folder):
                write_atomically(self._folder / ERROR_LOG, self.result.details)
