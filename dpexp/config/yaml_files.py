"""The YAML files that hold every default: where they are, and which keys they define."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def config_folder() -> Path:
    """The folder of the YAML files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def config_groups() -> list[str]:
    """The names of the config groups."""
    return [path.name for path in config_folder().iterdir() if path.is_dir() and path.name != "hydra"]


def known_groups() -> set[str]:
    """The first parts of all keys."""
    return {name.partition(".")[0] for name in known_keys()}


@dataclass(frozen=True)
class UsersFiles:
    """The YAML files, other than ours, that a configuration was composed from."""

    paths: list[tuple[str, Path]]  # the config group of each

    @classmethod
    def of(cls, composed: DictConfig) -> UsersFiles:
        """Those of a composition; none where it doesn't say."""
        runtime = OmegaConf.select(composed, "hydra.runtime")
        folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"] if runtime else []
        return cls(
            [
                (group, path)
                for folder in folders
                if folder != config_folder()
                for group, choice in runtime.choices.items()
                if (path := folder / group / f"{choice}.yaml").is_file()
            ]
        )

    def defining(self, key: str) -> Path | None:
        """The file that sets a dotted key; of several, the last."""
        found = None
        for group, path in self.paths:
            with contextlib.suppress(OmegaConfBaseException):
                values = OmegaConf.load(path)
                names = (key, key.removeprefix(f"{group}."))
                if any(OmegaConf.select(values, name) is not None for name in names):
                    found = path
        return found


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
