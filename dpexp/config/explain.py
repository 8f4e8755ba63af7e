"""Errors of Hydra, OmegaConf and pydantic, explained in one line: the value, the rule, the choices."""

import difflib
import json
import re
import textwrap
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from dpexp.config.yaml_files import config_groups, known_keys

PLAIN = {
    "Input should be": "must be",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
}
RULES = {  # by pydantic's kind of error, if its message is too general
    "string_pattern_mismatch": "write module:function, such as mine:build",
    "list_type": "must be a list, such as [1, 2]",
    "tuple_type": "must be a list, such as [1, 2]",
    "dict_type": "must be names and values, such as {width: 128}",
}
EXAMPLES = {  # for settings without a default
    "data.path": "mine.npz",
    "data.size": "10000",
    "model.builder": "mine:build",
}


def explain(error: Exception) -> str:
    """Explain an error of Hydra, OmegaConf or pydantic in one line: the value, the rule, the choices."""
    if isinstance(error, ValidationError):
        return "; ".join(_explain_field(dict(item)) for item in error.errors())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: no such choice; choose from {', '.join(error.options)}"
    if isinstance(error, MissingMandatoryValue):
        example = EXAMPLES.get(str(error.full_key))
        return f"{error.full_key}: no default; set it{f', as in {error.full_key}={example}' if example else ''}"
    cause = error.__cause__
    if not str(error) and isinstance(cause, Exception):
        return explain(cause)
    text = str(error).partition("See https")[0].partition("full_key:")[0] or type(error).__name__
    where = f"{error.full_key}: " if isinstance(error, OmegaConfBaseException) and error.full_key else ""
    return " ".join(f"{where}{text}{f' ({cause})' if cause else ''}".split())


def suggest_matches(key: str) -> str:
    """Return the text to append to "no such key"."""
    keys = known_keys()
    known = key if key in keys else key.rpartition(".")[0]
    if known in keys and known.partition(".")[0] in config_groups():
        return f" in this configuration: it exists only with {' and '.join(keys[known])}"
    keys = {name: choices for name, choices in keys.items() if not name.endswith(".name")}  # chosen by the group
    groups = {name.partition(".")[0] for name in keys}
    matches = [known for known in keys if known.rpartition(".")[2] == key]
    matches = matches or difflib.get_close_matches(key, {*keys, *groups}, n=3)
    matches = matches or [known for known in keys if key in re.split(r"\W|_", known)]
    return f"; did you mean {', '.join(matches)}?" if matches else "; --help lists the keys"


def _explain_field(item: dict[str, Any]) -> str:
    message, value = str(item["msg"]).removeprefix("Value error, "), item["input"]
    # Pydantic names the chosen member of a union in the path: ('model', 'mlp', 'hidden').
    path = [str(part) for part in item["loc"]]
    if len(path) > 2 and path[0] in ("model", "data", "strategy", "optimizer"):
        del path[1]
    if item["type"] == "value_error":
        return message
    key = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(path))
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if key == "experiment":
            return f"{key}: its file must begin with the line  # @package _global_"
        while isinstance(value, dict) and value:  # of an unknown group
            inner, value = next(iter(value.items()))
            key = f"{key}.{inner}"
        return f"{key}: no such key{suggest_matches(key)}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: no value"
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    shown = textwrap.shorten(text, 80, placeholder="...")
    return f"{key}={shown}: {_rule(key, value, message, item['type'])}"


def _rule(key: str, value: Any, message: str, kind: str) -> str:
    """Return the rule that a value breaks, with an example if pydantic's message is too general."""
    if kind.startswith("dataclass") or kind == "model_attributes_type":
        names = sorted(name for name in known_keys() if name.startswith(f"{key}."))
        return f"this is a group of settings: {', '.join(names)}"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"must be a whole number; write {key}={value:.0f}"
    if kind in ("int_type", "float_type") and isinstance(value, str) and value.isdecimal():
        return f"must be a number, not text; write {key}={value} without quotes"
    if kind in ("too_long", "too_short"):
        return f"must have {re.findall('at (?:most|least) [0-9]+ items?', message)[0]}"
    for pydantic, plain in PLAIN.items():
        message = message.replace(pydantic, plain)
    return RULES.get(kind, message)
