"""The sheet of the embedded model: which prompts it has, and where its pictures are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import sheet
from training.data import held_out_cells, training_prompts


def test_the_prompts_are_48_that_were_trained_and_16_that_were_not() -> None:
    prompts = sheet.PROMPTS.read_text(encoding="utf-8").splitlines()
    assert len(set(prompts)) == 64
    assert set(prompts[:48]) <= set(training_prompts())
    assert set(prompts[48:]) <= held_out_cells()


def test_the_pictures_of_any_prompts_are_made_by_one_command(tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "sheet.png"
    prompts.write_text("red apple, 3d\n")
    sheet.main(["--prompts", str(prompts), "--output", str(output)])
    picture = np.asarray(Image.open(output))[:, :, :3].astype(int)
    reds = (picture[..., 0] - picture[..., 2] > 60).mean(axis=0)  # of each column
    assert (reds[:96] > 0).any(), "the cache off"
    assert (reds[96:192] > 0).any(), "and on"
    assert not reds[192:].any()
    prompts.write_text("")
    with pytest.raises(SystemExit):
        sheet.main(["--prompts", str(prompts), "--output", str(output)])
