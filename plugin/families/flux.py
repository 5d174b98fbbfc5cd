"""FLUX.1: dev, schnell, Kontext and whatever else runs on diffusers' FluxTransformer2DModel.

Letters: B batch, I image tokens, T text tokens, D inner width, R rotary width (attention_head_dim).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from plugin.families.base import BlockInputs, Constants, Inputs, autocast_state
from plugin.families.embedded_guidance import EmbeddedGuidance
from plugin.families.split import SplitFamily, once
from plugin.families.token_split import TokenSplit
from plugin.request import GenerationRequest


class FluxBlockStack(nn.Module):
    """The double and single stream blocks of a FluxTransformer2DModel, sharing its weights."""

    transformer_blocks: nn.ModuleList
    single_transformer_blocks: nn.ModuleList

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer_blocks = transformer.transformer_blocks
        self.single_transformer_blocks = transformer.single_transformer_blocks

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_cos: torch.Tensor,
        rotary_sin: torch.Tensor,
    ) -> torch.Tensor:
        """The image tokens after the last block.

        Args:
            hidden_states: (B, I, D) embedded image tokens.
            encoder_hidden_states: (B, T, D) embedded text tokens.
            temb: (B, D) timestep, guidance and pooled text embedding.
            rotary_cos: (T+I, R) float32, shared by the batch.
            rotary_sin: (T+I, R) float32, shared by the batch.

        Returns:
            (B, I, D) in the dtype of the hidden states.
        """
        rotary = (rotary_cos, rotary_sin)
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            encoder_hidden_states, hidden_states = block(
                hidden_states=hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                temb=temb,
                image_rotary_emb=rotary,
            )
        return hidden_states


class FluxFamily(EmbeddedGuidance, SplitFamily):
    """FLUX.1 (structure of diffusers 0.42.0, models/transformers/transformer_flux.py, guarded by the parity tests)."""

    name = "flux"
    block_axes: ClassVar = {
        "hidden_states": {0: "batch", 1: "image_tokens"},
        "encoder_hidden_states": {0: "batch", 1: "text_tokens"},
        "temb": {0: "batch"},
        "rotary_cos": {0: "all_tokens"},
        "rotary_sin": {0: "all_tokens"},
    }
    output_axes: ClassVar = {0: "batch", 1: "image_tokens"}
    random_arguments: ClassVar = ("hidden_states", "encoder_hidden_states", "temb")

    @property
    def token_split(self) -> TokenSplit:
        return TokenSplit()

    def block_stack(self) -> nn.Module:
        return FluxBlockStack(self.transformer)

    def example_inputs(self) -> BlockInputs:
        transformer = self.transformer
        batch, image_tokens, text_tokens, width = 2, 16, 8, transformer.inner_dim
        rotary_width = transformer.config.attention_head_dim
        options = {"dtype": self.dtype, "device": self.device}
        rotary = torch.ones(text_tokens + image_tokens, rotary_width, device=self.device)
        return {
            "hidden_states": torch.randn(batch, image_tokens, width, **options),
            "encoder_hidden_states": torch.randn(batch, text_tokens, width, **options),
            "temb": torch.randn(batch, width, **options),
            "rotary_cos": rotary,
            "rotary_sin": torch.zeros_like(rotary),
        }

    def condition(self, inputs: Inputs, constants: Constants, scheduled: float | None = None) -> torch.Tensor:
        """(B, D): what CombinedTimestep[Guidance]TextProjEmbeddings computes; what no step changes is computed once."""
        embed = self.transformer.time_text_embed
        pooled, guidance, latents = inputs["pooled_projections"], inputs["guidance"], inputs["hidden_states"]
        # Of the embedded tokens: autocast makes these its own dtype, and the timestep is rounded to it.
        autocast, lower = autocast_state(latents.device.type)
        dtype = lower if autocast and lower and latents.dtype != torch.float64 else latents.dtype
        text = once(constants, "text", (pooled,), lambda: embed.text_embedder(pooled))  # (B, D)
        timestep = self.embedded_once(  # (B, D)
            inputs["timestep"],
            scheduled,
            lambda: embed.timestep_embedder(
                embed.time_proj(inputs["timestep"].to(dtype) * 1000).to(dtype=pooled.dtype)
            ),
            dtype,
            pooled.dtype,
        )
        if guidance is not None:
            timestep = timestep + once(  # (B, D)
                constants,
                "guidance",
                (guidance, dtype, pooled.dtype),
                lambda: embed.guidance_embedder(embed.time_proj(guidance.to(dtype) * 1000).to(dtype=pooled.dtype)),
            )
        return timestep + text

    def embed(self, inputs: Inputs, condition: torch.Tensor, constants: Constants) -> BlockInputs:
        transformer, text = self.transformer, inputs["encoder_hidden_states"]
        txt_ids, img_ids = (ids[0] if ids.ndim == 3 else ids for ids in (inputs["txt_ids"], inputs["img_ids"]))
        rotary_cos, rotary_sin = once(  # (T+I, R)
            constants,
            "rotary",
            (inputs["txt_ids"], inputs["img_ids"]),
            lambda: transformer.pos_embed(torch.cat((txt_ids, img_ids), dim=0)),
        )
        return {
            "hidden_states": transformer.x_embedder(inputs["hidden_states"]),  # (B, I, D)
            "encoder_hidden_states": once(  # (B, T, D)
                constants, "context", (text,), lambda: transformer.context_embedder(text)
            ),
            "temb": condition,
            "rotary_cos": rotary_cos,
            "rotary_sin": rotary_sin,
        }

    def finish(self, inputs: Inputs, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.transformer.proj_out(self.transformer.norm_out(features, condition))  # (B, I, out_channels)

    def call_arguments(self, request: GenerationRequest, max_sequence_length: int | None) -> dict[str, Any]:
        """Kontext takes the ratio of height and width alone, at the area of one megapixel or another that is given."""
        arguments = super().call_arguments(request, max_sequence_length)
        if request.task is None or request.task.pipeline != "FluxKontextPipeline":
            return arguments
        return arguments | {"max_area": request.height * request.width}

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        side = 2 * pipe.vae_scale_factor  # pixels of a token
        config = pipe.transformer.config
        # Kontext appends the tokens of its picture; Fill and Control append channels.
        own = latents[:1, : (height // side) * (width // side), : config.out_channels or config.in_channels]
        unpacked = pipe._unpack_latents(own, height, width, pipe.vae_scale_factor)  # (1, C, H, W)
        return unpacked / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor

    @classmethod
    def feature_shape(cls, config: Mapping[str, Any], latent_size: tuple[int, int, int]) -> tuple[int, int]:
        _, height, width = latent_size  # 2 x 2 latents make a token
        return (height // 2) * (width // 2), config["num_attention_heads"] * config["attention_head_dim"]

    @classmethod
    def appended_tokens(cls, width: int, height: int, compression: tuple[int, int]) -> int:
        """Kontext resizes a picture to the one of its training sizes whose ratio is nearest (FluxKontextPipeline of
        diffusers 0.42.0)."""
        _, width, height = min((abs(width / height - w / h), w, h) for w, h in _kontext_sizes())
        return _tokens(width, height, compression)

    @classmethod
    def appended_range(cls, compression: tuple[int, int]) -> tuple[int, int, int]:
        counts = [_tokens(*size, compression) for size in _kontext_sizes()]
        return min(counts), cls.appended_tokens(1, 1, compression), max(counts)

    def axis_sizes(
        self, tokens: int, text_tokens: int, latent_size: tuple[int, int, int] = (1, 1, 1)
    ) -> dict[str, int]:
        return {"image_tokens": tokens, "text_tokens": text_tokens, "all_tokens": tokens + text_tokens}

    @classmethod
    def module_features(cls, config: Mapping[str, Any], tokens: int, text_tokens: int) -> int:
        width = config["num_attention_heads"] * config["attention_head_dim"]
        rows = 2 * config["num_layers"] + config["num_single_layers"]  # attention and feed-forward, or both at once
        return rows * (tokens + text_tokens) * width

    def release_blocks(self) -> None:
        self.transformer.transformer_blocks = nn.ModuleList()
        self.transformer.single_transformer_blocks = nn.ModuleList()


def _kontext_sizes() -> list[tuple[int, int]]:
    """(width, height) of the pictures that Kontext was trained with."""
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS  # takes seconds

    return PREFERRED_KONTEXT_RESOLUTIONS


def _tokens(width: int, height: int, compression: tuple[int, int]) -> int:
    side = 2 * compression[1]  # pixels of a token
    return (width // side) * (height // side)
