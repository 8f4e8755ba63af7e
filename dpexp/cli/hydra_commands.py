"""The commands that Hydra runs itself: help, configurations, and the jobs of launcher and sweeper plugins."""

import argparse
import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dpexp.cli import resume, runner
from dpexp.config.compose import Plan, parse, to_job, typed_overrides, with_baseline_arguments
from dpexp.config.explain import explain
from dpexp.config.yaml_files import config_folder
from dpexp.errors import ConfigError, DpexpError, WorkerError, one_line
from dpexp.machine import signals
from dpexp.machine.environment import modified_environment
from dpexp.machine.files import lock_folder
from dpexp.report.command import measuring_alone
from dpexp.results.jobs import MeasuredJob
from dpexp.results.series import Member

SHOWING = "--help -h --hydra-help --cfg -c --info -i --shell-completion -sc".split()


def shows(arguments: Sequence[str]) -> bool:
    """Whether a command line asks Hydra to show something, and measures nothing."""
    return bool({word.partition("=")[0] for word in arguments} & set(SHOWING))


def show(arguments: Sequence[str]) -> int:
    """Let Hydra show it; return the exit status. Raises ConfigError."""
    try:
        _main(arguments)
    except Exception as error:
        raise ConfigError(explain(error)) from error
    return 0


@contextlib.contextmanager
def open_plan(plan: Plan, overrides: Sequence[str], config_dir: str | None) -> Iterator[Iterator[runner.Done]]:
    """Lock the plan's folder while the context is open, and let plugins run the jobs. Raises DpexpError.

    Each job is checked where it runs, and its result contains its outcome.
    """
    with lock_folder(plan.folder):
        resume.refuse_results(plan.folder)
        yield _launched(plan, overrides, config_dir)


def _launched(plan: Plan, overrides: Sequence[str], config_dir: str | None) -> Iterator[runner.Done]:
    parsed = with_baseline_arguments([parse(text) for text in [*overrides, f"hydra.sweep.dir={plan.folder}"]])
    added = ("model.arguments", "script.arguments", "script.baseline_arguments")  # which take any key
    words = [
        f"++{str(override.input_line).lstrip('+')}"
        if override.key_or_group.startswith(added)
        else str(override.input_line)
        for override in parsed
    ]
    try:
        _main(["-m", *(["--config-dir", config_dir] if config_dir else []), *words])
    except DpexpError:
        raise
    except Exception as error:
        raise WorkerError(f"the launcher of the jobs failed: {one_line(error)}") from error
    yield from ()  # results.json files have the outcomes


def _main(arguments: Sequence[str]) -> None:
    """Run Hydra's own command line. Raises what Hydra raises."""
    run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(measure)
    before, sys.argv = sys.argv, ["dpexp", *arguments]
    try:
        with _help_as_text(), modified_environment(HYDRA_FULL_ERROR="1"):  # Hydra raises errors, and prints none
            run()
    finally:
        sys.argv = before


def measure(composed: DictConfig) -> float:
    """Measure a job that a plugin has started, here or on another machine, into its folder; return the speedup.

    The launcher may start several on one machine: each waits until no other measures. Raises DpexpError.
    """
    from dpexp.analysis.speedup import over_baseline, single_workers  # slow to import, too
    from dpexp.measurement import job as measurement  # imports torch

    hydra_settings = HydraConfig.get()
    config, folder = to_job(composed, typed_overrides(hydra_settings)), Path(hydra_settings.runtime.output_dir)
    runner.check(config)
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("forkserver", force=True)  # joblib's own, which workers would not know
    try:
        with signals.raised(), measuring_alone():
            job = Member(MeasuredJob(str(folder), measurement.run(config, folder)))
    except signals.Interrupted as stop:
        raise WorkerError(f"interrupted by {stop}") from stop
    return over_baseline([job], singles=single_workers([job])).comparison.shown.value


@contextlib.contextmanager
def _help_as_text() -> Iterator[None]:
    """Pass help to parsers as text while the context is open: Python 3.14 refuses an object that Hydra 1.3 passes."""
    add: Callable[..., Any] = argparse.ArgumentParser.add_argument

    def add_with_text(parser: argparse.ArgumentParser, *names: str, **options: Any) -> Any:
        return add(parser, *names, **{name: str(value) if name == "help" else value for name, value in options.items()})

    argparse.ArgumentParser.add_argument = add_with_text  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del argparse.ArgumentParser.add_argument
