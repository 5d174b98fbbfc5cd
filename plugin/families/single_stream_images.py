"""Families of pictures whose blocks work on one stream, each a declaration (structure of diffusers 0.42.0,
models/transformers, guarded by the parity tests)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from plugin.families.base import Inputs
from plugin.families.declared import DeclaredFamily
from plugin.families.examples import Example
from plugin.families.images import QwenImage
from plugin.families.previews import unnormalised
from plugin.families.standing_in import Blocks

_TWO_STREAMS = ("encoder_hidden_states", "hidden_states")  # as most blocks of two streams return them


class Krea2(DeclaredFamily):
    """Krea 2."""

    name = "krea2"
    lists = (Blocks("transformer_blocks"),)
    timed = ("time_embed",)
    embeds = ("text_fusion", "txt_in", "rotary_emb", "time_mod_proj")
    stream_embeds = ("img_in",)
    patch = (1, 2, 2)
    joint = True
    unguided = 0.0

    def example_call(self, size: Example) -> dict[str, Any]:
        config, tokens = self.transformer.config, self.tokens(size)
        return {
            "hidden_states": self.packed(size),
            "encoder_hidden_states": self.random(size.batch, size.text, config.num_text_layers, config.text_hidden_dim),
            "encoder_attention_mask": self.ones(size.batch, size.text),
            "position_ids": self.ones(size.text + tokens, 3, dtype=torch.float32),
            "timestep": self.timestep(size),
        }


class ZImage(DeclaredFamily):
    """Z-Image and Z-Image-Turbo; each stream is padded to a multiple of 32 tokens."""

    name = "z_image"
    lists = (Blocks("layers", ("x",), "x"),)
    stepwise = ("x", "t")
    timed = ("t_embedder",)
    embeds = ("cap_embedder",)
    patch = (1, 2, 2)
    joint = True
    batches_guidance = True
    layers = ("n_layers",)
    unguided = 0.0
    text_varies = True
    text_mask = "attn_mask"
    text_first = False

    def latents(self, inputs: Inputs) -> torch.Tensor:
        return torch.cat(inputs["x"], dim=1).transpose(0, 1)  # (B, C, H, W)

    def example_size(self) -> Example:
        return Example(2, 1, 8, 16, 64)

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        text = self.random(size.batch, size.text, config.cap_feat_dim).unbind()
        return {
            "x": list(self.random(size.batch, config.in_channels, 1, size.height, size.width)),
            "t": self.timestep(size),
            "cap_feats": [*text[:-1], text[-1][: size.text // 2]],  # a mask tells them apart
        }

    @classmethod
    def feature_shape(cls, config: Mapping[str, Any], latent_size: tuple[int, int, int]) -> tuple[int, int]:
        tokens, width = super().feature_shape(config, latent_size)
        return _padded(tokens), width

    @classmethod
    def text_rows(cls, text_tokens: int) -> int:
        return _padded(text_tokens)

    @classmethod
    def width(cls, config: Mapping[str, Any]) -> int:
        return config["dim"]


def _padded(tokens: int) -> int:
    return -(-tokens // 32) * 32


class PixArt(DeclaredFamily):
    """PixArt-alpha and PixArt-Sigma."""

    name = "pixart"
    lists = (Blocks("transformer_blocks", modules=3),)
    timed = ("adaln_single.emb.time_proj", "adaln_single.emb.timestep_embedder")
    embeds = ("caption_projection", "adaln_single.linear")
    stream_embeds = ("pos_embed",)
    batches_guidance = True

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        sides = {"resolution": self.random(size.batch, 2), "aspect_ratio": self.random(size.batch, 1)}
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, config.caption_channels),
            "encoder_attention_mask": self.ones(size.batch, size.text),
            "timestep": self.timestep(size, 500.0),
            "added_cond_kwargs": sides if self.transformer.use_additional_conditions else dict.fromkeys(sides),
        }


class Sana(DeclaredFamily):
    """Sana."""

    name = "sana"
    lists = (Blocks("transformer_blocks", modules=3),)
    timed = ("time_embed.emb.time_proj", "time_embed.emb.timestep_embedder")
    embeds = ("caption_projection", "caption_norm", "time_embed.linear")
    stream_embeds = ("patch_embed",)
    batches_guidance = True

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, config.caption_channels),
            "encoder_attention_mask": self.ones(size.batch, size.text),
            "timestep": self.timestep(size, 500.0),
            "guidance": self.timestep(size) if config.guidance_embeds else None,
        }


class Lumina2(DeclaredFamily):
    """Lumina Image 2."""

    name = "lumina2"
    lists = (Blocks("layers"),)
    timed = ("time_caption_embed.time_proj", "time_caption_embed.timestep_embedder")
    embeds = ("rope_embedder", "time_caption_embed.caption_embedder")
    refiners = ("context_refiner", "noise_refiner")
    joint = True
    text_varies = True
    text_mask = "attention_mask"

    def example_call(self, size: Example) -> dict[str, Any]:
        mask = self.ones(size.batch, size.text)
        mask[-1, size.text // 2 :] = False  # where all are as long, the blocks get no mask
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, self.transformer.config.cap_feat_dim),
            "encoder_attention_mask": mask,
            "timestep": self.timestep(size),
        }

    @classmethod
    def width(cls, config: Mapping[str, Any]) -> int:
        return config["hidden_size"]


class LuminaNext(DeclaredFamily):
    """Lumina-Next."""

    name = "lumina_next"
    torch_only = "its attention takes the logarithm of a length as a plain number"
    lists = (Blocks("layers", modules=3),)
    timed = Lumina2.timed
    attention_options = ("base_sequence_length",)
    batches_guidance = True
    text_varies = True
    text_mask = "encoder_mask"

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        half = config.hidden_size // config.num_attention_heads // 2
        table = torch.ones(size.height, size.width, half, dtype=torch.complex64, device=self.device)
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, config.cross_attention_dim),
            "encoder_mask": self.ones(size.batch, size.text),
            "image_rotary_emb": table,
            "cross_attention_kwargs": {"base_sequence_length": (config.sample_size // config.patch_size) ** 2},
            "timestep": self.timestep(size),
        }

    @classmethod
    def width(cls, config: Mapping[str, Any]) -> int:
        return config["hidden_size"]


class Prx(DeclaredFamily):
    """PRX."""

    name = "prx"
    lists = (Blocks("blocks"),)
    timed = ("time_in",)
    embeds = ("txt_in", "pe_embedder")
    stream_embeds = ("img_in",)
    batches_guidance = True
    layers = ("depth",)

    def example_call(self, size: Example) -> dict[str, Any]:
        return {
            "hidden_states": self.spatial(size),
            "encoder_hidden_states": self.random(size.batch, size.text, self.transformer.config.context_in_dim),
            "attention_mask": self.ones(size.batch, size.text),
            "timestep": self.timestep(size),
        }

    @classmethod
    def width(cls, config: Mapping[str, Any]) -> int:
        return config["hidden_size"]


class Ernie(DeclaredFamily):
    """ERNIE-Image; blocks take the tokens before the batch."""

    name = "ernie_image"
    lists = (Blocks("layers", ("x",), "x"),)
    timed = ("time_proj", "time_embedding")
    embeds = ("text_proj", "adaLN_modulation")
    stream_embeds = ("x_embedder",)
    joint = True
    batches_guidance = True
    batch_axis: ClassVar = {"x": 1, "temb": 1}
    patch = (1, 2, 2)
    text_varies = True
    text_mask = "attention_mask"
    text_first = False

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        sides = [side // 2 // config.patch_size for side in (size.height, size.width)]
        return {
            "hidden_states": self.random(size.batch, config.in_channels, *sides),
            "text_bth": self.random(size.batch, size.text, config.text_in_dim),
            "text_lens": torch.full((size.batch,), size.text, device=self.device),
            "timestep": self.timestep(size, 500.0),
        }

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return unnormalised(pipe.vae, latents[:1])

    @classmethod
    def width(cls, config: Mapping[str, Any]) -> int:
        return config["hidden_size"]


class HunyuanDiT(DeclaredFamily):
    """Hunyuan-DiT; blocks of the second half also read what those of the first half have returned."""

    name = "hunyuan_dit"
    lists = (Blocks("blocks", modules=3),)
    timed = ("time_extra_emb.time_proj", "time_extra_emb.timestep_embedder")
    embeds = ("text_embedder",)
    stream_embeds = ("pos_embed",)
    batches_guidance = True

    def run_blocks(self, blocks: Any, spec: Blocks, arguments: Any) -> Any:
        half, skips = len(blocks) // 2, list[torch.Tensor]()
        for index, block in enumerate(blocks):
            arguments["skip"] = skips.pop() if index > half else None
            arguments["hidden_states"] = block(**arguments)
            if index < half - 1:
                skips.append(arguments["hidden_states"])
        return arguments

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        tokens = self.tokens(size)
        conditioned = config.use_style_cond_and_image_meta_size
        return {
            "hidden_states": self.spatial(size),
            "timestep": self.timestep(size, 500.0),
            "encoder_hidden_states": self.random(size.batch, config.text_len, config.cross_attention_dim),
            "text_embedding_mask": self.ones(size.batch, config.text_len),
            "encoder_hidden_states_t5": self.random(size.batch, config.text_len_t5, config.cross_attention_dim_t5),
            "text_embedding_mask_t5": self.ones(size.batch, config.text_len_t5),
            "image_meta_size": self.ones(size.batch, 6, dtype=self.dtype) if conditioned else None,
            "style": self.ones(size.batch, dtype=torch.long) * 0 if conditioned else None,
            "image_rotary_emb": tuple(self.ids(tokens, config.attention_head_dim) for _ in "cs"),
        }

    @classmethod
    def width(cls, config: Mapping[str, Any]) -> int:
        return config["hidden_size"]


class NucleusMoE(QwenImage):
    """Nucleus-Image, whose feed-forwards are mixtures of experts."""

    name = "nucleusmoe_image"
    torch_only = "its experts run one by one over counts of tokens"
    lists = (Blocks("transformer_blocks"),)
    embeds = ("txt_norm", "pos_embed")
    guidance = "guidance_scale"
    no_negative_prompt = None
    text_mask = None  # padding would take places at the experts
