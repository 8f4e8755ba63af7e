"""Turn the overrides of a command line into jobs, each with one checked `JobConfig`."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from dpexp.config.built_in import BuiltInConfig, from_settings
from dpexp.config.explain import explain, suggest_matches
from dpexp.config.overrides import expand_sweep, parse, with_baseline_arguments
from dpexp.config.script import ALLOWED_SETTINGS, ScriptConfig
from dpexp.config.yaml_files import config_folder, config_groups, known_keys
from dpexp.errors import ConfigError, printable
from dpexp.machine.environment import usable_cores


def _splits() -> str:
    """Return the numbers of workers that divide the cores, as a sweep."""
    cores = usable_cores()
    return ",".join(str(workers) for workers in range(1, cores + 1) if cores % workers == 0)


def _threads_of_split(workers: Any) -> int:
    """Return the threads of each of `workers` that share all cores; 1 for an invalid value, which is refused later."""
    return max(1, usable_cores() // workers) if isinstance(workers, int) and workers > 0 else 1


USER_PROVIDER = "command-line"  # Hydra's provider of the user's YAML files
OmegaConf.register_new_resolver("splits", _splits, replace=True)
OmegaConf.register_new_resolver("threads_of_split", _threads_of_split, replace=True)


@dataclass(frozen=True)
class Job:
    """One job before it is measured."""

    folder: str  # below the command's; "." for a single run
    overrides: list[str]  # as typed
    config: BuiltInConfig | ScriptConfig


@dataclass(frozen=True)
class Plan:
    """The folder and the jobs of one command."""

    folder: Path
    sweep: bool
    jobs: list[Job]

    def name(self, job: Job) -> str:
        """Return the overrides that distinguish a job from the others."""
        common = set.intersection(*(set(job.overrides) for job in self.jobs)) if len(self.jobs) > 1 else set()
        return printable(" ".join(text for text in job.overrides if text not in common))


def compose(overrides: Sequence[str], multirun: bool, config_dir: str | None = None) -> Plan:
    """Return the plan of a command with these overrides; each job is composed once. Raises ConfigError.

    `config_dir` is a folder of the user's YAML files, which take precedence over those of `conf`.
    """
    with _hydra(config_dir):
        parsed = [parse(text) for text in overrides]
        swept = [override for override in parsed if override.is_sweep_override()]
        unswept = _compose_hydra([override for override in parsed if override not in swept])
        if not multirun and unswept.hydra.mode != RunMode.MULTIRUN:
            if swept:
                raise ConfigError(f"{swept[0].input_line}: several values are a sweep; add -m (dpexp.sweep in Python)")
            typed = _typed_overrides(unswept.hydra)
            return Plan(Path(str(unswept.hydra.run.dir)), False, [Job(".", typed, to_config(unswept, typed))])
        if several := [override.input_line for override in swept if override.key_or_group == "experiment"]:
            raise ConfigError(f"{several[0]}: each experiment is a sweep; run them one by one")
        of_experiment = [parse(f"{key}={value}") for key, value in (unswept.hydra.sweeper.params or {}).items()]
        jobs = list(_jobs(with_baseline_arguments([*of_experiment, *parsed])))
        if not jobs:
            raise ConfigError(f"{' '.join(overrides)}: this sweep has no jobs")
        return Plan(Path(str(unswept.hydra.sweep.dir)), True, jobs)


def compose_config(*overrides: str) -> BuiltInConfig | ScriptConfig:
    """Return the job of a single run with these overrides. Raises ConfigError."""
    with _hydra(None):
        parsed = [parse(text) for text in overrides]
        if swept := [override.input_line for override in parsed if override.is_sweep_override()]:
            raise ConfigError(f"{swept[0]}: give one value: each compared command is a single job")
        composed = _compose_hydra(parsed)
        return to_config(composed, _typed_overrides(composed.hydra))


def show(overrides: Sequence[str], config_dir: str | None, as_help: bool) -> str:
    """Return the composed configuration as YAML, or the text of --help, which contains it. Raises ConfigError."""
    with _hydra(config_dir):
        given = [override for text in overrides if not (override := parse(text)).is_sweep_override()]
        composed = _compose_hydra(given, *(["hydra/help=dpexp"] if as_help else []))
        settings = OmegaConf.to_yaml(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))
        if not as_help:
            return settings
        choices = GlobalHydra.instance().config_loader().get_group_options
        groups = "\n".join(f"  {group}: {', '.join(choices(group))}" for group in sorted(config_groups()))
        return Template(composed.hydra.help.template).safe_substitute(APP_CONFIG_GROUPS=groups, CONFIG=settings)


def to_config(composed: DictConfig, typed: Sequence[str]) -> BuiltInConfig | ScriptConfig:
    """Check a composed configuration and the typed overrides. Raises ConfigError with one line for all mistakes."""
    try:
        script = composed.get("script")
        if any(value not in (None, {}) for value in (script.values() if isinstance(script, DictConfig) else [script])):
            return _script_config(composed, typed)
        values = _values(composed, [str(key) for key in composed if key not in ("hydra", "script")])
        data = values.get("data")
        if isinstance(data, dict) and isinstance(data.get("path"), str):  # relative to where the command was started
            with contextlib.suppress(RuntimeError):  # no such user: loading it reports that
                data["path"] = str(Path.cwd() / Path(data["path"]).expanduser())
        return from_settings(values)
    except (OmegaConfBaseException, ValidationError, TypeError) as error:
        files = f" (with {', '.join(files_of_user)})" if (files_of_user := _users_files(composed)) else ""
        raise ConfigError(f"{explain(error)}{files}") from error


def _script_config(composed: DictConfig, typed: Sequence[str]) -> BuiltInConfig | ScriptConfig:
    for text in typed:
        key = text.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] not in ALLOWED_SETTINGS and key not in ALLOWED_SETTINGS:
            if key not in known_keys() and key.partition(".")[0] not in config_groups():
                raise ConfigError(f"{key}: no such key{suggest_matches(key)}")
            raise ConfigError(f"{text}: {key} can't be set for a script; set it in the script's command")
    if isinstance(composed.script, DictConfig) and composed.script.command is None:
        raise ConfigError("script.command: no value; type the script's command after --")
    values = _values(composed, [field.name for field in dataclasses.fields(ScriptConfig)])
    if values["data"]["scope"] != "global":
        raise ConfigError(
            "data.scope=per_worker can't be set for a script; its command decides what each worker trains on"
        )
    values |= {"epochs": 1, "data": {"size": values["data"]["size"], "scope": "global"}}
    return from_settings(values)


def _values(composed: DictConfig, names: list[str]) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.masked_copy(composed, names), resolve=True, throw_on_missing=True)
    return cast(dict[str, Any], values)


@contextlib.contextmanager
def _hydra(config_dir: str | None) -> Iterator[None]:
    """Let Hydra compose while the context is open; all its exceptions become a ConfigError."""
    try:
        with hydra.initialize_config_dir(str(config_folder()), "dpexp", version_base="1.3"):
            if config_dir is not None:
                path = Path(config_dir).expanduser().absolute()
                if not path.is_dir():
                    raise ConfigError(f"--config-dir {config_dir}: no such folder")
                GlobalHydra.instance().config_loader().get_search_path().prepend(USER_PROVIDER, f"file://{path}")
            yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(explain(error)) from error


def _compose_hydra(overrides: Sequence[Override], *further: str) -> DictConfig:
    """Compose the configuration with these overrides. Unknown keys are left for `to_config` to refuse."""
    words = [f"++{override.input_line}" if _is_key(override) else str(override.input_line) for override in overrides]
    words += further
    if any(entry.provider == USER_PROVIDER for entry in _search_path()):
        words.append("hydra.searchpath=[]")  # makes Hydra read its search path again
    return hydra.compose("config", words, return_hydra_config=True)


def _is_key(override: Override) -> bool:
    """Whether an override sets a value, rather than choosing a group's file."""
    if (
        override.type != OverrideType.CHANGE
        or override.is_hydra_override()
        or "/" in override.key_or_group
        or override.package
    ):
        return False
    folders = [Path(str(entry.path).removeprefix("file://")) for entry in _search_path() if entry.provider != "hydra"]
    return not any((folder / override.key_or_group).is_dir() for folder in folders)  # these choose a file


def _search_path() -> Any:
    return GlobalHydra.instance().config_loader().get_search_path().get_path()


def _jobs(overrides: Sequence[Override]) -> Iterator[Job]:
    """Yield every combination of the values, in the order of Hydra's basic sweeper.

    If a key is repeated, its last value counts.
    """
    for override in overrides:
        override.config_loader = GlobalHydra.instance().config_loader()  # for glob()
    varied = {override.get_key_element(): expand_sweep(override) for override in overrides}
    for number, words in enumerate(itertools.product(*varied.values())):
        try:
            composed = _compose_hydra([parse(word) for word in words])
            typed = _typed_overrides(composed.hydra)
            yield Job(str(number), typed, to_config(composed, typed))
        except Exception as error:
            name = " ".join(word for word in words if not word.startswith("hydra"))
            explained = error if isinstance(error, ConfigError) else explain(error)
            raise ConfigError(f"{explained} (in the job {name})") from error


def _users_files(composed: DictConfig) -> list[str]:
    """Return the user's YAML files that a configuration was composed from."""
    runtime = OmegaConf.select(composed, "hydra.runtime")
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"] if runtime else []
    own_folders = [folder for folder in folders if folder != config_folder()]
    paths = [folder / group / f"{choice}.yaml" for folder in own_folders for group, choice in runtime.choices.items()]
    return [str(path) for path in paths if path.is_file()]


def _typed_overrides(settings: Any) -> list[str]:
    """Return the typed overrides of a job from Hydra's settings, without those for Hydra."""
    typed = cast(list[str], OmegaConf.to_container(settings.overrides.task, resolve=False))
    return [text.removeprefix("++").replace("\\:", ":") for text in typed]
