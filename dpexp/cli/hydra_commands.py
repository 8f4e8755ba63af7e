"""The commands that Hydra runs itself: help, and composed configurations."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hydra

from dpexp.config.explain import explain
from dpexp.config.yaml_files import config_folder
from dpexp.errors import ConfigError
from dpexp.machine.environment import modified_environment

SHOWING = "--help -h --hydra-help --cfg -c --info -i --shell-completion -sc".split()


def shows(arguments: Sequence[str]) -> bool:
    """Whether a command line asks Hydra to show something, and measures nothing."""
    return bool({word.partition("=")[0] for word in arguments} & set(SHOWING))


def show(arguments: Sequence[str]) -> int:
    """Let Hydra show it; return the exit status. Raises ConfigError."""
    run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(lambda composed: None)
    before, sys.argv = sys.argv, ["dpexp", *arguments]
    try:
        with _help_as_text(), modified_environment(HYDRA_FULL_ERROR="1"):  # Hydra raises errors, and prints none
            run()
    except Exception as error:
        raise ConfigError(explain(error)) from error
    finally:
        sys.argv = before
    return 0


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
