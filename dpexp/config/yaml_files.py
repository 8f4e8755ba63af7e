"""The YAML files that hold every default: where they are, and which keys they define."""

import functools
from pathlib import Path

from omegaconf import OmegaConf


def config_folder() -> Path:
    """Return the folder of the YAML files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@functools.cache
def config_groups() -> list[str]:
    """Return the names of the config groups."""
    return [path.name for path in config_folder().iterdir() if path.is_dir() and path.name not in ("hydra", "local")]


@functools.cache
def known_keys() -> dict[str, list[str]]:
    """Return every key of the configuration, with the choices that define it."""
    keys: dict[str, list[str]] = {}
    for path in sorted([config_folder() / "config.yaml", *config_folder().glob("*/*.yaml")]):
        group = "" if path.name == "config.yaml" else path.parent.name
        if path.parent.name == "local" or path.read_text().startswith("# @package _global_"):
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
