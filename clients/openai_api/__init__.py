"""A front that speaks OpenAI's API where it makes pictures, and serves a web page, in front of a Triton server.

    triton-taylorseer front --triton localhost:8001

It holds no model: each request becomes a gRPC stream to Triton, which ends when the HTTP client disconnects. Inputs of
the served models that OpenAI's API has no name for, for example the cache settings, are further fields with the inputs'
own names (`extra_body` of OpenAI's own clients).

Reading order: `app` puts it together. The endpoints are `models`, `generations`, `edits`, `chat`, `responses` and
`sdapi` (A1111's API), what their requests may hold `fields` and the files that end in `_fields`; `conversation` finds
the prompt of the last three. `making` and `editing` are what they share: from a checked request to its answer in the
`dialects` of each, with `streaming` and `previews` where it is a stream; `images` is OpenAI's own dialect, `answers`
what all are made of. `forms` reads bodies, `pictures`, `fetching` and `masks` the pictures in them; `front` knows the
models behind, `targets` what names stand for, `refusals` when to come back; `errors` and `not_served` are OpenAI's form
of what went wrong; `authorisation`, `cors` and `edge` are what all HTTP passes, `held` bounds what it holds, `metrics`
counts it.
"""

from clients.openai_api.app import create_app
from clients.openai_api.edge import MAX_BODY_BYTES, MAX_EDIT_BYTES

__all__ = ["MAX_BODY_BYTES", "MAX_EDIT_BYTES", "create_app"]
