"""Wan2.1 and Wan2.2, text and image to video: whatever runs on diffusers' WanTransformer3DModel.

Letters: B batch, F H W latent frames, height and width, I tokens of the video, T text tokens (after those of the
picture, if the transformer attends to one), D inner width, R rotary width (attention_head_dim).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from plugin.families.base import BlockInputs, Constants, Inputs
from plugin.families.split import SplitFamily, once
from plugin.request import GenerationRequest

_TEXT_TOKENS = 512  # WanAttnProcessor treats all tokens before the last 512 as those of the picture


class WanBlockStack(nn.Module):
    """The blocks of a WanTransformer3DModel, sharing its weights."""

    blocks: nn.ModuleList

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.blocks = transformer.blocks

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_cos: torch.Tensor,
        rotary_sin: torch.Tensor,
    ) -> torch.Tensor:
        """The video's tokens after the last block.

        Args:
            hidden_states: (B, I, D) embedded tokens of the video.
            encoder_hidden_states: (B, T, D) embedded tokens of picture and text.
            temb: (B, 6, D) modulation by the timestep, or (B, I, 6, D) where each token has its own.
            rotary_cos: (1, I, 1, R), shared by the batch.
            rotary_sin: (1, I, 1, R), shared by the batch.

        Returns:
            (B, I, D) in the dtype of the hidden states.
        """
        if self.blocks[0].attn2.add_k_proj is not None:  # for the export, where the length is a symbol
            torch._check(encoder_hidden_states.shape[1] > _TEXT_TOKENS)
        for block in self.blocks:
            hidden_states = block(hidden_states, encoder_hidden_states, temb, (rotary_cos, rotary_sin))
        return hidden_states


class WanFamily(SplitFamily):
    """Wan (structure of diffusers 0.42.0, models/transformers/transformer_wan.py, guarded by the parity tests).

    The exported stack takes one timestep for a whole video; pipelines of `expand_timesteps` need the torch engine.
    """

    name = "wan"
    block_axes: ClassVar = {
        "hidden_states": {0: "batch", 1: "video_tokens"},
        "encoder_hidden_states": {0: "batch", 1: "text_tokens"},
        "temb": {0: "batch"},
        "rotary_cos": {1: "video_tokens"},
        "rotary_sin": {1: "video_tokens"},
    }
    output_axes: ClassVar = {0: "batch", 1: "video_tokens"}
    random_arguments: ClassVar = ("hidden_states", "encoder_hidden_states", "temb")

    def block_stack(self) -> nn.Module:
        return WanBlockStack(self.transformer)

    def example_inputs(self) -> BlockInputs:
        config = self.transformer.config
        batch, tokens, width = 2, 16, config.num_attention_heads * config.attention_head_dim
        text_tokens = 8 if config.added_kv_proj_dim is None else 8 + _TEXT_TOKENS
        weight = self.transformer.patch_embedding.weight
        options = {"dtype": weight.dtype, "device": weight.device}
        rotary = self.transformer.rope.freqs_cos.new_ones(1, tokens, 1, config.attention_head_dim)
        return {
            "hidden_states": torch.randn(batch, tokens, width, **options),
            "encoder_hidden_states": torch.randn(batch, text_tokens, width, **options),
            "temb": torch.randn(batch, 6, width, **options),
            "rotary_cos": rotary,
            "rotary_sin": torch.zeros_like(rotary),
        }

    def condition(self, inputs: Inputs, constants: Constants, scheduled: float | None = None) -> torch.Tensor:
        """(B, D), or (B, I, D) where each token has its own timestep: WanTimeTextImageEmbedding's `temb`."""
        timestep = inputs["timestep"]  # (B,) or (B, I)
        if timestep.ndim == 2:  # from a mask in the request
            return self._embedded(inputs)
        text_dtype = inputs["encoder_hidden_states"].dtype
        return self.embedded_once(timestep, scheduled, lambda: self._embedded(inputs), text_dtype)

    def _embedded(self, inputs: Inputs) -> torch.Tensor:
        embedder, timestep = self.transformer.condition_embedder, inputs["timestep"]
        projected = embedder.timesteps_proj(timestep.flatten())
        if timestep.ndim == 2:
            projected = projected.unflatten(0, (-1, timestep.shape[1]))
        dtype = next(embedder.time_embedder.parameters()).dtype
        if dtype != torch.int8:  # of quantised weights
            projected = projected.to(dtype)
        return embedder.time_embedder(projected).type_as(inputs["encoder_hidden_states"])

    def embed(self, inputs: Inputs, condition: torch.Tensor, constants: Constants) -> BlockInputs:
        transformer, embedder = self.transformer, self.transformer.condition_embedder
        text, picture = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_image"]
        if transformer.config.added_kv_proj_dim is not None:
            if picture is None:
                raise ValueError("encoder_hidden_states_image is left out, must be given to this transformer")
            if text.shape[1] != _TEXT_TOKENS:
                raise ValueError(f"encoder_hidden_states has {text.shape[1]} tokens, must have {_TEXT_TOKENS}")
        context = once(constants, "context", (text,), lambda: embedder.text_embedder(text))
        if picture is not None:
            seen = once(constants, "picture", (picture,), lambda: embedder.image_embedder(picture))
            context = torch.concat([seen, context], dim=1)
        rotary_cos, rotary_sin = once(
            constants,
            "rotary",
            (inputs["hidden_states"].shape, inputs["hidden_states"].device),
            lambda: transformer.rope(inputs["hidden_states"]),
        )
        return {
            "hidden_states": transformer.patch_embedding(inputs["hidden_states"]).flatten(2).mT.contiguous(),
            "encoder_hidden_states": context,
            "temb": embedder.time_proj(embedder.act_fn(condition)).unflatten(-1, (6, -1)),
            "rotary_cos": rotary_cos,
            "rotary_sin": rotary_sin,
        }

    def finish(self, inputs: Inputs, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, C, F, H, W)."""
        transformer = self.transformer
        temb = condition if condition.ndim == 3 else condition.unsqueeze(1)  # (B, 1 or I, D)
        shift, scale = (transformer.scale_shift_table + temb.unsqueeze(2)).unbind(2)
        modulated = (transformer.norm_out(features.float()) * (1 + scale) + shift).type_as(features)
        batch, _, *latent_size = inputs["hidden_states"].shape
        patch: tuple[int, int, int] = transformer.config.patch_size
        patches = [size // side for size, side in zip(latent_size, patch, strict=True)]
        output = transformer.proj_out(modulated).reshape(batch, *patches, *patch, -1)  # (B, f, h, w, pf, ph, pw, C)
        return output.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def call_arguments(self, request: GenerationRequest, max_sequence_length: int | None) -> dict[str, Any]:
        """Both experts of Wan2.2 get the request's guidance scale."""
        return super().call_arguments(request, max_sequence_length) | {"num_frames": request.num_frames}

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        config = pipe.vae.config
        own = latents[:1, : config.z_dim, :1].to(pipe.vae.dtype)  # image to video appends the picture's channels
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(own) for values in (config.latents_mean, config.latents_std)
        )
        return own * std + mean

    @classmethod
    def feature_shape(cls, config: Mapping[str, Any], latent_size: tuple[int, int, int]) -> tuple[int, int]:
        tokens = math.prod(size // side for size, side in zip(latent_size, config["patch_size"], strict=True))
        return tokens, config["num_attention_heads"] * config["attention_head_dim"]

    def axis_sizes(
        self, tokens: int, text_tokens: int, latent_size: tuple[int, int, int] = (1, 1, 1)
    ) -> dict[str, int]:
        return {"video_tokens": tokens, "text_tokens": text_tokens}

    @classmethod
    def module_features(cls, config: Mapping[str, Any], tokens: int, text_tokens: int) -> int:
        width = config["num_attention_heads"] * config["attention_head_dim"]
        return 3 * config["num_layers"] * tokens * width  # self-attention, cross-attention, feed-forward

    def release_blocks(self) -> None:
        self.transformer.blocks = nn.ModuleList()
