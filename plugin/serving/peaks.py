"""The most memory that the phases of a request hold at once: encoding a text, a full step, decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from plugin.families.base import BlockInputs, Family
from plugin.families.examples import NotExported
from plugin.serving.dry_run import Machine, peak_of, without_numbers
from plugin.serving.parts import PipelinePart
from plugin.serving.weights import family_on_meta, made_on_meta, on_meta

# Of families whose blocks ask for numbers: the most of those whose blocks do not, FLUX.2.
_ESTIMATED_STREAMS = 26
_BLENDING = ("blend_v", "blend_h", "blend_t")  # writes into tiles, row by row: it takes time and no memory


@dataclass(frozen=True)
class StepMemory:
    """What one engine call holds, in bytes.

    Attributes:
        stream: the tokens that the blocks change.
        constant: what else the blocks are given; requests keep it from step to step.
        beyond: the most that the blocks hold beyond that.
        estimated: whether `beyond` is an estimate.
    """

    stream: int
    constant: int
    beyond: int
    estimated: bool = False


@lru_cache(maxsize=256)
def step_memory(
    part: PipelinePart, dtype: torch.dtype, axes: tuple[tuple[str, int], ...], stream: int, machine: Machine
) -> StepMemory:
    """What an engine call of the torch blocks holds.

    Args:
        part: the transformer.
        dtype: its dtype.
        axes: the length of each dynamic axis of the blocks' arguments, the batch included; none if they are not known.
        stream: bytes of the tokens that the blocks change.
        machine: what it runs on.
    """
    family = family_on_meta(part, dtype)
    try:
        with without_numbers(machine):
            inputs = family.inputs_of_size(dict(axes))
        beyond = _beyond(family, inputs, machine)
    except (NotImplementedError, NotExported, RuntimeError):
        return StepMemory(stream, 0, _ESTIMATED_STREAMS * stream, estimated=True)
    given = sum(each.nbytes for each in inputs.values())
    own = inputs["hidden_states"].nbytes
    return StepMemory(own, given - own, beyond)


def _beyond(family: Family, inputs: BlockInputs, machine: Machine) -> int:
    """Of blocks that choose experts by numbers, in the form that is exported, where each token goes to all."""
    for make in (family.block_stack, family.export_stack):
        stack = make()
        try:
            return peak_of(stack, lambda stack=stack: stack(**inputs), inputs.values(), machine)  # type: ignore[misc]
        except NotImplementedError:
            continue
    raise NotImplementedError(f"the blocks of {family.name} ask for numbers")


@lru_cache(maxsize=256)
def encoding_bytes(part: PipelinePart, dtype: torch.dtype, tokens: int) -> int:
    """The most that an encoder holds for one text, or one picture; 0 where that cannot be known.

    Args:
        part: the encoder.
        dtype: its dtype.
        tokens: of the text.
    """
    module: Any = on_meta(part, dtype)
    config: Mapping[str, int] = module.config.to_dict()
    if "image_size" in config:
        side = config["image_size"]
        given = {"pixel_values": torch.empty(1, 3, side, side, dtype=dtype, device="meta")}
    else:
        most = config.get("max_position_embeddings", tokens)
        padded = most if part.class_name.startswith("CLIP") else min(tokens, most)
        given = {"input_ids": torch.empty(1, padded, dtype=torch.long, device="meta")}
    try:
        return peak_of(
            module, lambda: module(**given, output_hidden_states=True), given.values(), repeats=False
        )  # it keeps the states of all layers
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return 0


@lru_cache(maxsize=256)
def decoding_bytes(
    part: PipelinePart, dtype: torch.dtype, latent_size: tuple[int, int, int], tiled: bool, machine: Machine
) -> int:
    """The most that an autoencoder holds while it decodes one picture or video.

    Args:
        part: the autoencoder.
        dtype: its dtype.
        latent_size: (frames, height, width) of the latents.
        tiled: whether it decodes in tiles.
        machine: what it runs on.

    Raises:
        ValueError: it cannot decode in this way, or its decoder asks for numbers.
    """
    module: Any = made_on_meta(part, dtype)
    frames, height, width = latent_size
    channels = latent_channels(part)
    shape = (1, channels, frames, height, width) if _has_frames(module) else (1, channels, height, width)
    latents = torch.empty(shape, dtype=dtype, device="meta")
    if tiled:
        module.enable_tiling()
    for name in _BLENDING:
        if hasattr(module, name):
            setattr(module, name, lambda above, tile, extent: tile)
    try:
        return peak_of(module, lambda: module.decode(latents, return_dict=False), [latents], machine)
    except (NotImplementedError, RuntimeError) as error:
        tiles = "in tiles" if tiled else "without vae_tiling"
        raise ValueError(f"what {part.class_name} holds when it decodes {tiles} is not known: {error}") from error


@lru_cache(maxsize=64)
def latent_channels(part: PipelinePart) -> int:
    """Channels of the latents of an autoencoder."""
    config: Any = on_meta(part, torch.float32).config
    channels: int = config.get("latent_channels") or config["z_dim"]
    return channels


def _has_frames(autoencoder: Any) -> bool:
    """Whether some convolution of the decoder has three dimensions."""
    return any(each.ndim == 5 for each in autoencoder.decoder.parameters())
