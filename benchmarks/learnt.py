"""What learnt forecast weights gain, from what, and where they stop to hold; on the embedded model and two others.

    python -m benchmarks.learnt                        every part
    python -m benchmarks.learnt --part ablation        one part; repeatable. The others keep what they measured before
    python -m benchmarks.learnt --part models --folder training/cache/dit --folder training/cache/sd3

The presets are those that the model ships. Robustness, budgets and models are PSNR in dB to the uncached picture of the
same engine. Ablation, pictures, curve and transfer are distances of the last latents (`Batch.distances`): lower is
closer. Both are over pictures that nothing was learnt from. `models` tunes the pipelines in the folders, which
`python -m training.others` trains, as `triton-taylorseer tune` does; `transfer` needs what it has found.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import RESULTS, describe
from benchmarks.harness import MODEL, config_of, parser_of, say, write
from benchmarks.learnt_cost import measure_cost, measure_latency
from benchmarks.learnt_elsewhere import measure_budgets, measure_elsewhere
from benchmarks.learnt_transfer import Subject, measure_transfer
from benchmarks.quality_studio import PROMPTS, TUNING_PROMPTS
from clients.lines import read_lines
from plugin.building.judge import offline_host, requests_of
from plugin.building.learning.annealing import anneal
from plugin.building.learning.batch import Batch, Gradients, RunRecord, Steps, Weigher
from plugin.building.learning.gradients import refine
from plugin.building.learning.weighers import StepByStep, audit_row, of_predictor, of_rows
from plugin.building.tuning import TuneRequest, tune_model
from plugin.config import ModelConfig
from taylorseer import CacheConfig, even_steps, forecast_weights
from taylorseer.predictors import Weights

COUNTS = (8, 12)
ORDER, TRIES, ITERATIONS = 4, 200, 40
LEARN, HELD_OUT = 8, 32  # pictures
FITS = (*((pictures, ORDER) for pictures in (1, 2, 8, 32, 128)), *((LEARN, order) for order in (1, 2, 3, 5, 8)))
CURVES = (  # batches of LEARN pictures, and what is differentiated
    (1, Gradients.FULL_STEPS),
    (1, Gradients.FORECASTS),
    (4, Gradients.FULL_STEPS),
    (16, Gradients.FULL_STEPS),
)
_STEPS = 50


class Bench:
    """The embedded model, batches to learn from and batches to measure on."""

    def __init__(self, engine: str | None = None) -> None:
        config = config_of(MODEL)
        self.presets = config.presets
        self.config = replace(config, presets={}, engine=engine or config.engine)
        self.host = offline_host(self.config)
        for family in self.host.families.values():
            family.transformer.requires_grad_(False)

    def batch(self, path: Path, pictures: int, first_seed: int, **fields: Any) -> Batch:
        """Requests of a file's prompts in turn."""
        prompts = [text for _, text in read_lines(path)]
        requests = requests_of(self.config, prompts, pictures, first_seed, fields)
        return Batch(self.host, requests, self.config.max_sequence_length)


def measure_ablation() -> dict[str, Any]:
    """Schedule and weights, each alone and together: the distance of the last latents in dB; see `Batch.distances`."""
    bench = Bench("torch")
    learn, held_out = bench.batch(TUNING_PROMPTS, LEARN, 1000), bench.batch(PROMPTS, HELD_OUT, 0)
    stop = bench.batch(TUNING_PROMPTS, LEARN, 2000)  # other seeds, by which gradients end
    chebyshev = of_predictor("chebyshev", 2)
    recorded = learn.run(tuple(range(_STEPS)), chebyshev)
    rows = []
    for count in COUNTS:
        even, learnt = even_steps(_STEPS, count), bench.presets[f"tuned-{count}"].full_steps(_STEPS)
        alone = anneal(lambda steps, near: _error(learn, steps, chebyshev), even, _STEPS, TRIES).steps
        ways: dict[str, tuple[Steps, Weigher]] = {
            "even steps, chebyshev": (even, chebyshev),
            "schedule alone (searched with chebyshev)": (alone, chebyshev),
            "ridge on recorded features, even steps": (even, of_rows(_ridge(recorded, even))),
            "step by step, even steps": (even, of_rows(learn.run(even, StepByStep(ORDER)).weights)),
            "gradients, even steps": (even, of_rows(_refined(learn, stop, even, _chebyshev_rows(even)))),
            "ridge, that schedule": (alone, of_rows(_ridge(recorded, alone))),
            "step by step, that schedule": (alone, of_rows(learn.run(alone, StepByStep(ORDER)).weights)),
            "ridge, the preset's schedule": (learnt, of_rows(_ridge(recorded, learnt))),
        }
        fitted = learn.run(learnt, StepByStep(ORDER)).weights
        ways["step by step, the preset's schedule (the preset)"] = learnt, of_rows(fitted)
        ways["the preset and gradients"] = learnt, of_rows(_refined(learn, stop, learnt, fitted))
        for name, (steps, weigher) in ways.items():
            rows.append({"full_steps": count, "way": name, "learning_db": _error(learn, steps, weigher)})
            rows[-1] |= {"held_out_db": _error(held_out, steps, weigher), "steps": list(steps)}
            say(f"{count}: {name}: {rows[-1]['held_out_db']:.1f} dB")
    return {"rows": rows, "iterations": ITERATIONS, "tries": TRIES}


def measure_pictures() -> dict[str, Any]:
    """How many pictures and anchors the fit needs."""
    bench = Bench()
    held_out = bench.batch(PROMPTS, HELD_OUT, 0)
    rows = []
    for count in COUNTS:
        steps = bench.presets[f"tuned-{count}"].full_steps(_STEPS)
        for pictures, order in FITS:
            learn = bench.batch(TUNING_PROMPTS, pictures, 1000)
            row = {"full_steps": count, "pictures": pictures, "order": order}
            rows.append(row | _fit(learn, held_out, steps, order))
    return {"rows": rows}


def measure_curve() -> dict[str, Any]:
    """Learning and held-out error along the gradients, by the number of pictures, and with full steps as constants."""
    bench, rows = Bench("torch"), []
    held_out = bench.batch(PROMPTS, HELD_OUT, 0)
    steps = bench.presets[f"tuned-{COUNTS[0]}"].full_steps(_STEPS)
    for batches, gradients in CURVES:
        learn = [bench.batch(TUNING_PROMPTS, LEARN, 1000 + LEARN * part) for part in range(batches)]
        points = _curve(learn, held_out, steps, gradients)
        rows.append({"pictures": batches * LEARN, "through": gradients.value, "points": points})
        say(str(rows[-1]))
    return {"full_steps": COUNTS[0], "rows": rows}


def _curve(learn: Sequence[Batch], held_out: Batch, steps: Steps, gradients: Gradients) -> list[dict[str, float]]:
    """The errors before the first iteration and after every tenth, and the seconds until then."""
    points: list[dict[str, float]] = []
    begun, aside = time.perf_counter(), 0.0

    def look(at: int, error: float, weights: Mapping[int, Weights]) -> None:
        nonlocal aside
        now = time.perf_counter()
        learning = sum(_error(each, steps, of_rows(weights)) for each in learn) / len(learn)
        points.append({"iteration": at, "learning_db": learning, "held_out_db": error, "seconds": now - begun - aside})
        aside += time.perf_counter() - now

    start = learn[0].run(steps, StepByStep(ORDER)).weights
    refine(learn, held_out, steps, start, ITERATIONS, gradients=gradients, on_check=look)
    return points


def measure_models(folders: Sequence[Path]) -> dict[str, Any]:
    """Other families: presets learnt for pipelines in folders."""
    models = {}
    for folder in folders:
        with tempfile.TemporaryDirectory() as temporary:
            begun = time.perf_counter()
            tuned = tune_model(_repository(folder, Path(temporary)), _request_for(folder))
            rows = [
                {
                    "full_steps": len(each.cache.full_steps(_STEPS)),
                    "even_chebyshev": each.even_psnr,
                    "learnt": each.psnr,
                }
                | {"schedule": each.cache.schedule}
                for each in tuned
            ]
            models[folder.name] = {"rows": rows, "seconds": time.perf_counter() - begun}
            say(f"{folder.name}: {rows}")
    return {"models": models, "tries": TRIES, "pictures": LEARN}


def measure_transfer_between(folders: Sequence[Path], known: Mapping[str, Any]) -> dict[str, Any]:
    """Of the embedded model and those in folders, with the schedules that the part `models` has found for them; see
    `benchmarks.learnt_transfer`."""
    subjects = {}
    for folder in folders:
        with tempfile.TemporaryDirectory() as temporary:
            config = ModelConfig.from_folder(_repository(folder, Path(temporary)))
            host, request = offline_host(config), _request_for(folder)
            own = request.prompts or tuple(map(str, range(config.limits.num_classes)))
            asked = requests_of(config, own, 2 * LEARN, 1000, {})
            parts = [Batch(host, part, config.max_sequence_length) for part in (asked[:LEARN], asked[LEARN:])]
        (row,) = [each for each in known["models"]["models"][folder.name]["rows"] if each["full_steps"] == COUNTS[0]]
        schedule = CacheConfig(schedule=row["schedule"])
        subjects[folder.name] = Subject(parts[0], parts[1], schedule.full_steps(_STEPS))
    bench = Bench()
    parts = [bench.batch(TUNING_PROMPTS, LEARN, 1000), bench.batch(PROMPTS, LEARN, 0)]
    subjects[MODEL] = Subject(parts[0], parts[1], bench.presets[f"tuned-{COUNTS[0]}"].full_steps(_STEPS))
    return measure_transfer(subjects)


def _error(batch: Batch, steps: Steps, weigher: Weigher) -> float:
    return float(batch.distances(batch.run(steps, weigher)).mean())


def _fit(learn: Batch, held_out: Batch, steps: Steps, order: int) -> dict[str, float]:
    begun = time.perf_counter()
    record = learn.run(steps, StepByStep(order))
    seconds = time.perf_counter() - begun
    error = _error(held_out, steps, of_rows(record.weights))
    return {"learning_db": float(learn.distances(record).mean()), "held_out_db": error, "seconds": seconds}


def _refined(learn: Batch, stop: Batch, steps: Steps, rows: Mapping[int, Weights]) -> dict[int, Weights]:
    return refine([learn], stop, steps, rows, ITERATIONS)


def _chebyshev_rows(steps: Steps) -> dict[int, Weights]:
    before = {step: [each for each in steps if each < step][-3:] for step in range(_STEPS) if step not in steps}
    return {step: forecast_weights("chebyshev", 2, anchors, step) for step, anchors in before.items()}


def _ridge(recorded: RunRecord, steps: Steps) -> dict[int, Weights]:
    """The weights whose forecasts of an uncached run's features have the least squared error."""
    (features,) = recorded.anchors.values()
    rows = {}
    for step in range(_STEPS):
        if step not in steps:
            anchors = [features[each] for each in steps if each < step][-(ORDER + 1) :]
            rows[step] = audit_row(anchors, features[step])
    return rows


def _repository(folder: Path, temporary: Path) -> Path:
    """A model of a pipeline, in a folder of its own that presets can be written into."""
    shutil.copytree(folder, temporary / "pipeline")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    labels = index["_class_name"] == "DiTPipeline"
    parameters = {
        "pipeline": str(temporary / "pipeline"),
        "engine": "onnxruntime",
        "height": "64",
        "width": "64",
        "size_multiple": "8",
        "num_inference_steps": str(_STEPS),
        "guidance_scale": "2.0" if labels else "3.0",
    }
    parameters |= {"takes_prompt": "false", "num_classes": "100"} if labels else {"max_sequence_length": "16"}
    model = temporary / f"{folder.name}_stream"
    model.mkdir()
    text = "\n".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in parameters.items()
    )
    (model / "config.pbtxt").write_text(text + "\n", encoding="utf-8")
    ModelConfig.from_folder(model)
    return model


def _request_for(folder: Path) -> TuneRequest:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    prompts = () if index["_class_name"] == "DiTPipeline" else tuple(text for _, text in read_lines(TUNING_PROMPTS))
    return TuneRequest((6, 8, 10, 12), prompts, LEARN, {}, tries=TRIES, lengths=())


def parts_of(folders: Sequence[Path], known: Mapping[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """What measures each part.

    Args:
        folders: of the pipelines that are tuned.
        known: the parts that have been measured, by name.
    """
    return {
        "ablation": measure_ablation,
        "pictures": measure_pictures,
        "curve": measure_curve,
        "robustness": measure_elsewhere,
        "budgets": measure_budgets,
        "cost": measure_cost,
        "latency": measure_latency,
        "models": partial(measure_models, folders),
        "transfer": partial(measure_transfer_between, folders, known),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes JSON."""
    parser = parser_of("learnt", __doc__)
    parser.add_argument("--part", action="append", choices=tuple(parts_of((), {})), help="repeatable; default: all")
    parser.add_argument("--folder", action="append", type=Path, default=[], help="of a pipeline to tune; repeatable")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    from benchmarks.plots import draw_learnt  # needs matplotlib: a missing package is reported before measuring

    torch.set_num_threads(1)
    path = arguments.output / "learnt.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    parts = parts_of(arguments.folder, result)
    for name in arguments.part or parts:
        result[name] = describe() | parts[name]()
        write(path, result)
    result["presets"] = presets_of(config_of(MODEL))
    write(path, result)
    if "robustness" in result:
        draw_learnt(result, arguments.output / "learnt.png")
    say(f"wrote {path}")


def presets_of(config: ModelConfig) -> dict[str, Any]:
    """Full steps of the learnt presets, and the weights of their forecast steps, the newest anchor's last."""
    presets = {}
    for name, cache in config.presets.items():
        if cache.learnt is not None and (run := cache.learnt.runs[0]).num_steps == _STEPS:
            forecast = [step for step in range(1, _STEPS) if step not in run.full_steps]
            presets[name] = {"full_steps": run.full_steps, "weights": {f"{at}": run.rows[at - 1] for at in forecast}}
    return presets


if __name__ == "__main__":
    main()
