"""Tiny pipelines of declared families as other published models have them: other pipeline classes over the same
transformer, and other configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    PixArtAlphaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)

from tests.support.tiny import (
    cogvideox,
    cosmos,
    flux2,
    hunyuan_dit,
    hunyuan_image_21,
    hunyuan_video15,
    kandinsky5,
    krea2,
    pixart,
    prx,
    sana,
    sd3,
)
from tests.support.tiny.encoders_served import ready
from tests.support.tiny.family import Guidance, TinyFamily


def tiny_sana_sprint(folder: Path, *, dtype: torch.dtype = torch.float32) -> SanaSprintPipeline:
    """A SanaSprintPipeline of random weights: the guidance scale is an input of its transformer."""
    other = sana.tiny_sana(folder, qk_norm="rms_norm_across_heads")
    config = {name: each for name, each in other.transformer.config.items() if name[0] != "_"}
    torch.manual_seed(0)
    pipe = SanaSprintPipeline(
        tokenizer=other.tokenizer,
        text_encoder=other.text_encoder,
        vae=other.vae,
        transformer=SanaTransformer2DModel.from_config({**config, "guidance_embeds": True}),
        scheduler=SCMScheduler(),
    )
    return ready(pipe, dtype)


def _variant(
    family: TinyFamily, make: Any, guidance: Mapping[str, Guidance] | None = None, **options: Any
) -> TinyFamily:
    """A family's pipeline made with other options, and perhaps guided in another way."""
    return replace(
        family,
        make=lambda folder, dtype: make(folder, dtype=dtype, **options),
        guidance=guidance or family.guidance,
    )


_WITH_FRAMES = (
    {"height": 64, "width": 64, "num_frames": 5},
    {"height": 32, "width": 128, "num_frames": 5},
    {"height": 48, "width": 32, "num_frames": 9},
)

VARIANTS: dict[str, TinyFamily] = {
    "flux2_klein": _variant(
        flux2.KLEIN,
        flux2.tiny_flux2_klein,
        {"none": Guidance({"guidance_scale": 1.0}), "ignored": Guidance({"guidance_scale": 4.0})},
    ),
    "flux2_klein_base": flux2.KLEIN,
    "pixart_alpha": _variant(
        replace(
            pixart.FAMILY,
            arguments={key: each for key, each in pixart.FAMILY.arguments.items() if key != "max_sequence_length"},
        ),
        pixart.tiny_pixart,
        pipeline_class=PixArtAlphaPipeline,
    ),
    "kandinsky5_video": _variant(
        replace(kandinsky5.FAMILY, sizes=_WITH_FRAMES), kandinsky5.tiny_kandinsky5, video=True
    ),
    "sana_1_5": _variant(sana.FAMILY, sana.tiny_sana, qk_norm="rms_norm_across_heads", timestep_scale=0.001),
    "sana_sprint": _variant(
        # Its own number of steps is 2; more need no intermediate timestep.
        replace(sana.FAMILY, arguments={**sana.FAMILY.arguments, "intermediate_timesteps": None}),
        tiny_sana_sprint,
        {
            "distilled": Guidance({"guidance_scale": 4.5}),
            "distilled, weak": Guidance({"guidance_scale": 1.0}),
        },
    ),
    "sd3_medium": _variant(sd3.FAMILY, sd3.tiny_sd3, qk_norm=None),
    "sd3_5_medium": _variant(sd3.FAMILY, sd3.tiny_sd3, dual_attention_layers=(0, 1)),
    "krea2_turbo": _variant(krea2.FAMILY, krea2.tiny_krea2, is_distilled=True),
    "hunyuan_dit_1_1": _variant(hunyuan_dit.FAMILY, hunyuan_dit.tiny_hunyuan_dit, size_and_style=True),
    "hunyuan_image_distilled": hunyuan_image_21.DISTILLED,
    "prx_bottleneck": _variant(prx.FAMILY, prx.tiny_prx, resolution_embeds=True, bottleneck_size=8),
    "cosmos_rotary": _variant(cosmos.FAMILY, cosmos.tiny_cosmos, learned_positions=False),
    "cogvideox_2b": _variant(
        cogvideox.FAMILY, cogvideox.tiny_cogvideox, rotary=False, scheduler_class=CogVideoXDDIMScheduler
    ),
    "cogvideox_1_5": _variant(cogvideox.FAMILY, cogvideox.tiny_cogvideox, patch_size_t=2),
    "hunyuan_video15_unguided": hunyuan_video15.UNGUIDED,
}
