"""A saved PNG says how it was made, to whoever reads texts of PNG files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.both_clients import CLIENTS
from tests.support.fake_triton import Picture, fake_triton

FIELDS = {"guidance_scale": np.float32(3.5), "height": 64, "cache_preset": None, "seed": 2**62 + 1}
TOLD = {"prompt": "Ärger 🍎\n<b>", "guidance_scale": 3.5, "height": 64, "seed": 2**62 + 1}


@pytest.fixture
def result(client_class: Any) -> Any:
    """What a server answers to a prompt with a picture."""
    report = {"seed": 2**62 + 1, "num_steps": 8, "full_steps": [0, 4]}
    with fake_triton(lambda call: iter([Picture(report)])) as url, client_class(url, "emoji") as client:
        *_, last = client.stream(TOLD["prompt"], input_image=b"a file", **FIELDS)
    return last


@pytest.fixture(params=list(CLIENTS))
def client_class(request: pytest.FixtureRequest) -> Any:
    return CLIENTS[request.param]


def test_a_png_has_model_fields_and_report(result, tmp_path):
    result.save(tmp_path / "apple.png")
    with Image.open(tmp_path / "apple.png") as file:
        told = json.loads(file.text["triton-taylorseer"])
        assert np.array_equal(np.asarray(file), result.image[0])
    assert told == {"model": "emoji", "fields": TOLD, "report": result.report}


def test_the_settings_can_be_left_out(result, tmp_path):
    result.save(tmp_path / "apple.png", settings=False)
    with Image.open(tmp_path / "apple.png") as file:
        assert not file.text


@pytest.mark.parametrize("name", ["apple.jpg", "apple.webp", "apple.bmp"])
def test_other_formats_have_none(result, tmp_path, name):
    result.save(tmp_path / name)
    with Image.open(tmp_path / name) as file:
        assert file.size == (6, 4)
    assert b"triton-taylorseer" not in (tmp_path / name).read_bytes()
