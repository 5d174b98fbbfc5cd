"""The endpoints of videos: a request begins one, others tell how far it is and give its file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from clients.openai_api.answers import Json
from clients.openai_api.edit_fields import FORM_FILES, openapi_body
from clients.openai_api.editing import with_files
from clients.openai_api.errors import error_answer, error_object, told
from clients.openai_api.forms import checked, fields_of
from clients.openai_api.front import FrontOf
from clients.openai_api.making import streams_of, told_when_to_return
from clients.openai_api.video_fields import VideoRequest
from clients.openai_api.video_jobs import KEPT_S, VideoJob
from triton_taylorseer_client.messages import GenerationError

_POLL_MS = 500  # OpenAI's client asks again after that; by itself it would wait a second
_FORM_FILES = FORM_FILES | {"input_reference": FORM_FILES["mask"]}

router = APIRouter(prefix="/v1/videos")


@router.post("", response_model=None, openapi_extra={"requestBody": openapi_body(VideoRequest, _FORM_FILES)})
async def create(request: Request, front: FrontOf) -> Response:
    """Begins a video."""
    request.state.kind = VideoRequest
    body = await checked(VideoRequest, await fields_of(request, VideoRequest))
    request.state.sized = sized = body.size != "auto"
    target = await front.served(body.model)
    parameters = await front.client(target.model).parameters()
    body = body.with_frames(target.model, parameters)
    looks = body.looks(target.model, parameters)
    if body.has_pictures:
        body = await with_files(body, request, front)
    (updates,) = streams_of(body, request, front, target)
    share = request.state.share.another()
    share.take(request.state.share.held)  # the request's own ends with this answer

    def error_of(error: GenerationError) -> dict[str, Any]:
        return error_object(*told(error, VideoRequest, sized))

    job = VideoJob(looks, updates, share, error_of)
    front.videos.add(job)
    try:
        with told_when_to_return(request, front, target, 1):
            await job.accepted()
    except GenerationError:
        await front.videos.remove(job)
        raise
    return _answer(job)


@router.get("")
async def listed(
    front: FrontOf,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Json:
    """The videos that are kept, the latest first."""
    jobs = front.videos.all() if order == "asc" else front.videos.all()[::-1]
    names = [job.id for job in jobs]
    if after is not None and after not in names:
        return _no_video("after", after)
    rest = jobs[names.index(after) + 1 :] if after is not None else jobs
    return Json(_page(rest[:limit], has_more=len(rest) > limit))


@router.get("/{video_id}", response_model=None)
async def retrieved(video_id: str, front: FrontOf) -> Response:
    """How far a video is."""
    job = front.videos.find(video_id)
    return _no_video("video_id", video_id) if job is None else _answer(job)


@router.get("/{video_id}/content", response_model=None)
async def content(video_id: str, front: FrontOf, variant: Literal["video", "thumbnail"] = "video") -> Response:
    """The file of a finished video, or a picture of its first frame."""
    job = front.videos.find(video_id)
    if job is None:
        return _no_video("video_id", video_id)
    if job.files is None:
        message = f"video_id is a video that is {job.status}, must be one that is completed"
        return error_answer(409, message, "not_completed", "video_id")
    if variant == "thumbnail":
        return Response(job.files.thumbnail, media_type="image/webp")
    ending = job.files.media_type.rpartition("/")[2]
    disposition = {"Content-Disposition": f'attachment; filename="{job.id}.{ending}"'}
    return Response(job.files.video, media_type=job.files.media_type, headers=disposition)


@router.delete("/{video_id}")
async def deleted(video_id: str, front: FrontOf) -> Json:
    """Forgets a video; one that is being made is cancelled."""
    job = front.videos.find(video_id)
    if job is None:
        return _no_video("video_id", video_id)
    await front.videos.remove(job)
    return Json({"id": job.id, "object": "video.deleted", "deleted": True})


def _answer(job: VideoJob) -> Json:
    unfinished = job.ended_at is None
    return Json(job.told(), headers={"openai-poll-after-ms": str(_POLL_MS)} if unfinished else None)


def _page(jobs: Sequence[VideoJob], *, has_more: bool) -> dict[str, Any]:
    ends = {"first_id": jobs[0].id, "last_id": jobs[-1].id} if jobs else {"first_id": None, "last_id": None}
    return {"object": "list", "data": [job.told() for job in jobs], "has_more": has_more, **ends}


def _no_video(field: str, name: str) -> Json:
    message = f"{field} is {name[:100]}, must be a video of this front: one is kept for {KEPT_S // 60} minutes at most"
    return error_answer(404, message, "not_found", field)
