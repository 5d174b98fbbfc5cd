"""Loads a diffusers pipeline, or one of a few of its parts, and finds its denoising transformers."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from plugin.config import PipelineSource
from plugin.denoising.components import dtype_of, first_line, given_components, named, quantization_of
from plugin.denoising.offloading import move
from plugin.engines.base import no_gpu
from plugin.families.weights import is_quantized
from plugin.parameters import DENOISERS


def load_pipeline(source: PipelineSource, *, denoisers_only: bool = False) -> DiffusionPipeline:
    """Loads a pipeline by `from_pretrained`, with LoRA weights fused in where the source names some.

    Args:
        source: what to load.
        denoisers_only: leave the encoders out, where only the transformers are wanted.

    Raises:
        OSError: the pipeline, a component, the LoRA or a package cannot be had; the message says which and what helps.
        ValueError: a component is not part of the pipeline's class, or cannot be offloaded or quantised; or the device
            is a GPU that torch does not have.
    """
    if source.device.startswith("cuda") and (missing := no_gpu()):
        raise ValueError(f"device is {source.device}, and {missing}, or set device to cpu")
    path = Path(source.pipeline)
    if path.is_absolute() and not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"pipeline {source.pipeline} has no model_index.json, must be a folder that diffusers saved"
        )
    own_dtypes = {name: dtype_of(source, name) for name, _ in source.component_dtypes}
    safe, default = None if source.allow_pickle else True, getattr(torch, source.dtype)
    with _on(source.device):
        components = given_components(source, denoisers_only)
        options = quantization_of(source, components)
        with named(f"pipeline {source.pipeline}"):
            pipe = DiffusionPipeline.from_pretrained(
                source.pipeline, dtype={"default": default, **own_dtypes}, use_safetensors=safe, **options, **components
            )
    if source.lora is not None:
        _fuse_lora(pipe, source, safe)
    if source.vae_tiling and not denoisers_only:
        pipe.vae.enable_tiling()
    pipe.set_progress_bar_config(disable=True)
    return move(pipe, source.device, () if denoisers_only else source.offload)


def _on(device: str) -> AbstractContextManager[Any]:
    """Inside, the device is the present GPU, if it is one: bitsandbytes quantises there."""
    return torch.cuda.device(device) if device.startswith("cuda") else nullcontext()


def _fuse_lora(pipe: Any, source: PipelineSource, safe: bool | None) -> None:
    with named(f"lora {source.lora}"):
        pipe.load_lora_weights(source.lora, use_safetensors=safe)
    try:
        pipe.fuse_lora(lora_scale=source.lora_scale)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        names = [name for name, each in pipe.components.items() if isinstance(each, nn.Module) and is_quantized(each)]
        if not names:
            raise
        raise ValueError(
            f"lora {source.lora} cannot be fused into the quantised weights of {' and '.join(names)} "
            f"({first_line(error)}): leave it out, or take weights of 16 bits"
        ) from error
    pipe.unload_lora_weights()  # what is fused stays


def denoisers(pipe: DiffusionPipeline) -> tuple[str, ...]:
    """The names of the components that are denoising transformers; Wan2.2 has two experts, and may lack either."""
    present = [name for name in DENOISERS if getattr(pipe, name, None) is not None]
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
