"""A tiny PRX: 3 blocks whose picture tokens attend to the text, an autoencoder of 8x, 4 latent channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel
from transformers import T5GemmaConfig, T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder, fill_zeros, word_tokenizer
from tests.support.tiny.family import Guidance, TinyFamily


def tiny_prx(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    resolution_embeds: bool = False,
    bottleneck_size: int | None = None,
) -> PRXPipeline:
    """A PRXPipeline of random weights.

    Args:
        folder: not used, no file is needed.
        dtype: of all weights.
        resolution_embeds: the model is told the size of the latents, as PRX of 7 billion parameters is.
        bottleneck_size: features between the two layers that embed a patch; None for one layer.
    """
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    pipe = PRXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=_t5gemma(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=PRXTransformer2DModel(
            in_channels=4,
            patch_size=2,
            context_in_dim=32,
            hidden_size=32,
            num_heads=2,
            depth=3,
            axes_dim=[8, 8],
            resolution_embeds=resolution_embeds,
            bottleneck_size=bottleneck_size,
        ),
    )
    fill_zeros(pipe.transformer)
    return ready(pipe, dtype)


def _t5gemma(vocab_size: int) -> T5GemmaEncoder:
    """The encoder of T5Gemma; its configuration is one of the whole model, which is what is loaded later."""
    encoder = T5GemmaModuleConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
    )
    values = {name: value for name, value in encoder.to_dict().items() if name != "model_type"}
    return T5GemmaEncoder(T5GemmaConfig(encoder=encoder, **values))


FAMILY = TinyFamily(
    make=lambda folder, dtype: tiny_prx(folder, dtype=dtype),
    arguments={"prompt": "a red apple", "use_resolution_binning": False, "tokenizer_max_length": 16},
    batch={},  # with guidance the pipeline gives the transformer two timesteps whatever the batch, which fails for four
    sizes=({"height": 64, "width": 64}, {"height": 32, "width": 128}, {"height": 48, "width": 32}),
    guidance={
        "none": Guidance({"guidance_scale": 1.0}),
        "batched": Guidance({"guidance_scale": 4.0}),
    },
    feature_module="final_layer",
)
