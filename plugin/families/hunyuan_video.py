"""HunyuanVideo, text and image to video: whatever runs on diffusers' HunyuanVideoTransformer3DModel.

Letters: B batch, F H W latent frames, height and width, I tokens of the video, J of them in its first frame, T text
tokens, D inner width, R rotary width (attention_head_dim).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from plugin.families.base import BlockInputs, Constants, Family, Inputs
from plugin.families.split import EmbeddedGuidanceFamily, once
from plugin.request import GenerationRequest


class HunyuanVideoBlockStack(nn.Module):
    """The dual and single stream blocks of a HunyuanVideoTransformer3DModel, sharing its weights."""

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
        attention_mask: torch.Tensor,
        rotary_cos: torch.Tensor,
        rotary_sin: torch.Tensor,
        token_replace_emb: torch.Tensor | None = None,
        first_rotary_cos: torch.Tensor | None = None,
        first_rotary_sin: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The video's tokens after the last block.

        The last three arguments are those of transformers whose first frame is the picture that the video begins with
        (image_condition_type "token_replace"). The length of the first frame is read from its rotary table: an exported
        stack has no other argument that knows it.

        Args:
            hidden_states: (B, I, D) embedded tokens of the video.
            encoder_hidden_states: (B, T, D) embedded text tokens.
            temb: (B, D) timestep, guidance and pooled text embedding.
            attention_mask: (B, 1, 1, I+T) bool, False for the text's padding.
            rotary_cos: (I, R) float32, shared by the batch; (I-J, R) where the first frame's are apart.
            rotary_sin: the same.
            token_replace_emb: (B, D) modulation of the first frame.
            first_rotary_cos: (J, R) float32, shared by the batch.
            first_rotary_sin: the same.

        Returns:
            (B, I, D) in the dtype of the hidden states.
        """
        first_tokens = None
        if first_rotary_cos is not None and first_rotary_sin is not None:
            first_tokens = first_rotary_cos.shape[0]
            rotary_cos = torch.cat([first_rotary_cos, rotary_cos])  # (I, R)
            rotary_sin = torch.cat([first_rotary_sin, rotary_sin])
            # For the export, where lengths are symbols: the blocks cut the tokens where the first frame ends.
            hidden_states = hidden_states.reshape(hidden_states.shape[0], rotary_cos.shape[0], hidden_states.shape[2])
        rotary = (rotary_cos, rotary_sin)
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            hidden_states, encoder_hidden_states = block(
                hidden_states, encoder_hidden_states, temb, attention_mask, rotary, token_replace_emb, first_tokens
            )
        return hidden_states


class HunyuanVideoFamily(EmbeddedGuidanceFamily):
    """HunyuanVideo (structure of diffusers 0.42.0, models/transformers/transformer_hunyuan_video.py, guarded by the
    parity tests).
    """

    name = "hunyuan_video"
    block_axes: ClassVar = {
        "hidden_states": {0: "batch", 1: "video_tokens"},
        "encoder_hidden_states": {0: "batch", 1: "text_tokens"},
        "temb": {0: "batch"},
        "attention_mask": {0: "batch", 3: "all_tokens"},
        "rotary_cos": {0: "video_tokens"},
        "rotary_sin": {0: "video_tokens"},
    }
    output_axes: ClassVar = {0: "batch", 1: "video_tokens"}
    random_arguments: ClassVar = ("hidden_states", "encoder_hidden_states", "temb")

    @classmethod
    def of(cls, transformer: nn.Module) -> Family:
        replaced = transformer.config.image_condition_type == "token_replace"
        return FirstFrameFamily(transformer) if replaced else cls(transformer)

    def block_stack(self) -> nn.Module:
        return HunyuanVideoBlockStack(self.transformer)

    def example_inputs(self) -> BlockInputs:
        config = self.transformer.config
        batch, tokens, text_tokens = 2, 16, 8
        width = config.num_attention_heads * config.attention_head_dim
        weight = self.transformer.proj_out.weight
        options = {"dtype": weight.dtype, "device": weight.device}
        rotary = torch.ones(tokens, config.attention_head_dim, device=weight.device)
        mask = torch.ones(batch, 1, 1, tokens + text_tokens, dtype=torch.bool, device=weight.device)
        return {
            "hidden_states": torch.randn(batch, tokens, width, **options),
            "encoder_hidden_states": torch.randn(batch, text_tokens, width, **options),
            "temb": torch.randn(batch, width, **options),
            "attention_mask": mask,
            "rotary_cos": rotary,
            "rotary_sin": torch.zeros_like(rotary),
        }

    def condition(self, inputs: Inputs, constants: Constants, scheduled: float | None = None) -> torch.Tensor:
        """(B, D): what HunyuanVideoConditionEmbedding computes; what no step changes is computed once."""
        embed, pooled = self.transformer.time_text_embed, inputs["pooled_projections"]
        text = once(constants, "text", (pooled,), lambda: embed.text_embedder(pooled))  # (B, D)
        timestep = self.embedded_once(  # (B, D)
            inputs["timestep"],
            scheduled,
            lambda: embed.timestep_embedder(embed.time_proj(inputs["timestep"]).to(dtype=pooled.dtype)),
            pooled.dtype,
        )
        if embed.guidance_embedder is not None:
            guidance = inputs["guidance"]
            timestep = timestep + once(  # (B, D)
                constants,
                "guidance",
                (guidance, pooled.dtype),
                lambda: embed.guidance_embedder(embed.time_proj(guidance).to(dtype=pooled.dtype)),
            )
        return timestep + text

    def embed(self, inputs: Inputs, condition: torch.Tensor, constants: Constants) -> BlockInputs:
        """The text is refined again at each full step, because its refiner is modulated by the timestep."""
        transformer, text_mask = self.transformer, inputs["encoder_attention_mask"]
        latents = inputs["hidden_states"]
        rotary_cos, rotary_sin = once(  # (I, R)
            constants, "rotary", (latents.shape, latents.device), lambda: transformer.rope(latents)
        )
        hidden_states = transformer.x_embedder(inputs["hidden_states"])  # (B, I, D)
        text = transformer.context_embedder(inputs["encoder_hidden_states"], inputs["timestep"], text_mask)
        tokens = hidden_states.shape[1]
        attended = tokens + text_mask.sum(dim=1, dtype=torch.int)  # (B,) the text's padding is at its end
        positions = torch.arange(tokens + text.shape[1], device=hidden_states.device)
        return {
            "hidden_states": hidden_states,
            "encoder_hidden_states": text,  # (B, T, D)
            "temb": condition,
            "attention_mask": (positions < attended[:, None])[:, None, None],  # (B, 1, 1, I+T)
            "rotary_cos": rotary_cos,
            "rotary_sin": rotary_sin,
        }

    def finish(self, inputs: Inputs, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, C, F, H, W)."""
        transformer = self.transformer
        batch, _, *latent_size = inputs["hidden_states"].shape
        patch = _patch(transformer.config)
        patches = [size // side for size, side in zip(latent_size, patch, strict=True)]
        output = transformer.proj_out(transformer.norm_out(features, condition))
        output = output.reshape(batch, *patches, -1, *patch)  # (B, f, h, w, C, pf, ph, pw)
        return output.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def call_arguments(self, request: GenerationRequest, max_sequence_length: int | None) -> dict[str, Any]:
        return super().call_arguments(request, max_sequence_length) | {"num_frames": request.num_frames}

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        own = latents[:1, : pipe.vae.config.latent_channels, :1]  # image to video appends the picture's channels
        return own / pipe.vae.config.scaling_factor

    @classmethod
    def feature_shape(cls, config: Mapping[str, Any], latent_size: tuple[int, int, int]) -> tuple[int, int]:
        tokens = math.prod(size // side for size, side in zip(latent_size, _patch(config), strict=True))
        return tokens, config["num_attention_heads"] * config["attention_head_dim"]

    def axis_sizes(
        self, tokens: int, text_tokens: int, latent_size: tuple[int, int, int] = (1, 1, 1)
    ) -> dict[str, int]:
        first = tokens // latent_size[0]
        return {
            "video_tokens": tokens,
            "text_tokens": text_tokens,
            "all_tokens": tokens + text_tokens,
            "first_tokens": first,
            "later_tokens": tokens - first,
        }

    @classmethod
    def module_features(cls, config: Mapping[str, Any], tokens: int, text_tokens: int) -> int:
        width = config["num_attention_heads"] * config["attention_head_dim"]
        rows = 2 * config["num_layers"] + config["num_single_layers"]  # attention and feed-forward, or both at once
        return rows * (tokens + text_tokens) * width

    def release_blocks(self) -> None:
        self.transformer.transformer_blocks = nn.ModuleList()
        self.transformer.single_transformer_blocks = nn.ModuleList()


def _patch(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(frames, height, width) of a token, in latents."""
    return config["patch_size_t"], config["patch_size"], config["patch_size"]


class FirstFrameFamily(HunyuanVideoFamily):
    """Transformers of image to video whose first frame is the picture (image_condition_type "token_replace"): it has a
    modulation of its own, and the block stack three arguments more."""

    block_axes: ClassVar = {
        **HunyuanVideoFamily.block_axes,
        "rotary_cos": {0: "later_tokens"},
        "rotary_sin": {0: "later_tokens"},
        "token_replace_emb": {0: "batch"},
        "first_rotary_cos": {0: "first_tokens"},
        "first_rotary_sin": {0: "first_tokens"},
    }
    random_arguments: ClassVar = (*HunyuanVideoFamily.random_arguments, "token_replace_emb")

    def example_inputs(self) -> BlockInputs:
        inputs = super().example_inputs()
        first_tokens = inputs["hidden_states"].shape[1] // 4
        return _parted(inputs, first_tokens) | {"token_replace_emb": torch.randn_like(inputs["temb"])}

    def embed(self, inputs: Inputs, condition: torch.Tensor, constants: Constants) -> BlockInputs:
        blocks = super().embed(inputs, condition, constants)
        first_tokens = blocks["hidden_states"].shape[1] // (
            inputs["hidden_states"].shape[2] // self.transformer.config.patch_size_t
        )
        return _parted(blocks, first_tokens) | {"token_replace_emb": self._token_replace_emb(inputs, constants)}

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Of the last frame: the first one is the picture that the request brought."""
        return super().preview_latents(pipe, latents[:, :, -1:], height, width)

    def _token_replace_emb(self, inputs: Inputs, constants: Constants) -> torch.Tensor:
        """(B, D): what HunyuanVideoConditionEmbedding computes for the first frame, which has no noise at any step."""
        embed, pooled, timestep = self.transformer.time_text_embed, inputs["pooled_projections"], inputs["timestep"]
        text = once(constants, "text", (pooled,), lambda: embed.text_embedder(pooled))
        start = once(
            constants,
            "start",
            (timestep.shape, timestep.dtype, pooled.dtype),
            lambda: embed.timestep_embedder(embed.time_proj(torch.zeros_like(timestep)).to(dtype=pooled.dtype)),
        )
        return start + text


def _parted(blocks: BlockInputs, first_tokens: int) -> BlockInputs:
    """The arguments with the rotary tables (I, R) in two parts: of the first frame, and of the later ones."""
    rotary = {name: blocks[name] for name in ("rotary_cos", "rotary_sin")}
    first = {f"first_{name}": table[:first_tokens] for name, table in rotary.items()}
    return {**blocks, **{name: table[first_tokens:] for name, table in rotary.items()}, **first}
