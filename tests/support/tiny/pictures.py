"""Tiny pipelines that take pictures: how each is made, and how plain diffusers is called for each of its tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlPipeline,
    FluxFillPipeline,
    FluxKontextPipeline,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from PIL import Image

from tests.support.tiny.flux import tiny_flux
from tests.support.tiny.hunyuan_image import tiny_hunyuan_image_to_video
from tests.support.tiny.hunyuan_video import tiny_hunyuan_video
from tests.support.tiny.wan import tiny_wan, tiny_wan_image_to_video

Pictures = list[Image.Image]


@dataclass(frozen=True)
class PictureCase:
    """One task of a tiny pipeline.

    Attributes:
        make: the pipeline that is loaded, from an empty folder for files of tokenizers.
        pipeline: the class that plain diffusers does the task with.
        arguments: of its call, for the pictures.
        pictures: how many the request brings.
        mask: whether it brings a mask.
        strengths: that it is called with; (None,) where it takes none.
        num_frames: of the result.
        parameters: of the model's configuration.
        calls: engine calls at a full step.
        scale: the sides of pictures and results, in those that are asked for, where a pipeline takes no small ones.
        patch: makes the pipeline's work small, in the pipeline and in the plan.
    """

    make: Callable[[Path], Any]
    pipeline: str
    arguments: Callable[[Pictures], Mapping[str, Any]]
    pictures: int = 1
    mask: bool = False
    strengths: tuple[float | None, ...] = (None,)
    num_frames: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    calls: int = 1
    scale: int = 1
    patch: Callable[[pytest.MonkeyPatch], None] = field(default=lambda _: None)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def left_half(width: int, height: int) -> Image.Image:
    """A mask: white on the left, black on the right."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def plain(pipe: Any, name: str) -> Any:
    """Another pipeline of diffusers over the same components."""
    pipeline_class = getattr(diffusers, name)
    if type(pipe) is pipeline_class:
        return pipe
    wanted = inspect.signature(pipeline_class.__init__).parameters
    parts = {**pipe.config, **pipe.components}
    made = pipeline_class(**{each: parts[each] for each in parts if each in wanted})
    made.set_progress_bar_config(disable=True)
    return made


def side_by_side(pictures: Pictures) -> Image.Image:
    """Pictures of one height as one."""
    return Image.fromarray(np.concatenate([np.asarray(each) for each in pictures], axis=1))


def tiny_skyreels() -> HunyuanSkyreelsImageToVideoPipeline:
    """A HunyuanSkyreelsImageToVideoPipeline of random weights."""
    text = tiny_hunyuan_video()
    config = {**text.transformer.config, "in_channels": 8, "guidance_embeds": False}
    torch.manual_seed(1)
    names = inspect.signature(HunyuanVideoTransformer3DModel.__init__).parameters
    transformer = HunyuanVideoTransformer3DModel(**{each: config[each] for each in config if each in names})
    pipe = HunyuanSkyreelsImageToVideoPipeline(**{**text.components, "transformer": transformer.eval()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


STRENGTHS = (0.3, 0.6, 1.0)
_SIZE = {"height": "32", "width": "32"}
SMALL = {**_SIZE, "size_multiple": "8", "min_size": "16", "guidance_scale": "2.5", "max_sequence_length": "16"}
_VIDEO = {**_SIZE, "min_size": "16", "max_frames": "17", "num_frames": "5", "max_sequence_length": "16"}
_HUNYUAN = {**_VIDEO, "max_sequence_length": "64", "guidance_scale": "6.0"}
_WAN = {**_VIDEO, "guidance_scale": "5.0", "max_sequence_length": "512"}


def first(pictures: Pictures) -> Mapping[str, Any]:
    """The argument of pipelines that take one."""
    return {"image": pictures[0]}


CASES: dict[str, PictureCase] = {
    "flux image to image": PictureCase(tiny_flux, "FluxImg2ImgPipeline", first, strengths=STRENGTHS, parameters=SMALL),
    "flux inpainting": PictureCase(
        tiny_flux, "FluxInpaintPipeline", first, mask=True, strengths=STRENGTHS, parameters=SMALL
    ),
    "flux fill": PictureCase(
        lambda folder: tiny_flux(folder, pipeline_class=FluxFillPipeline, in_channels=48),
        "FluxFillPipeline",
        first,
        mask=True,
        strengths=STRENGTHS,
        parameters=SMALL,
    ),
    "flux kontext": PictureCase(
        lambda folder: tiny_flux(folder, pipeline_class=FluxKontextPipeline, levels=5),
        "FluxKontextPipeline",
        first,
        parameters={**SMALL, "size_multiple": "32", "min_size": "32"},
    ),
    "flux kontext, three pictures": PictureCase(
        lambda folder: tiny_flux(folder, pipeline_class=FluxKontextPipeline, levels=5),
        "FluxKontextPipeline",
        lambda pictures: {"image": side_by_side(pictures)},
        pictures=3,
        parameters={**SMALL, "size_multiple": "32", "min_size": "32"},
    ),
    "flux control": PictureCase(
        lambda folder: tiny_flux(folder, pipeline_class=FluxControlPipeline, in_channels=32),
        "FluxControlPipeline",
        lambda pictures: {"control_image": pictures[0]},
        parameters=SMALL,
    ),
    "flux control, image to image": PictureCase(
        lambda folder: tiny_flux(folder, pipeline_class=FluxControlPipeline, in_channels=32),
        "FluxControlImg2ImgPipeline",
        lambda pictures: {"image": pictures[0], "control_image": pictures[1]},
        pictures=2,
        strengths=STRENGTHS,
        parameters=SMALL,
    ),
    "flux control, inpainting": PictureCase(
        lambda folder: tiny_flux(folder, pipeline_class=FluxControlPipeline, in_channels=32),
        "FluxControlInpaintPipeline",
        lambda pictures: {"image": pictures[0], "control_image": pictures[1]},
        pictures=2,
        mask=True,
        strengths=STRENGTHS,
        parameters=SMALL,
    ),
    "wan video to video": PictureCase(
        tiny_wan,
        "WanVideoToVideoPipeline",
        lambda pictures: {"video": pictures},
        pictures=5,
        strengths=STRENGTHS,
        num_frames=5,
        parameters=_WAN,
        calls=2,
    ),
    "wan image to video": PictureCase(
        lambda folder: tiny_wan_image_to_video(folder, image_encoder=True),
        "WanImageToVideoPipeline",
        first,
        num_frames=5,
        parameters=_WAN,
        calls=2,
    ),
    "wan2.2 image to video": PictureCase(
        lambda folder: tiny_wan_image_to_video(folder, image_encoder=False, boundary_ratio=0.9),
        "WanImageToVideoPipeline",
        first,
        num_frames=5,
        parameters=_WAN,
        calls=2,
    ),
    "wan first and last frame": PictureCase(
        lambda folder: tiny_wan_image_to_video(folder, image_encoder=True, pictures=2),
        "WanImageToVideoPipeline",
        lambda pictures: {"image": pictures[0], "last_image": pictures[1]},
        pictures=2,
        num_frames=5,
        parameters=_WAN,
        calls=2,
    ),
    "wan2.2 of text and image": PictureCase(
        lambda folder: tiny_wan(folder, expand_timesteps=True),
        "WanImageToVideoPipeline",
        first,
        num_frames=5,
        parameters=_WAN,
        calls=2,
    ),
    "hunyuan video, concatenated": PictureCase(
        lambda _: tiny_hunyuan_image_to_video("latent_concat"),
        "HunyuanVideoImageToVideoPipeline",
        first,
        num_frames=9,
        parameters=_HUNYUAN,
    ),
    "hunyuan video, first frame": PictureCase(
        lambda _: tiny_hunyuan_image_to_video("token_replace"),
        "HunyuanVideoImageToVideoPipeline",
        first,
        num_frames=9,
        parameters=_HUNYUAN,
    ),
    "skyreels image to video": PictureCase(
        lambda _: tiny_skyreels(),
        "HunyuanSkyreelsImageToVideoPipeline",
        first,
        num_frames=5,
        parameters={**_HUNYUAN, "max_sequence_length": "256"},
    ),
}
