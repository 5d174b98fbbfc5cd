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
from plugin.families.token_split import TokenSplit

_CLIP_TOKENS = 77  # StableDiffusion3Pipeline
_MEGAPIXEL = 1024 * 1024
# The area that pipelines scale pictures to before their text encoder sees them, a token for each 28 x 28 pixels of
# Qwen2.5-VL; and the tokens of "Picture 1: " and of the marks around them.
_SEEN_AREA = {"QwenImageEditPipeline": _MEGAPIXEL, "QwenImageEditPlusPipeline": 384 * 384}
_SEEN_SIDE, _SEEN_MARKS = 28, 8
_MOST_PICTURES = 3  # that engines of fixed sizes are built for
_TIME = ("time_text_embed.time_proj", "time_text_embed.timestep_embedder")
_TWO_STREAMS = ("encoder_hidden_states", "hidden_states")  # as most blocks of two streams return them


class QwenImage(DeclaredFamily):
    """Qwen-Image and Qwen-Image-Edit."""

    name = "qwen_image"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS),)
    timed = _TIME
    embeds = ("txt_norm", "txt_in", "pos_embed")
    stream_embeds = ("img_in",)
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
    def token_split(self) -> TokenSplit:
        return TokenSplit(text_mask=self.text_mask)

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
        """Pictures are resized to about a megapixel."""
        wide, high = (side // (2 * compression[1]) for side in _scaled(width, height, _MEGAPIXEL))
        return wide * high

    @classmethod
    def appended_range(cls, compression: tuple[int, int]) -> tuple[int, int, int]:
        usual = cls.appended_tokens(1, 1, compression)
        return usual // 2, usual, _MOST_PICTURES * (usual + usual // 16)  # both sides may be rounded up

    @classmethod
    def seen_tokens(cls, pipeline: str, width: int, height: int) -> int:
        if pipeline not in _SEEN_AREA:
            return 0
        wide, high = (round(side / _SEEN_SIDE) for side in _scaled(width, height, _SEEN_AREA[pipeline]))
        return wide * high + _SEEN_MARKS

    @classmethod
    def seen_range(cls, pipeline: str) -> tuple[int, int, int]:
        usual = cls.seen_tokens(pipeline, 1, 1)
        return 0, usual, _MOST_PICTURES * (usual + usual // 6)  # as above


def _scaled(width: int, height: int, area: int) -> tuple[int, int]:
    """A picture's sides once it is scaled to about that area (`calculate_dimensions` of diffusers' edit pipelines)."""
    sides = math.sqrt(area * width / height), math.sqrt(area * height / width)
    wide, high = (round(side / 32) * 32 for side in sides)
    return wide, high


class Flux2(DeclaredFamily):
    """FLUX.2, dev and klein."""

    name = "flux2"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS), Blocks("single_transformer_blocks", joined=True, modules=1))
    kept = ("time_guidance_embed.guidance_embedder",)
    timed = ("time_guidance_embed.time_proj", "time_guidance_embed.timestep_embedder")
    embeds = (
        "context_embedder",
        "pos_embed",
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
    )
    stream_embeds = ("x_embedder",)
    patch = (1, 2, 2)
    layers = ("num_layers", "num_single_layers")

    @property
    def token_split(self) -> TokenSplit:
        return TokenSplit()

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
    def appended_tokens(cls, width: int, height: int, compression: tuple[int, int]) -> int:
        """Pictures keep their size up to a megapixel (Flux2Pipeline of diffusers 0.42.0)."""
        scale = min(1.0, math.sqrt(_MEGAPIXEL / (width * height)))
        side = 2 * compression[1]
        return (int(width * scale) // side) * (int(height * scale) // side)

    @classmethod
    def appended_range(cls, compression: tuple[int, int]) -> tuple[int, int, int]:
        usual = cls.appended_tokens(1024, 1024, compression)
        return cls.appended_tokens(64, 64, compression), usual, _MOST_PICTURES * usual

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        side = 2 * pipe.vae_scale_factor
        own = latents[:1, : (height // side) * (width // side)].mT.unflatten(2, (height // side, width // side))
        return unnormalised(pipe.vae, own)


class StableDiffusion3(DeclaredFamily):
    """Stable Diffusion 3 and 3.5."""

    name = "sd3"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS),)
    kept = ("time_text_embed.text_embedder",)
    timed = _TIME
    embeds = ("context_embedder",)
    stream_embeds = ("pos_embed",)
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
    kept = ("time_condition_embed.condition_proj", "time_condition_embed.condition_embedder")
    timed = ("time_condition_embed.time_proj", "time_condition_embed.timestep_embedder")
    embeds = ("rope",)
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
    lists = (
        Blocks("transformer_blocks", ("hidden_states", "encoder_hidden_states")),
        Blocks("single_transformer_blocks", ("hidden_states", "encoder_hidden_states"), modules=1),
    )
    kept = ("time_guidance_embed.guidance_embedder",)
    timed = ("time_guidance_embed.time_proj", "time_guidance_embed.timestep_embedder")
    embeds = ("context_embedder_2", "rope")
    stream_embeds = ("x_embedder",)
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
    lists = (
        Blocks("transformer_blocks", _TWO_STREAMS),
        Blocks("single_transformer_blocks", _TWO_STREAMS, modules=1),
    )
    timed = ("time_proj", "timestep_embedder")
    embeds = ("context_embedder_norm", "context_embedder", "pos_embed")
    stream_embeds = ("x_embedder",)
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
    timed = ("time_embed.time_proj", "time_embed.timestep_embedder")
    embeds = ("context_embedder", "pos_embed")


class Bria(Ovis):
    """Bria 3."""

    name = "bria"
    timed = LongCat.timed
    embeds = LongCat.embeds
    batches_guidance = True

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The pipeline's factor counts pixels of a token, not of a latent."""
        return unscaled(pipe.vae.config, pipe._unpack_latents(latents[:1], height, width, pipe.vae_scale_factor))


class Chroma(Ovis):
    """Chroma; each block has a modulation of its own, cut from a table that a network makes of the timestep."""

    name = "chroma"
    lists = (
        Blocks("transformer_blocks", _TWO_STREAMS, per_block=("temb",)),
        Blocks("single_transformer_blocks", joined=True, per_block=("temb",), modules=1),
    )
    timed = ("time_text_embed", "distilled_guidance_layer")
    embeds = LongCat.embeds

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
    timed = ("time_step_embed", "time_step_proj")
    embeds = ("context_embedder",)
    stream_embeds = ("pos_embed",)
    batches_guidance = True
    layers = ("num_mmdit_layers", "num_single_dit_layers")

    def example_call(self, size: Example) -> dict[str, Any]:
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, self.transformer.config.joint_attention_dim),
            "timestep": self.timestep(size),
        }
