"""HunyuanVideo, text and image to video: whatever runs on diffusers' HunyuanVideoTransformer3DModel (structure of
diffusers 0.42.0, models/transformers/transformer_hunyuan_video.py, guarded by the parity tests)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from plugin.families.embedded_guidance import EmbeddedGuidance
from plugin.families.examples import Example
from plugin.families.standing_in import Arguments, Blocks
from plugin.families.token_split import TokenSplit
from plugin.families.videos import VideoFamily

_TWO_STREAMS = ("hidden_states", "encoder_hidden_states")  # as its blocks return them


class HunyuanVideo(EmbeddedGuidance, VideoFamily):
    """HunyuanVideo. Where the first frame is the picture that the video begins with (image_condition_type
    "token_replace"), its tokens have a modulation of their own."""

    name = "hunyuan_video"
    lists = (
        Blocks("transformer_blocks", _TWO_STREAMS),
        Blocks("single_transformer_blocks", _TWO_STREAMS, renamed=(("freqs_cis", "image_rotary_emb"),), modules=1),
    )
    kept = ("time_text_embed.text_embedder", "time_text_embed.guidance_embedder")
    timed = ("time_text_embed.time_proj", "time_text_embed.timestep_embedder")
    embeds = ("rope", "context_embedder")
    stream_embeds = ("x_embedder",)
    layers = ("num_layers", "num_single_layers")

    @property
    def token_split(self) -> TokenSplit | None:
        """None where the blocks cut the tokens of the first frame off, which are in one process alone."""
        if self.transformer.config.image_condition_type == "token_replace":
            return None
        return TokenSplit(picture_first=True, whole=("attention_mask",))

    def given(self, name: str, arguments: Arguments) -> Any:
        """With the number of tokens of the first frame goes that of the later ones: lengths are symbols in an export,
        and blocks cut the tokens in two and put them together again."""
        first = arguments[name]
        return (first, arguments["hidden_states"].shape[1] - first) if name == "num_tokens" and first else first

    def run_blocks(self, blocks: Sequence[nn.Module], spec: Blocks, arguments: Arguments) -> Arguments:
        if isinstance(arguments.get("num_tokens"), tuple):
            (first, later), video = arguments["num_tokens"], arguments["hidden_states"]
            tables = "freqs_cis" if "freqs_cis" in arguments else "image_rotary_emb"
            arguments = {
                **arguments,
                "num_tokens": first,
                "hidden_states": video.reshape(video.shape[0], first + later, video.shape[2]),
                tables: tuple(each.reshape(first + later, each.shape[1]) for each in arguments[tables]),
            }
        return super().run_blocks(blocks, spec, arguments)

    def example_call(self, size: Example) -> dict[str, Any]:
        config = self.transformer.config
        return {
            "hidden_states": self.spatial(size),
            "timestep": self.timestep(size, 500.0),
            "encoder_hidden_states": self.random(size.batch, size.text, config.text_embed_dim),
            "encoder_attention_mask": self.ones(size.batch, size.text),
            "pooled_projections": self.random(size.batch, config.pooled_projection_dim),
            "guidance": self.timestep(size, 6000.0) if config.guidance_embeds else None,
        }

    def frames(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """From the last frame on where the first one is the picture that the request brought."""
        own = latents[:, : pipe.vae.config.latent_channels]  # those of a picture follow
        return own[:, :, -1:] if self.transformer.config.image_condition_type == "token_replace" else own
