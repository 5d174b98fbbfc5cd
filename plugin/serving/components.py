"""Which modules a pipeline consists of, known before it is loaded: from its folder, or as published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from torch import nn

from plugin.config import PipelineSource
from plugin.quantization import is_gguf
from plugin.serving.parts import PARTS, PipelinePart
from plugin.serving.plan import PREDECESSORS, read_configuration
from plugin.serving.published import PUBLISHED


def parts_of(source: PipelineSource) -> Mapping[str, PipelinePart]:
    """The modules of a pipeline by the names of its components: transformers, encoders, autoencoder.

    Args:
        source: what will be loaded: a folder that diffusers saved, or a hub id in `PUBLISHED`.

    Raises:
        OSError: the folder lacks a configuration.
        ValueError: a hub id whose numbers are not known here.
    """
    parts = _of_folder(Path(source.pipeline)) if source.pipeline not in PUBLISHED else _published(source.pipeline)
    for name, place in source.components:
        if not name.startswith("tokenizer") and not is_gguf(place):
            parts[name] = _from_elsewhere(source.pipeline, name, place, parts)
    return parts


def history_of(source: PipelineSource) -> int:
    """How many latents of earlier steps a pipeline's scheduler keeps: as many as its order, and one more. Of a pipeline
    that is not in a folder, those of order 2."""
    path = Path(source.pipeline) / "scheduler" / "scheduler_config.json"
    order = read_configuration(path).get("solver_order", 0) if path.is_file() else 2
    return order + 1 if order else 0


def _published(pipeline: str) -> dict[str, PipelinePart]:
    architecture = PUBLISHED[pipeline]
    transformer = PipelinePart.of("diffusers", architecture.transformer, architecture.options)
    return {**PARTS[pipeline], "transformer": transformer}


def _of_folder(folder: Path) -> dict[str, PipelinePart]:
    parts = {}
    for name, entry in read_configuration(folder / "model_index.json").items():
        path = folder / name / "config.json"
        if not path.is_file() or not isinstance(entry, list):  # a folder is there for components alone
            continue
        library, class_name = entry
        if is_module(library, class_name):
            options = {key: value for key, value in read_configuration(path).items() if key != "_class_name"}
            parts[name] = PipelinePart.of(library, PREDECESSORS.get(class_name) or class_name, options)
    return parts


def _from_elsewhere(pipeline: str, name: str, place: str, parts: Mapping[str, PipelinePart]) -> PipelinePart:
    """A component of a folder of its own, by the class that the pipeline's constructor declares; one of a hub id is
    taken to be built like the published one."""
    path = Path(place) / "config.json"
    if not path.is_file():
        if name not in parts:
            raise ValueError(f"component {name} is {place}, must be a folder: what it is built like is not known here")
        return parts[name]
    import diffusers  # takes seconds

    class_name = _pipeline_class(pipeline)
    declared = get_type_hints(getattr(diffusers, class_name).__init__)
    if name not in declared:
        known = ", ".join(declared)
        raise ValueError(f"component {name!r} is unknown to {class_name}, must be one of: {known}")
    kind = next((each for each in get_args(declared[name]) if each is not NoneType), declared[name])
    return PipelinePart.of(kind.__module__.split(".")[0], kind.__name__, read_configuration(path))


def _pipeline_class(pipeline: str) -> str:
    if pipeline in PUBLISHED:
        return PUBLISHED[pipeline].pipeline
    class_name: str = read_configuration(Path(pipeline) / "model_index.json")["_class_name"]
    return class_name


def class_of(library: str, class_name: str) -> Any:
    """A class that a pipeline's index names.

    Raises:
        ValueError: this installation does not have it.
    """
    from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj  # takes seconds

    try:
        return simple_get_class_obj(library, class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{library} has no class {class_name} here: {error}") from error


def is_module(library: str, class_name: str) -> bool:
    """Whether such a class is one of modules; tokenizers, schedulers and processors are not."""
    found = class_of(library, class_name)
    return isinstance(found, type) and issubclass(found, nn.Module)
