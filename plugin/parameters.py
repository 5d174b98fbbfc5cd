"""The parameters of a model's config.pbtxt: how the text of each is read, its default, and what it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from plugin.engine_specs import ENGINES
from plugin.limits import Limits
from plugin.repository import InvalidConfig
from taylorseer import COORDINATES, PREDICTORS, CacheConfig

DENOISERS = ("transformer", "transformer_2")  # the components of pipelines that denoise; Wan2.2's have both


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model.

    Attributes:
        read: makes the value from the text in config.pbtxt. Raises ValueError with what it must be.
        default: the value of a model that does not set it; None for no value.
        meaning: one sentence, with the unit if there is one.
    """

    read: Callable[[str], Any]
    default: Any
    meaning: str


def parse_parameters(texts: Mapping[str, str]) -> dict[str, Any]:
    """The value of every parameter, name -> value: what `texts` say, and the default of each that they leave out.

    Raises:
        InvalidConfig: an unknown name, no pipeline, or a text that cannot be read.
    """
    unknown = sorted(set(texts) - set(PARAMETERS))
    if unknown:
        raise InvalidConfig(f"parameter {unknown[0]!r} is unknown, must be one of: {', '.join(sorted(PARAMETERS))}")
    if "pipeline" not in texts:
        raise InvalidConfig("parameter 'pipeline' is missing, must be a hub id or a folder")
    return {
        name: _read(name, texts[name]) if name in texts else parameter.default for name, parameter in PARAMETERS.items()
    }


def name_value_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """The pairs in a text such as "vae=float32, text_encoder=float16".

    Raises:
        ValueError: a part without a name or a value.
    """
    pairs = tuple(tuple(part.strip() for part in pair.split("=", 1)) for pair in text.split(",") if pair.strip())
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError("must be name=value pairs, separated by commas")
    return pairs  # type: ignore[return-value]


def _read(name: str, text: str) -> Any:
    try:
        return PARAMETERS[name].read(text)
    except ValueError as error:
        raise InvalidConfig(f"parameter {name!r} is {text!r}, {error}") from None


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _integer(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < low:
            raise ValueError(f"must be an integer of at least {low}")
        return int(text)

    return read


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _dtype(text: str) -> str:
    dtypes = ("float32", "bfloat16", "float16")
    if text not in dtypes:
        raise ValueError(f"must be one of: {', '.join(dtypes)}")
    return text


def _kinds(*kinds: str) -> Callable[[str], tuple[tuple[str, str], ...]]:
    def read(text: str) -> tuple[tuple[str, str], ...]:
        pairs = name_value_pairs(text)
        for name, kind in pairs:
            if kind not in kinds:
                raise ValueError(f"must be one of {', '.join(kinds)} for {name}")
        return pairs

    return read


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _dtype_pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = name_value_pairs(text)
    for _, dtype in pairs:
        _dtype(dtype)
    return pairs


PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        # The pipeline
        "pipeline": Parameter(
            str, None, "A hub id or a folder, required; a relative folder begins with . and is relative to the model's."
        ),
        "dtype": Parameter(_dtype, "float32", "The dtype of all weights: float32, bfloat16 or float16."),
        "component_dtypes": Parameter(_dtype_pairs, (), "Other dtypes for single components, as vae=float32."),
        "components": Parameter(
            name_value_pairs,
            (),
            "Components from another place, as text_encoder_4=meta-llama/Llama-3.1-8B-Instruct.",
        ),
        "device": Parameter(str, "cpu", "The torch device, as cpu or cuda:0."),
        "lora": Parameter(
            str, None, "LoRA weights (hub id, folder or file) that are fused into the pipeline when it is loaded."
        ),
        "lora_scale": Parameter(_number, 1.0, "The strength of the LoRA weights."),
        "allow_pickle": Parameter(
            _boolean, False, "Load weights that are pickles (.bin, .pt), not safetensors: who wrote them is trusted."
        ),
        "quantization": Parameter(
            _kinds("int8", "fp8", "nf4"), (), "Weights below 16 bits, by component: int8, fp8 or nf4."
        ),
        "offload": Parameter(
            _kinds("cpu", "idle"),
            (),
            "Components that run on the CPU (cpu), or are moved to the device for a call and back (idle).",
        ),
        "vae_tiling": Parameter(_boolean, False, "Decode in tiles, which large videos need."),
        "max_sequence_length": Parameter(
            _integer(1), None, "Text tokens of a prompt; not set, the pipeline's own number."
        ),
        "torch_threads": Parameter(_integer(0), 0, "Threads of one torch operation on the CPU; 0 for all cores."),
        # The engine
        "engine": Parameter(str, "onnxruntime", f"What runs the block stack: {', '.join(ENGINES)}."),
        "engine_model": Parameter(
            str, None, "The model that runs the block stack; required with engine triton, refused with others."
        ),
        "engine_threads": Parameter(_integer(0), 0, "Threads of one engine call on the CPU; 0 for all cores."),
        "engine_lanes": Parameter(
            _integer(1), 1, "Concurrent engine calls on the CPU, each with its share of the threads."
        ),
        "sequence_parallel": Parameter(
            _integer(1), 1, "With engine parallel: processes that share the tokens of one engine call."
        ),
        "cfg_parallel": Parameter(
            _integer(1), 1, "With engine parallel: groups of processes, each for other rows or guidance branches."
        ),
        "devices": Parameter(
            _names, (), "With engine parallel: the device of each process; not set, the GPUs from that of device on."
        ),
        "max_batch": Parameter(
            _integer(0),
            0,
            "Most rows of one engine call; 0 for the limit that a measurement at load finds, 1 packs nothing.",
        ),
        "fixed_batch": Parameter(
            _integer(0),
            0,
            "Pad every engine call to this many rows, so that results are bit-identical whatever else is running; "
            "0 does not pad.",
        ),
        "max_batch_wait_ms": Parameter(
            _number, 0.0, "Longest time in milliseconds that an engine call waits for other requests to join it."
        ),
        # Many requests
        "max_in_flight": Parameter(_integer(1), 8, "Requests that run at once."),
        "max_waiting": Parameter(
            _integer(0), 64, "Requests that may be queued beyond those that run; further ones are refused."
        ),
        "memory_budget_mib": Parameter(
            _integer(0),
            0,
            "Memory in MiB for the caches and the work of all running requests; 0 for four fifths of the GPU memory, "
            "or half of the main memory, that is free once the model is loaded.",
        ),
        "text_cache_mib": Parameter(
            _integer(0), 64, "Memory in MiB for the embeddings of the latest prompts; 0 keeps none."
        ),
        "max_cache_interval": Parameter(_integer(1), 10, "How far a deadline or the load may stretch the interval."),
        "stretch_from_waiting": Parameter(
            _integer(0),
            0,
            "Queue length from which the intervals of starting requests are stretched, evenly up to "
            "max_cache_interval at a full queue; 0 for never.",
        ),
        "stuck_after_s": Parameter(
            _number,
            600.0,
            "Seconds that one operation of a request may take before the model counts as failed; 0 for no limit.",
        ),
        "unload_after_s": Parameter(
            _number, 0.0, "Seconds without a request after which the weights leave the memory; 0 for never."
        ),
        "preview_interval": Parameter(_integer(1), 5, "Steps from one preview to the next."),
        # What a request gets for a field that it leaves out
        "num_inference_steps": Parameter(_integer(1), 50, "Denoising steps of a request that does not say."),
        "guidance_scale": Parameter(_number, 3.5, "Guidance scale of a request that does not say."),
        "height": Parameter(_integer(1), 1024, "Height in pixels of a request that does not say."),
        "width": Parameter(_integer(1), 1024, "Width in pixels of a request that does not say."),
        "num_frames": Parameter(_integer(1), 1, "Frames of a request that does not say."),
        "strength": Parameter(
            _number, None, "Strength of a request with a picture that does not say; not set, the pipeline's own."
        ),
        "fps": Parameter(_integer(1), 16, "Frames per second of a video's file."),
        "deadline_ms": Parameter(_integer(1), None, "Deadline in milliseconds of a request that does not say."),
        "cache_preset": Parameter(str, "default", "The preset of a request that sets no field of the cache."),
        # The preset "default"
        "cache_interval": Parameter(
            _integer(1), CacheConfig.interval, "N: after the warm-up every N-th step is full; 1 turns the cache off."
        ),
        "cache_order": Parameter(_integer(0), CacheConfig.order, "The order of the forecast."),
        "cache_warmup_steps": Parameter(
            _integer(0), CacheConfig.warmup_steps, "Number of first steps, all of them full."
        ),
        "cache_cooldown_steps": Parameter(
            _integer(0), CacheConfig.cooldown_steps, "Number of last steps, all of them full."
        ),
        "cache_predictor": Parameter(
            str, CacheConfig.predictor, f"How features are forecast: {', '.join(PREDICTORS)}."
        ),
        "cache_schedule": Parameter(
            str, CacheConfig.schedule, "Which steps are full: interval, even, or the steps themselves, as 0 4 9 13."
        ),
        "cache_coordinate": Parameter(
            str, CacheConfig.coordinate, f"The coordinate along which forecasts extrapolate: {', '.join(COORDINATES)}."
        ),
        "cache_max_error": Parameter(
            _number, CacheConfig.max_error, "Target error of the forecasts; not set, the schedule alone decides."
        ),
        "cache_min_interval": Parameter(
            _integer(1), CacheConfig.min_interval, "With cache_max_error: the minimum distance between full steps."
        ),
        "cache_max_full_steps": Parameter(
            _integer(1), CacheConfig.max_full_steps, "With cache_max_error: the maximum number of full steps."
        ),
        # What a request may ask for
        "max_steps": Parameter(_integer(1), Limits.max_steps, "Most denoising steps."),
        "max_prompt_bytes": Parameter(_integer(1), Limits.max_prompt_bytes, "Longest prompt in bytes of UTF-8."),
        "min_size": Parameter(_integer(1), Limits.min_size, "Smallest height and width in pixels."),
        "max_size": Parameter(_integer(1), Limits.max_size, "Largest height and width in pixels."),
        "size_multiple": Parameter(
            _integer(1), Limits.size_multiple, "Height and width are multiples of this many pixels."
        ),
        "max_frames": Parameter(_integer(1), Limits.max_frames, "Most frames; 1 for models of pictures."),
        "frames_multiple": Parameter(_integer(1), Limits.frames_multiple, "A video has 1 + a multiple of it frames."),
        "takes_prompt": Parameter(
            _boolean, Limits.takes_prompt, "true for models of a prompt, false for models of a class label."
        ),
        "examples": Parameter(
            _lines, (), "Prompts that show what the model can do, one on each line; the front's page offers them."
        ),
        "num_classes": Parameter(_integer(1), Limits.num_classes, "Class labels of a model that takes them."),
        "max_pictures": Parameter(_integer(1), Limits.max_pictures, "Most files of input_image."),
        "max_picture_bytes": Parameter(_integer(1), Limits.max_picture_bytes, "Largest picture file in bytes."),
        "max_picture_pixels": Parameter(
            _integer(1),
            Limits.max_picture_pixels,
            "Most pixels of a picture file, all frames of an animation together.",
        ),
        "max_followed_pixels": Parameter(
            _integer(0),
            Limits.max_followed_pixels,
            "Most pixels of a result whose size follows from its picture; 0 for no limit but max_size.",
        ),
    }
)
