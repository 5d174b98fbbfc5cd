"""The tensors of the served models: names, Triton types and shapes, the same for every model."""

from __future__ import annotations

INPUTS = {  # all of shape [1] and optional
    "prompt": "TYPE_STRING",
    "negative_prompt": "TYPE_STRING",
    "class_label": "TYPE_INT64",
    "seed": "TYPE_INT64",
    "num_inference_steps": "TYPE_INT32",
    "guidance_scale": "TYPE_FP32",
    "height": "TYPE_INT32",
    "width": "TYPE_INT32",
    "num_frames": "TYPE_INT32",
    "cache_preset": "TYPE_STRING",
    "cache_interval": "TYPE_INT32",
    "cache_order": "TYPE_INT32",
    "cache_warmup_steps": "TYPE_INT32",
    "cache_cooldown_steps": "TYPE_INT32",
    "cache_predictor": "TYPE_STRING",
    "cache_schedule": "TYPE_STRING",
    "cache_coordinate": "TYPE_STRING",
    "cache_max_error": "TYPE_FP32",
    "cache_min_interval": "TYPE_INT32",
    "cache_max_full_steps": "TYPE_INT32",
    "deadline_ms": "TYPE_INT32",
    "priority": "TYPE_INT32",
    "response_format": "TYPE_STRING",
    "preview": "TYPE_BOOL",
}

OUTPUTS: dict[str, tuple[str, list[int]]] = {
    "image": ("TYPE_UINT8", [-1, -1, -1, 3]),  # frames, height, width
    "b64_json": ("TYPE_STRING", [1]),
    "report": ("TYPE_STRING", [1]),
}

STREAM_OUTPUTS: dict[str, tuple[str, list[int]]] = OUTPUTS | {
    "step": ("TYPE_INT32", [1]),
    "num_steps": ("TYPE_INT32", [1]),
    "preview": ("TYPE_UINT8", [-1, -1, 3]),  # height, width
}

# Request parameters between the models of a pair, and from `serve` to both.
PING_PARAMETER = "taylorseer_ping"  # is answered at once, by the thread that answers all; it does no work
KEY_PARAMETER = "taylorseer_key"  # the key under which the request of a plain call can be cancelled
CANCEL_PARAMETER = "taylorseer_cancel"  # cancels the request whose key is its value
QUIET_PARAMETER = "taylorseer_quiet"  # present where heartbeats are wanted in place of progress

# A stream that carries it gets an error as the report of its last response, {"error": {"code": …, "message": …}}:
# Triton keeps the code of a stream's error only with a header with which 24.10 can crash.
ERROR_REPORT_PARAMETER = "taylorseer_error_report"

BLOCK_STACK_OUTPUT = "features"  # of a block stack that is a model of its own, as the exported one has it
