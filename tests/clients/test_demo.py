"""The demo: its measure of distance, its contact sheet, and the whole of it on a throwaway model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from clients.demo import EDITS, PROMPTS, Pair, contact_sheet, psnr, run
from triton_taylorseer_client import Generation


def plain_picture(colour: tuple[int, int, int]) -> Generation:
    image = np.full((1, 64, 64, 3), colour, dtype=np.uint8)
    return Generation(image, {"full_steps": [0], "num_steps": 4})


def test_psnr_in_closed_form():
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black, black + 1) == pytest.approx(20 * math.log10(255))
    assert psnr(black + 1, black) == psnr(black, black + 1), "unsigned differences must not wrap"


def test_contact_sheet_shows_off_on_the_left_and_on_on_the_right():
    pairs = [Pair(f"prompt {i}", plain_picture((255, 0, 0)), plain_picture((0, 0, 255)), 2.0, 1.0) for i in range(3)]
    sheet = np.asarray(contact_sheet(pairs))
    rows, columns = sheet.shape[0] // 2, sheet.shape[1] // 2
    for cell in (sheet[:rows, :columns], sheet[:rows, columns:], sheet[rows:, :columns]):
        red, blue = (np.all(cell == colour, axis=-1) for colour in ([255, 0, 0], [0, 0, 255]))
        assert red.sum() == blue.sum() == 192 * 192
        assert np.nonzero(red)[1].max() < np.nonzero(blue)[1].min()
    assert not np.any(np.all(sheet[rows:, columns:] == [255, 0, 0], axis=-1)), "three pairs fill three cells"


def test_the_sheet_of_edits_begins_with_what_was_changed_and_shades_what_is_kept():
    before, mask = np.full((64, 64, 3), 200, np.uint8), np.arange(64) < 32
    edit = Pair("a", plain_picture((255, 0, 0)), plain_picture((0, 0, 255)), 2.0, 1.0, before, mask[None].repeat(64, 0))
    sheet = np.asarray(contact_sheet([edit], columns=1))
    red, kept = (np.all(sheet == colour, axis=-1) for colour in ([255, 0, 0], [90, 90, 90]))
    bright = np.all(sheet == [200, 200, 200], axis=-1)
    assert 0 < np.nonzero(bright)[1].min() < np.nonzero(kept)[1].min() < np.nonzero(red)[1].min()
    assert abs(int(bright.sum()) - int(kept.sum())) < 0.1 * kept.sum(), "half of it is repainted"


def test_every_edit_is_of_one_of_the_prompts():
    assert {edit.of for edit in EDITS} <= set(PROMPTS)
    assert not {edit.prompt for edit in EDITS} & set(PROMPTS), "their files have names of their own"


def test_prompts_have_a_style_each_and_differ():
    assert len(set(PROMPTS)) == 10
    assert {prompt.split(", ")[1] for prompt in PROMPTS} == {"3d", "noto", "twemoji", "flat", "fluent"}


def test_the_demo_writes_its_pictures_and_tells_the_totals(echo, tmp_path, capsys):
    pairs = run(echo.grpc_url, tmp_path / "out")
    assert [pair.prompt for pair in pairs] == list(PROMPTS)
    off, on = pairs[0].off.report["received"], pairs[0].on.report["received"]
    assert off["cache_interval"] == ["int32", [1], 1]
    assert "cache_interval" not in on, "the model's own defaults are what is shown"
    assert off["seed"] == on["seed"]
    assert len(list((tmp_path / "out").glob("*_cache_off.png"))) == 14
    assert Image.open(tmp_path / "out/edits.png").width > 1200
    assert Image.open(tmp_path / "out/contact_sheet.png").width > 800
    printed = capsys.readouterr().out
    assert "2 of 10" in printed
    assert "contact_sheet.png" in printed
