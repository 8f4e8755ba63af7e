"""The overrides of a command line, in the spelling that Hydra's grammar accepts."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dpexp.errors import ConfigError

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
FREE = "model.arguments."  # any key may be added below


def spelled(overrides: Sequence[str]) -> list[str]:
    """Each override as Hydra reads it: values that need quotes get them. Raises ConfigError."""
    for before, sign, after in zip(overrides, overrides[1:], overrides[2:], strict=False):
        if sign == "=":
            raise ConfigError(f"{before} = {after}: write it without spaces, {before}={after}")
    return [_spelled(text) for text in overrides]


def _spelled(text: str) -> str:
    key, sign, value = (part.strip() for part in text.partition("="))
    if not key or (not sign and not key.startswith("~")):
        raise ConfigError(f"{text!r}: write key=value, such as workers=2")
    if not text.isprintable():
        raise ConfigError(f"{text!r}: it has a character that can't be printed")
    if key in FOLDERS and not value:
        raise ConfigError(f"{key}=: an empty name would write into the current folder; name another one")
    if key == "experiment" and "," in value:
        raise ConfigError(f"experiment={value}: each experiment is a sweep; run them one by one")
    if value.endswith(",") or ",," in value:
        raise ConfigError(f"{key}={value}: a value is missing beside a comma")
    if key.startswith(FREE):
        key = f"++{key}"
    plain = f"{key}{sign}{value}"
    return plain if _is_grammatical(plain) else f"{key}={_quoted(value)}"


def _is_grammatical(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except (HydraException, RecursionError):
        return False
    return True


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
