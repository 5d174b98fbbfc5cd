"""The two tiny models of other families, trained for some steps on made-up emoji, saved, loaded and served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline
from PIL import Image

from plugin.pipeline import PipelineHost
from taylorseer import CacheConfig
from tests.support.made_up import CONCEPTS
from training import others
from training.data import cell_of, training_prompts

STEPS = 100
OFF = CacheConfig(interval=1)


@pytest.fixture(scope="module", params=["dit", "sd3"])
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder of one family."""
    (data.parent / "concepts.txt").write_text("\n".join(CONCEPTS), encoding="utf-8")
    folder = tmp_path_factory.mktemp("others") / request.param
    places = ["--data", str(data), "--concepts", str(data.parent / "concepts.txt"), "--export", str(folder)]
    others.main([request.param, *places, "--steps", str(STEPS), "--batch", "2"])
    return folder


@pytest.fixture
def pipe(trained: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(trained)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, cell: int = 0, seed: int = 0) -> np.ndarray:
    shared = {"num_inference_steps": 6, "guidance_scale": 2.0, "output_type": "np"}
    generator = torch.Generator().manual_seed(seed)
    if isinstance(pipe, DiTPipeline):
        return pipe(class_labels=[cell], generator=generator, **shared).images
    prompt = ["red disc, 3d", "blue disc, 3d"][cell]
    return pipe(prompt, max_sequence_length=16, generator=generator, **shared).images


def test_the_loss_falls(trained: Path) -> None:
    log = trained.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    first, last = map(json.loads, log)
    assert (first["step"], last["step"]) == (STEPS // 2, STEPS)
    assert last["loss"] < 0.8 * first["loss"]


def test_the_contact_sheet_shows_every_cell(trained: Path) -> None:
    with Image.open(trained.with_suffix(".png")) as sheet:
        assert sheet.size == (5 * 128, 2 * 144)  # the sixth cell is in a second row
        assert np.asarray(sheet)[:128].std() > 1


def test_the_cache_off_is_bit_for_bit_the_plain_pipeline(pipe: Any) -> None:
    served = PipelineHost(pipe).pipeline_for(OFF)
    assert np.array_equal(picture(served), picture(pipe))


def test_the_cache_forecasts_both_branches(pipe: Any) -> None:
    served = PipelineHost(pipe).pipeline_for(CacheConfig(interval=3, warmup_steps=2))
    assert np.isfinite(picture(served)).all()
    assert served.transformer.session.full_steps == (0, 1, 4)


def test_another_label_or_prompt_gives_another_picture(pipe: Any) -> None:
    one = picture(pipe)
    assert one.shape == (1, 64, 64, 3)
    assert not np.array_equal(one, picture(pipe, cell=1))


@pytest.mark.parametrize("trained", ["dit"], indirect=True)
def test_an_autoencoder_without_a_shift_decodes_what_a_dit_learns(pipe: Any, data: Path) -> None:
    """DiTPipeline only divides by the scaling factor."""
    trainee = others.DiT(["red disc, 3d"], data)
    with torch.no_grad():
        red, green, blue = pipe.vae.decode(trainee.latents / pipe.vae.config.scaling_factor).sample[0, :, 32, 32]
    assert red > 0.5 > -0.5 > max(green, blue)  # (224, 32, 32) of 255


@pytest.mark.parametrize("trained", ["dit"], indirect=True)
def test_classes_are_found_by_their_names_in_the_saved_pipeline(pipe: Any) -> None:
    assert pipe.get_label_ids(["red disc 3d", "red disc noto"]) == [0, 1]


def test_styles_and_every_nth_concept_are_chosen_and_held_out_cells_are_not() -> None:
    concepts = [f"thing {i}" for i in range(200)]
    prompts = others.chosen_prompts(["3d", "flat"], 2, concepts)
    assert set(prompts) <= set(training_prompts(concepts))
    chosen, styles = zip(*map(cell_of, prompts), strict=True)
    assert set(styles) == {"3d", "flat"}
    assert set(chosen) <= set(concepts[::2])
    assert 150 < len(prompts) < 200  # 4 % of all cells are held out
