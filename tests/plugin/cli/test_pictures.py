"""`generate` with pictures: which files are sent, what is named without a prompt, and what ends it before it begins."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import run
from tests.support.fake_triton import Call, Picture, fake_triton


class Asked:
    """What a server was asked for."""

    def __init__(self) -> None:
        self.fields: list[dict[str, Any]] = []

    def __call__(self, call: Call) -> Iterator[Picture]:
        self.fields.append(call.fields)
        yield Picture({"seed": 3, "num_steps": 8, "full_steps": [0], "total_s": 0.1})


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def url(asked: Asked) -> Iterator[str]:
    with fake_triton(asked) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs: picture files that hold their own names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").mkdir()
    for name in ("a.png", "b.png", "m.png", "batch/a.png", "batch/b.png", "batch/m.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def generate(url: str, *arguments: object) -> tuple[int, str]:
    return run("generate", "--url", url, *arguments)


@pytest.mark.usefixtures("folder")
def test_pictures_are_sent_in_the_order_of_their_options(url, asked):
    options = ["--image", "b.png", "--image", "a.png", "--mask", "m.png", "--strength", "0.5"]
    code, output = generate(url, "star", *options)
    assert code == 0, output
    (fields,) = asked.fields
    assert fields == {"prompt": "star", "input_image": [b"b.png", b"a.png"], "mask_image": [b"m.png"], "strength": 0.5}


@pytest.mark.usefixtures("folder")
def test_without_a_prompt_the_bar_names_the_picture(url, asked):
    code, output = generate(url, "--image", "batch/a.png", "--image", "b.png")
    assert code == 0, output
    assert "a.png" in output
    assert asked.fields == [{"input_image": [b"batch/a.png", b"b.png"]}]
    _, output = generate(url, "--image", "a.png", "--class-label", 7)
    assert "class 7" in output


def test_a_video_is_sent_as_its_frames(url, asked, folder):
    greys = [Image.fromarray(np.full((8, 8, 3), 60 * step, np.uint8)) for step in range(4)]
    greys[0].save(folder / "greys.gif", save_all=True, append_images=greys[1:])
    assert generate(url, "star", "--image", "greys.gif")[0] == 0
    ((*frames,),) = [fields["input_image"] for fields in asked.fields]
    found = [np.asarray(Image.open(io.BytesIO(frame))).mean() for frame in frames]
    assert found == pytest.approx([0, 60, 120, 180], abs=2), "the palette of a GIF, between YUV and RGB"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--image", "gone.png"], "input_image is 'gone.png', must be a file that can be read (No such file or"),
        (["--image", "a.png", "--image", "."], "input_image is '.', must be a file that can be read (Is a directory)"),
        (["--image", "a.png", "--mask", "gone.png"], "mask_image is 'gone.png', must be a file that can be read (No"),
        (["--image", "gone.mp4"], "input_image is 'gone.mp4', must be a video that can be read (No such file or"),
    ],
)
def test_a_file_that_cannot_be_read_ends_it_before_anything_is_sent(url, asked, batch, options, sentence):
    Path("prompts.txt").write_text("star\ncactus\n")
    code, output = generate(url, *(["--batch", "prompts.txt"] if batch else ["star"]), *options)
    assert code == 1
    assert f"error: {sentence}" in output
    assert not asked.fields
    assert not Path("out").exists()


# Batches


@pytest.mark.usefixtures("folder")
def test_pictures_of_the_command_go_with_each_line_that_has_none(url, asked):
    lines = ["star", {"prompt": "cactus", "input_image": None}, {"prompt": "pizza", "input_image": "b.png"}]
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("prompts.txt").write_text("\n".join(texts))
    code, output = generate(url, "--batch", "prompts.txt", "--jobs", 1, "--image", "a.png", "--mask", "m.png")
    assert code == 0, output
    mask = {"mask_image": [b"m.png"]}
    assert asked.fields == [
        {"prompt": "star", "input_image": [b"a.png"], **mask},
        {"prompt": "cactus", **mask},
        {"prompt": "pizza", "input_image": [b"b.png"], **mask},
    ]


def test_paths_of_a_line_begin_at_the_folder_of_the_file(url, asked, folder):
    lines = [
        {"prompt": "one", "input_image": "a.png", "mask_image": "m.png", "strength": 0.5},
        {"prompt": "several", "input_image": ["../a.png", "b.png", str(folder / "m.png")]},
        {"prompt": "neither", "input_image": "data:image/png;base64,YQ=="},
    ]
    (folder / "batch/prompts.txt").write_text("\n".join(map(json.dumps, lines)))
    code, output = generate(url, "--batch", "batch/prompts.txt", "--jobs", 1)
    assert code == 0, output
    assert asked.fields == [
        {"prompt": "one", "input_image": [b"batch/a.png"], "mask_image": [b"batch/m.png"], "strength": 0.5},
        {"prompt": "several", "input_image": [b"a.png", b"batch/b.png", b"m.png"]},
        {"prompt": "neither", "input_image": [b"a"]},
    ]


# What a line's picture must be, and how the line is named.
WRONG = {
    '{"prompt": "star", "input_image": "gone.png"}': "star: input_image is 'batch/gone.png', must be a file that can",
    '{"input_image": ["gone.png", "a.png"]}': "gone.png: input_image is 'batch/gone.png', must be a file that can be",
    '{"input_image": []}': "input_image has 0 pictures, must have from 1 to 1000",
    '{"input_image": 7}': "input_image is 7, must be a path, bytes, a data URL, a Pillow image or an array, or a list",
    '{"input_image": [["a.png"]]}': "input_image is ['a.png'], must be a path, bytes, a data URL, a Pillow image or",
    '{"input_image": "a.png", "mask_image": ["a.png", "b.png"]}': "a.png: mask_image has 2 or more pictures, must have",
    '{"input_image": "a.png", "strength": "0.5"}': "a.png: strength is '0.5', must be a number",
}


@pytest.mark.usefixtures("folder")
def test_a_line_whose_picture_cannot_be_sent_is_named_and_the_others_are_made(url, asked):
    lines = ['{"input_image": ["a.png", "b.png"]}', *WRONG, '{"input_image": "b.png", "class_label": 7}']
    Path("batch/prompts.txt").write_text("\n".join(lines))
    code, output = generate(url, "--batch", "batch/prompts.txt", "-o", "made")
    assert code == 1
    for number, sentence in enumerate(WRONG.values(), start=2):
        assert f"batch/prompts.txt:{number}: {sentence}" in output
    assert sorted(path.name for path in Path("made").iterdir()) == ["0001-a.png", "0009-7.png"]
    assert "error: 7 of 9 requests failed" in output
    assert len(asked.fields) == 2
