"""Tiny pipelines of declared families that take pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

from tests.support.tiny.chroma import tiny_chroma
from tests.support.tiny.encoders_served import ready
from tests.support.tiny.encoders_single import autoencoder
from tests.support.tiny.flux2 import tiny_flux2, tiny_flux2_klein
from tests.support.tiny.pictures import SMALL, STRENGTHS, PictureCase, Pictures, first, plain
from tests.support.tiny.qwen_image import small_pictures, tiny_qwen_image, tiny_qwen_image_edit
from tests.support.tiny.sd3 import tiny_sd3
from tests.support.tiny.z_image import tiny_z_image

_EDITED = 64  # pixels of each side of the square that editing pipelines scale pictures to the area of


def tiny_sd3_inpainting(folder: Path) -> StableDiffusion3Pipeline:
    """A StableDiffusion3Pipeline of random weights with 16 latent channels: inpainting takes no fewer."""
    pipe = tiny_sd3(folder)
    torch.manual_seed(1)
    config = {**pipe.transformer.config, "in_channels": 16, "out_channels": 16}
    vae = autoencoder(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1)
    pipe.register_modules(transformer=SD3Transformer2DModel.from_config(config), vae=vae)
    return ready(pipe, torch.float32)


def tiny_edit(folder: Path) -> QwenImageEditPipeline:
    """A QwenImageEditPipeline of random weights."""
    return plain(tiny_qwen_image_edit(folder), "QwenImageEditPipeline")


def _scale_edited_pictures_down(patch: pytest.MonkeyPatch) -> None:
    """Lets the editing pipelines scale pictures to a small area, not to a million pixels, and plans count as much."""
    of_area = pipeline_qwenimage_edit.calculate_dimensions
    patch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _, ratio: of_area(_EDITED**2, ratio))
    small_pictures(patch, _EDITED)
    patch.setattr("plugin.families.images._MEGAPIXEL", _EDITED**2)


def _list(pictures: Pictures) -> Mapping[str, Any]:
    return {"image": pictures}


_FLUX2 = PictureCase(
    tiny_flux2,
    "Flux2Pipeline",
    _list,
    parameters={**SMALL, "max_sequence_length": "48"},
    scale=2,  # it takes no picture with a side below 64
)
_KLEIN = replace(_FLUX2, pipeline="Flux2KleinPipeline")
_EDIT = PictureCase(
    tiny_qwen_image_edit,
    "QwenImageEditPlusPipeline",
    _list,
    parameters=SMALL,
    calls=2,
    patch=_scale_edited_pictures_down,
)
_AGAIN = PictureCase(tiny_qwen_image, "", first, strengths=STRENGTHS, parameters=SMALL)  # a pipeline's picture again
_QWEN = replace(_AGAIN, make=tiny_qwen_image, calls=2)
_SD3 = replace(_AGAIN, make=tiny_sd3)
_Z_IMAGE = replace(_AGAIN, make=tiny_z_image)
_CHROMA = replace(_AGAIN, make=tiny_chroma, calls=2)

DECLARED_CASES: dict[str, PictureCase] = {
    "flux2": _FLUX2,
    "flux2, two pictures": replace(_FLUX2, pictures=2),
    "flux2 klein": replace(_KLEIN, make=tiny_flux2_klein),
    "flux2 klein base": replace(_KLEIN, make=partial(tiny_flux2_klein, is_distilled=False), calls=2),
    "qwen image edit": replace(_EDIT, make=tiny_edit, pipeline="QwenImageEditPipeline", arguments=first),
    "qwen image edit plus": _EDIT,
    "qwen image edit plus, two pictures": replace(_EDIT, pictures=2),
    "qwen image edit plus, clean tokens": replace(_EDIT, make=partial(tiny_qwen_image_edit, zero_cond_t=True)),
    "qwen image to image": replace(_QWEN, pipeline="QwenImageImg2ImgPipeline"),
    "qwen image inpainting": replace(_QWEN, pipeline="QwenImageInpaintPipeline", mask=True),
    "sd3 image to image": replace(_SD3, pipeline="StableDiffusion3Img2ImgPipeline"),
    "sd3 inpainting": replace(_SD3, make=tiny_sd3_inpainting, pipeline="StableDiffusion3InpaintPipeline", mask=True),
    "z image to image": replace(_Z_IMAGE, pipeline="ZImageImg2ImgPipeline"),
    "z image inpainting": replace(_Z_IMAGE, pipeline="ZImageInpaintPipeline", mask=True),
    "chroma image to image": replace(_CHROMA, pipeline="ChromaImg2ImgPipeline"),
    # Not ChromaInpaintPipeline: in diffusers 0.42.0 it reads `guidance_embeds`, which no configuration of Chroma has.
}
