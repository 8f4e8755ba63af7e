"""A job whose training is a user's command: any program that trains with torch, unchanged."""

from __future__ import annotations

import dataclasses
import shlex
import string
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, model_validator
from pydantic.dataclasses import dataclass

from dpexp.config.groups import STRICT
from dpexp.config.job import JobConfig

NUMERIC = ("workers", "threads_per_worker", "local_batch_size", "global_batch_size", "seed")
# For commands on several hosts: workers of each, number of hosts, this host's number, first host's address and port.
PLACEMENT = ("workers_per_host", "hosts", "host", "head", "port")
PLACEHOLDERS = (*NUMERIC, *PLACEMENT)
RESERVED = ", ".join(f"{{{choice}}}" for choice in PLACEHOLDERS)
# The value of a user's own placeholder, as text; a number, true or false is converted.
Text = Annotated[str, BeforeValidator(lambda value: str(value).lower() if isinstance(value, int | float) else value)]
# The settings of such a job; all others belong to the script.
ALLOWED_SETTINGS = """
workers threads_per_worker seed data.size batch.size batch.scope script measurement launch experiment
""".split()


@dataclass(frozen=True, config=STRICT)
class ScriptCommand:
    """How to start the training; `baseline_command` (None: the same command) runs with one worker.

    `exchange` is how the command's DistributedDataParallel exchanges gradients (None: as the script does).
    `arguments` are the values of the user's own placeholders; `baseline_arguments` replace some in the baseline.
    """

    command: str
    baseline_command: str | None
    exchange: Literal["shared_memory"] | None
    arguments: dict[str, Text]
    baseline_arguments: dict[str, Text]

    def baseline(self) -> ScriptCommand:
        """Return the command of the baseline, with the arguments that it uses."""
        command, arguments = self.baseline_command or self.command, self.arguments | self.baseline_arguments
        used = {name: value for name, value in arguments.items() if name in placeholders(command)}
        return ScriptCommand(command, None, exchange=None, arguments=used, baseline_arguments={})

    @model_validator(mode="after")
    def _check_commands(self) -> ScriptCommand:
        for name, command in (("command", self.command), ("baseline_command", self.baseline_command)):
            if command is None:
                continue
            try:
                words = shlex.split(command)
            except ValueError as error:
                raise ValueError(f"script.{name}={command}: {error}") from error
            try:
                fields = placeholders(command)
            except ValueError as error:
                raise ValueError(f"script.{name}={command}: {error}; write a literal brace as {{{{ or }}}}") from error
            if not words:
                raise ValueError(f"script.{name} is empty: write the command that starts the training")
            if unknown := sorted(fields - {*PLACEHOLDERS, *self.arguments}):
                raise ValueError(
                    f"script.{name} contains an unknown placeholder {{{unknown[0]}}}: choose from {RESERVED}; "
                    f"or give it a value with script.arguments.{unknown[0]}=...; write a literal brace as {{{{ or }}}}"
                )
        used = placeholders(f"{self.command} {self.baseline_command}")
        values = [("arguments", *item) for item in self.arguments.items()]
        values += [("baseline_arguments", *item) for item in self.baseline_arguments.items()]
        for key, name, value in values:
            setting = f"script.{key}.{name}={value}"
            if name in PLACEHOLDERS or not name.isidentifier():
                raise ValueError(f"{setting}: choose another name: letters, digits and _, but none of {RESERVED}")
            if name not in used:
                raise ValueError(f"{setting}: no command uses it; write {{{name}}} where it belongs, or remove it")
        return self


def placeholders(command: str) -> set[str]:
    """Return the names in braces. Raises ValueError."""
    return {field for _, field, _, _ in string.Formatter().parse(command) if field is not None}


@dataclass(frozen=True, config=STRICT)
class ScriptConfig(JobConfig):
    """A script. Its times are computed from the timed steps, for `data.size` samples."""

    epochs: Literal[1]
    script: ScriptCommand

    default_max_seconds: ClassVar[tuple[float, float]] = (60.0, 60.0)

    @property
    def table_settings(self) -> dict[str, str]:
        """The names that say what is measured: the exchange, and arguments that have a value for the baseline."""
        names = dict.fromkeys(("strategy", "model", "data"), "script")
        names |= {"data_scope": "global", "exchange": self.script.exchange or ""}
        for name, command in (("arguments", self.script), ("baseline_arguments", self.script.baseline())):
            swept = [argument for argument in sorted(self.script.baseline_arguments) if argument in command.arguments]
            names[name] = ", ".join(f"{argument}={command.arguments[argument]}" for argument in swept)
        return names

    def words(self, port: int, hosts: int = 1, head: str = "127.0.0.1") -> list[list[str]]:
        """Return the words of the command on each host; a single worker needs only the first host."""
        hosts = min(hosts, self.workers)
        numbers = {name: getattr(self, name) for name in NUMERIC} | {"workers_per_host": self.workers // hosts}
        places = [{"hosts": hosts, "host": host, "head": head, "port": port} for host in range(hosts)]
        values = [numbers | place | self.script.arguments for place in places]
        return [[word.format(**fields) for word in shlex.split(self.script.command)] for fields in values]

    @property
    def command_words(self) -> list[str]:
        """The words of the command on a single host, with port 0."""
        return self.words(0)[0]

    def baseline(self, threads: int | None = None) -> ScriptConfig:
        """Return the job of the baseline's command, with one worker."""
        threads = self.threads_per_worker if threads is None else threads
        return dataclasses.replace(self, workers=1, threads_per_worker=threads, script=self.script.baseline())

    def with_shared_memory(self) -> ScriptConfig | None:
        """Return the job whose models exchange in shared memory; None for one worker, or if they do so already."""
        if self.workers == 1 or self.script.exchange is not None:
            return None
        return dataclasses.replace(self, script=dataclasses.replace(self.script, exchange="shared_memory"))

    @model_validator(mode="after")
    def _check_together(self) -> ScriptConfig:
        self.check_batch()
        baseline = dataclasses.replace(self.script, baseline_arguments={}).baseline()
        if (
            self.workers > 1
            and self.command_words == dataclasses.replace(self, workers=1, script=baseline).command_words
        ):
            raise ValueError(
                f"script.command={self.script.command}: the command is the same for one and {self.workers} workers; "
                "write {workers} where the number of processes belongs"
            )
        return self
