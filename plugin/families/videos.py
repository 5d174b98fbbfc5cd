"""Families of videos, each a declaration (structure of diffusers 0.42.0, models/transformers, guarded by the parity
tests)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from plugin.families.declared import DeclaredFamily
from plugin.families.examples import Example
from plugin.families.previews import unscaled
from plugin.families.single_stream_images import Sana
from plugin.families.standing_in import Blocks

_TWO_STREAMS = ("hidden_states", "encoder_hidden_states")  # as blocks of two streams return them


class VideoFamily(DeclaredFamily):
    """What the families of videos have in common."""

    video: ClassVar = True

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
        """Of the first frame."""
        return unscaled(pipe.vae.config, self.frames(pipe, latents[:1], height, width)[:, :, :1])

    def frames(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Latents as (1, C, F, H, W), from those that the transformer was given."""
        return latents


class Ltx(VideoFamily):
    """LTX-Video."""

    name = "ltx"
    lists = (Blocks("transformer_blocks", modules=3),)
    timed = ("time_embed.emb.time_proj", "time_embed.emb.timestep_embedder")
    embeds = ("rope", "caption_projection", "time_embed.linear")
    stream_embeds = ("proj_in",)
    batches_guidance = True

    def example_call(self, size: Example) -> dict[str, Any]:
        return {
            "hidden_states": self.packed(size),
            "encoder_hidden_states": self.random(size.batch, size.text, self.transformer.config.caption_channels),
            "encoder_attention_mask": self.ones(size.batch, size.text),
            "timestep": self.timestep(size, 500.0),
            "num_frames": size.frames,
            "height": size.height,
            "width": size.width,
        }

    def frames(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        sides = [side // pipe.vae_spatial_compression_ratio for side in (height, width)]
        return latents.mT.unflatten(2, (-1, *sides))


_GLYPHS, _SEEN = 256, 729  # tokens of HunyuanVideo15Pipeline's second text, and of the picture that it encodes


class HunyuanVideo15(VideoFamily):
    """HunyuanVideo 1.5; two texts and a picture's tokens stand in one stream, those that count first."""

    name = "hunyuan_video15"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS),)
    timed = ("time_embed.time_proj", "time_embed.timestep_embedder")
    embeds = ("context_embedder_2", "image_embedder", "rope")
    stream_embeds = ("x_embedder",)
    guider = True

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        return {
            "hidden_states": self.spatial(size),
            "timestep": self.timestep(size, 500.0),
            "timestep_r": self.timestep(size, 400.0) if config.use_meanflow else None,
            "encoder_hidden_states": self.random(size.batch, size.text, config.text_embed_dim),
            "encoder_attention_mask": self.ones(size.batch, size.text),
            "encoder_hidden_states_2": self.random(size.batch, _GLYPHS, config.text_embed_2_dim),
            "encoder_attention_mask_2": self.ones(size.batch, _GLYPHS),
            "image_embeds": self.random(size.batch, _SEEN, config.image_embed_dim),
        }

    def frames(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return latents[:, : pipe.vae.config.latent_channels]  # those of a picture and its mask follow


class CogVideoX(VideoFamily):
    """CogVideoX."""

    name = "cogvideox"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS),)
    timed = ("time_proj", "time_embedding")
    stream_embeds = ("patch_embed",)
    batches_guidance = True

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        tokens = self.tokens(size)
        # Positions that are added belong to texts of one length.
        text = size.text if config.use_rotary_positional_embeddings else config.max_text_seq_length
        rotary = tuple(self.ids(tokens, config.attention_head_dim) for _ in "cs")
        return {
            "hidden_states": self.spatial(size).transpose(1, 2),
            "encoder_hidden_states": self.random(size.batch, text, config.text_embed_dim),
            "timestep": self.timestep(size, 500.0),
            "image_rotary_emb": rotary if config.use_rotary_positional_embeddings else None,
        }

    def frames(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return latents.transpose(1, 2)


class Mochi(VideoFamily):
    """Mochi 1."""

    name = "mochi"
    torch_only = "its attention leaves padding out, row by row"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS),)
    timed = ("time_embed.time_proj", "time_embed.timestep_embedder")
    embeds = ("time_embed.caption_proj",)
    stream_embeds = ("patch_embed",)
    batches_guidance = True

    def example_call(self, size: Example) -> dict[str, Any]:
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, self.transformer.config.text_embed_dim),
            "encoder_attention_mask": self.ones(size.batch, size.text),
            "timestep": self.timestep(size, 500.0),
        }


class Allegro(VideoFamily):
    """Allegro."""

    name = "allegro"
    torch_only = "what the exporter makes of its lookup of rotary tables does not run"
    lists = (Blocks("transformer_blocks", modules=3),)
    timed = ("adaln_single.emb.time_proj", "adaln_single.emb.timestep_embedder")
    embeds = ("caption_projection", "adaln_single.linear")
    stream_embeds = ("pos_embed",)
    batches_guidance = True

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        tokens = self.tokens(size)
        lengths = (size.frames, size.height // config.patch_size, size.width // config.patch_size)
        tables = tuple(tuple(self.ids(each, config.attention_head_dim // 3) for _ in "cs") for each in lengths)
        positions = tuple(self.ones(1, tokens, dtype=torch.long) * 0 for _ in lengths)
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, config.caption_channels),
            "attention_mask": self.ones(size.batch, *size.latent_size),
            "encoder_attention_mask": self.ones(size.batch, size.text),
            "timestep": self.timestep(size, 500.0),
            "image_rotary_emb": (tables, positions),
        }

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> None:
        """The autoencoder decodes 24 frames at a time, which is most of a video."""


class SkyReelsV2(VideoFamily):
    """SkyReels-V2."""

    name = "skyreels_v2"
    lists = (Blocks("blocks", modules=3),)
    timed = ("condition_embedder.timesteps_proj", "condition_embedder.time_embedder")
    embeds = (
        "rope",
        "condition_embedder.time_proj",
        "condition_embedder.text_embedder",
        "condition_embedder.image_embedder",
    )
    stream_embeds = ("patch_embedding",)

    def example_call(self, size: Example) -> dict[str, Any]:
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, self.transformer.config.text_dim),
            "timestep": self.timestep(size, 500.0),
        }


class EasyAnimate(VideoFamily):
    """EasyAnimate."""

    name = "easyanimate"
    lists = (Blocks("transformer_blocks", _TWO_STREAMS),)
    timed = ("time_proj", "time_embedding")
    embeds = ("text_proj", "text_proj_t5")
    batches_guidance = True
    no_negative_prompt = ""

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        t5 = config.text_embed_dim_t5
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, config.text_embed_dim),
            "encoder_hidden_states_t5": None if t5 is None else self.random(size.batch, size.text, t5),
            "timestep": self.timestep(size, 500.0),
        }


class Cosmos(VideoFamily):
    """Cosmos-Predict 1 and 2."""

    name = "cosmos"
    lists = (Blocks("transformer_blocks", modules=3),)
    timed = ("time_embed.time_proj", "time_embed.t_embedder")
    stream_embeds = ("patch_embed",)
    embeds = ("rope", "learnable_pos_embed", "crossattn_proj")

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        text = config.crossattn_proj_in_channels if config.use_crossattn_projection else config.text_embed_dim
        channels = config.in_channels
        return {
            "hidden_states": self.spatial(size, channels),
            "encoder_hidden_states": self.random(size.batch, size.text, text),
            "timestep": self.timestep(size),
            "padding_mask": self.random(1, 1, 8 * size.height, 8 * size.width),
        }


class SanaVideo(VideoFamily, Sana):
    """Sana-Video."""

    name = "sana_video"
    embeds = ("rope", *Sana.embeds)
    stream_embeds = ("patch_embedding",)


class Kandinsky5(VideoFamily):
    """Kandinsky 5, pictures and videos; pictures are videos of one frame."""

    name = "kandinsky5"
    lists = (Blocks("visual_transformer_blocks", ("visual_embed",), "visual_embed", modules=3),)
    timed = ("time_embeddings",)
    embeds = ("visual_rope_embeddings", "text_rope_embeddings")
    layers = ("num_visual_blocks",)
    text_varies = True

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        channels = config.in_visual_dim * (2 if config.visual_cond else 1) + config.visual_cond
        sides = (length // side for length, side in zip(size.latent_size, config.patch_size, strict=True))
        return {
            "hidden_states": self.random(size.batch, *size.latent_size, channels),
            "encoder_hidden_states": self.random(size.batch, size.text, config.in_text_dim),
            "pooled_projections": self.random(size.batch, config.in_text_dim2),
            "timestep": self.timestep(size, 500.0),
            "visual_rope_pos": [torch.arange(side, device=self.device) for side in sides],
            "text_rope_pos": torch.arange(size.text, device=self.device),
        }

    @classmethod
    def width(cls, config: Mapping[str, Any]) -> int:
        return config["model_dim"]

    def frames(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return latents[..., : self.transformer.config.in_visual_dim].permute(0, 4, 1, 2, 3)

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The autoencoder of pictures has no frames."""
        first = unscaled(pipe.vae.config, self.frames(pipe, latents[:1], height, width)[:, :, :1])
        return first if hasattr(pipe.vae.config, "temporal_compression_ratio") else first.squeeze(2)
