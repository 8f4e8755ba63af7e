"""From Hydra's composition to one checked `ExperimentConfig`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from dpexp.config.experiment import ExperimentConfig, from_settings
from dpexp.config.explain import explain
from dpexp.config.yaml_files import UsersFiles, config_folder
from dpexp.errors import ConfigError


def to_experiment(composed: DictConfig) -> ExperimentConfig:
    """Check a composed configuration, once. Raises ConfigError with one line for all mistakes."""
    try:
        experiment = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        values = OmegaConf.to_container(experiment, resolve=True, throw_on_missing=True)
        _make_absolute(values)
        return from_settings(cast(dict[str, Any], values))
    except (OmegaConfBaseException, ValidationError, TypeError) as error:
        raise ConfigError(explain(error, UsersFiles.of(composed))) from error


def _make_absolute(values: Any) -> None:
    """A data.path is relative to where the command was started, also when Hydra changes the folder for each job."""
    data = values.get("data") if isinstance(values, dict) else None
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        with contextlib.suppress(RuntimeError):  # of ~nobody: no such file
            data["path"] = str(Path.cwd() / Path(data["path"]).expanduser())


def compose_experiment(*overrides: str) -> ExperimentConfig:
    """The experiment that a command line with these overrides describes. Raises ConfigError."""
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            return to_experiment(hydra.compose("config", overrides=list(overrides)))
    except HydraException as error:
        raise ConfigError(explain(error)) from error


def compose_planned(
    overrides: Sequence[str], sweep: bool
) -> tuple[Path, list[tuple[str, list[str], ExperimentConfig]]]:
    """What a command line with these overrides, with -m or without, would do: its output folder, and for each job the
    folder below that, the overrides and the experiment. Raises ConfigError.
    """
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            fixed = [str(one.input_line) for one in parsed if not (sweep and one.is_sweep_override())]
            composed = hydra.compose("config", overrides=fixed, return_hydra_config=True)
            if not sweep:
                return Path(str(composed.hydra.run.dir)), [(".", list(overrides), to_experiment(composed))]
            with open_dict(composed):
                composed.hydra.overrides.task = [text for text in overrides if not text.startswith("hydra.")]
            jobs = compose_jobs(composed, "config")
            checked = [(job.folder, job.overrides, to_experiment(job.composed)) for job in jobs]
            return Path(str(composed.hydra.sweep.dir)), checked
    except HydraException as error:
        raise ConfigError(explain(error)) from error


@dataclass(frozen=True)
class ComposedJob:
    """One job of a sweep, composed by Hydra before the first one runs."""

    folder: str  # below the sweep's
    overrides: list[str]
    composed: DictConfig


def compose_jobs(config: DictConfig, config_name: str | None) -> list[ComposedJob]:
    """The jobs of Hydra's basic sweeper, in its order; none for another sweeper. Raises ConfigError."""
    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return []
    try:
        jobs = [_composed(number, job, config_name) for number, job in enumerate(_sweep_overrides(config))]
    except Exception as error:  # Hydra would warn of it and go on
        raise ConfigError(explain(error)) from error
    if not jobs:
        raise ConfigError(f"{' '.join(config.hydra.overrides.task)}: this sweep has no job")
    return jobs


def _composed(number: int, overrides: list[str], config_name: str | None) -> ComposedJob:
    composed = hydra.compose(config_name, overrides=overrides, return_hydra_config=True)
    with open_dict(composed):
        composed.hydra.job.num, composed.hydra.job.id = number, str(number)
    return ComposedJob(str(composed.hydra.sweep.subdir), overrides, composed)


def _sweep_overrides(config: DictConfig) -> list[list[str]]:
    overrides = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides += config.hydra.overrides.task
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(overrides)
    return BasicSweeper.split_arguments(parsed, None)[0]


def changed(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """The experiment with some settings replaced, given as key=value. Raises ConfigError."""
    values = OmegaConf.merge(OmegaConf.create(config.settings), OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(values, DictConfig)
    return to_experiment(values)
