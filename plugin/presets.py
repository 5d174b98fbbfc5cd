"""Cache settings with a name: those in a model's config.pbtxt, and those that `triton-taylorseer tune` has saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from plugin.parameters import PARAMETERS, name_value_pairs
from plugin.repository import InvalidConfig
from taylorseer import SETTINGS, CacheConfig, LearntRun, LearntWeights

PARAMETER_PREFIX = "cache_preset_"  # of a parameter that holds a preset; the preset's name follows


def parse_preset(name: str, text: str) -> CacheConfig:
    """A preset of config.pbtxt, such as "interval=6, order=1"; what it leaves out has `CacheConfig`'s default.

    Raises:
        InvalidConfig: an unknown setting, or one out of its range.
    """
    settings: dict[str, Any] = {}
    try:
        for setting, value in name_value_pairs(text):
            if setting not in SETTINGS:
                raise ValueError(f"{setting!r} is unknown, must be one of: {', '.join(sorted(SETTINGS))}")
            settings[setting] = PARAMETERS[f"cache_{setting}"].read(value)
        return CacheConfig(**settings)
    except ValueError as error:
        raise InvalidConfig(f"parameter '{PARAMETER_PREFIX}{name}' is {text!r}: {error}") from None


def presets_path(pipeline: str, model_dir: Path) -> Path:
    """The file with a model's saved presets: beside the weights that they were tuned on, or in the model's folder if
    the weights come from a hub."""
    folder = Path(pipeline)
    return (folder if folder.is_dir() else model_dir) / "cache_presets.json"


VERSION = 1  # of learnt weights in the file


def saved_presets(path: Path) -> dict[str, CacheConfig]:
    """The presets in a file, by name; none if there is no such file.

    Raises:
        InvalidConfig: the file cannot be read.
    """
    if not path.is_file():
        return {}
    name = None
    try:
        presets = {}
        for name, saved in json.loads(path.read_text(encoding="utf-8")).items():
            presets[name] = CacheConfig(**saved["cache"], learnt=_learnt(saved.get("learnt")))
        return presets
    except KeyError as error:
        why = f"{error} is missing"
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        why = str(error)
    which = "" if name is None else f"preset {name!r}: "
    raise InvalidConfig(f"{path} cannot be read, must be as `triton-taylorseer tune` writes it: {which}{why}") from None


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
    settings = {key: getattr(cache, key) for key in SETTINGS if getattr(cache, key) != defaults[key]}
    presets[name] = {"cache": settings, "about": dict(about)}
    if cache.learnt is not None:
        runs = [asdict(run) for run in cache.learnt.runs]
        presets[name]["learnt"] = {"version": VERSION, "fingerprint": cache.learnt.fingerprint, "runs": runs}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(_to_text(presets) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _learnt(saved: Mapping[str, Any] | None) -> LearntWeights | None:
    if saved is None:
        return None
    if saved["version"] != VERSION:
        raise ValueError(f"version of its learnt weights is {saved['version']!r}, must be {VERSION}: tune it again")
    runs = (
        LearntRun(run["num_steps"], tuple(run["full_steps"]), tuple(map(_row, run["rows"])), run.get("noise"))
        for run in saved["runs"]
    )
    return LearntWeights(tuple(runs), saved["fingerprint"])


def _row(numbers: list[float]) -> tuple[float, ...]:
    return tuple(map(float, numbers))


def _to_text(value: Any, indent: str = "") -> str:
    """JSON with a line for each list of numbers, and one for each member of everything else."""
    inner = indent + " "
    if isinstance(value, Mapping) and value:
        members = [f"{json.dumps(name)}: {_to_text(each, inner)}" for name, each in value.items()]
        return "{\n" + ",\n".join(inner + each for each in members) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(each, list | tuple | Mapping) for each in value):
        return "[\n" + ",\n".join(inner + _to_text(each, inner) for each in value) + f"\n{indent}]"
    return json.dumps(value)
