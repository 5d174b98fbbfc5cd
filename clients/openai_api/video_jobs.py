"""Videos on their way: OpenAI's jobs, which outlive the request that began them. They end with this process."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from clients.openai_api.answers import finite, size_of
from clients.openai_api.held import Share
from clients.openai_api.refusals import REFUSED_WITHIN_S
from triton_taylorseer_client.messages import Generation, GenerationError, Progress, encoded_image

KEPT_S = 3600  # after its end
MOST_ENDED = 100
MOST_BYTES = 256 << 20  # of their files
_LOG = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class VideoFiles:
    """The files of a finished video.

    Attributes:
        video: an MP4, or a PNG of one frame.
        media_type: of it.
        thumbnail: a WebP of the first frame.
    """

    video: bytes
    media_type: str
    thumbnail: bytes

    @classmethod
    def of(cls, result: Generation) -> VideoFiles:
        """Encodes a result, which takes seconds."""
        video = encoded_image(result.image, fps=result.report.get("fps") or 0)
        kind = "video/mp4" if result.is_video else "image/png"
        return cls(video, kind, encoded_image(result.image[:1], "webp"))

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.video) + len(self.thumbnail)


class VideoJob:
    """One video, from its request to its file.

    Args:
        asked: what OpenAI's `Video` tells of the request: `model`, `prompt`, `seconds` and `size`.
        updates: of the model; they are read to their end, and closed.
        share: of the room for bodies, for the pictures that it is made from; it leaves it at its end.
        error_of: OpenAI's error object of what ended it.

    Attributes:
        id: as OpenAI's look.
        files: of a finished one.
        ended_at: by `time.time`; None while it is made.
    """

    def __init__(
        self,
        asked: dict[str, Any],
        updates: AsyncGenerator[Progress | Generation, None],
        share: Share,
        error_of: Callable[[GenerationError], dict[str, Any]],
    ) -> None:
        self.id = f"video_{uuid.uuid4().hex}"
        self.files: VideoFiles | None = None
        self.ended_at: float | None = None
        self._asked = asked
        self._share = share
        self._error_of = error_of
        self._created_at = time.time()
        self._at: Progress | None = None
        self._report: dict[str, Any] | None = None
        self._error: dict[str, Any] | None = None
        self._refusal: GenerationError | None = None  # until it is accepted: its traceback holds the pictures
        self._is_accepted = False
        self._heard = asyncio.Event()
        self._task = asyncio.create_task(self._run(updates))

    async def accepted(self) -> None:
        """Returns once the model has begun, or after 2 s. Later errors are the job's.

        Raises:
            GenerationError: it has refused the request.
        """
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._heard.wait(), REFUSED_WITHIN_S)
        self._is_accepted = True
        if self._refusal is not None:
            raise self._refusal

    async def cancel(self) -> None:
        """Ends it, and its request to the model, whatever it is at."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def status(self) -> str:
        """One of OpenAI's: queued, in_progress, completed or failed."""
        if self.ended_at is not None:
            return "completed" if self.files else "failed"
        return "in_progress" if self._at and self._at.step else "queued"

    def told(self) -> dict[str, Any]:
        """OpenAI's `Video`, with the place in the queue, and the report of a finished one."""
        completed = self.status == "completed"
        content = {
            "id": self.id,
            "object": "video",
            "created_at": int(self._created_at),
            "completed_at": int(self.ended_at) if self.ended_at and completed else None,
            "expires_at": int(self.ended_at + KEPT_S) if self.ended_at and completed else None,
            "status": self.status,
            "progress": 100 if completed else self._percent(),
            "error": self._error,
            "remixed_from_video_id": None,
            **self._asked,
        }
        if self.status == "queued" and self._at and self._at.queue_position:
            content["queue_position"] = self._at.queue_position
        return content if self._report is None else content | {"report": self._report}

    def _percent(self) -> int:
        if self._at is None or not self._at.num_steps:
            return 0
        return min(99, 100 * self._at.step // self._at.num_steps)  # after the last step it is decoded

    async def _run(self, updates: AsyncGenerator[Progress | Generation, None]) -> None:
        try:
            async with aclosing(updates):
                async for update in updates:
                    if isinstance(update, Generation):
                        await self._finish(update)
                    else:
                        self._at = update
                        self._heard.set()
        except GenerationError as failure:
            self._fail(failure)
        except Exception as error:
            _LOG.exception("video %s", self.id)
            self._fail(GenerationError(f"this front failed: {type(error).__name__}"))
        finally:
            self._share.leave()
            self.ended_at = time.time()
            self._heard.set()

    def _fail(self, failure: GenerationError) -> None:
        self._error = self._error_of(failure)
        if not self._is_accepted:
            self._refusal = failure

    async def _finish(self, result: Generation) -> None:
        files = await asyncio.to_thread(VideoFiles.of, result)
        report = finite(result.report)
        size = {"size": size_of(result.image)}
        if fps := report.get("fps"):
            size["seconds"] = f"{len(result.image) / fps:g}"
        self._asked |= size
        self._report = report
        self.files = files


class VideoJobs:
    """All of them: those that are being made, and the latest that have ended.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._jobs: dict[str, VideoJob] = {}  # the oldest first

    def add(self, job: VideoJob) -> None:
        """Keeps one, at least until it has ended."""
        self._jobs[job.id] = job
        self._forget()

    def find(self, name: str) -> VideoJob | None:
        """The one of an id; None where there is none, or no longer."""
        self._forget()
        return self._jobs.get(name)

    def all(self) -> list[VideoJob]:
        """All, the oldest first."""
        self._forget()
        return [*self._jobs.values()]

    async def remove(self, job: VideoJob) -> None:
        """Ends one if it is being made, and forgets it."""
        self._jobs.pop(job.id, None)
        await job.cancel()

    async def close(self) -> None:
        """Ends all."""
        await asyncio.gather(*(job.cancel() for job in self._jobs.values()))

    def _forget(self) -> None:
        """Those that ended long ago, and where the ended ones are too many or too large, all but the latest of them."""
        now = self._clock()
        count = size = 0
        for job in sorted(self._jobs.values(), key=lambda job: job.ended_at or 0.0, reverse=True):
            if job.ended_at is None:
                continue
            count += 1
            size += job.files.size if job.files else 0
            is_too_much = count > MOST_ENDED or (count > 1 and size > MOST_BYTES)
            if is_too_much or now > job.ended_at + KEPT_S:
                del self._jobs[job.id]
