"""The components that a pipeline is given when it is loaded: from elsewhere, quantised, or left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any, get_args, get_type_hints

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, PipelineQuantizationConfig
from huggingface_hub.errors import HFValidationError
from transformers import AutoTokenizer

from plugin.config import PipelineSource
from plugin.denoising.quantized import check_gguf, load_gguf, quantization_config
from plugin.parameters import DENOISERS
from plugin.quantization import is_gguf


def given_components(source: PipelineSource, denoisers_only: bool) -> dict[str, Any]:
    """The components that the pipeline does not load itself, by name: those from elsewhere, and None for those that are
    left out.

    Args:
        source: what to load.
        denoisers_only: leave out what is neither a denoising transformer nor read by constructors beside them.

    Raises:
        OSError: the pipeline's index, a component or a package cannot be had.
        ValueError: a component is not part of the pipeline's class, or cannot be quantised.
    """
    given: dict[str, Any] = dict.fromkeys(_other_components(source.pipeline)) if denoisers_only else {}
    wanted = [pair for pair in source.components if pair[0] in DENOISERS or not denoisers_only]
    if wanted:
        pipeline_class = getattr(diffusers, _index_of(source.pipeline)["_class_name"])
        given |= {name: _load_component(source, pipeline_class, name, place) for name, place in wanted}
    return given


def quantization_of(source: PipelineSource, given: Mapping[str, Any]) -> dict[str, Any]:
    """The argument of `from_pretrained` that quantises what it loads itself; none where nothing is to be quantised.

    Args:
        source: what to load.
        given: the components that the pipeline does not load itself.

    Raises:
        OSError: a package that quantises is not installed.
        ValueError: the pipeline does not have the component, or it cannot be quantised.
    """
    if not source.quantization:
        return {}
    libraries = {name: entry[0] for name, entry in _index_of(source.pipeline).items() if isinstance(entry, list)}
    known = {*given, *(name for name, library in libraries.items() if library)}
    mapping = {}
    for name, kind in source.quantization:
        if name not in known:
            raise ValueError(
                f"quantization names {name!r}, which {source.pipeline} does not have, must be of its components: "
                f"{', '.join(sorted(known))}"
            )
        if name not in given:
            library = "transformers" if libraries[name] == "transformers" else "diffusers"
            mapping[name] = quantization_config(name, kind, dtype_of(source, name), library)
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=mapping)} if mapping else {}


def dtype_of(source: PipelineSource, name: str) -> torch.dtype:
    """The dtype of a component."""
    dtype: torch.dtype = getattr(torch, source.dtype_of(name))
    return dtype


def _index_of(pipeline: str) -> Mapping[str, Any]:
    with named(f"pipeline {pipeline}"):
        index: Mapping[str, Any] = DiffusionPipeline.load_config(pipeline)
        return index


def _other_components(pipeline: str) -> list[str]:
    """The components of a pipeline that are neither denoising transformers nor what constructors read beside them: the
    scheduler, and the autoencoder (Bria, HunyuanVideo 1.5)."""
    kept = (*DENOISERS, "scheduler", "vae")
    return [name for name, entry in _index_of(pipeline).items() if isinstance(entry, list) and name not in kept]


def _load_component(source: PipelineSource, pipeline_class: type[DiffusionPipeline], name: str, place: str) -> Any:
    """A component by the class that the pipeline's constructor declares for it."""
    declared = get_type_hints(pipeline_class.__init__)
    if name not in declared:
        known = ", ".join(declared)
        raise ValueError(f"component {name!r} is unknown to {pipeline_class.__name__}, must be one of: {known}")
    # Some are declared as a class or None.
    kind = next((each for each in get_args(declared[name]) if each is not NoneType), declared[name])
    dtype = dtype_of(source, name)
    options = {"dtype": dtype, "use_safetensors": None if source.allow_pickle else True}
    if quantized := dict(source.quantization).get(name):
        library = "diffusers" if issubclass(kind, ModelMixin) else "transformers"
        options["quantization_config"] = quantization_config(name, quantized, dtype, library)
    if is_gguf(place):
        check_gguf(name, kind, place)
    with named(f"component {name} {place}"):
        if name.startswith("tokenizer"):
            return AutoTokenizer.from_pretrained(place)
        if is_gguf(place):
            return load_gguf(name, kind, place, source.pipeline, dtype)
        return kind.from_pretrained(place, **options)


@contextmanager
def named(what: str) -> Iterator[None]:
    """Turns what a hub's library says of something that cannot be had into one sentence that says what helps."""
    try:
        yield
    except ImportError as error:
        raise OSError(f"{what} needs a package that is not installed: {first_line(error)}") from error
    except RuntimeError as error:
        if "GPU is needed for quantization" not in str(error):  # diffusers' BnB4BitDiffusersQuantizer
            raise
        raise OSError(
            f"{what} has weights that bitsandbytes has quantised, must have others without a GPU: diffusers loads such "
            "a transformer on one alone"
        ) from error
    except (OSError, ValueError, HFValidationError) as error:
        if "safetensors" in str(error) and ("no file named" in str(error) or "not found" in str(error)):
            raise OSError(
                f"{what} has weights that are pickles, must be safetensors: convert them, or set allow_pickle where "
                "you trust who wrote them"
            ) from error
        if not isinstance(error, OSError | HFValidationError):
            raise
        reason = first_line(error)
        raise OSError(
            f"{what} cannot be had ({reason}): name a folder that holds it, or a hub id that this machine can reach, "
            "with HF_TOKEN set where its licence must be accepted"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of a message, or the error's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
