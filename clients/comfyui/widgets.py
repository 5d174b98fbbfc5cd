"""The widgets of the nodes, as INPUT_TYPES has them (docs.comfy.org/custom-nodes/backend/datatypes).

Each has the name of the request's field that it sets, so that every message names a widget.
"""

from __future__ import annotations

from typing import Any

from .checks import AS_THE_PRESET, MOST_PICTURES
from .known import Published
from .limits import Limits

Input = tuple[Any, ...]  # a type, and perhaps its options

CACHE = "TRITON_TAYLORSEER_CACHE"  # the type of the Cache Settings node's output
_EXACT_SEED = 2**53 - 1  # the page's numbers are exact up to it; through ComfyUI's API seeds go up to 2**63 - 1


def texts() -> dict[str, Input]:
    """The two prompts."""
    return {
        "prompt": ("STRING", {"default": "", "multiline": True, "dynamicPrompts": True, "tooltip": "What to show."}),
        "negative_prompt": (
            "STRING",
            {
                "default": "",
                "multiline": True,
                "dynamicPrompts": True,
                "tooltip": "What not to show. It doubles the work of models without guidance of their own.",
            },
        ),
    }


def sampling(limits: Limits) -> dict[str, Input]:
    """Seed, steps and guidance."""
    return {
        "seed": (
            "INT",
            {
                "default": 0,
                "min": 0,
                "max": _EXACT_SEED,
                "control_after_generate": True,
                "tooltip": "The seed of the noise; the further pictures of a batch have the next ones.",
            },
        ),
        "num_inference_steps": (
            "INT",
            {"default": limits.num_inference_steps, "min": 1, "max": limits.max_steps, "tooltip": "Denoising steps."},
        ),
        "guidance_scale": (
            "FLOAT",
            {
                "default": limits.guidance_scale,
                "min": 0.0,
                "max": 100.0,
                "step": 0.1,
                "tooltip": "How strongly the picture follows the prompt.",
            },
        ),
    }


def size(limits: Limits) -> dict[str, Input]:
    """Width and height."""
    step = _side_step(limits)
    options = {"min": -(-limits.min_size // step) * step, "max": limits.max_size, "step": step}
    return {
        "width": ("INT", {"default": limits.width, **options, "tooltip": "In pixels."}),
        "height": ("INT", {"default": limits.height, **options, "tooltip": "In pixels."}),
    }


def size_of_picture(limits: Limits) -> dict[str, Input]:
    """Width and height of a result that follows its picture unless they are set."""
    options = {"default": 0, "min": 0, "max": limits.max_size, "step": _side_step(limits)}
    tip = "In pixels. 0: as the picture has it."
    return {name: ("INT", {**options, "tooltip": tip}) for name in ("width", "height")}


def strength(published: Published) -> dict[str, Input]:
    """How much of a picture changes."""
    tip = "How much of the picture changes: 1 keeps nothing of it. 0: the model's own."
    options = {"default": published.strength or 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tip}
    return {"strength": ("FLOAT", options)}


def batch() -> dict[str, Input]:
    """How many pictures."""
    tip = "Pictures to make, with seeds one after the other. They are sent side by side."
    return {"batch_size": ("INT", {"default": 1, "min": 1, "max": MOST_PICTURES, "tooltip": tip})}


def frames(limits: Limits) -> dict[str, Input]:
    """How long a video is."""
    # ComfyUI's page may round to multiples of the step, counted from the minimum.
    options = {"default": limits.num_frames, "min": 1, "max": limits.max_frames, "step": limits.frames_multiple}
    return {"num_frames": ("INT", {**options, "tooltip": "Frames of the video."})}


def frames_of_video(limits: Limits) -> dict[str, Input]:
    """How long a video is that may follow another."""
    tip = "Frames of the video. 0: the model's own number, or as many as go in."
    return {"num_frames": ("INT", {"default": limits.num_frames, "min": 0, "max": limits.max_frames, "tooltip": tip})}


def class_label(limits: Limits) -> dict[str, Input]:
    """What to show, for models without a prompt."""
    tip = "What to show, for models that take a class label; leave the prompt empty then. -1: none."
    return {"class_label": ("INT", {"default": -1, "min": -1, "max": limits.num_classes - 1, "tooltip": tip})}


def cache_input() -> dict[str, Input]:
    """The settings of the Cache Settings node; without them a request has the model's own."""
    return {"cache": (CACHE, {"forceInput": True, "tooltip": "From Cache Settings; without it the model's own."})}


def cached(predictors: tuple[str, ...], coordinates: tuple[str, ...], limits: Limits) -> dict[str, Input]:
    """The cache settings; each has a value that stands for the preset's."""

    def integer(default: int, high: int, tip: str) -> Input:
        return "INT", {"default": default, "min": default, "max": high, "tooltip": f"{tip} {default}: as the preset."}

    preset = f"Settings with a name, as paper. Empty: the model's own, at present {limits.cache_preset}."
    schedule = "Which steps are full: interval, even, or the steps themselves, as 0 4 9 13. Empty: as the preset."
    error = "Target error of the forecasts; each full step measures it and schedules the next. 0: as the preset."
    return {
        "cache_preset": ("STRING", {"default": "", "tooltip": preset}),
        "cache_interval": integer(0, 1000, "After the warm-up every N-th step is full; 1 turns the cache off."),
        "cache_order": integer(-1, 8, "The order of the forecast."),
        "cache_warmup_steps": integer(-1, 1000, "Number of first steps, all of them full."),
        "cache_cooldown_steps": integer(-1, 1000, "Number of last steps, all of them full."),
        "cache_predictor": ([AS_THE_PRESET, *predictors], {"tooltip": "How features are forecast."}),
        "cache_schedule": ("STRING", {"default": "", "tooltip": schedule}),
        "cache_coordinate": ([AS_THE_PRESET, *coordinates], {"tooltip": "What forecasts extrapolate along."}),
        "cache_max_error": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.001, "tooltip": error}),
        "cache_min_interval": integer(0, 1000, "With cache_max_error: the least distance between full steps."),
        "cache_max_full_steps": integer(0, 1000, "With cache_max_error: the most full steps."),
    }


def picture(name: str, tip: str) -> dict[str, Input]:
    """A socket for pictures."""
    return {name: ("IMAGE", {"tooltip": tip})}


def _side_step(limits: Limits) -> int:
    return max(limits.size_multiple, 8)
