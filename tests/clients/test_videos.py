"""OpenAI's videos through the front to a pretended Triton, by OpenAI's client for Python."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import threading
import urllib.request
import weakref
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import imageio.v3 as imageio
import numpy as np
import openai
import pytest
from jsonschema import Draft202012Validator
from openai.types.video_create_params import VideoCreateParams
from PIL import Image

from clients.openai_api import create_app
from clients.openai_api.held import Room, Share
from clients.openai_api.video_fields import VideoRequest
from clients.openai_api.video_jobs import MOST_BYTES, MOST_ENDED, VideoFiles, VideoJob, VideoJobs
from tests.support.comfyui.behaviours import Endless
from tests.support.edits import ONE, PROMPTS, TWO, ask, data_url, form_of, mask_of
from tests.support.fake_triton import Call, Failure, Picture, Step, fake_triton, four_steps
from tests.support.front import running_front
from tests.support.metrics import value
from tests.support.waiting import wait_for
from triton_taylorseer_client.messages import Generation, GenerationError, Progress

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

WAN = MappingProxyType(
    {"max_frames": "81", "frames_multiple": "4", "fps": "8", "num_frames": "9", "width": "64", "height": "48"}
)
POLL_MS = 20


class Videos:
    """What the model is asked for, and how it answers each prompt."""

    def __init__(self) -> None:
        self.made: list[Call] = []
        self.endless = Endless()
        self.gate = threading.Event()

    def __call__(self, call: Call) -> Iterator[Step | Picture | Failure]:
        self.made.append(call)
        prompt = call.fields.get("prompt", "")
        if prompt == "endless":
            yield from self.endless(call)
        elif call.fields.get("width") == 1280:
            yield PROMPTS["small"]
        elif prompt in PROMPTS:
            yield PROMPTS[prompt]
        elif prompt == "waits":
            yield Step(0, 4, queue_position=3)
            self.gate.wait(20)
            yield Step(1, 4)
            yield Failure("INTERNAL", "it broke")
        else:
            yield from four_steps(call)


@pytest.fixture
def model() -> Videos:
    return Videos()


@contextmanager
def front_of(model: Videos, parameters: Any = WAN, **settings: Any) -> Iterator[openai.OpenAI]:
    with (
        fake_triton(model, ("wan",), parameters=parameters) as triton,
        running_front(triton, **settings) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture
def client(model: Videos) -> Iterator[openai.OpenAI]:
    with front_of(model) as client:
        yield client


def url_of(client: openai.OpenAI) -> str:
    return str(client.base_url).removesuffix("/v1/")


def made(client: openai.OpenAI, **fields: Any) -> Any:
    return client.videos.create_and_poll(prompt="waves", poll_interval_ms=POLL_MS, **fields)


def in_json(client: openai.OpenAI, **fields: Any) -> Any:
    """Status, headers and JSON of a request that OpenAI's client would send as a form."""
    return ask(url_of(client), json.dumps({"prompt": "waves", **fields}), "application/json", "/v1/videos")


# From a prompt to a file


def test_a_video_is_asked_for_waited_for_and_fetched(client, model):
    begun = client.videos.create(prompt="waves", model="wan", seconds="1", size="64x32", extra_body={"seed": 7})
    assert (begun.object, begun.model, begun.prompt, begun.size) == ("video", "wan", "waves", "64x32")
    video = client.videos.poll(begun.id, poll_interval_ms=POLL_MS)
    assert (video.id, video.status, video.progress, video.error) == (begun.id, "completed", 100, None)
    assert video.expires_at == pytest.approx(video.completed_at + 3600, abs=1)
    assert 0 <= video.completed_at - video.created_at <= 20
    file = client.videos.download_content(video.id)
    assert file.response.headers["content-type"] == "video/mp4"
    assert video.id in file.response.headers["content-disposition"]
    frames = imageio.imread(file.content, extension=".mp4", plugin="pyav")
    assert frames.shape == (9, 16, 16, 3), "of 1, 5, 9, … frames nine are the nearest to a second of eight"
    assert imageio.immeta(file.content, extension=".mp4", plugin="pyav")["fps"] == 8
    assert (video.seconds, video.size) == ("1.125", "16x16"), "of the video that was made"
    fields = model.made[0].fields
    assert (fields["num_frames"], fields["width"], fields["height"], fields["seed"]) == (9, 64, 32, 7)
    assert video.report["received"]["prompt"] == "waves"


def test_a_thumbnail_is_its_first_frame(client):
    file = client.videos.download_content(made(client, seconds="1").id, variant="thumbnail")
    with Image.open(io.BytesIO(file.content)) as image:
        assert (image.format, image.size) == ("WEBP", (16, 16))


def test_what_is_left_out_is_the_models_own(client, model):
    begun = client.videos.create(prompt="waves")
    assert (begun.model, begun.seconds, begun.size) == ("wan", "1.125", "64x48")
    assert not {"num_frames", "width", "height"} & model.made[0].fields.keys()


@pytest.mark.parametrize(("seconds", "frames"), [("0.1", 1), ("0.7", 5), ("4", 33), ("10", 81)])
def test_seconds_are_the_nearest_number_of_frames_that_the_model_makes(client, model, seconds, frames):
    client.videos.create(prompt="waves", seconds=seconds)
    assert model.made[0].fields["num_frames"] == frames


def test_one_frame_is_a_picture(client):
    file = client.videos.download_content(made(client, extra_body={"num_frames": 1}).id)
    assert file.response.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(file.content)).format == "PNG"


def test_an_input_reference_is_the_picture_that_the_video_begins_with(client, model):
    made(client, input_reference=("a.png", ONE))
    status, _, begun = in_json(client, input_reference={"image_url": data_url(TWO)})
    assert status == 200, begun
    assert [call.fields["input_image"] for call in model.made] == [[ONE], [TWO]]


def test_several_pictures_and_a_mask_go_in_under_their_own_names(client, model):
    body = form_of(("prompt", "waves"), ("input_image", ONE), ("input_image", TWO), ("mask_image", mask_of()))
    status, _, begun = ask(url_of(client), body, "multipart/form-data; boundary=edge-of-a-part", "/v1/videos")
    assert status == 200, begun
    assert model.made[0].fields["input_image"] == [ONE, TWO]
    assert model.made[0].fields["mask_image"] == [mask_of()]


def test_an_alias_with_a_size_takes_openais_own_names(model):
    with front_of(model, aliases={"sora-2": "wan:64x32"}) as client:
        video = made(client, model="sora-2")
        assert (video.model, video.status) == ("sora-2", "completed")
        client.videos.create(prompt="waves", model="sora-2", size="1280x720")
    assert [(call.fields.get("width"), call.fields.get("height")) for call in model.made] == [
        (None, None),
        (1280, 720),
        (64, 32),
    ]


def test_of_other_clients_n8ns_node_gets_its_video(model):
    """n8n-nodes-langchain, nodes/vendors/OpenAi/v2/actions/video/generate.operation.ts at 03444e93: its defaults."""
    fields = (("model", "sora-2"), ("prompt", "A video of a cat"), ("seconds", "4"), ("size", "1280x720"))
    with front_of(model, aliases={"sora-2": "wan:64x32"}) as client:
        body = form_of(*fields, ("input_reference", ONE))
        _, _, job = ask(url_of(client), body, "multipart/form-data; boundary=edge-of-a-part", "/v1/videos")

        def told() -> Any:
            with urllib.request.urlopen(f"{client.base_url}videos/{job['id']}") as answer:
                return json.loads(answer.read())

        wait_for(lambda: not told()["error"] and told()["status"] == "completed", "it is made")
        with urllib.request.urlopen(f"{client.base_url}videos/{job['id']}/content") as answer:
            assert answer.headers["content-type"] == "video/mp4"
            assert imageio.imread(answer.read(), extension=".mp4", plugin="pyav").shape[0] == 33
    assert model.made[-1].fields["input_image"] == [ONE]


def test_every_parameter_of_the_pinned_client_is_a_field():
    assert set(VideoCreateParams.__annotations__) <= set(VideoRequest.model_fields)


def test_openapi_tells_what_is_taken():
    told = create_app().openapi()["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    schema = told["application/json"]["schema"]
    Draft202012Validator(schema).validate({"prompt": "waves", "seconds": 4, "input_reference": data_url(ONE)})
    assert told["multipart/form-data"]["schema"]["properties"]["input_reference"]["format"] == "binary"


# On its way


def test_its_place_in_the_queue_its_progress_and_its_failure_are_told(client, model):
    begun = client.videos.create(prompt="waits")
    assert (begun.status, begun.progress, begun.queue_position) == ("queued", 0, 3)
    answer = client.videos.with_raw_response.retrieve(begun.id)
    assert int(answer.headers["openai-poll-after-ms"]) == 500
    with pytest.raises(openai.ConflictError, match="a video that is queued, must be one that is completed"):
        client.videos.download_content(begun.id)
    model.gate.set()
    video = client.videos.poll(begun.id, poll_interval_ms=POLL_MS)
    assert (video.status, video.progress, video.completed_at) == ("failed", 25, None)
    assert (video.error.code, video.error.message) == ("server_error", "it broke")


def test_deleting_one_ends_its_request(client, model):
    begun = client.videos.create(prompt="endless")
    assert client.videos.retrieve(begun.id).status == "in_progress"
    deleted = client.videos.delete(begun.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (begun.id, True, "video.deleted")
    assert model.endless.ended.acquire(timeout=10)
    with pytest.raises(openai.NotFoundError, match=f"video_id is {begun.id}, must be a video of this front"):
        client.videos.retrieve(begun.id)


def test_the_end_of_the_front_ends_what_is_on_its_way(model):
    with front_of(model) as client:
        client.videos.create(prompt="endless")
    assert model.endless.ended.acquire(timeout=10)


def test_pictures_are_held_until_the_video_is_made(client, model):
    begun = client.videos.create(prompt="endless", input_reference=("a.png", ONE))
    metrics = f"{url_of(client)}/metrics"
    assert value(metrics, "taylorseer_front_held_bytes") >= len(ONE)
    client.videos.delete(begun.id)
    wait_for(lambda: value(metrics, "taylorseer_front_held_bytes") == 0, "nothing is held")


# The list


def test_the_list_has_the_latest_first_by_pages(client):
    ids = [made(client).id for _ in range(5)][::-1]
    page = client.videos.list(limit=2)
    assert [video.id for video in page.data] == ids[:2]
    assert page.has_more
    assert [video.id for video in client.videos.list(limit=2)] == ids, "OpenAI's client asks for all pages"
    assert [video.id for video in client.videos.list(order="asc")] == ids[::-1]
    assert [video.id for video in client.videos.list(after=ids[2], limit=1).data] == [ids[3]]


def test_an_empty_list_is_one(client):
    assert client.videos.list().data == []


# What is wrong


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"seconds": "12"}, "seconds", "seconds is 12, must be at most 10.1: wan makes up to 81 frames, 8 a second"),
        ({"seconds": "0"}, "seconds", "seconds is 0, must be greater than 0"),
        ({"seconds": "four"}, "seconds", 'seconds is "four", must be a valid number'),
        ({"size": "large"}, "size", "size is "),
        ({"model": "swan"}, "model", "model is swan, must be one that is ready: wan"),
        ({"extra_body": {"num_frames": 5}, "seconds": "1"}, "seconds", "seconds is given beside num_frames"),
        ({"extra_body": {"n": 2}}, "n", "must be 1: a request makes one video"),
        ({"extra_body": {"stream": True}}, "stream", "must be left out: GET /v1/videos/{id} tells"),
        ({"extra_body": {"loop": True}}, "loop", "loop is not a field, must be one of: "),
    ],
)
def test_a_wrong_field_is_named(client, model, fields, param, sentence):
    with pytest.raises(openai.APIStatusError) as caught:
        client.videos.create(prompt="waves", **fields)
    assert caught.value.status_code in (400, 404)
    assert sentence in caught.value.message
    assert caught.value.param == param
    assert not model.made
    assert not client.videos.list().data


def test_a_picture_that_is_none_is_refused(client, model):
    for given, rule in (({"file_id": "file_1"}, "must have an image_url"), ("%", "must be a PNG, JPEG or WebP file")):
        status, _, answer = in_json(client, input_reference=given)
        assert (status, answer["error"]["param"]) == (400, "input_reference")
        assert rule in answer["error"]["message"]
    assert not model.made


def test_the_models_refusal_is_the_answer(client):
    with pytest.raises(openai.BadRequestError, match="must be a multiple of 8 from 32 to 128"):
        client.videos.create(prompt="small")
    with pytest.raises(openai.InternalServerError) as caught:
        client.videos.create(prompt="full")
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert not client.videos.list().data


def test_a_model_of_pictures_makes_none(model):
    with front_of(model, {"max_size": "128"}) as client, pytest.raises(openai.BadRequestError) as caught:
        client.videos.create(prompt="waves")
    assert "model wan makes pictures, must be one of videos" in caught.value.message
    assert not model.made


def test_what_there_is_not_is_refused(client):
    video = made(client)
    for call, status, sentence in (
        (lambda: client.videos.retrieve("video_1"), 404, "video_id is video_1, must be a video of this front"),
        (lambda: client.videos.download_content("video_1"), 404, "video_id is video_1"),
        (lambda: client.videos.delete("video_1"), 404, "video_id is video_1"),
        (lambda: client.videos.list(after="video_1"), 404, "after is video_1"),
        (lambda: client.videos.list(limit=0), 400, 'limit is "0", must be greater than or equal to 1'),
        (lambda: client.videos.list(order="up"), 400, "order is \"up\", must be 'asc' or 'desc'"),
        (lambda: client.videos.download_content(video.id, variant="spritesheet"), 400, 'variant is "spritesheet"'),
        (lambda: client.videos.remix(video.id, prompt="more"), 404, "is not served: POST /v1/videos makes a video"),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            call()
        assert caught.value.status_code == status
        assert sentence in caught.value.message


def test_without_the_key_there_is_no_video(model):
    with front_of(model, api_key="secret") as client:
        for call in (lambda: client.videos.create(prompt="waves"), client.videos.list):
            with pytest.raises(openai.AuthenticationError):
                call()


def test_a_large_picture_goes_in_and_a_larger_one_does_not(client):
    for size, status in ((30 << 20, 200), (33 << 20, 413)):
        body = form_of(("prompt", "waves"), ("input_reference", ONE + bytes(size)))
        answer = ask(url_of(client), body, "multipart/form-data; boundary=edge-of-a-part", "/v1/videos")
        assert answer[0] == status


# What is kept


def ended(size: int, at: float) -> VideoJob:
    """A finished video, whose files have so many bytes; it must be made in an event loop."""

    async def updates() -> AsyncGenerator[Generation, None]:
        yield Generation(np.zeros((1, 4, 6, 3), np.uint8), {})

    job = VideoJob({}, updates(), Share(Room()), lambda error: {"message": str(error)})
    job.files, job.ended_at = VideoFiles(bytes(size), "video/mp4", b""), at
    return job


def kept(jobs: list[tuple[int, float]], now: float) -> list[int]:
    """Which of the videos of these sizes and ends are there at a time, by their place."""

    async def found() -> list[int]:
        store = VideoJobs(clock=lambda: now)
        added = [ended(*job) for job in jobs]
        for job in added:
            store.add(job)
        places = [added.index(job) for job in store.all()]
        await store.close()
        return places

    return asyncio.run(found())


def test_a_finished_one_is_kept_for_an_hour():
    assert kept([(1, 100.0), (1, 101.0), (1, 3700.0)], now=3700.5) == [1, 2]


def test_the_oldest_go_where_there_are_too_many():
    assert kept([(1, float(place)) for place in range(MOST_ENDED + 3)], now=200.0) == [*range(3, MOST_ENDED + 3)]


def test_the_oldest_go_where_they_are_too_large_together():
    half = MOST_BYTES // 2
    assert kept([(half, 1.0), (half, 2.0), (1, 3.0)], now=4.0) == [1, 2]
    assert kept([(1, 1.0), (3 * half, 2.0)], now=4.0) == [1], "one that is larger by itself can be fetched"


def test_a_failed_one_holds_nothing_of_its_request():
    class Pictures:
        """Stands for the files of a request."""

    async def held() -> Any:
        async def updates(pictures: Pictures) -> AsyncGenerator[Progress, None]:
            yield Progress(1, 2)
            await asyncio.sleep(0.05)
            raise GenerationError(f"it broke with {type(pictures).__name__}")

        pictures = Pictures()
        job = VideoJob({}, updates(pictures), Share(Room()), lambda error: {"message": str(error)})
        await job.accepted()
        there = weakref.ref(pictures)
        del pictures
        while job.ended_at is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        assert job.told()["error"] == {"message": "it broke with Pictures"}
        gc.collect()
        return there()

    assert asyncio.run(held()) is None


def test_one_that_cannot_be_written_has_failed(caplog):
    """H.264 has no videos of odd sides."""

    async def told() -> dict[str, Any]:
        async def updates() -> AsyncGenerator[Progress | Generation, None]:
            yield Progress(1, 1)
            yield Generation(np.zeros((2, 5, 7, 3), np.uint8), {"fps": 8})

        job = VideoJob({}, updates(), Share(Room()), lambda error: {"message": str(error)})
        while job.ended_at is None:
            await asyncio.sleep(0.01)
        return job.told()

    video = asyncio.run(told())
    assert video["status"] == "failed"
    assert video["error"]["message"].startswith("this front failed: ")
    assert "Traceback" in caplog.text
