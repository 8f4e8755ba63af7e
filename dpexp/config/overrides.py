"""The overrides of a command line, in the spelling that Hydra's grammar accepts."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from dpexp.config.explain import close_matches
from dpexp.config.yaml_files import config_groups
from dpexp.errors import ConfigError

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
COMMANDS = ("strategy.command", "strategy.baseline_command")  # whose commas and braces are the user's
FREE = "model.arguments."  # any key may be added below


def spelled(overrides: Sequence[str]) -> list[str]:
    """Each override as Hydra reads it: values that need quotes get them. Raises ConfigError."""
    for before, sign, after in zip(overrides, overrides[1:], overrides[2:], strict=False):
        if sign == "=":
            raise ConfigError(f"{before} = {after}: write it without spaces, {before}={after}")
    return [_spelled(text) for text in overrides]


def _spelled(text: str) -> str:
    key, sign, value = (part.strip() for part in text.partition("="))
    name = key.lstrip("+~")
    if not name or (not sign and not key.startswith("~")):
        raise ConfigError(f"{text!r}: write key=value, such as workers=2")
    if not text.isprintable():
        raise ConfigError(f"{text!r}: it has a character that can't be printed")
    if not name.isascii():
        raise ConfigError(f"{name}: no such key{close_matches(name)}")
    if name.endswith(".name") and name.removesuffix(".name") in config_groups():
        raise ConfigError(
            f"{name}={value}: write {name.removesuffix('.name')}={value}, which brings its settings along"
        )
    if key in FOLDERS and not value:
        raise ConfigError(f"{key}=: an empty name would write into the current folder; name another one")
    if key == "experiment" and "," in value:
        raise ConfigError(f"experiment={value}: each experiment is a sweep; run them one by one")
    if value.endswith(",") or ",," in value:
        raise ConfigError(f"{key}={value}: a value is missing beside a comma")
    if key.startswith(FREE) or (key == FREE.rstrip(".") and value.startswith("{")):
        key = f"++{key}"
    if key in config_groups() and value and not value[0].isalpha() and value[0] not in "[$_":
        value = _quoted(value)  # a number, which Hydra would refuse without naming the group
    if name in COMMANDS and value and value[0] not in "'\"":
        value = _quoted(value)
    plain = f"{key}{sign}{value}"
    return plain if _is_grammatical(plain) else f"{key}={_quoted(value)}"


def _is_grammatical(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except (HydraException, RecursionError):
        return False
    return True


def _quoted(value: str) -> str:
    return QuotedString(value, Quote.single).with_quotes()
