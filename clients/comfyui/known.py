"""What the server of the environment published last; the widgets' ranges and defaults come from it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from triton_taylorseer_client import GenerationError

from .connection import described, limits_of, served_models
from .limits import WIDE, Limits
from .settings import Settings

_WAIT_S = 1.0  # ComfyUI asks in the thread that also serves its page
_FRESH_S = 10.0


@dataclass(frozen=True)
class Published:
    """What a server publishes.

    Attributes:
        model: the default model.
        limits: of each model that is ready, by its name; none where no server has answered.
        strength: what the default model uses for a request with a picture that does not say; None if it has none.
    """

    model: str
    limits: Mapping[str, Limits] = field(default_factory=dict)
    strength: float | None = None

    def widgets(self, *, of_videos: bool = False) -> Limits:
        """Ranges that hold what every model accepts, or every one of videos; the defaults are of the default model.

        A node does not know the model that a workflow connects to it, so a request is held to that one's limits when it
        is sent.
        """
        able = {name: limits for name, limits in self.limits.items() if limits.max_frames > 1 or not of_videos}
        if not able:
            return WIDE
        chosen = able.get(self.model) or next(iter(able.values()))
        return chosen.widened([*able.values()])


class Known:
    """Asks the servers of the environment, at most once in 10 s; usable from any thread.

    Args:
        settings: what the environment says.
        fresh_s: seconds after which it asks again.
    """

    def __init__(self, settings: Settings, fresh_s: float = _FRESH_S) -> None:
        self.settings = settings
        self._fresh_s = fresh_s
        self._published = Published(settings.model or "emoji")
        self._asked_at = float("-inf")
        self._lock = threading.Lock()

    def published(self) -> Published:
        """What a server has just said, within a second; else what was said before, wide limits at first."""
        with self._lock:
            if time.monotonic() - self._asked_at >= self._fresh_s:
                asking = threading.Thread(target=self._ask, daemon=True)
                asking.start()
                asking.join(_WAIT_S)
                self._asked_at = time.monotonic()
            return self._published

    def _ask(self) -> None:
        for url in self.settings.urls:
            try:
                self._published = asyncio.run(_published_at(url, self.settings))
                return
            except GenerationError:
                continue  # the next one, or what is known already


async def _published_at(url: str, settings: Settings) -> Published:
    async with settings.client(url, "") as server:
        models = await served_models(server, url)
    limits = {}
    for model in models:
        async with settings.client(url, model) as client:
            with contextlib.suppress(GenerationError):  # a model of another kind, beside ours
                limits[model] = await limits_of(client, url)
    if not limits:
        raise GenerationError(f"no model is ready at {url}")
    chosen = settings.model if settings.model in limits else next(iter(limits))
    return Published(settings.model or chosen, limits, await _strength_of(chosen, limits[chosen], url, settings))


async def _strength_of(model: str, limits: Limits, url: str, settings: Settings) -> float | None:
    if limits.strength is not None:
        return limits.strength
    async with settings.client(url, model) as client:
        try:
            tasks = await described(client)
        except GenerationError:  # it does not tell
            return None
    return next((task["strength"] for task in tasks if task.get("strength") is not None), None)
