"""A job whose training is a user's command: any program that trains with torch, unchanged."""

from __future__ import annotations

import dataclasses
import re
import shlex
import string
from typing import ClassVar, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from dpexp.config.groups import STRICT
from dpexp.config.job import JobConfig

NUMBERS = ("workers", "threads_per_worker", "local_batch_size", "global_batch_size", "seed")
# Of the command on one of several hosts, each with as many workers; and the first host's name and a free port there.
PLACES = ("workers_per_host", "hosts", "host", "head", "port")
PLACEHOLDERS = (*NUMBERS, *PLACES)
SHELL = {"|", "||", "&", "&&", ";", ">", ">>", "<", "2>&1"}  # words that only a shell understands
# The settings of such a job; all others belong to the script.
SETTINGS = """
workers threads_per_worker seed data.size batch.size batch.scope script measurement launch price_per_hour experiment
""".split()


@dataclass(frozen=True, config=STRICT)
class CommandConfig:
    """How to start the training; `baseline_command` (None: the same) runs with one worker.

    `exchange` is how the command's DistributedDataParallel exchanges gradients (None: as the script has it).
    """

    command: str
    baseline_command: str | None
    exchange: Literal["shared_memory"] | None = None

    @model_validator(mode="after")
    def _check_commands(self) -> CommandConfig:
        for name, command in (("command", self.command), ("baseline_command", self.baseline_command)):
            if command is None:
                continue
            try:
                words = shlex.split(command)
                fields = {field for _, field, _, _ in string.Formatter().parse(command) if field is not None}
            except ValueError as error:
                raise ValueError(f"script.{name}={command}: {error}; a brace is written {{{{ or }}}}") from error
            if not words:
                raise ValueError(f"script.{name} is empty: write the command that starts the training")
            if (
                re.match(r"\w+=", words[0])
                or SHELL & {*words}
                or any(word.startswith("~/") or "\n" in word for word in words)
            ):
                raise ValueError(
                    f"script.{name}={command}: it runs without a shell; write env NAME=VALUE before a program, "
                    "full names of folders, one line, and bash -c '...' for what needs a shell"
                )
            if unknown := sorted(fields - set(PLACEHOLDERS)):
                choices = ", ".join(f"{{{choice}}}" for choice in PLACEHOLDERS)
                raise ValueError(
                    f"script.{name} has a placeholder {{{unknown[0]}}}: choose from {choices}; a brace is written "
                    "{{ or }}"
                )
        return self


@dataclass(frozen=True, config=STRICT)
class ScriptConfig(JobConfig):
    """A script; times are computed for `data.size` samples from the timed steps."""

    epochs: Literal[1]
    checkpoint: Literal[False]
    target_accuracy: None
    script: CommandConfig

    usual_seconds: ClassVar[tuple[float, float]] = (60.0, 60.0)

    @property
    def names(self) -> dict[str, str]:
        """All is the script's, but for the exchange of gradients, if that is asked for."""
        own = dict.fromkeys(("strategy", "model", "data"), "script")
        return own | {"data_scope": "global", "exchange": self.script.exchange or ""}

    @property
    def train_samples(self) -> int:
        """The number of samples for which times are computed."""
        return self.data.size

    @property
    def processes(self) -> int:
        """One for each worker."""
        return self.workers

    def words(self, port: int, hosts: int = 1, head: str = "127.0.0.1") -> list[list[str]]:
        """The words of the command on each host; a single worker needs only the first host. See PLACES."""
        hosts = min(hosts, self.workers)
        numbers = {name: getattr(self, name) for name in NUMBERS} | {"workers_per_host": self.workers // hosts}
        places = [{"hosts": hosts, "host": host, "head": head, "port": port} for host in range(hosts)]
        return [shlex.split(self.script.command.format(**numbers, **place)) for place in places]

    @property
    def command(self) -> list[str]:
        """The same on a single host, with port 0."""
        return self.words(0)[0]

    def baseline(self, threads: int | None = None) -> ScriptConfig:
        """The command of the baseline, with one worker."""
        script = CommandConfig(self.script.baseline_command or self.script.command, None)
        threads = self.threads_per_worker if threads is None else threads
        return dataclasses.replace(self, workers=1, threads_per_worker=threads, script=script)

    @model_validator(mode="after")
    def _check_together(self) -> ScriptConfig:
        self.check_batch()
        if self.workers > 1 and self.command == self.baseline().command:
            raise ValueError(
                f"script.command={self.script.command}: the command is the same for one and {self.workers} workers; "
                "write {workers} where the number of processes belongs"
            )
        return self
