"""Cache settings with a name: those in a model's config.pbtxt, and those that `triton-taylorseer tune` has saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from plugin.parameters import PARAMETERS, name_value_pairs
from plugin.repository import InvalidConfig
from taylorseer import CacheConfig

PARAMETER_PREFIX = "cache_preset_"  # of a parameter that holds a preset; the preset's name follows


def parse_preset(name: str, text: str) -> CacheConfig:
    """A preset of config.pbtxt, such as "interval=6, order=1"; what it leaves out has `CacheConfig`'s default.

    Raises:
        InvalidConfig: an unknown setting, or one out of its range.
    """
    settings: dict[str, Any] = {}
    known = {each.name for each in fields(CacheConfig)}
    try:
        for setting, value in name_value_pairs(text):
            if setting not in known:
                raise ValueError(f"{setting!r} is unknown, must be one of: {', '.join(sorted(known))}")
            settings[setting] = PARAMETERS[f"cache_{setting}"].read(value)
        return CacheConfig(**settings)
    except ValueError as error:
        raise InvalidConfig(f"parameter '{PARAMETER_PREFIX}{name}' is {text!r}: {error}") from None


def presets_path(pipeline: str, model_dir: Path) -> Path:
    """The file with a model's saved presets: beside the weights that they were tuned on, or in the model's folder if
    the weights come from a hub."""
    folder = Path(pipeline)
    return (folder if folder.is_dir() else model_dir) / "cache_presets.json"


def saved_presets(path: Path) -> dict[str, CacheConfig]:
    """The presets in a file, by name; none if there is no such file.

    Raises:
        InvalidConfig: the file cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return {name: CacheConfig(**preset["cache"]) for name, preset in saved.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidConfig(f"{path} cannot be read, must be as `triton-taylorseer tune` writes it: {error}") from None


def save_preset(path: Path, name: str, cache: CacheConfig, about: Mapping[str, Any]) -> None:
    """Writes a preset into a file and keeps the others in it; one of the same name is replaced.

    Args:
        path: as `presets_path` gives it.
        name: of the preset, as requests choose it.
        cache: its settings; those equal to `CacheConfig`'s defaults are left out of the file.
        about: how it was found, for people.
    """
    presets = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    defaults = {each.name: each.default for each in fields(CacheConfig)}
    settings = {key: value for key, value in asdict(cache).items() if value != defaults[key]}
    presets[name] = {"cache": settings, "about": dict(about)}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(presets, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
