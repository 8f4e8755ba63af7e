"""One measured command, whose processes train in turns while others sleep, on one machine or several."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, TypedDict

import numpy as np

from dpexp.errors import ScriptEnded, WorkerError, pluralize
from dpexp.launchers.command_processes import CommandProcesses, CommandSpec, describe_exit
from dpexp.processes.turn import Turn
from dpexp.processes.watchdog import wait_until

PINGS = 5

StepTrace = tuple[float, float, float, list[tuple[float, float]]]
"""One step: seconds of data, compute and update; and for each sync point, when it began and its seconds."""


class Introduction(TypedDict):
    """What a process reports at the end of its first step; see script_hook/dpexp_clock.py."""

    mark: str  # the mark of its command, which ends with the command's number
    rank: int
    world_size: int
    threads: int
    files: list[str]  # the user's files that it depends on


@dataclass
class Rank:
    """One process of a command that trains."""

    connection: Connection
    number: int
    threads: int
    ahead_seconds: float  # how far its clock is ahead of this machine's; 0 if it runs on this machine
    total_steps: int | None = None  # steps of the whole run; known once it has finished
    report: dict[str, Any] = field(default_factory=dict)  # fields of Process; empty if it ended before its last turn
    shares_memory: bool = True  # whether its models exchange gradients in shared memory


class RunningCommand:
    """A running command whose processes are stopped except during their turns."""

    def __init__(
        self,
        spec: CommandSpec,
        processes: CommandProcesses,
        timeout_seconds: float,
        check_hosts: Callable[[], Any] = lambda: None,
    ) -> None:
        """`processes` are those on this machine; `check_hosts` raises WorkerError if those elsewhere have failed."""
        self.spec, self.processes = spec, processes
        self.ranks: list[Rank] = []  # by number, when none is missing
        self.traces: list[list[list[StepTrace]]] = []  # by traced turn, process and step
        self.files: set[str] = set()  # the user's files that its processes depend on
        self._timeout_seconds, self._check_hosts = timeout_seconds, check_hosts
        self._steps = 0  # steps reported so far

    @property
    def missing(self) -> int:
        """The number of processes that have not made their first step."""
        return self.spec.ranks - len(self.ranks)

    def introduce(self, connection: Connection, introduction: Introduction, is_remote: bool) -> None:
        """Add a process that has made its first step. Raises WorkerError if it is not what was asked for."""
        rank, world_size = introduction["rank"], introduction["world_size"]
        if world_size != self.spec.ranks:
            raise WorkerError(
                f"{self.spec.name}: the command started {pluralize(world_size, 'process')}, not "
                f"{self.spec.ranks}: pass {{workers}} as its number of processes"
            )
        if any(known.number == rank for known in self.ranks):
            raise WorkerError(f"{self.spec.name}: several processes claim to be rank {rank}")
        if not is_remote:
            self.files |= {*introduction["files"]}
        ahead_seconds = _ahead_seconds(connection) if is_remote else 0.0
        self.ranks.append(Rank(connection, rank, introduction["threads"], ahead_seconds))
        if not self.missing:
            self.ranks.sort(key=lambda known: known.number)
            self._steps = 1
            self.processes.pause()

    def check_start(self) -> None:
        """Raise WorkerError if the command has ended before all processes made their first step."""
        self._check_hosts()
        if self.missing and self.processes.status is not None:
            ending = describe_exit(self.processes.wait_for_end())
            raise self.processes.failure(f"{ending} before a torch optimizer took a step")

    def run_turn(self, turn: Turn) -> list[float]:
        """Let the command make some steps; return the wall seconds of each timed step.

        A step ends at the mean of the times at which the processes end it: to choose the slowest in each turn would be
        biased. Returns [] for a traced turn, whose hooks take time. Raises WorkerError, ScriptEnded.
        """
        reports = self._ask((turn.untimed_steps, turn.steps, turn.traced))
        self.processes.pause()
        if self._steps == 1:  # and again in `collect_final_reports`; the script may have ended by then
            self.processes.record_memory()
        self._steps += turn.steps
        if turn.traced:
            traces = [
                [_shift_clock(trace, rank.ahead_seconds) for trace in steps[turn.untimed_steps :]]
                for rank, (_, steps) in zip(self.ranks, reports, strict=True)
            ]
            self.traces.append(traces)
            return []
        seconds = np.diff([times for times, _ in reports])[:, turn.untimed_steps :]
        return seconds.mean(axis=0).tolist()  # type: ignore[no-any-return]

    def collect_final_reports(self) -> None:
        """Collect the final reports of the processes after the last turn; some of them may have ended."""
        self.processes.record_memory()
        with contextlib.suppress(ScriptEnded, WorkerError):
            for rank, report in zip(self.ranks, self._ask("final report"), strict=True):
                rank.report, rank.shares_memory = report
        self.processes.pause()
        self.processes.used_cpu_seconds += self.processes.cpu_seconds()

    def end(self) -> None:
        """End all processes, and wait until they are gone."""
        self.processes.end()
        for rank in self.ranks:
            rank.connection.close()

    def no_progress(self) -> WorkerError:
        """Return the error for a command that has made no step for too long."""
        where = f"after at least {pluralize(self._steps, 'step')}"
        if self.missing:
            processes = pluralize(self.spec.ranks, "process")
            where = f"({self.missing} of {processes} have not made their first)"
        return self.processes.failure(
            f"no step for {self._timeout_seconds:g} s {where}; if it is only slow, increase launch.timeout_seconds"
        )

    def _uneven_error(self, missing: Iterable[Rank]) -> WorkerError:
        late = ", ".join(f"rank {rank.number}" for rank in missing)
        return self.processes.failure(
            f"{late} ran no further steps for {self._timeout_seconds:g} s, but the others did; ranks that run "
            "different numbers of steps, as under Join, can't be measured; give all ranks the same number of batches"
        )

    def _ask(self, question: Any) -> list[Any]:
        """Continue the command until each process has answered a question. Raises WorkerError, ScriptEnded."""
        waiting = {rank.connection: rank for rank in self.ranks}
        answers: dict[int, Any] = {}

        def receive(connection: Connection) -> None:
            message = connection.recv()
            rank = waiting.pop(connection)
            if isinstance(message, int):
                rank.total_steps = message
                raise EOFError
            answers[rank.number] = message

        def done() -> bool:
            self._check_hosts()
            return not waiting

        self.processes.send(signal.SIGCONT)
        try:
            for connection in waiting:
                connection.send(question)
            answered = wait_until(done, self._timeout_seconds, lambda: waiting, receive, lambda: len(waiting))
        except (EOFError, OSError):  # one has ended, perhaps while it slept
            raise self._end_error() from None
        if not answered:
            raise self._uneven_error(waiting.values()) if answers else self.no_progress()
        return [answers[rank.number] for rank in self.ranks]

    def _end_error(self) -> Exception:
        """Return the exception to raise when a process has ended."""
        status = self.processes.wait_for_end()
        for rank in self.ranks:
            with contextlib.suppress(EOFError, OSError):
                while rank.total_steps is None and rank.connection.poll():
                    message = rank.connection.recv()
                    rank.total_steps = message if isinstance(message, int) else None
        ended_together = len({rank.total_steps for rank in self.ranks}) == 1
        if status == 0 and ended_together:
            return ScriptEnded(self.spec.name)
        ending = describe_exit(status)
        if ended_together:
            return self.processes.failure(f"{ending} after at least {pluralize(self._steps, 'step')}")
        ended = [(rank.total_steps, rank.number) for rank in self.ranks if rank.total_steps is not None]
        steps, first = min(ended)
        return self.processes.failure(
            f"rank {first} finished after {pluralize(steps, 'step')}, before the others ({ending}); give all ranks "
            "the same number of batches"
        )


def _ahead_seconds(connection: Connection) -> float:
    """Return how far a process's clock is ahead of this one's, from the fastest of some round trips (Cristian 1989)."""
    offsets: list[tuple[float, float]] = []
    for _ in range(PINGS):
        asked = time.perf_counter()
        connection.send("time")
        theirs = connection.recv()
        answered = time.perf_counter()
        offsets.append((answered - asked, theirs - (asked + answered) / 2))
    return min(offsets)[1]


def _shift_clock(trace: StepTrace, seconds: float) -> StepTrace:
    """Return the trace with times of a clock that is `seconds` behind."""
    *phases, sync_points = trace
    return (*phases, [(arrival - seconds, lasted) for arrival, lasted in sync_points])  # type: ignore[return-value]
