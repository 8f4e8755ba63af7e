"""The YAML files that hold every default: where they are, and which keys they define."""

import difflib
import re
from pathlib import Path

from omegaconf import OmegaConf


def config_folder() -> Path:
    """The folder of the YAML files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def config_groups() -> list[str]:
    """The names of the config groups."""
    return [path.name for path in config_folder().iterdir() if path.is_dir() and path.name != "hydra"]


def known_keys() -> dict[str, list[str]]:
    """Every key of the configuration, with the choices that bring it along."""
    keys: dict[str, list[str]] = {}
    for path in sorted([config_folder() / "config.yaml", *config_folder().glob("*/*.yaml")]):
        group = "" if path.name == "config.yaml" else path.parent.name
        if path.read_text().startswith("# @package _global_"):
            continue
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        assert isinstance(values, dict)
        for key, value in values.items():
            if key in ("defaults", "hydra"):
                continue
            for inner in value if isinstance(value, dict) and value else [None]:
                name = ".".join(part for part in (group, str(key), inner) if part)
                keys.setdefault(name, []).append(f"{group}={path.stem}" if group else "config")
    return keys


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
    return f"; did you mean {', '.join(matches)}?" if matches else "; --help lists the keys"
