"""The search for full steps against scores whose best is known, and the command on a tiny model."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from plugin.building.judge import Judge, offline_host
from plugin.building.tuning import TuneRequest, search, tune, tune_model
from plugin.cli.app import app
from plugin.config import ModelConfig
from plugin.paths import REPOSITORY
from plugin.presets import presets_path
from taylorseer import CacheConfig, even_steps
from tests.support.repository import write_pair


def nearness(steps: tuple[int, ...], wanted: tuple[int, ...]) -> float:
    return -float(sum(abs(a - b) for a, b in zip(steps, wanted, strict=True)))


@pytest.mark.parametrize("wanted", [(0, 1, 2, 19), (0, 16, 17, 19), (0, 5, 9, 19)])
def test_a_score_without_other_peaks_is_climbed_to_its_top(wanted):
    assert search(lambda steps: nearness(steps, wanted), even_steps(20, 4)) == wanted


def test_what_no_move_of_one_step_improves_is_where_the_search_ends():
    """Any score: random, but fixed."""
    chance = np.random.default_rng(0)
    table = {(0, *rest): chance.random() for rest in combinations(range(1, 9), 3)}
    found = search(table.__getitem__, (0, 2, 5, 8))
    assert table[found] >= table[0, 2, 5, 8]
    assert found[-1] == 8, "the last step stays"
    for index in range(1, 3):
        for by in (-2, -1, 1, 2):
            moved = (*found[:index], found[index] + by, *found[index + 1 :])
            assert moved not in table or table[moved] <= table[found] + 0.01


def test_steps_and_predictor_are_found_together():
    wanted = (0, 3, 8, 11, 19)

    def score(cache: CacheConfig) -> float:
        """Newton is best on even steps, hermite on those that are wanted."""
        near = nearness(cache.full_steps(20), wanted)
        return near + {"newton": 1.0, "hermite": 3.0 if near > -2 else 0.0}.get(cache.predictor, 0.0)

    tries: list[tuple[int, float]] = []
    tuned = tune(score, 20, 5, lambda tried, best: tries.append((tried, best)))
    assert tuned.cache.full_steps(20) == wanted
    assert (tuned.cache.predictor, tuned.psnr) == ("hermite", 3.0)
    assert tuned.even_psnr == nearness(even_steps(20, 5), wanted) + 1.0
    assert tries[-1] == (tuned.tried, 3.0)
    assert [tried for tried, _ in tries] == list(range(1, tuned.tried + 1)), "nothing is tried twice"
    assert tuned.cache.enabled
    assert tuned.cache.schedule.endswith("of 20")


@pytest.mark.parametrize("count", [0, 1, 20, 21])
def test_a_number_of_full_steps_that_leaves_nothing_to_choose_is_named(count):
    with pytest.raises(ValueError, match=f"full_steps is {count}, must be from 2 to 19"):
        tune(lambda cache: 0.0, 20, count)


@pytest.fixture
def tiny(tmp_path, flux) -> Path:
    """A repository with a tiny model of 8 steps."""
    flux.save_pretrained(tmp_path / "weights")
    options = {"height": "32", "width": "32", "num_inference_steps": "8", "max_sequence_length": "16"}
    write_pair(tmp_path / "models", "tiny", {"pipeline": str(tmp_path / "weights"), "engine": "torch", **options})
    return tmp_path / "models"


def test_the_command_tunes_saves_and_tells(tiny):
    result = CliRunner().invoke(
        app, ["tune", "tiny", "--full-steps", "4", "--pictures", "1", "--model-repository", str(tiny)]
    )
    assert result.exit_code == 0, result.output
    config = ModelConfig.from_folder(tiny / "tiny_stream")
    preset = config.presets["tuned-4"]
    assert len(preset.full_steps(8)) == 4
    saved = json.loads(presets_path(config.source.pipeline, tiny / "tiny_stream").read_text())["tuned-4"]["about"]
    assert saved["psnr"] == pytest.approx(judged(config, preset), abs=0.01), "of others than it was chosen by"


def judged(config: ModelConfig, cache: CacheConfig) -> float:
    """The PSNR of the second picture that the command makes, made here once more."""
    from plugin.building.calibration import PROMPTS
    from plugin.serving.plan import example_request

    request = example_request(config, prompt=PROMPTS[1], seed=1001)
    return Judge(offline_host(config), [request], config.max_sequence_length).psnr(cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full_steps": 8}, "full_steps is 8, must be from 2 to 7"),
        ({"fields": {"height": 7}}, "height is 7, must be a multiple of"),
    ],
)
def test_what_cannot_be_tuned_is_named_before_anything_is_saved(tiny, change, message):
    request = replace(TuneRequest(4, (), 1, {}), **change)
    with pytest.raises(ValueError, match=message):
        tune_model(tiny / "tiny_stream", "tuned", request)
    assert not list(tiny.parent.rglob("cache_presets.json"))


def test_names_labels_and_engines_that_cannot_be_are_named(tiny, tmp_path):
    for name in ("default", "", "a\nb", 65 * "a"):
        with pytest.raises(ValueError, match=r"name is .*, must be 1 to 64 printable bytes"):
            tune_model(tiny / "tiny_stream", name, TuneRequest(4, (), 1, {}))
    with pytest.raises(ValueError, match="prompts has 'a cat', must be class labels: this model takes no prompt"):
        tune_model(REPOSITORY / "dit_xl_2_256_stream", "tuned", TuneRequest(4, ("a cat",), 1, {}))
    config = ModelConfig.from_folder(tiny / "tiny_stream")
    with pytest.raises(ValueError, match="engine is triton, must be one that runs outside a server"):
        offline_host(replace(config, engine="triton"))


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tiny, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, as containers run tests, may write anywhere
    with pytest.raises(PermissionError, match="cannot be written, which is where the preset would be kept"):
        tune_model(tiny / "tiny_stream", "tuned", TuneRequest(4, (), 1, {}))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_shipped_presets_have_the_full_steps_that_their_names_say():
    config = ModelConfig.from_folder(REPOSITORY / "emoji_stream")
    tuned = {name: cache for name, cache in config.presets.items() if name.startswith("tuned-")}
    assert set(tuned) == {f"tuned-{count}" for count in (8, 10, 12)}
    for name, cache in tuned.items():
        assert len(cache.full_steps(50)) == int(name.removeprefix("tuned-"))
        for num_steps in (20, 28, 50, 100):
            assert cache.full_steps(num_steps)[-1] == num_steps - 1
    assert config.defaults.cache == tuned["tuned-12"]
