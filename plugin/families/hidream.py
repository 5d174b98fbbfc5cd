"""HiDream-I1: full, dev, fast and whatever else runs on diffusers' HiDreamImageTransformer2DModel.

Letters: B batch, I image tokens, E tokens of T5 and the last Llama state together, T tokens of a Llama state, L blocks,
D inner width, R rotary width (attention_head_dim), X routed experts, K experts that a token's gate chooses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from plugin.families.base import BlockInputs, Constants, Inputs
from plugin.families.split import SplitFamily, once
from plugin.request import GenerationRequest


class DenseExperts(nn.Module):
    """A MOEFeedForwardSwiGLU that can be exported, sharing its weights: every expert processes every token, and counts
    with weight 0 where the token's gate did not choose it."""

    def __init__(self, moe: nn.Module) -> None:
        super().__init__()
        self.gate = moe.gate
        self.experts = moe.experts
        self.shared_experts = moe.shared_experts

    def gate_weights(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, I, X): the weight of each expert, 0 for those that a token's gate did not choose."""
        chosen, weights, _ = self.gate(hidden_states)  # (B*I, K) both
        every = weights.new_zeros(weights.shape[0], len(self.experts)).scatter(1, chosen, weights)
        return every.view(*hidden_states.shape[:-1], -1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, I, D) to (B, I, D)."""
        routed = torch.zeros_like(hidden_states)
        for expert, weight in zip(self.experts, self.gate_weights(hidden_states).split(1, dim=-1), strict=True):
            routed = routed + expert(hidden_states) * weight
        return routed + self.shared_experts(hidden_states)


class HiDreamBlockStack(nn.Module):
    """The double and single stream blocks of a HiDreamImageTransformer2DModel, sharing its weights."""

    double_stream_blocks: nn.ModuleList
    single_stream_blocks: nn.ModuleList

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.double_stream_blocks = transformer.double_stream_blocks
        self.single_stream_blocks = transformer.single_stream_blocks

    def forward(
        self,
        hidden_states: torch.Tensor,
        hidden_states_masks: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        llama_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: torch.Tensor,
    ) -> torch.Tensor:
        """The image tokens after the last block.

        Args:
            hidden_states: (B, I, D) embedded image tokens, padding included.
            hidden_states_masks: (B, I) 1 for image tokens, 0 for padding.
            encoder_hidden_states: (B, E, D) embedded text tokens that go from block to block.
            llama_states: (B, L, T, D) embedded text tokens, a set for each block.
            temb: (B, D) timestep and pooled text embedding.
            image_rotary_emb: (1, I+E+T, 1, R/2, 2, 2) float32, shared by the batch.

        Returns:
            (B, I, D) in the dtype of the hidden states.
        """
        states = llama_states.unbind(1)
        double = len(self.double_stream_blocks)
        image_tokens, text_tokens = hidden_states.shape[1], encoder_hidden_states.shape[1]
        for block, state in zip(self.double_stream_blocks, states[:double], strict=True):
            hidden_states, encoder_hidden_states = block(
                hidden_states=hidden_states,
                hidden_states_masks=hidden_states_masks,
                encoder_hidden_states=torch.cat([encoder_hidden_states, state], dim=1),
                temb=temb,
                image_rotary_emb=image_rotary_emb,
            )
            encoder_hidden_states = encoder_hidden_states[:, :text_tokens]
        hidden_states = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        text_masks = hidden_states_masks.new_ones(hidden_states.shape[0], text_tokens + llama_states.shape[2])
        masks = torch.cat([hidden_states_masks, text_masks], dim=1)  # (B, I+E+T)
        for block, state in zip(self.single_stream_blocks, states[double:], strict=True):
            hidden_states = block(
                hidden_states=torch.cat([hidden_states, state], dim=1),
                hidden_states_masks=masks,
                temb=temb,
                image_rotary_emb=image_rotary_emb,
            )[:, : image_tokens + text_tokens]
        return hidden_states[:, :image_tokens]


class HiDreamFamily(SplitFamily):
    """HiDream-I1 (structure of diffusers 0.42.0, models/transformers/transformer_hidream_image.py, guarded by the
    parity tests).

    The pipeline keeps the ratio of height and width, and scales both to the area that the model is made for.
    """

    name = "hidream"
    block_axes: ClassVar = {
        "hidden_states": {0: "batch", 1: "image_tokens"},
        "hidden_states_masks": {0: "batch", 1: "image_tokens"},
        "encoder_hidden_states": {0: "batch", 1: "text_tokens"},
        "llama_states": {0: "batch", 2: "llama_tokens"},
        "temb": {0: "batch"},
        "image_rotary_emb": {1: "all_tokens"},
    }
    output_axes: ClassVar = {0: "batch", 1: "image_tokens"}
    random_arguments: ClassVar = ("hidden_states", "encoder_hidden_states", "llama_states", "temb")
    batches_guidance: ClassVar = True

    def block_stack(self) -> nn.Module:
        return HiDreamBlockStack(self.transformer)

    def export_stack(self) -> nn.Module:
        """With `DenseExperts` in place of the experts, whose own code sorts tokens in numpy and cannot be exported."""
        # Here, because plans need this module without diffusers, which takes seconds to import.
        from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU

        stack = self.block_stack()
        kept: dict[int, Any] = {id(weight): weight for weight in (*stack.parameters(), *stack.buffers())}
        dense = {id(each): DenseExperts(each) for each in stack.modules() if isinstance(each, MOEFeedForwardSwiGLU)}
        return copy.deepcopy(stack, kept | dense)  # shares what is in the memo, copies the rest

    def example_inputs(self) -> BlockInputs:
        transformer = self.transformer
        batch, image_tokens, text_tokens, llama_tokens, width = 2, 16, 12, 8, transformer.inner_dim
        options = {"dtype": self.dtype, "device": self.device}
        ids = torch.zeros(1, image_tokens + text_tokens + llama_tokens, 3, device=self.device)
        blocks = len(transformer.config.llama_layers)
        return {
            "hidden_states": torch.randn(batch, image_tokens, width, **options),
            "hidden_states_masks": torch.ones(batch, image_tokens, **options),
            "encoder_hidden_states": torch.randn(batch, text_tokens, width, **options),
            "llama_states": torch.randn(batch, blocks, llama_tokens, width, **options),
            "temb": torch.randn(batch, width, **options),
            "image_rotary_emb": transformer.pe_embedder(ids),
        }

    def condition(self, inputs: Inputs, constants: Constants, scheduled: float | None = None) -> torch.Tensor:
        """(B, D): timestep and pooled text, the text embedded only once."""
        pooled = inputs["pooled_embeds"]
        text = once(constants, "text", (pooled,), lambda: self.transformer.p_embedder(pooled))  # (B, D)
        timesteps, dtype = inputs["timesteps"], inputs["hidden_states"].dtype
        timestep = self.embedded_once(  # (B, D)
            timesteps, scheduled, lambda: self.transformer.t_embedder(timesteps, dtype), dtype
        )
        return timestep + text

    def embed(self, inputs: Inputs, condition: torch.Tensor, constants: Constants) -> BlockInputs:
        if inputs["hidden_states_masks"] is not None:
            raise ValueError("hidden_states_masks is given, must be left out: latents are served before patches")
        transformer = self.transformer
        patches, masks, _, img_ids = transformer.patchify(inputs["hidden_states"])
        t5, llama = inputs["encoder_hidden_states_t5"], inputs["encoder_hidden_states_llama3"]
        text, states = once(constants, "texts", (t5, llama), lambda: self._texts(t5, llama))
        txt_ids = img_ids.new_zeros(1, text.shape[1] + states.shape[2], 3)
        rotary = once(
            constants,
            "rotary",
            (inputs["hidden_states"].shape, txt_ids.shape),
            lambda: transformer.pe_embedder(torch.cat((img_ids[:1], txt_ids), dim=1)),
        )
        return {
            "hidden_states": transformer.x_embedder(patches),  # (B, I, D)
            # In diffusers square latents have no mask. A key times 1 is that key, bit for bit.
            "hidden_states_masks": patches.new_ones(patches.shape[:2]) if masks is None else masks,
            "encoder_hidden_states": text,
            "llama_states": states,  # (B, L, T, D)
            "temb": condition,
            "image_rotary_emb": rotary,
        }

    def _texts(self, t5: torch.Tensor, llama: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The text that goes from block to block, (B, E, D), and the one that each of L blocks adds, (B, L, T, D)."""
        projections: nn.ModuleList = self.transformer.caption_projection  # one for each block, then that of T5
        layers = self.transformer.config.llama_layers
        states = [project(llama[layer]) for project, layer in zip(projections[:-1], layers, strict=True)]
        return torch.cat([projections[-1](t5), states[-1]], dim=1), torch.stack(states, dim=1)

    def finish(self, inputs: Inputs, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W)."""
        transformer = self.transformer
        batch, _, height, width = inputs["hidden_states"].shape
        patch = transformer.config.patch_size
        sizes = [(height // patch, width // patch)] * batch
        return transformer.unpatchify(transformer.final_layer(features, condition), sizes, transformer.training)

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return latents[:1] / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor

    @classmethod
    def latent_size(
        cls, config: Mapping[str, Any], request: GenerationRequest, compression: tuple[int, int]
    ) -> tuple[int, int, int]:
        """Scaled as the pipeline scales them, to the area of `max_resolution` and whole pairs of latents."""
        _, space = compression
        area = math.prod(config["max_resolution"]) * space**2
        scale = math.sqrt(area / (request.width * request.height))
        height, width = (2 * int(size * scale // (2 * space)) for size in (request.height, request.width))
        return 1, height, width

    @classmethod
    def feature_shape(cls, config: Mapping[str, Any], latent_size: tuple[int, int, int]) -> tuple[int, int]:
        """Latents that are not square are padded to as many tokens as `max_resolution` has."""
        _, height, width = latent_size
        patch = config["patch_size"]
        square = (height // patch) * (width // patch)
        tokens = square if height == width else math.prod(config["max_resolution"]) // patch**2
        return tokens, config["num_attention_heads"] * config["attention_head_dim"]

    def axis_sizes(
        self, tokens: int, text_tokens: int, latent_size: tuple[int, int, int] = (1, 1, 1)
    ) -> dict[str, int]:
        """T5's text and the last Llama state go from block to block, and each block adds a Llama state."""
        return {
            "image_tokens": tokens,
            "text_tokens": 2 * text_tokens,
            "llama_tokens": text_tokens,
            "all_tokens": tokens + 3 * text_tokens,
        }

    @classmethod
    def module_features(cls, config: Mapping[str, Any], tokens: int, text_tokens: int) -> int:
        width = config["num_attention_heads"] * config["attention_head_dim"]
        blocks = config["num_layers"] + config["num_single_layers"]
        return 2 * blocks * (tokens + 3 * text_tokens) * width  # each block has T5's text and two Llama states

    def release_blocks(self) -> None:
        self.transformer.double_stream_blocks = nn.ModuleList()
        self.transformer.single_stream_blocks = nn.ModuleList()
