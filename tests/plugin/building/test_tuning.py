"""Tuning a tiny model: what is saved, what it is worth, and how a tuning that was ended goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from typer.testing import CliRunner

from plugin.building.calibration import PROMPTS
from plugin.building.judge import Judge, offline_host
from plugin.building.learning.batch import Batch
from plugin.building.tuning import TunedModel, TuneRequest, TuningEvents, tune_model
from plugin.cli.app import app
from plugin.config import ModelConfig
from plugin.paths import REPOSITORY
from plugin.presets import presets_path
from plugin.serving.plan import example_request
from taylorseer import CacheConfig, even_steps
from tests.support.repository import write_pair
from tests.support.tiny.flux import shift_of_size
from tests.support.tiny.wan import tiny_wan

STEPS = 8
QUICK = TuneRequest(full_steps=(4,), prompts=(), pictures=1, fields={}, order=2, tries=6, lengths=())


@pytest.fixture(scope="module")
def weights(flux: FluxPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    flux.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path, weights: Path) -> Path:
    """A repository with a tiny model of 8 steps, whose weights are of this test alone."""
    own = tmp_path / "weights"
    own.mkdir()
    for each in weights.iterdir():
        (own / each.name).symlink_to(each)
    return repository(tmp_path, own)


def repository(folder: Path, pipeline: Path, **more: str) -> Path:
    options = {"height": "32", "width": "32", "num_inference_steps": str(STEPS), "max_sequence_length": "16", **more}
    write_pair(folder / "models", "tiny", {"pipeline": str(pipeline), "engine": "torch", **options})
    return folder / "models"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def preset_file(tiny: Path) -> Path:
    config = ModelConfig.from_folder(tiny / "tiny_stream")
    return presets_path(config.source.pipeline, tiny / "tiny_stream")


def test_the_command_tunes_several_presets_saves_and_tells(tiny):
    command = ["tune", "tiny", "--full-steps", "3", "--full-steps", "5", "--pictures", "2", "--tries", "3"]
    result = CliRunner().invoke(app, [*command, "--search-seed", "1", "--model-repository", str(tiny)])
    assert result.exit_code == 0, result.output
    assert "tuned-3, tuned-5; a request chooses one by cache_preset" in " ".join(result.output.split())
    config, saved = ModelConfig.from_folder(tiny / "tiny_stream"), json.loads(preset_file(tiny).read_text())
    for count in (3, 5):
        cache, about = config.presets[f"tuned-{count}"], saved[f"tuned-{count}"]["about"]
        assert cache.predictor == "learnt"
        assert len(cache.full_steps(STEPS)) == count
        even = CacheConfig(order=2, predictor="chebyshev", schedule=spread(count))
        # the file has two digits of it; of other pictures than it was learnt from
        assert about["psnr"] == pytest.approx(judged(config, cache), abs=0.006)
        assert about["psnr_evenly_spread"] == pytest.approx(judged(config, even), abs=0.006)
        assert (about["num_steps"], about["pictures"], about["tries"], about["seed"]) == (STEPS, 2, 3, 1)
    assert [run.num_steps for run in config.presets["tuned-3"].learnt.runs] == [8, 4, 6], "and its half and 3/4"
    assert [run.num_steps for run in config.presets["tuned-5"].learnt.runs] == [8, 6], "4 steps have no 5 full ones"
    assert not preset_file(tiny).with_suffix(".tuning").exists()


def spread(count: int) -> str:
    return f"{' '.join(map(str, even_steps(STEPS, count)))} of {STEPS}"


def judged(config: ModelConfig, cache: CacheConfig) -> float:
    """The PSNR of the pictures after the first two, made here once more."""
    requests = [example_request(config, prompt=PROMPTS[i % len(PROMPTS)], seed=1000 + i) for i in (2, 3)]
    return Judge(offline_host(config), requests, config.max_sequence_length).psnr(cache)


class Followed(TuningEvents):
    """Keeps what happens, and ends the tuning after some tries of a preset.

    Args:
        ends_at: the preset's name, and how many tries.
    """

    def __init__(self, ends_at: tuple[str, int] | None = None) -> None:
        self.stages: list[str] = []
        self.tries: list[tuple[str, int, float]] = []
        self.saved: list[TunedModel] = []
        self._ends_at = ends_at

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def tried(self, name: str, tries: int, tried: int, best: float) -> None:
        self.tries.append((name, tried, best))
        if (name, tried) == self._ends_at:
            raise KeyboardInterrupt

    def tuned(self, model: TunedModel) -> None:
        assert model.name in json.loads(model.path.read_text()), "it is saved before it is told"
        self.saved.append(model)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The full steps of each run of a batch."""
    seen: list[Any] = []
    run = Batch.run
    monkeypatch.setattr(Batch, "run", lambda self, full, *rest: (seen.append(full), run(self, full, *rest))[1])
    return seen


def caches(made: list[TunedModel]) -> dict[str, CacheConfig]:
    return {each.name: each.cache for each in made}


def test_a_tuning_that_was_ended_goes_on_where_it_was(tiny, runs):
    request, folder = replace(QUICK, full_steps=(3, 4), tries=10), tiny / "tiny_stream"
    whole = Followed()
    expected, path = tune_model(folder, request, events=whole), preset_file(tiny)
    scored = len(runs)
    path.unlink()
    runs.clear()
    with pytest.raises(KeyboardInterrupt):
        tune_model(folder, request, events=Followed(("tuned-4", 7)))
    assert list(json.loads(path.read_text())) == ["tuned-3"], "what was found stays"
    known = {tuple(json.loads(line)["full_steps"]) for line in path.with_suffix(".tuning").read_text().splitlines()}
    runs.clear()
    again = Followed()
    assert caches(tune_model(folder, request, events=again)) == caches(expected)
    assert again.tries == whole.tries
    assert [each.psnr for each in again.saved] == [each.psnr for each in expected]
    # The fits of both presets, what was not scored before, and once where the search goes on from.
    assert len(runs) == 2 + len([each for each in {*runs} if each not in known]) + 1 < scored
    assert not path.with_suffix(".tuning").exists()


def test_scores_of_another_order_are_not_gone_on_with(tiny):
    with pytest.raises(KeyboardInterrupt):
        tune_model(tiny / "tiny_stream", QUICK, events=Followed(("tuned-4", 6)))
    other = Followed()
    (found,) = tune_model(tiny / "tiny_stream", replace(QUICK, order=1), events=other)
    preset_file(tiny).unlink()
    fresh = Followed()
    assert caches(tune_model(tiny / "tiny_stream", replace(QUICK, order=1), events=fresh)) == {"tuned-4": found.cache}
    assert fresh.tries == other.tries


def test_the_seed_decides_the_search_and_the_result_is_the_best_that_was_tried(tiny, runs):
    followed, ways = [Followed() for _ in range(3)], []
    for events, seed in zip(followed, (0, 0, 1), strict=True):
        tune_model(tiny / "tiny_stream", replace(QUICK, seed=seed), events=events)
        ways.append([*runs])
        runs.clear()
    same, again, other = followed
    assert ways[0] == ways[1] != ways[2]
    assert same.tries == again.tries
    assert caches(same.saved) == caches(again.saved)
    about = json.loads(preset_file(tiny).read_text())["tuned-4"]["about"]
    assert about["distance_db"] == round(other.tries[-1][2], 2)
    assert [tried for _, tried, _ in same.tries] == [1, 2, 3, 4, 5, 6]


def test_without_tries_the_steps_are_even_and_the_weights_learnt(tiny):
    (tuned,) = tune_model(tiny / "tiny_stream", replace(QUICK, tries=0), {4: "mine"})
    assert tuned.name == "mine"
    assert tuned.cache.full_steps(STEPS) == even_steps(STEPS, 4)
    assert ModelConfig.from_folder(tiny / "tiny_stream").presets["mine"] == tuned.cache
    assert all(np.isfinite(row).all() for row in tuned.cache.learnt.runs[0].rows)


@pytest.mark.parametrize(("order", "kept"), [(0, 0), (1, 1), (8, 2)])
def test_a_preset_needs_no_larger_order_than_its_rows(tiny, order, kept):
    """Of four full steps the last one is the run's last step, so that none has more than three anchors before it."""
    (tuned,) = tune_model(tiny / "tiny_stream", replace(QUICK, tries=0, order=order))
    assert tuned.cache.order == kept


def test_weights_are_fitted_for_the_lengths_that_are_asked_for(tiny):
    (tuned,) = tune_model(tiny / "tiny_stream", replace(QUICK, tries=0, lengths=(12, 5, 12)))
    runs = {run.num_steps: run for run in tuned.cache.learnt.runs}
    assert list(runs) == [8, 12, 5]
    for length, run in runs.items():
        assert run.full_steps == tuned.cache.full_steps(length)
        after = length - length // 2  # steps from the middle one on: its sigma is after / length before the shift
        assert run.noise == pytest.approx(shift_of_size(32) * after / (length // 2), rel=1e-5), "six digits are kept"


def test_the_step_at_which_a_second_expert_takes_over_stays_full(tmp_path, monkeypatch):
    pipe = tiny_wan(tmp_path, boundary_ratio=0.9)
    pipe.save_pretrained(tmp_path / "weights")
    small = {"size_multiple": "8", "min_size": "8", "num_frames": "5", "max_frames": "5", "guidance_scale": "3.0"}
    folder = repository(tmp_path, tmp_path / "weights", **small) / "tiny_stream"
    (tuned,) = tune_model(folder, replace(QUICK, lengths=None))
    assert [run.num_steps for run in tuned.cache.learnt.runs] == [8, 6], "and 3/4: of 4 steps all are full"
    for run in tuned.cache.learnt.runs:
        pipe.scheduler.set_timesteps(run.num_steps)
        timesteps = pipe.scheduler.timesteps
        takeover = int((timesteps >= 0.9 * 1000).sum())
        assert takeover in run.full_steps
        assert len(run.full_steps) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full_steps": (8,)}, "full_steps is 8, must be from 2 to 7, one less than the steps"),
        ({"full_steps": (4, 1)}, "full_steps is 1, must be from 2 to 7"),
        ({"full_steps": (4,), "fields": {"num_inference_steps": 4}}, "full_steps is 4, must be from 2 to 3"),
        ({"fields": {"height": 7}}, "height is 7, must be a multiple of"),
        ({"order": 9}, "order is 9, must be from 0 to 8"),
        ({"order": -1}, "order is -1, must be from 0 to 8"),
        ({"lengths": (4, 8)}, "lengths has 8, must be other numbers of steps than 8, at least 2"),
        ({"lengths": (1,)}, "lengths has 1, must be other numbers of steps than 8, at least 2"),
        ({"pictures": 0}, "pictures is 0, must be at least 1"),
        ({"tries": -1}, "tries is -1, must be at least 0"),
    ],
)
def test_what_cannot_be_tuned_is_named_before_anything_is_saved(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        tune_model(tiny / "tiny_stream", replace(QUICK, **change))
    assert not [*tiny.parent.rglob("cache_presets*")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--full-steps", "4", "--full-steps", "5", "--name", "x"],
            "name is 'x', must be left out for several presets",
        ),
        (["--full-steps", "4", "--name", "default"], "name is 'default', must be 1 to 64 printable bytes"),
        (["--full-steps", "9"], "full_steps is 9, must be from 2 to 7"),
        (["--full-steps", "4", "--also-steps", "8"], "lengths has 8, must be other numbers of steps than 8"),
    ],
)
def test_the_command_ends_with_the_sentence(tiny, options, message):
    result = CliRunner().invoke(app, ["tune", "tiny", *options, "--model-repository", str(tiny)])
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_names_labels_and_engines_that_cannot_be_are_named(tiny):
    for name in ("default", "", "a\nb", 65 * "a"):
        with pytest.raises(ValueError, match=r"name is .*, must be 1 to 64 printable bytes"):
            tune_model(tiny / "tiny_stream", QUICK, {4: name})
    with pytest.raises(ValueError, match="prompts has 'a cat', must be class labels: this model takes no prompt"):
        tune_model(REPOSITORY / "dit_xl_2_256_stream", replace(QUICK, prompts=("a cat",)))
    config = ModelConfig.from_folder(tiny / "tiny_stream")
    with pytest.raises(ValueError, match="engine is triton, must be one that runs outside a server"):
        offline_host(replace(config, engine="triton"))


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tiny, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, as containers run tests, may write anywhere
    events = Followed()
    with pytest.raises(PermissionError, match="cannot be written, which is where the presets would be kept"):
        tune_model(tiny / "tiny_stream", QUICK, events=events)
    assert events.stages == []


def test_the_shipped_presets_have_the_full_steps_that_their_names_say():
    config = ModelConfig.from_folder(REPOSITORY / "emoji_stream")
    tuned = {name: cache for name, cache in config.presets.items() if name.startswith("tuned-")}
    few = tuned.pop("tuned-4-of-8")
    assert few.full_steps(8) == few.learnt.runs[0].full_steps == (0, 4, 6, 7)
    assert set(tuned) == {f"tuned-{count}" for count in (6, 8, 10, 12, 15)}
    for name, cache in tuned.items():
        assert cache.predictor == "learnt"
        for num_steps in (20, 28, 50, 100):
            assert len(cache.full_steps(num_steps)) == int(name.removeprefix("tuned-"))
        assert {run.noise for run in cache.learnt.runs} == {3.0}, "the scheduler's shift"
    assert config.defaults.cache == tuned["tuned-12"]
