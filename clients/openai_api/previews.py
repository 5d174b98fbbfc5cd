"""Which of a stream's previews are sent."""

from __future__ import annotations

from dataclasses import dataclass

from clients.openai_api.fields import ImageRequest
from triton_taylorseer_client.messages import Pixels, Progress


@dataclass(frozen=True)
class Preview:
    """A preview that is sent: (1, height, width, 3) uint8, the `index`-th from 0."""

    image: Pixels
    index: int


class Previews:
    """Chooses the previews that are sent: `partial_images` of them, evenly spread, or all for `preview` alone."""

    def __init__(self, body: ImageRequest) -> None:
        self._body = body
        self._sent = 0

    def due(self, update: Progress) -> Preview | None:
        """The update's preview, if it has one that is to be sent."""
        if update.preview is None or not self._is_due(update):
            return None
        self._sent += 1
        return Preview(update.preview[None], self._sent - 1)

    def _is_due(self, update: Progress) -> bool:
        wanted = self._body.partial_images
        if not wanted:
            return self._body.wants_previews
        return self._sent < wanted and update.step >= (self._sent + 1) * update.num_steps / (wanted + 1)
