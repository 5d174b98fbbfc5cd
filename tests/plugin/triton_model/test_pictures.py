"""Requests with pictures in a pretended Triton: how they are taken in, and what refuses them."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plugin.pictures import Picture
from plugin.tensors import DESCRIBE_PARAMETER
from plugin.triton_model import intake
from plugin.triton_model.intake import Intake
from tests.support.pretend_triton import Client, Tensor, Trace, Triton
from tests.support.stream_models import FIELDS, arrays, error_of_last, outcomes, report_of
from tests.support.waiting import wait_for


def png(width: int = 32, height: int = 32) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def send(triton: Triton, files: list[bytes], name: str = "input_image", steps: int = 10, **fields: Any) -> Client:
    """A request with files, whose shape is [n]."""
    text = {"prompt": b"a cat", **{key: value for key, value in fields.items() if isinstance(value, bytes)}}
    tensors = [Tensor(key, np.array([value], np.object_)) for key, value in text.items()]
    tensors += [Tensor("seed", np.array([7], np.int64)), Tensor("num_inference_steps", np.array([steps], np.int32))]
    tensors += [Tensor(name, np.array(files, np.object_))]
    if "strength" in fields:
        tensors.append(Tensor("strength", np.array([fields["strength"]], np.float32)))
    return triton.send("tiny_stream", tensors, {}, Trace(), Client())


@pytest.fixture
def held_intake(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Heads of files are not read until it is set."""
    go, of = threading.Event(), Picture.of

    def wait(*arguments: Any) -> Picture:
        assert go.wait(30)
        return of(*arguments)

    monkeypatch.setattr(Picture, "of", wait)
    yield go
    go.set()


def test_a_picture_makes_a_shortened_run_of_its_own_size(triton, load_stream):
    load_stream()
    responses = send(triton, [png(48, 32)], strength=0.6).all()
    report = report_of(responses[-1])
    assert (report["num_steps"], report["height"], report["width"]) == (6, 32, 48), "0.6 of ten, in float32 too"
    assert arrays(responses[-1])["image"].shape == (1, 32, 48, 3)


def test_heads_are_read_outside_the_thread_that_accepts(triton, load_stream, held_intake):
    """While one file is slow to be read, requests without pictures are accepted and answered."""
    load_stream()
    began = time.perf_counter()
    slow = send(triton, [png()])
    assert time.perf_counter() - began < 1
    assert report_of(triton.request("tiny_stream", FIELDS).all()[-1])["num_steps"] == 6
    assert slow.responses.empty()
    held_intake.set()
    assert report_of(slow.all()[-1])["num_steps"] == 6


def test_files_that_wait_to_be_read_are_bounded_in_memory(triton, load_stream, held_intake, monkeypatch):
    load_stream()
    file = png()
    monkeypatch.setattr(intake, "MAX_CARRIED_BYTES", int(1.5 * len(file)))
    first = send(triton, [file])
    assert error_of_last(send(triton, [file])) == (
        "UNAVAILABLE",
        "the pictures of other requests have not been read yet: try again in 1 s",
    )
    held_intake.set()
    assert report_of(first.all()[-1])["num_steps"] == 6
    assert report_of(send(triton, [file]).all()[-1])["num_steps"] == 6, "and the room is given back"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([b"no picture"], "input_image is neither a PNG, JPEG or WebP file nor one in base64"),
        ([png(), png()], "input_image has 2 files, must have 0 or 1 of them"),
        ([png()[:-40]], "input_image cannot be read, must be a whole picture: "),
        ([], "input_image has 0 files, must have from 1 to 16"),
    ],
)
def test_a_refused_picture_is_answered_counted_and_leaves_nothing(triton, load_stream, files, message):
    model = load_stream()
    code, said = error_of_last(send(triton, files))
    assert code == "INVALID_ARG"
    assert said.startswith(message)
    wait_for(lambda: outcomes() == {"invalid": 1}, "it is counted")
    assert (model.admission.in_flight, model.admission.held_bytes) == (0, 0)
    assert not model.answers.jobs


def test_shapes_are_one_value_or_a_list_of_files(triton, load_stream):
    load_stream()
    for name, array, shape in (
        ("mask_image", np.array([png(), png()], np.object_), "mask_image has shape [2], must be [1]"),
        ("input_image", np.array([[png()]], np.object_), "input_image has shape [1, 1], must be [n]"),
        ("strength", np.array([0.5, 0.5], np.float32), "strength has shape [2], must be [1]"),
    ):
        client = triton.send("tiny_stream", [Tensor(name, array)], {}, Trace(), Client())
        code, said = error_of_last(client)
        assert (code, shape in said) == ("INVALID_ARG", True), said


def test_a_description_says_what_the_model_takes(triton, load_stream):
    load_stream()
    (response,) = triton.request("tiny_stream", {}, {DESCRIBE_PARAMETER: True}).all()
    description = json.loads(arrays(response)["report"][0])
    assert description["pipeline"] == "FluxPipeline"
    assert [task["pipeline"] for task in description["tasks"]] == [
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
    ]
    assert description["presets"] == ["default"]
    assert outcomes() == {}, "a question is no request"


def test_what_is_taken_in_when_the_model_ends_is_answered(triton, load_stream, held_intake, monkeypatch):
    closes, close = threading.Event(), Intake.close

    def closing(desk: Intake) -> None:
        closes.set()
        close(desk)

    monkeypatch.setattr(Intake, "close", closing)
    load_stream()
    client = send(triton, [png()], steps=1000)  # it has not ended when it is cancelled
    ending = threading.Thread(target=lambda: triton.unload("tiny_stream"))
    ending.start()
    assert closes.wait(30)
    held_intake.set()
    ending.join(30)
    assert not ending.is_alive()
    code, _ = error_of_last(client)
    assert code == "CANCELLED"


def test_the_intake_goes_on_after_what_it_accepts_has_failed():
    taken: list[int] = []

    def accept(number: int) -> Callable[[], None]:
        def run() -> None:
            if number == 0:
                raise RuntimeError("broken on purpose")
            taken.append(number)

        return run

    desk = Intake("tiny")
    for number in range(3):
        desk.submit(1, accept(number))
    desk.close()
    assert taken == [1, 2]
