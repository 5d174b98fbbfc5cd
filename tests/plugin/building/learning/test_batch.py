"""Batches of runs: what plain diffusers makes of the same lists, what a served run makes, and replays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugin.building.learning.batch import Batch, RunRecord
from plugin.building.learning.rows import learnt_run
from plugin.building.learning.weighers import Given, StepByStep, of_predictor, of_rows
from plugin.config import ModelConfig
from plugin.denoising.host import PipelineHost
from plugin.engines.base import Engine
from plugin.families.base import BlockInputs
from plugin.request import GenerationRequest
from plugin.serving.plan import example_request
from taylorseer import CacheConfig, LearntWeights
from tests.support.engines import RecordingEngine
from tests.support.tiny import FAMILIES
from tests.support.tiny.pictures import CASES
from tests.support.tiny.qwen_image import FAMILY as QWEN_IMAGE

STEPS, FULL = 10, (0, 2, 3, 6, 9)
PROMPTS, LABELS, SEEDS = ["a red apple", "a blue house under the sun"], [207, 3], (3, 4)
CONFIG = {"pipeline": "hub/id", "size_multiple": "8", "min_size": "8", "max_frames": "17", "dtype": "float32"}
SMALL = {"height": 32, "width": 32, "max_sequence_length": 16}


@dataclass(frozen=True)
class Case:
    """A tiny model: the arguments that its pipeline's call has for the two requests, and what the requests ask for."""

    arguments: dict[str, Any]
    fields: dict[str, Any]
    calls: int = 1
    rows: int = 2
    linear: bool = True


CASES_OF_BATCHES = {
    "flux": Case({"prompt": PROMPTS, "guidance_scale": 2.5, **SMALL}, {"guidance_scale": 2.5}),
    "dit": Case({"class_labels": LABELS, "guidance_scale": 4.0}, {"guidance_scale": 4.0}, rows=4),
    "wan": Case(
        {"prompt": PROMPTS, "guidance_scale": 3.0, "num_frames": 5, **SMALL},
        {"guidance_scale": 3.0, "num_frames": 5},
        calls=2,
    ),
    "qwen": Case(
        {"prompt": PROMPTS, "negative_prompt": ["ugly"] * 2, "true_cfg_scale": 3.0, **SMALL},
        {"guidance_scale": 3.0, "negative_prompt": "ugly"},
        calls=2,
        linear=False,
    ),
}


class Loaded:
    """A tiny model with a batch of two requests."""

    def __init__(self, name: str, folder: Path) -> None:
        self.case = CASES_OF_BATCHES[name]
        self.pipe = {**FAMILIES, "qwen": QWEN_IMAGE}[name].make(folder, torch.float32)
        self.host = PipelineHost(self.pipe)
        self.batch = Batch(self.host, self.requests(name == "dit"), 16)

    def requests(self, labels: bool) -> list[GenerationRequest]:
        limits = {"takes_prompt": "false", "num_classes": "1000"} if labels else {}
        config = ModelConfig.from_parameters({**CONFIG, **limits}, Path())
        subjects = [{"class_label": each} for each in LABELS] if labels else [{"prompt": each} for each in PROMPTS]
        fields = {"height": 32, "width": 32, "num_inference_steps": STEPS, **self.case.fields}
        return [example_request(config, **of, **fields, seed=seed) for of, seed in zip(subjects, SEEDS, strict=True)]

    def called(self, pipe: Any) -> list[torch.Tensor]:
        """The latents after each step of a call of a pipeline with the lists of both requests."""
        step, latents = pipe.scheduler.step, []

        def recorded(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            latents.append((result[0] if isinstance(result, tuple) else result.prev_sample)[:2].clone())
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipe.scheduler, "step", recorded)
            pipe(
                **self.case.arguments,
                num_inference_steps=STEPS,
                generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
                output_type="latent",
            )
        return latents

    def served(self, cache: CacheConfig) -> torch.Tensor:
        return self.called(self.host.pipeline_for(cache))[-1]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    return cache(lambda name: Loaded(name, tmp_path_factory.mktemp(name)))


def assert_near(found: torch.Tensor | None, expected: torch.Tensor, share: float) -> None:
    assert found is not None
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= share * float(expected.abs().max())


def assert_served(model: Loaded, record: RunRecord, latents: torch.Tensor) -> None:
    """The latents of a fit are those of a pipeline whose guidance is a weighted sum of its branches."""
    if model.case.linear:
        # weights of six digits, guidance by its coefficients, sums in another order: float32 over ten steps
        assert_near(record.latents, latents, 1e-4)
    else:
        # Qwen-Image gives each token the norm of the prompt's branch, which a fit takes as it was before the step
        far = model.batch.distances(RunRecord(FULL, latents=latents)) - model.batch.distances(record)
        assert far.abs().max() < 1


def schedule_of(full: tuple[int, ...]) -> str:
    return f"{' '.join(map(str, full))} of {STEPS}"


@pytest.mark.parametrize("name", CASES_OF_BATCHES)
def test_the_uncached_run_is_plain_diffusers_bit_for_bit(loaded, name):
    model = loaded(name)
    plain = model.called(model.pipe)
    assert (model.batch.size, model.batch.num_steps, len(model.batch.targets)) == (2, STEPS, STEPS)
    assert all(torch.equal(found, step) for found, step in zip(model.batch.targets, plain, strict=True))


def test_each_request_of_a_batch_is_what_it_is_alone(loaded):
    model = loaded("flux")
    for place, seed in enumerate(SEEDS):
        alone = model.pipe(
            **{**model.case.arguments, "prompt": PROMPTS[place]},
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
        # matrices of two rows are multiplied in another order than those of one: float32 over ten steps
        assert_near(model.batch.targets[-1][place : place + 1], alone, 1e-4)


@pytest.mark.parametrize("name", CASES_OF_BATCHES)
def test_a_run_with_a_predictor_is_the_served_run(loaded, name):
    model = loaded(name)
    record = model.batch.run(FULL, of_predictor("taylor", 2))
    served = model.served(CacheConfig(order=2, schedule=schedule_of(FULL)))
    # the sums of anchors add their terms in another order: float32 over ten steps
    assert_near(record.latents, served, 1e-4)
    assert float((served - model.batch.targets[-1]).abs().max()) > 1e-3 * float(served.abs().max()), "it does forecast"
    assert not record.weights, "none was fitted"
    assert {step: len(outputs) for step, outputs in record.outputs.items()} == dict.fromkeys(
        range(STEPS), model.case.calls
    )
    assert all(tuple(kept) == FULL for kept in record.anchors.values())


@pytest.mark.parametrize("name", CASES_OF_BATCHES)
def test_fitted_rows_make_served_what_the_fit_made(loaded, name):
    """And bring it closer to the uncached latents than what the fit begins with."""
    model = loaded(name)
    record = model.batch.run(FULL, StepByStep(2))
    run = learnt_run(model.batch, record, 2)
    learnt = LearntWeights((run,))
    served = model.served(CacheConfig(order=2, predictor="learnt", schedule=schedule_of(FULL), learnt=learnt))
    assert_served(model, record, served)
    begun = model.batch.run(FULL, Given(StepByStep(2).begin))
    assert model.batch.distances(record).mean() < model.batch.distances(begun).mean() - 0.2


@pytest.mark.parametrize("name", CASES_OF_BATCHES)
@pytest.mark.parametrize("moved", [(0, 2, 4, 6, 9), (0, 2, 3, 6, 8), (0, 1, 3, 6, 9), FULL])
def test_a_replay_has_the_bits_of_the_run_from_the_beginning(loaded, name, moved):
    model, weigher = loaded(name), of_predictor("newton", 2)
    before = model.batch.run(FULL, weigher)
    latents, outputs = before.latents.clone(), {step: list(each) for step, each in before.outputs.items()}
    replayed, again = model.batch.run(moved, weigher, before), model.batch.run(moved, weigher)
    assert torch.equal(replayed.latents, again.latents)
    assert replayed.full_steps == moved
    assert torch.equal(before.latents, latents), "the record that is replayed stays as it was"
    assert all(a is b for step, each in outputs.items() for a, b in zip(each, before.outputs[step], strict=True))


@pytest.mark.parametrize("name", CASES_OF_BATCHES)
def test_a_replayed_fit_goes_on_as_the_run_from_the_beginning(loaded, name):
    model = loaded(name)
    before = model.batch.run(FULL, StepByStep(2))
    replayed = model.batch.run((0, 2, 3, 6, 8), StepByStep(2), before)
    again = model.batch.run((0, 2, 3, 6, 8), StepByStep(2))
    assert all(replayed.weights[step] is before.weights[step] for step in (1, 4, 5, 7))
    assert sorted(replayed.weights) == sorted(again.weights) == [1, 4, 5, 7, 9]
    assert_served(model, replayed, again.latents)


def test_a_replay_calls_the_engine_only_after_the_runs_part(loaded, monkeypatch):
    model = loaded("wan")
    recording = RecordingEngine(model.host.engines["transformer"])
    monkeypatch.setitem(model.host.engines, "transformer", recording)
    before = model.batch.run(FULL, of_predictor("taylor", 1))
    assert len(recording.inputs) == 2 * len(FULL)
    model.batch.run((0, 2, 3, 7, 9), of_predictor("taylor", 1), before)
    assert len(recording.inputs) == 2 * len(FULL) + 2 * 2
    model.batch.run(FULL, of_predictor("taylor", 1), before)
    assert len(recording.inputs) == 2 * len(FULL) + 2 * 2


@pytest.mark.parametrize(("name", "rows"), [("flux", 1), ("dit", 3), ("dit", 1), ("wan", 1)])
def test_a_limit_of_rows_changes_no_more_than_rounding(loaded, monkeypatch, name, rows):
    model = loaded(name)
    recording = RecordingEngine(model.host.engines["transformer"])
    monkeypatch.setitem(model.host.engines, "transformer", recording)
    limited = Batch(model.host, model.requests(name == "dit"), 16, rows)
    assert max(len(inputs["hidden_states"]) for inputs in recording.inputs) == rows
    assert len(recording.inputs) == STEPS * model.case.calls * -(-model.case.rows // rows)
    # matrices of fewer rows are multiplied in another order: float32 over ten steps
    assert_near(limited.targets[-1], model.batch.targets[-1], 1e-4)


class ReusingEngine:
    """Another engine, which answers every call of one shape in the same memory, as compiled ones do."""

    name = "reusing"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._memory: dict[torch.Size, torch.Tensor] = {}

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        features = self._engine.run(inputs)
        return self._memory.setdefault(features.shape, torch.empty_like(features)).copy_(features)


@pytest.mark.parametrize("rows", [None, 1])
def test_an_engine_may_answer_in_the_memory_of_its_last_answer(loaded, monkeypatch, rows):
    model = loaded("dit")
    expected = Batch(model.host, model.requests(labels=True), 16, rows)
    latents = expected.run(FULL, of_predictor("taylor", 2)).latents
    monkeypatch.setitem(model.host.engines, "transformer", ReusingEngine(model.host.engines["transformer"]))
    found = Batch(model.host, model.requests(labels=True), 16, rows)
    assert torch.equal(found.targets[-1], expected.targets[-1])
    assert torch.equal(found.run(FULL, of_predictor("taylor", 2)).latents, latents)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_rows_are_kept_with_six_digits_and_those_of_audits_are_least_squares(loaded, order):
    model = loaded("wan")
    record = model.batch.run(FULL, StepByStep(order))
    run = learnt_run(model.batch, record, order)
    assert (run.num_steps, run.full_steps) == (STEPS, FULL)
    assert [len(row) for row in run.rows] == [min(order + 1, len([at for at in FULL if at < s])) for s in range(1, 10)]
    for step, weights in record.weights.items():
        assert run.rows[step - 1] == pytest.approx(weights, rel=1e-5)  # six digits
    kept = next(iter(record.anchors.values()))
    for step in FULL[1:]:
        matrix = torch.stack([kept[at].flatten() for at in run.anchors(step)], dim=1).double().numpy()
        best = np.linalg.lstsq(matrix, kept[step].flatten().double().numpy(), rcond=None)[0]
        wanted, found = (
            np.square(matrix @ row - kept[step].flatten().numpy()).sum() for row in (best, run.rows[step - 1])
        )
        assert found == pytest.approx(wanted, rel=1e-3)  # a ridge of a millionth, and products of float32


def test_rows_by_step_are_taken_as_they_are(loaded):
    model = loaded("flux")
    fitted = model.batch.run(FULL, StepByStep(2))
    record = model.batch.run(FULL, of_rows(fitted.weights))
    assert sorted(fitted.weights) == [1, 4, 5, 7, 8]
    # the fit takes the output from guidance's coefficients: float32 over ten steps
    assert_near(record.latents, fitted.latents, 1e-4)


def test_distances_are_mean_squares_in_decibels(loaded):
    batch = loaded("flux").batch
    reference = batch.targets[-1]
    shares = torch.tensor([0.1, 0.01]).reshape(2, 1, 1)
    # 0.1 and 0.01 of the latents are 20 and 40 dB below them; float32 rounds the sum
    assert batch.distances(RunRecord((0,), latents=reference * (1 + shares))).tolist() == pytest.approx(
        [-20, -40], abs=0.01
    )
    assert batch.distances(RunRecord((0,), latents=reference)).tolist() == pytest.approx([-120, -120])


@pytest.mark.parametrize(
    ("change", "name"),
    [({"guidance_scale": 4.0}, "guidance_scale"), ({"height": 64}, "height"), ({"width": 16}, "width")],
)
def test_requests_that_differ_in_more_than_their_subject_are_refused(loaded, change, name):
    model = loaded("flux")
    first, second = model.requests(labels=False)
    with pytest.raises(ValueError, match=rf"{name}.* differs between the requests of a batch, must be the same for"):
        Batch(model.host, [first, replace(second, **change)], 16)


def test_a_request_of_other_steps_is_refused(loaded):
    model = loaded("flux")
    first, second = model.requests(labels=False)
    with pytest.raises(ValueError, match="num_inference_steps differs between the requests of a batch"):
        Batch(model.host, [first, replace(second, num_inference_steps=5)], 16)


def test_a_negative_prompt_of_one_request_alone_is_refused_whichever_it_is(loaded):
    model = loaded("wan")
    first, second = model.requests(labels=False)
    for pair in ([first, replace(second, negative_prompt="ugly")], [replace(first, negative_prompt="ugly"), second]):
        with pytest.raises(ValueError, match="negative_prompt differs between the requests of a batch"):
            Batch(model.host, pair, 16)


def test_a_pipeline_that_begins_with_a_picture_is_refused(tmp_path):
    host = PipelineHost(CASES["flux fill"].make(tmp_path))
    with pytest.raises(ValueError, match="pipeline is a FluxFillPipeline, must be one that needs no picture"):
        Batch(host, [example_request(ModelConfig.from_parameters(CONFIG, Path()), prompt="a")])
