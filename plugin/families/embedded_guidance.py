"""Guidance scales that are an input of the transformer."""

from __future__ import annotations

from typing import Any

from plugin.families.base import Family
from plugin.request import GenerationRequest


class EmbeddedGuidance(Family):
    """A family whose guidance scale is an input of the transformer.

    With a negative prompt, `guidance_scale` becomes that of classifier-free guidance between the two prompts, and the
    embedded guidance is 1 (none): otherwise the two would multiply.
    """

    def call_arguments(self, request: GenerationRequest, max_sequence_length: int | None) -> dict[str, Any]:
        arguments = super().call_arguments(request, max_sequence_length)
        if request.negative_prompt is None:
            return arguments
        return arguments | {"true_cfg_scale": request.guidance_scale, "guidance_scale": 1.0}

    @classmethod
    def guidance_branches(cls, request: GenerationRequest) -> int:
        return 1 if request.negative_prompt is None else super().guidance_branches(request)
