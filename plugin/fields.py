"""The fields of a request, one row each: input tensor, allowed values, meaning, and option of the command line.

Light to import: the process of the plain model and the help of the command line read it without torch and numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

from plugin.values import (
    MAX_NAME_BYTES,
    CacheSetting,
    Choice,
    Flag,
    Frames,
    Integer,
    Number,
    PictureFiles,
    ResponseFormat,
    Side,
    Text,
    Values,
)

MAX_SEED = 2**63 - 1
MAX_DEADLINE_MS = 24 * 3600 * 1000
MAX_PRIORITY = 60  # seconds


@dataclass(frozen=True)
class Field:
    """One field of a request, which is one input of every served model.

    Attributes:
        name: of the input.
        type: Triton's data type, as in config.pbtxt.
        values: what it may hold.
        meaning: one or two sentences, for help and documents.
        option: of `triton-taylorseer`, or None for a field without one.
        shape: of the input; -1 for any length.
    """

    name: str
    type: str
    values: Values
    meaning: str
    option: str | None = None
    shape: tuple[int, ...] = (1,)


_PROMPT = Text(lambda limits: limits.max_prompt_bytes)
_STEPS = CacheSetting("an integer from 1 to 1000")

FIELDS: tuple[Field, ...] = (
    Field("prompt", "TYPE_STRING", _PROMPT, "What to show. Models that take a class label take no prompt."),
    Field(
        "negative_prompt",
        "TYPE_STRING",
        _PROMPT,
        "What not to show. Adds a second guidance branch, and with it a second engine call at each full step.",
        "--negative-prompt",
    ),
    Field(
        "class_label",
        "TYPE_INT64",
        Integer(0, lambda limits: limits.num_classes - 1),
        "What to show, for models that take a class label and no prompt.",
        "--class-label",
    ),
    Field("seed", "TYPE_INT64", Integer(0, MAX_SEED), "The seed of the noise. Default: random.", "--seed"),
    Field(
        "num_inference_steps", "TYPE_INT32", Integer(1, lambda limits: limits.max_steps), "Denoising steps.", "--steps"
    ),
    Field(
        "guidance_scale",
        "TYPE_FP32",
        Number(0.0, 100.0),
        "How strongly the picture follows the prompt. With a negative prompt, the scale between the two prompts.",
        "--guidance-scale",
    ),
    Field("height", "TYPE_INT32", Side(), "Height in pixels.", "--height"),
    Field("width", "TYPE_INT32", Side(), "Width in pixels.", "--width"),
    Field("num_frames", "TYPE_INT32", Frames(), "Frames of a video.", "--num-frames"),
    Field(
        "input_image",
        "TYPE_STRING",
        PictureFiles(lambda limits: limits.max_files),
        "The picture to start from, or several; which ones a model takes follows from its pipeline.",
        "--image",
        shape=(-1,),
    ),
    Field(
        "mask_image",
        "TYPE_STRING",
        PictureFiles(),
        "What to repaint in input_image: white is repainted, black is kept.",
        "--mask",
    ),
    Field(
        "strength",
        "TYPE_FP32",
        Number(0.0, 1.0),
        "How much of input_image changes: the share of the steps that run. 1 keeps nothing of it.",
        "--strength",
    ),
    Field(
        "cache_preset", "TYPE_STRING", Text(MAX_NAME_BYTES), "Cache settings by name, for example paper.", "--preset"
    ),
    Field(
        "cache_interval",
        "TYPE_INT32",
        _STEPS,
        "N: after the warm-up every N-th step is full. 1 turns the cache off.",
        "--interval",
    ),
    Field("cache_order", "TYPE_INT32", CacheSetting("an integer from 0 to 8"), "The order of the forecast.", "--order"),
    Field(
        "cache_warmup_steps",
        "TYPE_INT32",
        CacheSetting("an integer from 0 to 1000"),
        "Number of first steps, all of them full.",
        "--warmup",
    ),
    Field(
        "cache_cooldown_steps",
        "TYPE_INT32",
        CacheSetting("an integer from 0 to 1000"),
        "Number of last steps, all of them full.",
    ),
    Field(
        "cache_predictor",
        "TYPE_STRING",
        CacheSetting("one of: taylor, reuse, newton, hermite, chebyshev, spectrum, foca"),
        "How features are forecast: taylor, newton, hermite, chebyshev, spectrum, foca or reuse.",
        "--predictor",
    ),
    Field(
        "cache_schedule",
        "TYPE_STRING",
        CacheSetting("one of: interval, even, or steps from 0 on, ascending"),
        "Which steps are full: interval, even, or the steps themselves, as '0 4 9 13'.",
        "--schedule",
    ),
    Field(
        "cache_coordinate",
        "TYPE_STRING",
        CacheSetting("one of: step, sigma, log_snr"),
        "The coordinate along which forecasts extrapolate.",
    ),
    Field(
        "cache_max_error",
        "TYPE_FP32",
        CacheSetting("a finite number above 0"),
        "Target error of the forecasts. Each full step measures the error and schedules the next one accordingly.",
        "--max-error",
    ),
    Field("cache_min_interval", "TYPE_INT32", _STEPS, "With cache_max_error: the minimum distance between full steps."),
    Field("cache_max_full_steps", "TYPE_INT32", _STEPS, "With cache_max_error: the maximum number of full steps."),
    Field(
        "deadline_ms",
        "TYPE_INT32",
        Integer(1, MAX_DEADLINE_MS),
        "Milliseconds from arrival after which the server gives the request up.",
        "--deadline-ms",
    ),
    Field(
        "priority",
        "TYPE_INT32",
        Integer(-MAX_PRIORITY, MAX_PRIORITY),
        "The request is queued as if it had arrived this many seconds earlier.",
    ),
    Field("response_format", "TYPE_STRING", Choice(ResponseFormat), "How the result travels: as pixels or in base64."),
    Field("preview", "TYPE_BOOL", Flag(), "Whether a stream sends previews."),
)
