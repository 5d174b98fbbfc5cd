"""Wan2.1 and Wan2.2, text and image to video: whatever runs on diffusers' WanTransformer3DModel (structure of diffusers
0.42.0, models/transformers/transformer_wan.py, guarded by the parity tests)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from plugin.families.base import Inputs
from plugin.families.examples import Example
from plugin.families.standing_in import Arguments, Blocks
from plugin.families.token_split import TokenSplit
from plugin.families.videos import VideoFamily

_TEXT_TOKENS = 512  # WanAttnProcessor treats all tokens before the last 512 as those of the picture


class Wan(VideoFamily):
    """Wan, also its two experts.

    The exported stack takes one timestep for a whole video; pipelines of `expand_timesteps` need the torch engine.
    """

    name = "wan"
    lists = (Blocks("blocks", modules=3),)
    timed = ("condition_embedder.timesteps_proj", "condition_embedder.time_embedder")
    embeds = (
        "rope",
        "condition_embedder.time_proj",
        "condition_embedder.text_embedder",
        "condition_embedder.image_embedder",
    )
    stream_embeds = ("patch_embedding",)

    @property
    def _sees_pictures(self) -> bool:
        """Whether the blocks attend to a picture that an image encoder has read."""
        return self.transformer.config.added_kv_proj_dim is not None

    @property
    def token_split(self) -> TokenSplit:
        """Text, and a picture that an encoder has read, are attended to across, and not split."""
        return TokenSplit(text=False)

    def check(self, inputs: Inputs) -> None:
        super().check(inputs)
        if not self._sees_pictures:
            return
        if inputs["encoder_hidden_states_image"] is None:
            raise ValueError("encoder_hidden_states_image is left out, must be given to this transformer")
        if (tokens := inputs["encoder_hidden_states"].shape[1]) != _TEXT_TOKENS:
            raise ValueError(f"encoder_hidden_states has {tokens} tokens, must have {_TEXT_TOKENS}")

    def run_blocks(self, blocks: Sequence[nn.Module], spec: Blocks, arguments: Arguments) -> Arguments:
        if self._sees_pictures:  # for the export, where the length is a symbol
            torch._check(arguments["encoder_hidden_states"].shape[1] > _TEXT_TOKENS)
        return super().run_blocks(blocks, spec, arguments)

    def example_size(self) -> Example:
        size = super().example_size()
        return replace(size, text=size.text + _TEXT_TOKENS) if self._sees_pictures else size

    def example_call(self, size: Example) -> dict[str, Any]:
        """The tokens of the picture are counted with those of the text; of first and last frame they are as many as the
        transformer has positions for."""
        config = self.transformer.config
        call = {"hidden_states": self.spatial(size), "timestep": self.timestep(size, 500.0)}
        if not self._sees_pictures:
            return {**call, "encoder_hidden_states": self.random(size.batch, size.text, config.text_dim)}
        picture = (size.batch, size.text - _TEXT_TOKENS)
        if config.pos_embed_seq_len is not None:
            picture = (2 * size.batch, config.pos_embed_seq_len // 2)
        return {
            **call,
            "encoder_hidden_states": self.random(size.batch, _TEXT_TOKENS, config.text_dim),
            "encoder_hidden_states_image": self.random(*picture, config.image_dim),
        }

    def frames(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return latents[:, : pipe.vae.config.z_dim]  # those of a picture and its mask follow
