"""Errors of Hydra, OmegaConf and pydantic, explained in one line: the value, the rule, the choices."""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from dpexp.config.yaml_files import UsersFiles, config_groups, known_keys

PLAIN = {"a valid integer": "a whole number", "a valid number": "a number", "a valid boolean": "true or false"}
EXAMPLES = {  # of what has no default
    "data.path": "mine.npz",
    "data.size": "10000",
    "model.builder": "mine:build",
    "strategy.command": "'torchrun --standalone --nproc-per-node={workers} train.py'",
}
NO_FILES = UsersFiles([])


def explain(error: Exception, files: UsersFiles = NO_FILES) -> str:
    """One line for an error of Hydra, OmegaConf or pydantic: the value, the rule, the choices.

    A mistake in one of the user's `files` is located there.
    """
    if isinstance(error, ValidationError):
        return "; ".join(_explain_field(dict(item), files) for item in error.errors())
    text = str(error).strip()
    if isinstance(error, MissingConfigException):
        missing = re.search(r"Could not find '([^']+)/([^/']*)'", text)
        if missing and error.options is not None:
            choices = ", ".join(error.options)
            return f"{missing[1]}={missing[2]}: no such choice; choose from {choices}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    inner = re.search(r"Key '([^']+)' is not in struct", str(error.__cause__))
    if unknown and inner and inner[1] not in unknown[1].split("."):
        return f"{unknown[1]}: has no {inner[1]}; add it by +{unknown[1]}.{inner[1]}=..."
    if unknown:
        return f"{unknown[1]}: no such key{close_matches(unknown[1])}"
    present = re.search(r"already at '([^']+)'|Multiple values for (\w+)", text)
    if present:
        return f"+{present[1] or present[2]}: it has a value already; write it without +"
    if isinstance(error, InterpolationKeyError):
        source = re.search(r"'([^']+)'", text)
        return f"{error.full_key}: there is no key {source[1] if source else ''} to take its value from"
    if isinstance(error, MissingMandatoryValue):
        example = EXAMPLES.get(str(error.full_key))
        return f"{error.full_key}: it has no default; set it{f', as in {error.full_key}={example}' if example else ''}"
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        return f"{several[1]}: several values make a sweep, which needs -m"
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        return " ".join(f"{text.partition('See https')[0]}{cause}".split())
    return " ".join(text.split())


def close_matches(key: str) -> str:
    """What to append to "no such key"."""
    keys = known_keys()
    known = key if key in keys else key.rpartition(".")[0]
    if known in keys and known.partition(".")[0] in config_groups():
        return f" in this configuration: it belongs to {' and '.join(keys[known])}"
    groups = {name.partition(".")[0] for name in keys}
    matches = [known for known in keys if known.rpartition(".")[2] == key]
    matches = matches or difflib.get_close_matches(key, {*keys, *groups}, n=3)
    matches = matches or [known for known in keys if key in re.split(r"\W|_", known)]
    if not matches and "." in key:
        matches = [known for known in keys if known.startswith(key.split(".")[0] + ".")]
    return f"; did you mean {', '.join(matches)}?" if matches else "; --help lists the keys"


def _explain_field(item: dict[str, Any], files: UsersFiles) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    # Pydantic names the chosen member of a union in the path: ('model', 'mlp', 'hidden').
    path = [str(part) for part in item["loc"]]
    if len(path) > 2 and path[0] in ("model", "data", "strategy", "optimizer", "tracker"):
        del path[1]
    if item["type"] == "value_error":
        return message
    key = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(path))
    file = files.defining(".".join(path))
    where = f" (in {file})" if file else ""
    if item["type"] == "union_tag_invalid":
        return f"{key}.name={item['ctx']['tag']}: choose from {item['ctx']['expected_tags']}"
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if key == "experiment":
            return f"{key}: its file needs the first line  # @package _global_"
        return f"{key}: no such key{close_matches(key)}{where}"
    value = item["input"]
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: no value"
    text = textwrap.shorten(value if isinstance(value, str) else json.dumps(value), 80, placeholder="...")
    return f"{key}={text}: {_rule(key, value, message, item['type'])}{where}"


def _rule(key: str, value: Any, message: str, kind: str) -> str:
    """The rule that a value breaks, with an example where pydantic's words are too general."""
    if kind == "string_pattern_mismatch":
        module, _, name = str(value).removesuffix("()").partition(":" if ":" in str(value) else ".")
        module = module.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
        name = name.strip(":").partition(":")[0]
        return f"write module:function, such as {module or 'mine'}:{name if name.isidentifier() else 'build'}"
    if kind in ("list_type", "tuple_type"):
        return f"must be a list, such as [{value if str(value).isalnum() and value is not None else '1, 2'}]"
    if kind.startswith("dataclass") or kind == "model_attributes_type":
        names = sorted(name for name in known_keys() if name.startswith(f"{key}."))
        return f"it is a group of settings: {', '.join(names)}"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"must be a whole number; write {key}={value:.0f}"
    if kind in ("int_type", "float_type") and isinstance(value, str) and value.isdecimal():
        return f"must be a number, not a text; write {key}={value}, without quotes"
    if kind == "dict_type":
        return f"must be names and values; write {key}.width=128, for example"
    length = re.search(r"at (?:most|least) \d+", message)
    if length and kind in ("too_long", "too_short"):
        return f"must have {length[0]} values"
    for pydantic, plain in PLAIN.items():
        message = message.replace(pydantic, plain)
    return message.replace("Input should be", "must be", 1)
