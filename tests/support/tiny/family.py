"""What the tests of families need to know of a tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from plugin.denoising.host import PipelineHost
from plugin.engines import make_engine
from plugin.families.base import BlockInputs, Family
from taylorseer import CacheConfig
from tests.support.engines import RecordingEngine


@dataclass(frozen=True)
class Guidance:
    """One kind of guidance.

    Attributes:
        arguments: what asks for it in the pipeline's call.
        calls: transformer calls at each step.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 1


@dataclass(frozen=True)
class TinyFamily:
    """A tiny pipeline of random weights, and how to call it.

    Attributes:
        make: from an empty folder for files of tokenizers and the dtype of all weights.
        arguments: of the pipeline's call, for a batch of one.
        batch: what makes the call one of two different prompts or labels.
        sizes: at least three; arguments of the call. The first two have the same number of tokens. One, and empty,
            where the transformer's configuration fixes the size.
        guidance: kinds of guidance by name, at least two.
        feature_module: the transformer's submodule whose first argument is the block stack's output.
        transformer: the component's name.
    """

    make: Callable[[Path, torch.dtype], DiffusionPipeline]
    arguments: Mapping[str, Any]
    batch: Mapping[str, Any]
    sizes: tuple[Mapping[str, Any], ...]
    guidance: Mapping[str, Guidance]
    feature_module: str
    transformer: str = "transformer"

    def latent_size(self, pipe: Any, size: Mapping[str, Any]) -> tuple[int, int, int]:
        """(frames, height, width) of the latents of a call with these arguments of size."""
        if "height" not in size:  # DiT's size is its configuration's
            side = pipe.transformer.config.sample_size
            return 1, side, side
        spatial = getattr(pipe, "vae_scale_factor_spatial", None) or pipe.vae_scale_factor
        temporal = getattr(pipe, "vae_scale_factor_temporal", 1)
        frames = (size.get("num_frames", 1) - 1) // temporal + 1
        return frames, size["height"] // spatial, size["width"] // spatial


def latents_of(pipe: Any, *, steps: int = 5, seed: int = 0, **arguments: Any) -> torch.Tensor:
    """The latents that a call of the pipeline ends with; for DiTPipeline, which always decodes, the picture."""
    output = pipe(
        **arguments,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        return_dict=False,
    )[0]
    return torch.as_tensor(output)


def block_inputs_of(family: TinyFamily, pipe: Any, arguments: Mapping[str, Any]) -> tuple[Family, BlockInputs]:
    """The pipeline's family, and the first inputs of the block stack in a call with these arguments."""
    host = PipelineHost(pipe)
    served = host.families[family.transformer]
    engine = RecordingEngine(make_engine("torch", served))
    host.engines[family.transformer] = engine
    latents_of(host.pipeline_for(CacheConfig(interval=1)), steps=2, **arguments)
    return served, engine.inputs[0]
