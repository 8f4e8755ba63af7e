"""Parse overrides, a script's command after `--`, and the values of a sweep."""

import contextlib
import functools
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from dpexp.config.explain import suggest_matches
from dpexp.config.yaml_files import config_groups
from dpexp.errors import ConfigError

COMMAND_KEYS = ("script.command", "script.baseline_command")  # commas and braces in these values are literal
FOLDER_KEYS = ("hydra.run.dir", "hydra.sweep.dir")


@functools.lru_cache(maxsize=1024)  # it takes milliseconds, and the jobs of a sweep share most of their overrides
def parse(text: str) -> Override:
    """Parse one override with Hydra; a value that Hydra's grammar refuses is taken as text. Raises ConfigError."""
    key, sign, value = (part.strip() for part in text.partition("="))
    name = key.lstrip("+~")
    if not name or (not sign and not key.startswith("~")):
        raise ConfigError(f"{text!r}: write key=value, such as workers=2")
    if name.endswith(".name") and name.removesuffix(".name") in config_groups():
        group = name.removesuffix(".name")
        raise ConfigError(f"{name}={value}: write {group}={value}, which also selects its settings")
    if re.match(r"hydra\b", name) and name not in FOLDER_KEYS:
        raise ConfigError(
            f"{name}: leave it out; dpexp starts its jobs itself, one after another, and uses only "
            f"{' and '.join(FOLDER_KEYS)} of Hydra's settings"
        )
    if name in FOLDER_KEYS and not value:
        raise ConfigError(f"{name}=: an empty name would mean the current folder; name a folder")
    parser = OverridesParser.create()
    is_command = name in COMMAND_KEYS and value[:1] not in ("'", '"')
    parts = [value] if is_command or not all(value.split(",")) else value.split(",")
    as_text = f"{key}={','.join(map(_quoted, parts))}"
    for spelling in (as_text,) if is_command else (f"{key}{sign}{value}", as_text):
        with contextlib.suppress(HydraException, RecursionError):
            parsed = parser.parse_override(spelling)
            is_name = parsed.is_sweep_override() or isinstance(parsed.value(), str | list)
            if name not in config_groups() or is_name:  # a number or null can't name a choice
                return parsed
    raise ConfigError(f"{name}: no such key{suggest_matches(name)}")


def with_script(arguments: Sequence[str]) -> list[str]:
    """Replace a script's command after `--` with the setting script.command.

    The spelling of earlier versions (strategy=script strategy.command=...) is understood, too.
    """
    words, script = split_at_script(arguments)
    words = [re.sub(r"^strategy\.(baseline_)?command=", r"script.\1command=", word) for word in words]
    words = [word for word in words if word != "strategy=script"]
    if script is None:
        return words
    command = shlex.join(script).replace("${", "\\${")  # a literal ${, not an interpolation
    return [*words, f"script.command={_quoted(command)}"]


def split_at_script(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str] | None]:
    """Return the arguments before `--`, and the words of the script's command after it; None without `--`."""
    if "--" not in arguments:
        return arguments, None
    at = list(arguments).index("--")
    return arguments[:at], arguments[at + 1 :]


def _quoted(value: str) -> str:
    return str(QuotedString(value, Quote.single).with_quotes())


def expand_sweep(override: Override) -> list[str]:
    """Return the single-job overrides of a sweep override; any other override is returned alone. Raises ConfigError."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: list the values of a sweep, as in workers=1,2,4")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def with_baseline_arguments(overrides: Sequence[Override]) -> list[Override]:
    """Give all baselines of a sweep the first value of each swept argument, so that speedups are comparable."""
    swept = [
        override
        for override in overrides
        if override.is_discrete_sweep() and override.key_or_group.startswith("script.arguments.")
    ]
    firsts = [expand_sweep(override)[0].lstrip("+").removeprefix("script.") for override in swept]
    return [*(parse(f"script.baseline_{first}") for first in firsts), *overrides]
