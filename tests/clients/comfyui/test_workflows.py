"""The example workflows: that they fit the specification, their API format and their pictures, and that they run."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.support.comfyui.drawing import drawn
from tests.support.comfyui.loading import PACK
from tests.support.comfyui.workflows import EXAMPLES, api_format, check, read
from tests.support.fake_triton import fake_triton, four_steps

NAMES = sorted(path.name for path in EXAMPLES.glob("*.json"))


@pytest.fixture
def example(ui):
    """The picture that ComfyUI is shipped with, here a small one with a mask."""
    image = Image.new("RGBA", (64, 64), "white")
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.save(ui.host.input / "example.png")


def test_there_are_three_each_with_its_api_format_and_its_picture():
    assert NAMES == ["edit_and_inpaint.json", "text_to_image.json", "text_to_video.json"]
    assert sorted(path.name for path in (EXAMPLES / "api").iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_fits_the_specification_and_the_nodes(ui, example, name):
    check(read(EXAMPLES / name), ui.nodes)


@pytest.mark.parametrize("name", NAMES)
def test_the_api_format_is_that_of_the_workflow(ui, example, name):
    assert read(EXAMPLES / "api" / name) == api_format(read(EXAMPLES / name), ui.nodes)


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_drawn_from_the_file(ui, name):
    """`python -m tests.support.comfyui.drawing` draws them anew."""
    picture = (EXAMPLES / name).with_suffix(".svg").read_text(encoding="utf-8")
    assert picture == drawn(name, read(EXAMPLES / name), ui.nodes, ui.titles)
    assert f"Drawn from {name}, not a screenshot of ComfyUI" in picture


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_and_saves_what_it_makes(ui, example, name):
    parameters = {"max_frames": "81", "min_size": "32", "size_multiple": "8", "max_size": "1024"}
    with fake_triton(models=("emoji", "wan2_1_t2v"), parameters=parameters) as url:
        prompt = json.loads(json.dumps(read(EXAMPLES / "api" / name)).replace("localhost:8001", url))
        run = ui.run(prompt, read(EXAMPLES / name))
    assert run.ended == "execution_success", run.error
    if name == "text_to_video.json":
        (video,) = run.ui["4"]["videos"]
        assert video.frames.shape == (33, 16, 16, 3)
        assert video.fps == 8
        return
    saved = [each["filename"] for ui_of_node in run.ui.values() for each in ui_of_node.get("images", [])]
    assert len(saved) == {"text_to_image.json": 4, "edit_and_inpaint.json": 2}[name]
    with Image.open(ui.host.output / saved[0]) as image:
        assert json.loads(image.text["workflow"]) == read(EXAMPLES / name), "dropped onto the page, it comes back"


def test_the_mask_of_load_image_is_repainted_where_the_picture_is_transparent(ui, example):
    masks = []

    def keep(call):
        masks.extend(call.fields.get("mask_image", []))
        yield from four_steps(call)

    with fake_triton(keep, parameters={"min_size": "32", "size_multiple": "8"}) as url:
        prompt = json.loads(json.dumps(read(EXAMPLES / "api/edit_and_inpaint.json")).replace("localhost:8001", url))
        assert ui.run(prompt).ended == "execution_success"
    mask = np.asarray(Image.open(io.BytesIO(masks[0])))
    assert (mask[:, :32] == 255).all()
    assert (mask[:, 32:] == 0).all()


def test_the_readme_shows_the_pictures():
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"example_workflows/{name.replace('.json', '.svg')}" in readme
