"""Pictures and masks that go in, for the nodes that make pictures from them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.comfyui.behaviours import NOWHERE, of_seed
from tests.support.comfyui.prompts import given, pictures_of
from tests.support.fake_triton import Call, Picture, Step, fake_triton


@pytest.mark.parametrize("inference_mode", [False, True])
def test_pictures_and_a_mask_are_sent_level_for_level(ui, inference_mode):
    levels = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    mask = np.zeros((8, 8), np.float32)
    mask[:, 4:] = 1
    files: list[dict] = []

    def keep(call: Call) -> Iterator[Step | Picture]:
        files.append(call.fields)
        yield from of_seed(call)

    prompt: dict = {}
    image = given(ui, prompt, "IMAGE", "picture", torch.from_numpy(levels.astype(np.float32) / 255))
    masked = given(ui, prompt, "MASK", "mask", torch.from_numpy(mask))
    with (
        fake_triton(keep, parameters={"min_size": "8", "size_multiple": "8"}) as url,
        torch.inference_mode(inference_mode),
    ):
        run = ui.run(
            prompt
            | pictures_of(ui, "Inpaint", url, image=image, mask=masked, prompt="a", seed=3, strength=0.5, batch_size=2)
        )
    assert run.output("make").shape == (4, 4, 6, 3)
    by_seed = sorted(files, key=lambda fields: fields["seed"])
    assert [fields["seed"] for fields in by_seed] == [3, 4, 5, 6]
    for place, fields in enumerate(by_seed):
        (file,) = fields["input_image"]
        assert np.array_equal(decoded(file), levels[place // 2]), "each picture of the batch has two results"
        assert np.array_equal(decoded(fields["mask_image"][0]), np.where(mask > 0, 255, 0))
        assert fields["strength"] == 0.5
        assert {"width", "height", "negative_prompt"}.isdisjoint(fields)


def decoded(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def test_several_pictures_for_one_result_are_sent_in_their_order(ui):
    files = []

    def keep(call: Call) -> Iterator[Step | Picture]:
        files.append([decoded(file)[0, 0, 0] for file in call.fields["input_image"]])
        yield from of_seed(call)

    prompt: dict = {}
    sockets = {
        name: given(ui, prompt, "IMAGE", f"picture {level}", torch.full((1, 8 + level, 8, 3), level / 255))
        for name, level in (("image", 1), ("image_2", 2), ("image_4", 4))
    }
    with fake_triton(keep) as url:
        ui.run(prompt | pictures_of(ui, "ImageToImage", url, prompt="a", **sockets)).output("make")
    assert files == [[1, 2, 4]]


@pytest.mark.parametrize(
    ("kind", "inputs", "sentence"),
    [
        (
            "ImageToImage",
            {"image": (3, 8, 8, 3), "image_2": (2, 8, 8, 3)},
            "image_2 has 2 pictures, must have 1 or 3, as image has",
        ),
        ("Inpaint", {"image": (1, 8, 16, 3), "mask": (1, 8, 8)}, "mask is 8 x 8, must be 16 x 8 as image is"),
        ("Inpaint", {"image": (2, 8, 8, 3), "mask": (3, 8, 8)}, "mask has 3 pictures, must have 1 or 2, as image has"),
    ],
)
def test_pictures_that_do_not_go_together_are_refused(ui, kind, inputs, sentence):
    prompt: dict = {}
    sockets = {
        name: given(ui, prompt, "MASK" if name == "mask" else "IMAGE", name, torch.ones(shape))
        for name, shape in inputs.items()
    }
    run = ui.run(prompt | pictures_of(ui, kind, NOWHERE, prompt="a", **sockets))
    assert str(run.error) == sentence
