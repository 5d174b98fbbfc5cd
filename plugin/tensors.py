"""The tensors of the served models: names, Triton types and shapes, the same for every model."""

from __future__ import annotations

from plugin.fields import FIELDS

INPUTS = {field.name: field.type for field in FIELDS}  # all of them optional

OUTPUTS: dict[str, tuple[str, list[int]]] = {
    "image": ("TYPE_UINT8", [-1, -1, -1, 3]),  # frames, height, width
    "b64_json": ("TYPE_STRING", [1]),
    "report": ("TYPE_STRING", [1]),
}

STREAM_OUTPUTS: dict[str, tuple[str, list[int]]] = OUTPUTS | {
    "step": ("TYPE_INT32", [1]),
    "num_steps": ("TYPE_INT32", [1]),
    "preview": ("TYPE_UINT8", [-1, -1, 3]),  # height, width
    "queue_position": ("TYPE_INT32", [1]),
}

# Request parameters between the models of a pair, and from `serve` to both.
PING_PARAMETER = "taylorseer_ping"  # is answered at once, by the thread that answers all; it does no work
KEY_PARAMETER = "taylorseer_key"  # the key under which the request of a plain call can be cancelled
CANCEL_PARAMETER = "taylorseer_cancel"  # cancels the request whose key is its value
QUIET_PARAMETER = "taylorseer_quiet"  # present where heartbeats are wanted in place of progress
UNKNOWN_PARAMETER = "taylorseer_unknown"  # a JSON list of names: what a plain call had that nobody reads
DESCRIBE_PARAMETER = "taylorseer_describe"  # is answered at once with a report of what the model can do
TRACE_PARAMETER = "taylorseer_trace"  # the trace context of a plain call, W3C headers in JSON

# A stream that carries it hears from its request at once, and then at least every few seconds: a client can tell a long
# queue from a process that has died.
HEARTBEAT_PARAMETER = "taylorseer_heartbeat"

# A stream that carries it gets an error as the report of its last response, {"error": {"code": …, "message": …}}:
# Triton keeps the code of a stream's error only with a header with which 24.10 can crash.
ERROR_REPORT_PARAMETER = "taylorseer_error_report"

BLOCK_STACK_OUTPUT = "features"  # of a block stack that is a model of its own, as the exported one has it
