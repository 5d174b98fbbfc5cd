"""Families of pictures whose blocks work on two streams, text and picture, each a declaration (structure of diffusers
0.42.0, models/transformers, guarded by the parity tests)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from plugin.families.declared import DeclaredFamily
from plugin.families.examples import Example
from plugin.families.previews import unnormalised, unscaled
from plugin.families.rotation import TwoRows
from plugin.families.standing_in import Blocks
from plugin.request import GenerationRequest

_CLIP_TOKENS = 77  # StableDiffusion3Pipeline
_MEGAPIXEL = 1024 * 1024
_MOST_PICTURES = 3  # that engines of fixed sizes are built for
_TWO_STREAMS = ("encoder_hidden_states", "hidden_states")  # as most blocks of two streams return them


class QwenImage(DeclaredFamily):
    """Qwen-Image and Qwen-Image-Edit."""

    name = "qwen_image"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS),)
    embeds = ("txt_norm", "txt_in", "pos_embed")
    patch = (1, 2, 2)
    guidance = "true_cfg_scale"
    no_negative_prompt = " "
    text_varies = True
    text_mask = "encoder_hidden_states_mask"

    def example_call(self, size: Example) -> dict[str, Any]:
        config, height, width = self.transformer.config, size.height // 2, size.width // 2
        return {
            "hidden_states": self.random(size.batch, height * width, config.in_channels),
            "encoder_hidden_states": self.random(size.batch, size.text, config.joint_attention_dim),
            "encoder_hidden_states_mask": self.ones(size.batch, size.text),
            "timestep": self.timestep(size),
            "img_shapes": [[(1, height, width)]] * size.batch,
        }

    @property
    def _has_clean_tokens(self) -> bool:
        return getattr(self.transformer, "zero_cond_t", False)

    def rows_first(self, argument: str, tensor: torch.Tensor) -> torch.Tensor:
        """With `zero_cond_t`, every row has a second modulation: that of tokens without noise."""
        if argument == "temb" and self._has_clean_tokens:  # (2 B, D)
            return tensor.unflatten(0, (2, -1)).transpose(0, 1)
        return tensor

    def as_called(self, argument: str, tensor: torch.Tensor) -> torch.Tensor:
        if argument == "temb" and self._has_clean_tokens:
            return cast(torch.Tensor, TwoRows(tensor))
        return tensor

    @classmethod
    def appended_tokens(cls, width: int, height: int, compression: tuple[int, int]) -> int:
        """Pictures are resized to about a megapixel (`calculate_dimensions` of diffusers' edit pipelines)."""
        sides = math.sqrt(_MEGAPIXEL * width / height), math.sqrt(_MEGAPIXEL * height / width)
        wide, high = (round(side / 32) * 32 // (2 * compression[1]) for side in sides)
        return wide * high

    @classmethod
    def appended_range(cls, compression: tuple[int, int]) -> tuple[int, int, int]:
        usual = cls.appended_tokens(1, 1, compression)
        return usual // 2, usual, _MOST_PICTURES * usual


class Flux2(DeclaredFamily):
    """FLUX.2, dev and klein."""

    name = "flux2"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS), Blocks("single_transformer_blocks", joined=True))
    embeds = ("context_embedder",)
    patch = (1, 2, 2)
    layers = ("num_layers", "num_single_layers")

    def example_call(self, size: Example) -> dict[str, Any]:
        config, tokens = self.transformer.config, self.tokens(size)
        return {
            "hidden_states": self.packed(size),
            "encoder_hidden_states": self.random(size.batch, size.text, config.joint_attention_dim),
            "timestep": self.timestep(size),
            "guidance": self.timestep(size, 4.0),
            "img_ids": self.ids(tokens, 4),
            "txt_ids": self.ids(size.text, 4),
        }

    @classmethod
    def guidance_branches(cls, request: GenerationRequest) -> int:
        """The scale is an input of dev's transformer, and klein's base model computes two branches."""
        dev = request.task is None or request.task.pipeline == "Flux2Pipeline"
        return 1 if dev else super().guidance_branches(request)

    @classmethod
    def appended_tokens(cls, width: int, height: int, compression: tuple[int, int]) -> int:
        """Pictures keep their size up to a megapixel (Flux2Pipeline of diffusers 0.42.0)."""
        scale = min(1.0, math.sqrt(_MEGAPIXEL / (width * height)))
        side = 2 * compression[1]
        return (int(width * scale) // side) * (int(height * scale) // side)

    @classmethod
    def appended_range(cls, compression: tuple[int, int]) -> tuple[int, int, int]:
        usual = cls.appended_tokens(1024, 1024, compression)
        return usual // 16, usual, _MOST_PICTURES * usual

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        side = 2 * pipe.vae_scale_factor
        own = latents[:1, : (height // side) * (width // side)].mT.unflatten(2, (height // side, width // side))
        return unnormalised(pipe.vae, own)


class StableDiffusion3(DeclaredFamily):
    """Stable Diffusion 3 and 3.5."""

    name = "sd3"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS),)
    embeds = ("context_embedder",)
    batches_guidance = True

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        return {
            "hidden_states": self.random(size.batch, config.in_channels, size.height, size.width),
            "encoder_hidden_states": self.random(size.batch, self.text_rows(size.text), config.joint_attention_dim),
            "pooled_projections": self.random(size.batch, config.pooled_projection_dim),
            "timestep": self.timestep(size, 500.0),
        }

    @classmethod
    def text_rows(cls, text_tokens: int) -> int:
        """CLIP's tokens stand before those of T5."""
        return _CLIP_TOKENS + text_tokens


class CogView4(DeclaredFamily):
    """CogView4."""

    name = "cogview4"
    lists = (Blocks("transformer_blocks", ("hidden_states", "encoder_hidden_states")),)
    text_varies = True

    def example_call(self, size: Example) -> dict[str, Any]:
        sides = self.random(size.batch, 2)
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, self.transformer.config.text_embed_dim),
            "timestep": self.timestep(size, 500.0),
            "original_size": sides,
            "target_size": sides,
            "crop_coords": sides,
        }


class CogView3Plus(CogView4):
    """CogView3-Plus."""

    name = "cogview3"
    batches_guidance = True
    text_varies = False


_GLYPHS = 128  # tokens of HunyuanImagePipeline's second text


class HunyuanImage(DeclaredFamily):
    """HunyuanImage 2.1; a second text, of glyphs, is put before the first one."""

    name = "hunyuan_image"
    lists = tuple(
        Blocks(name, ("hidden_states", "encoder_hidden_states"))
        for name in ("transformer_blocks", "single_transformer_blocks")
    )
    embeds = ("context_embedder_2", "rope")
    guider = True
    layers = ("num_layers", "num_single_layers")

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        first = {
            "hidden_states": self.spatial(size),
            "timestep": self.timestep(size, 500.0),
            "guidance": self.timestep(size, 3000.0) if config.guidance_embeds else None,
            "timestep_r": self.timestep(size, 400.0) if config.use_meanflow else None,
            "encoder_hidden_states": self.random(size.batch, size.text, config.text_embed_dim),
            "encoder_attention_mask": self.ones(size.batch, size.text),
        }
        if config.text_embed_2_dim is None:
            return first
        return first | {
            "encoder_hidden_states_2": self.random(size.batch, _GLYPHS, config.text_embed_2_dim),
            "encoder_attention_mask_2": self.ones(size.batch, _GLYPHS),
        }


class Ovis(DeclaredFamily):
    """Ovis-Image."""

    name = "ovis_image"
    lists = tuple(Blocks(name, _TWO_STREAMS) for name in ("transformer_blocks", "single_transformer_blocks"))
    embeds = ("context_embedder_norm", "context_embedder")
    patch = (1, 2, 2)
    layers = ("num_layers", "num_single_layers")

    def example_call(self, size: Example) -> dict[str, Any]:
        latents = self.packed(size)
        return {
            "hidden_states": latents,
            "encoder_hidden_states": self.random(size.batch, size.text, self.transformer.config.joint_attention_dim),
            "timestep": self.timestep(size),
            "img_ids": self.ids(latents.shape[1]),
            "txt_ids": self.ids(size.text),
        }


class LongCat(Ovis):
    """LongCat-Image."""

    name = "longcat_image"
    embeds = ("context_embedder",)


class Bria(Ovis):
    """Bria 3."""

    name = "bria"
    embeds = ("context_embedder",)
    batches_guidance = True

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The pipeline's factor counts pixels of a token, not of a latent."""
        return unscaled(pipe.vae.config, pipe._unpack_latents(latents[:1], height, width, pipe.vae_scale_factor))


class Chroma(Ovis):
    """Chroma; each block has a modulation of its own, cut from a table that a network makes of the timestep."""

    name = "chroma"
    lists = (
        Blocks("transformer_blocks", _TWO_STREAMS, per_block=("temb",)),
        Blocks("single_transformer_blocks", joined=True, per_block=("temb",)),
    )
    embeds = ("context_embedder",)

    def example_call(self, size: Example) -> dict[str, Any]:
        call = super().example_call(size)
        tokens = size.text + call["img_ids"].shape[0]
        return {**call, "attention_mask": self.ones(size.batch, tokens, dtype=self.dtype)}


class AuraFlow(DeclaredFamily):
    """AuraFlow; eight register tokens stand before the text."""

    name = "auraflow"
    lists = (
        Blocks("joint_transformer_blocks", _TWO_STREAMS),
        Blocks("single_transformer_blocks", joined=True),
    )
    embeds = ("context_embedder",)
    batches_guidance = True
    layers = ("num_mmdit_layers", "num_single_dit_layers")

    def example_call(self, size: Example) -> dict[str, Any]:
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, self.transformer.config.joint_attention_dim),
            "timestep": self.timestep(size),
        }
