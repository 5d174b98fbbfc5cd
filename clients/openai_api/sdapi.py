"""The part of A1111's API that programs for chats and its clients need: pictures, and what they ask for before."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from fastapi import APIRouter, Request, Response

from clients.openai_api.answers import Json, dumped, file_of_result, finite
from clients.openai_api.edit_fields import openapi_body
from clients.openai_api.editing import made_or_edited
from clients.openai_api.forms import checked, object_of
from clients.openai_api.front import Front, FrontOf
from clients.openai_api.images import Images
from clients.openai_api.sdapi_fields import Txt2ImgRequest
from triton_taylorseer_client.messages import Generation, InvalidArgument

_PICTURES = {"init_images", "input_image", "image", "images", "mask", "mask_image"}

router = APIRouter(prefix="/sdapi/v1")


@router.post("/txt2img", response_model=None, openapi_extra={"requestBody": openapi_body(Txt2ImgRequest)})
async def txt2img(request: Request, front: FrontOf) -> Response:
    """Makes pictures."""
    return await _made(request, front, from_pictures=False)


@router.post("/img2img", response_model=None, openapi_extra={"requestBody": openapi_body(Txt2ImgRequest)})
async def img2img(request: Request, front: FrontOf) -> Response:
    """Makes pictures from a picture."""
    return await _made(request, front, from_pictures=True)


@router.get("/sd-models")
async def models(front: FrontOf) -> Json:
    """The models, the default one first."""
    return Json([{"title": name, "model_name": name, "filename": name} for name in await front.models()])


@router.get("/samplers")
async def samplers() -> Json:
    """One: each model has its own, whatever a request names."""
    return Json([{"name": "the model's own", "aliases": [], "options": {}}])


@router.get("/options")
async def options(front: FrontOf) -> Json:
    """The model of requests that name none."""
    return Json(await _options(front))


@router.post("/options")
async def chosen(given: dict[str, Any], front: FrontOf) -> Json:
    """Nothing, where nothing is changed: the settings of one client would be those of all."""
    present = await _options(front)
    for name, value in given.items():
        if present.get(name) != value:
            raise InvalidArgument(
                f"{name[:100]} cannot be set for all clients: each request may name its model in override_settings"
            )
    return Json(None)


@router.get("/progress")
async def progress(front: FrontOf) -> Json:
    """How far the pictures are that are being made for all clients, as one number."""
    running = [*front.running.values()]
    done = fmean(each.step / each.num_steps for each in running) if running else 0.0
    return Json({"progress": done, "eta_relative": 0.0, "state": {"job_count": len(running)}, "current_image": None})


async def _made(request: Request, front: Front, *, from_pictures: bool) -> Response:
    request.state.kind = Txt2ImgRequest
    body = (await checked(Txt2ImgRequest, await object_of(request))).in_the_models_names()
    if from_pictures and not body.has_pictures:
        raise InvalidArgument("init_images is missing, must be one picture or more")
    if body.has_pictures and not from_pictures:
        raise InvalidArgument("init_images is given, must be left out: POST /sdapi/v1/img2img takes it")
    model = body.model or (await front.served(None)).model
    return await made_or_edited(body, request, front, _Answers(body, model))


async def _options(front: Front) -> dict[str, Any]:
    return {"sd_model_checkpoint": (await front.served(None)).model}


class _Answers(Images):
    """How A1111's API answers a request, which has no stream.

    Args:
        body: the request, in the models' names.
        model: that the client has named, or the one that answers.
    """

    def __init__(self, body: Txt2ImgRequest, model: str) -> None:
        super().__init__(body)
        self._sent = body
        self._model = model

    def answer(self, results: list[Generation]) -> dict[str, Any]:
        files = [file_of_result(result, self._sent) for result in results]
        parameters = self._sent.model_dump(exclude=_PICTURES, exclude_unset=True)
        return {"images": files, "parameters": finite(parameters), "info": dumped(self._info(results))}

    def _info(self, results: list[Generation]) -> dict[str, Any]:
        """What A1111's clients read of a request; JSON as text."""
        body, reports = self._sent, [finite(result.report) for result in results]
        _, height, width, _ = results[0].image.shape
        seeds = [report.get("seed") for report in reports]
        return {
            "prompt": body.prompt or "",
            "negative_prompt": body.negative,
            "seed": seeds[0],
            "all_seeds": seeds,
            "width": width,
            "height": height,
            "sd_model_name": self._model,
            "infotexts": [self._text(seed, f"{width}x{height}") for seed in seeds],
            "reports": reports,
        }

    def _text(self, seed: Any, size: str) -> str:
        """One picture's settings, as A1111 writes them."""
        body = self._sent
        lines = [body.prompt or "", f"Negative prompt: {body.negative}" if body.negative else ""]
        settings = {"Steps": body.steps, "CFG scale": body.cfg_scale, "Seed": seed, "Size": size, "Model": self._model}
        lines += [", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None)]
        return "\n".join(filter(None, lines))
