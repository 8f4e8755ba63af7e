"""What one curve has in common: all settings but those along it; and what a curve is called beside others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dpexp.config import ExperimentConfig

Settings = Mapping[str, Any]
"""Values by dotted name, such as batch.size."""


def settings(config: ExperimentConfig) -> dict[str, Any]:
    """All settings that one curve must share: all but workers, data size and what doesn't change a block."""
    values = config.settings
    for path in (
        "workers",
        "checkpoint",
        "launch",
        "data.size",
        "data.cache",
        "measurement.repeats",
        "measurement.warmup",
    ):
        *group, key = path.split(".")
        (values[group[0]] if group else values).pop(key, None)
    return dict(sorted(_flatten(values).items()))


def key(own: Settings) -> str:
    """The same for the same settings."""
    return json.dumps(own)


def labels(all_settings: Iterable[Settings]) -> dict[str, str]:
    """For each series, by its key, the settings in which it differs from the others, in words; "" for a single one."""
    series = {key(one): one for one in all_settings}

    def differs(name: str, among: Iterable[Settings]) -> bool:
        return len({json.dumps(one.get(name)) for one in among}) > 1

    def shown(setting: str) -> bool:
        # What another choice of a group brings along goes without saying; what differs within a choice doesn't.
        name = f"{setting.split('.')[0]}.name"
        choices = {one.get(name) for one in series.values()}
        return any(differs(setting, [one for one in series.values() if one.get(name) == choice]) for choice in choices)

    names = sorted({name for one in series.values() for name in one})
    names = [name for name in names if (name.endswith(".name") and differs(name, series.values())) or shown(name)]
    found = {
        text: ", ".join(f"{name.removesuffix('.name')}={one[name]}" for name in names if name in one)
        for text, one in series.items()
    }
    assert len(set(found.values())) == len(found), "two series share a label"
    return found


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
