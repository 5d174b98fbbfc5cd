"""What is not served, in a sentence: OpenAI's other endpoints, wrong methods, wrong addresses."""

from __future__ import annotations

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from clients.openai_api.answers import Json
from clients.openai_api.errors import NO_OBJECT, error_answer

SERVED = (
    "POST /v1/images/generations, POST /v1/images/edits, POST /v1/videos, GET /v1/videos, GET /v1/videos/{id}, "
    "GET /v1/videos/{id}/content, DELETE /v1/videos/{id}, POST /v1/chat/completions, POST /v1/responses, "
    "GET /v1/models, GET /v1/models/{id}, GET /healthz and GET /metrics"
)
SERVED_OF_A1111 = (
    "POST /sdapi/v1/txt2img, POST /sdapi/v1/img2img, GET /sdapi/v1/sd-models, GET /sdapi/v1/samplers, "
    "GET /sdapi/v1/options, POST /sdapi/v1/options and GET /sdapi/v1/progress"
)
# The beginning of a path: why it is not served
_REASONS = {
    "/v1/images/variations": "POST /v1/images/edits makes pictures from a picture and a prompt",
    "/v1/videos": "POST /v1/videos makes a video, from a prompt or from input_reference too",
    "/v1/responses": "nothing of a response is kept, POST /v1/responses answers with all of it",
    "/sdapi": f"of A1111's API served are {SERVED_OF_A1111}",
}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_CODES = {401: "invalid_api_key", 413: "too_large", 503: "unavailable"}


def http_error(request: Request, error: Exception) -> Json:
    """The answer to a request that has no endpoint, has no key, or cannot be read."""
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        return _no_endpoint(request)
    if error.status_code == 400:  # FastAPI's own sentence says less
        return error_answer(400, NO_OBJECT, "invalid_value")
    code = _CODES.get(error.status_code, "http_error")
    return error_answer(error.status_code, str(error.detail), code, headers=error.headers)


def _no_endpoint(request: Request) -> Json:
    name = f"{request.method} {request.url.path[:100]}"
    if methods := _methods_of(request):
        return error_answer(
            405,
            f"{name} is not served, its method must be {methods[0]}",
            "method_not_allowed",
            headers={"Allow": ", ".join(methods)},
        )
    reasons = (reason for beginning, reason in _REASONS.items() if f"{request.url.path}/".startswith(f"{beginning}/"))
    return error_answer(404, f"{name} is not served: {next(reasons, f'served are {SERVED}')}", "not_found")


def _methods_of(request: Request) -> list[str]:
    """The methods that an endpoint of this path has."""
    endpoints = [route for route in request.app.routes if not isinstance(route, Mount)]  # the page takes any path
    methods = [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in endpoints)
    ]
    return [*methods, *(["HEAD"] if "GET" in methods else [])]
