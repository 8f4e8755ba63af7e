"""Errors of Hydra, OmegaConf and pydantic, explained in one line: the value, the rule, the choices."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from dpexp.config.yaml_files import known_keys


def explain(error: Exception) -> str:
    """One line for an error of Hydra, OmegaConf or pydantic: the value, the rule, the choices."""
    if isinstance(error, ValidationError):
        return "; ".join(_explain_field(dict(item)) for item in error.errors())
    text = str(error).strip()
    if isinstance(error, MissingConfigException):
        missing = re.search(r"'([^']+)/([^/']+)'", text)
        if missing and error.options is not None:
            choices = ", ".join(option for option in error.options)
            return f"{missing[1]}={missing[2]}: no such choice; choose from {choices}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    inner = re.search(r"Key '([^']+)' is not in struct", str(error.__cause__))
    if unknown and inner and unknown[1].split(".")[-1] != inner[1]:
        return f"{unknown[1]}: has no {inner[1]}; add it by +{unknown[1]}.{inner[1]}=..."
    if unknown:
        return f"{unknown[1]}: no such key{_close_matches(unknown[1])}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: no default; set {error.full_key}=..."
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        return f"{several[1]}: several values make a sweep, which needs -m"
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        return " ".join(f"{text.partition('See https')[0]}{cause}".split())
    return " ".join(text.split())


def _close_matches(key: str) -> str:
    keys = known_keys()
    if key in keys:
        return f" in this configuration: it belongs to {' and '.join(keys[key])}"
    groups = {name.partition(".")[0] for name in keys}
    matches = [known for known in keys if known.rpartition(".")[2] == key]
    matches = matches or difflib.get_close_matches(key, {*keys, *groups}, n=3)
    if not matches and "." in key:
        matches = [known for known in keys if known.startswith(key.split(".")[0] + ".")]
    return f"; did you mean {', '.join(matches)}?" if matches else "; --help lists the keys"


def _explain_field(item: dict[str, Any]) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    # Pydantic names the chosen member of a union in the path: ('model', 'mlp', 'hidden').
    path = [str(part) for part in item["loc"]]
    if len(path) > 2 and path[0] in ("model", "data", "strategy", "optimizer"):
        del path[1]
    if item["type"] == "value_error":
        return message
    key = ".".join(path)
    if item["type"] == "union_tag_invalid":
        return f"{key}.name={item['ctx']['tag']}: choose from {item['ctx']['expected_tags']}"
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: no such key; --help lists the keys"
    value = item["input"]
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: no value"
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}: {_rule(key, value, message, item['type'])}"


def _rule(key: str, value: Any, message: str, kind: str) -> str:
    """The rule that a value breaks, with an example where pydantic's words are too general."""
    if kind == "string_pattern_mismatch":
        module, _, name = str(value).removesuffix(".py").rpartition(":" if ":" in str(value) else ".")
        module = module.removeprefix("./").removesuffix(".py").replace("/", ".")
        return f"write module:function, such as {module or 'mine'}:{name if name.isidentifier() else 'build'}"
    if kind in ("list_type", "tuple_type"):
        return f"must be a list, such as [{value}]"
    if kind.startswith("dataclass") or kind == "model_attributes_type":
        names = sorted(name for name in known_keys() if name.startswith(f"{key}."))
        return f"it is a group of settings: {', '.join(names)}"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"must be a whole number; write {key}={value:.0f}"
    return message.replace("Input should be", "must be", 1)
