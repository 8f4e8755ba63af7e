"""What the jobs of one command share: the folder that they write to, who starts their workers, what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpexp import commandline, resume, terminal
from dpexp.config import ExperimentConfig
from dpexp.errors import ConfigError, DataError, DpexpError, ResultError
from dpexp.files import Claim
from dpexp.torchrun import World

if TYPE_CHECKING:
    from dpexp import groups

BAD_INPUT, FAILED = 2, 1  # exit statuses


class Session:
    """Of one command, from its arguments to its exit status."""

    def __init__(self, asked: commandline.Asked, world: World | None) -> None:
        self.asked = asked
        self.world = world  # of torchrun, where that started this process
        self.display = terminal.Display([])
        self.sweeping = False
        self.folder: Path | None = None  # as soon as it is claimed
        self.jobs = self.succeeded = self.measured_before = 0
        self.errors: list[DpexpError] = []
        self._group: groups.Group | None = None
        self._claim: Claim | None = None

    def begin(self, experiments: Sequence[ExperimentConfig], folder: Path, sweeping: bool) -> None:
        """Before the first job; `experiments` is empty where the jobs aren't known beforehand. Raises DpexpError."""
        from dpexp.results import refuse_foreign  # slow to import: --help and errors don't wait for it

        self.display = terminal.Display([config.visited_samples for config in experiments])
        self.sweeping = sweeping
        try:
            self._claim = Claim(folder)
            if self.asked.resumes is None:
                resume.write(folder, self.asked.command)
            else:
                refuse_foreign(folder)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another dpexp works there; wait until it ends") from error
        except OSError as error:
            raise ResultError(f"can't write the output folder {folder}: {error.strerror}") from error
        self.folder = folder

    @property
    def group(self) -> groups.Group:
        """Who starts the workers of all jobs."""
        from dpexp import groups, torchrun_group  # slow to import: --help and errors don't wait for them

        if self._group is None:
            self._group = groups.Group() if self.world is None else torchrun_group.TorchrunGroup(self.world)
        return self._group

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.world is None or self.world.rank == 0

    @property
    def go_on(self) -> str:
        """How to measure what is missing, in words; "" where nothing was begun."""
        if self.folder is None or not self.writes or self.world is not None:
            return ""
        return f"; go on with: {resume.hint(self.folder, self.asked.command)}"

    def report(self) -> int:
        """After the last job: say what was measured, however it ended; return the exit status."""
        self.display.close()
        if self.folder is None or not self.jobs or not self.writes:
            return FAILED if self.errors else 0
        from dpexp.aggregate import aggregate  # slow to import: --help and errors don't wait for these
        from dpexp.report import write_report
        from dpexp.results import FILE_NAME

        if not self.sweeping:
            if self.succeeded:
                terminal.show_report(aggregate([self.folder]), [self.folder / FILE_NAME])
            return 0
        if len(self.errors) == self.jobs and all(status_of(error) == BAD_INPUT for error in self.errors):
            return BAD_INPUT  # nothing was measured: nothing to report
        try:
            written = write_report([self.folder], self.folder)
        except DpexpError as error:
            terminal.show_error(str(error))
            return FAILED
        terminal.show_report(written.summary, written.paths)
        if self.measured_before:
            terminal.show_line(f"{self.measured_before} of {self.jobs} jobs had been measured before")
        if self.errors:
            what = f"{len(self.errors)} of {self.jobs} jobs failed; {written.csv} lists them"
            terminal.show_error(f"{what}{self.go_on}")
        return FAILED if self.errors else 0

    def leave_group(self) -> None:
        """After all is written: other ranks must not end before."""
        if self._group is not None:
            self._group.close()

    def end(self) -> None:
        """Let others write to the folder."""
        if self._claim is not None:
            self._claim.close()


def status_of(error: DpexpError) -> int:
    """The exit status that tells of it."""
    return BAD_INPUT if isinstance(error, ConfigError | DataError) else FAILED
