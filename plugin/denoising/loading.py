"""Loads a diffusers pipeline, or one of a few of its parts, and finds its denoising transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HFValidationError
from transformers import AutoTokenizer

from plugin.config import PipelineSource
from plugin.engines.base import no_gpu


def load_pipeline(source: PipelineSource, *, denoisers_only: bool = False) -> DiffusionPipeline:
    """Loads a pipeline by `from_pretrained`, with LoRA weights fused in where the source names some.

    Args:
        source: what to load.
        denoisers_only: leave the encoders out, where only the transformers are wanted.

    Raises:
        OSError: the pipeline, a component or the LoRA cannot be had; the message says which and what helps.
        ValueError: a component is not part of the pipeline's class, or the device is a GPU that torch does not have.
    """
    if source.device.startswith("cuda") and (missing := no_gpu()):
        raise ValueError(f"device is {source.device}, and {missing}, or set device to cpu")
    path = Path(source.pipeline)
    if path.is_absolute() and not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"pipeline {source.pipeline} has no model_index.json, must be a folder that diffusers saved"
        )
    default = getattr(torch, source.dtype)
    safe = None if source.allow_pickle else True
    dtypes = {name: getattr(torch, dtype) for name, dtype in source.component_dtypes}
    components: dict[str, Any] = {}
    if denoisers_only:
        components = dict.fromkeys(_other_components(source.pipeline))
    elif source.components:
        pipeline_class = _pipeline_class(source.pipeline)
        for name, component in source.components:
            components[name] = _load_component(pipeline_class, name, component, dtypes.get(name, default), safe)
    with _named(f"pipeline {source.pipeline}"):
        pipe = DiffusionPipeline.from_pretrained(
            source.pipeline, dtype={"default": default, **dtypes}, use_safetensors=safe, **components
        )
    if source.lora is not None:
        with _named(f"lora {source.lora}"):
            pipe.load_lora_weights(source.lora, use_safetensors=safe)
        pipe.fuse_lora(lora_scale=source.lora_scale)
        pipe.unload_lora_weights()  # what is fused stays
    if source.vae_tiling and not denoisers_only:
        pipe.vae.enable_tiling()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(source.device)


def _pipeline_class(pipeline: str) -> type[DiffusionPipeline]:
    with _named(f"pipeline {pipeline}"):
        return getattr(diffusers, DiffusionPipeline.load_config(pipeline)["_class_name"])


def _other_components(pipeline: str) -> list[str]:
    """The components of a pipeline that are neither denoising transformers nor what constructors read beside them: the
    scheduler, and the autoencoder (Bria, HunyuanVideo 1.5)."""
    with _named(f"pipeline {pipeline}"):
        index = DiffusionPipeline.load_config(pipeline)
    kept = ("transformer", "transformer_2", "scheduler", "vae")
    return [name for name, value in index.items() if isinstance(value, list) and name not in kept]


def _load_component(
    pipeline_class: type[DiffusionPipeline], name: str, source: str, dtype: torch.dtype, safe: bool | None
) -> Any:
    """A component by the class that the pipeline's constructor declares for it."""
    declared = get_type_hints(pipeline_class.__init__)
    if name not in declared:
        known = ", ".join(declared)
        raise ValueError(f"component {name!r} is unknown to {pipeline_class.__name__}, must be one of: {known}")
    with _named(f"component {name} {source}"):
        if name.startswith("tokenizer"):
            return AutoTokenizer.from_pretrained(source)
        return declared[name].from_pretrained(source, dtype=dtype, use_safetensors=safe)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turns what a hub's library says of something that cannot be had into one sentence that says what helps."""
    try:
        yield
    except ImportError as error:
        raise OSError(f"{what} needs a package that is not installed: {_first_line(error)}") from error
    except (OSError, ValueError, HFValidationError) as error:
        if "safetensors" in str(error) and ("no file named" in str(error) or "not found" in str(error)):
            raise OSError(
                f"{what} has weights that are pickles, must be safetensors: convert them, or set allow_pickle where "
                "you trust who wrote them"
            ) from error
        if not isinstance(error, OSError | HFValidationError):
            raise
        reason = _first_line(error)
        raise OSError(
            f"{what} cannot be had ({reason}): name a folder that holds it, or a hub id that this machine can reach, "
            "with HF_TOKEN set where its licence must be accepted"
        ) from error


def _first_line(error: Exception) -> str:
    """The first line of a message, or the error's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def denoisers(pipe: DiffusionPipeline) -> tuple[str, ...]:
    """The names of the components that are denoising transformers; Wan2.2 has two experts, and may lack either."""
    present = [name for name in ("transformer", "transformer_2") if getattr(pipe, name, None) is not None]
    return tuple(present) or ("transformer",)


def only_denoiser(pipe: DiffusionPipeline, what: str) -> Any:
    """The transformer of a pipeline that has a single one.

    Args:
        pipe: a loaded pipeline.
        what: the caller, for the message.

    Raises:
        ValueError: there are two.
    """
    names = denoisers(pipe)
    if len(names) > 1:
        raise ValueError(f"{what} serves pipelines of one transformer, and this one has {' and '.join(names)}")
    return getattr(pipe, names[0])


class LockedTokenizer:
    """A tokenizer for many threads: the fast ones change their padding state on each call, of `tokenize` too.

    What a pipeline sets on it, as Sana's do with `padding_side` in each call, is set on the tokenizer itself: each
    request of a pipeline sets the same.

    Args:
        tokenizer: the pipeline's own.

    Attributes:
        kind: its class.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.__dict__.update(_tokenizer=tokenizer, kind=type(tokenizer), _lock=threading.RLock())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self._tokenizer(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        with self._lock:
            setattr(self._tokenizer, name, value)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tokenizer, name)
        if not callable(value):
            return value

        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return value(*args, **kwargs)

        return locked
