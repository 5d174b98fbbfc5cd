"""DiT of class labels: whatever runs on diffusers' DiTTransformer2DModel.

Letters: B batch, I image tokens, D inner width, C out_channels, P patch_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from plugin.families.base import BlockInputs, Constants, Inputs
from plugin.families.split import SplitFamily, once
from plugin.request import GenerationRequest


class DiTBlockStack(nn.Module):
    """The blocks of a DiTTransformer2DModel, sharing its weights."""

    transformer_blocks: nn.ModuleList

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer_blocks = transformer.transformer_blocks

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """The image tokens after the last block; each block embeds timestep and label by weights of its own.

        Args:
            hidden_states: (B, I, D) embedded image tokens.
            timestep: (B,) float32.
            class_labels: (B,) int64.

        Returns:
            (B, I, D) in the dtype of the hidden states.
        """
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, timestep=timestep, class_labels=class_labels)
        return hidden_states


class DiTFamily(SplitFamily):
    """DiT (structure of diffusers 0.42.0, models/transformers/dit_transformer_2d.py, guarded by the parity tests)."""

    name = "dit"
    block_axes: ClassVar = {
        "hidden_states": {0: "batch", 1: "image_tokens"},
        "timestep": {0: "batch"},
        "class_labels": {0: "batch"},
    }
    output_axes: ClassVar = {0: "batch", 1: "image_tokens"}
    random_arguments: ClassVar = ("hidden_states",)
    batches_guidance: ClassVar = True

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__(transformer)
        # `finish` needs it for the output's modulation, after the blocks are released.
        self._embedding = transformer.get_submodule("transformer_blocks.0.norm1.emb")

    def block_stack(self) -> nn.Module:
        return DiTBlockStack(self.transformer)

    def example_inputs(self) -> BlockInputs:
        batch, image_tokens, width = 2, 16, self.transformer.inner_dim
        return {
            "hidden_states": torch.randn(batch, image_tokens, width, dtype=self.dtype, device=self.device),
            "timestep": torch.full((batch,), 500.0, device=self.device),
            "class_labels": torch.arange(batch, device=self.device),
        }

    def condition(self, inputs: Inputs, constants: Constants, scheduled: float | None = None) -> torch.Tensor:
        """(B, D): what CombinedTimestepLabelEmbeddings computes with the first block's weights; its label only once."""
        embed, timestep, dtype = self._embedding, inputs["timestep"], inputs["hidden_states"].dtype
        labels = inputs["class_labels"]
        label = once(constants, "label", (labels,), lambda: embed.class_embedder(labels))  # (B, D)
        embedded = self.embedded_once(  # (B, D)
            timestep, scheduled, lambda: embed.timestep_embedder(embed.time_proj(timestep).to(dtype=dtype)), dtype
        )
        return embedded + label

    def embed(self, inputs: Inputs, condition: torch.Tensor, constants: Constants) -> BlockInputs:
        return {
            "hidden_states": self.transformer.pos_embed(inputs["hidden_states"]),  # (B, I, D)
            # Some schedulers give whole numbers. The blocks convert to float32 first, so the bits are the same.
            "timestep": inputs["timestep"].float(),
            "class_labels": inputs["class_labels"],
        }

    def finish(self, inputs: Inputs, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W)."""
        transformer = self.transformer
        shift, scale = transformer.proj_out_1(F.silu(condition)).chunk(2, dim=1)
        modulated = transformer.norm_out(features) * (1 + scale[:, None]) + shift[:, None]
        patch, channels = transformer.patch_size, transformer.out_channels
        height, width = (size // patch for size in inputs["hidden_states"].shape[-2:])
        patches = transformer.proj_out_2(modulated).reshape(-1, height, width, patch, patch, channels)
        output = torch.einsum("nhwpqc->nchpwq", patches)
        return output.reshape(-1, channels, height * patch, width * patch)

    def call_arguments(self, request: GenerationRequest, max_sequence_length: int | None) -> dict[str, Any]:
        """The size is the transformer's own."""
        return {"class_labels": [request.class_label], "guidance_scale": request.guidance_scale}

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return 1 / pipe.vae.config.scaling_factor * latents[:1]

    @classmethod
    def latent_size(
        cls, config: Mapping[str, Any], request: GenerationRequest, compression: tuple[int, int]
    ) -> tuple[int, int, int]:
        """The transformer's own size, whatever the request's."""
        return 1, config["sample_size"], config["sample_size"]

    @classmethod
    def feature_shape(cls, config: Mapping[str, Any], latent_size: tuple[int, int, int]) -> tuple[int, int]:
        _, height, width = latent_size
        tokens = (height // config["patch_size"]) * (width // config["patch_size"])
        return tokens, config["num_attention_heads"] * config["attention_head_dim"]

    def axis_sizes(
        self, tokens: int, text_tokens: int, latent_size: tuple[int, int, int] = (1, 1, 1)
    ) -> dict[str, int]:
        return {"image_tokens": tokens}

    @classmethod
    def module_features(cls, config: Mapping[str, Any], tokens: int, text_tokens: int) -> int:
        width = config["num_attention_heads"] * config["attention_head_dim"]
        return 2 * config["num_layers"] * tokens * width  # attention, feed-forward

    def release_blocks(self) -> None:
        self.transformer.transformer_blocks = nn.ModuleList()
