"""A front that speaks OpenAI's images API, and serves a web page, in front of a Triton server.

    triton-taylorseer front --triton localhost:8001

It holds no model: each request becomes a gRPC stream to Triton, which ends when the HTTP client disconnects. Inputs of
the served models that OpenAI's API has no name for, for example the cache settings, are further fields with the inputs'
own names (`extra_body` of OpenAI's own clients).

Reading order: `app` puts it together; `models`, `generations` and `edits` are the endpoints, `making` is what the last
two share, `streaming` their stream; `fields` and `edit_fields` are what a request may hold, `answers` what it gets;
`forms` reads the bodies of edits, `pictures`, `fetching` and `masks` the pictures in them; `front` knows the models
behind, `refusals` when to come back; `errors` and `not_served` are OpenAI's form of what went wrong; `edge` is what all
HTTP passes, `held` bounds what it holds.
"""

from clients.openai_api.app import create_app
from clients.openai_api.edge import MAX_BODY_BYTES, MAX_EDIT_BYTES

__all__ = ["MAX_BODY_BYTES", "MAX_EDIT_BYTES", "create_app"]
