"""A short training from made-up emoji to a pipeline, by the commands that train the shipped one, in pieces."""

from __future__ import annotations

import json
import math
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from tests.support.made_up import CONCEPTS
from training import autoencoder, transformer
from training.checkpoints import MAX_FILE_BYTES, last_checkpoint, read_checkpoint

AUTOENCODER_STEPS, STEPS = 30, 40
GUIDED_SHARE = 0.25


@pytest.fixture(scope="module")
def options(data: Path) -> list[str]:
    (data.parent / "concepts.txt").write_text("\n".join(CONCEPTS), encoding="utf-8")
    return ["--data", str(data), "--concepts", str(data.parent / "concepts.txt"), "--device", "cpu", "--batch", "8"]


@pytest.fixture(scope="module")
def trained(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of autoencoder and transformer, each trained in two pieces, the second of which remembers."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = ["--checkpoints", str(folder)]
    half = ["--steps", str(AUTOENCODER_STEPS // 2)]
    autoencoder.main([*options, *checkpoints, *half, "--total-steps", str(AUTOENCODER_STEPS)])
    autoencoder.main([*options[:2], "--device", "cpu", *checkpoints, "--resume"])
    log_often = ["--no-compile", "--log-every", "5", "--sheet-every", str(STEPS // 2)]
    half = ["--steps", str(STEPS // 2), "--total-steps", str(STEPS), "--guided-share", str(GUIDED_SHARE)]
    transformer.main([*options, *checkpoints, *log_often, *half])
    transformer.main([*options[:2], "--device", "cpu", *checkpoints, *log_often, "--resume"])
    return folder


def records(run: Path, stage: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["stage"] == stage]


def test_the_autoencoder_learns_and_its_second_piece_goes_on(trained: Path) -> None:
    first, second = records(trained, "autoencoder")
    assert (first["steps"], second["steps"]) == (AUTOENCODER_STEPS // 2, AUTOENCODER_STEPS)
    assert second["minutes"] > first["minutes"] > 0
    assert second["loss"] < 0.9 * first["loss"]
    assert second["psnr_db"]["seen"] > first["psnr_db"]["seen"] + 3


def test_the_loss_of_the_transformer_falls(trained: Path) -> None:
    losses = [record["loss"] for record in records(trained, "transformer") if not record["guided"]]
    assert losses[-1] < 0.6 * losses[0]


def test_steps_and_schedule_span_the_pieces(trained: Path) -> None:
    log = records(trained, "transformer")
    assert [record["step"] for record in log] == list(range(5, STEPS + 1, 5))
    for record in log:
        done = (record["step"] - 1) / STEPS  # before the step
        expected = 1e-3 * record["step"] / 100 * 0.5 * (1 + math.cos(math.pi * done))
        assert record["learning_rate"] == pytest.approx(expected, rel=5e-3)  # three digits
        assert record["guided"] == (done > 1 - GUIDED_SHARE)
    assert [guided for guided, _ in groupby(record["guided"] for record in log)] == [False, True]
    assert all(earlier["minutes"] <= later["minutes"] for earlier, later in pairwise(log))


def test_every_file_of_the_run_is_small(trained: Path) -> None:
    sizes = [path.stat().st_size for path in trained.rglob("*") if path.is_file()]
    assert max(sizes) <= MAX_FILE_BYTES
    assert sum(sizes) > 4 * MAX_FILE_BYTES  # weights, their average, and two moments of each


def test_contact_sheets_are_made_on_the_way(trained: Path) -> None:
    sheets = sorted((trained / "transformer" / "sheets").iterdir())
    assert [path.name for path in sheets] == [f"step_{steps:08d}.png" for steps in (STEPS // 2, STEPS)]
    for path in sheets:
        with Image.open(path) as sheet:
            assert sheet.size == (4 * 128, 4 * 144)
            assert np.asarray(sheet)[:128].std() > 1


def test_the_exported_pipeline_makes_pictures(trained: Path) -> None:
    pipe = FluxPipeline.from_pretrained(trained / "pipeline", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["red disc, 3d", "blue disc, 3d"]
    picture, other = (
        pipe(
            prompt,
            num_inference_steps=2,
            height=64,
            width=64,
            max_sequence_length=16,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images[0]
        for prompt in prompts
    )
    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()
    assert not np.array_equal(picture, other)
    assert {path.suffix for path in (trained / "pipeline").rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_the_export_is_the_average_that_the_checkpoint_has(trained: Path) -> None:
    last = last_checkpoint(trained / "transformer")
    assert last is not None
    saved = read_checkpoint(last)
    assert saved.values["progress"]["steps"] == STEPS
    pipe = FluxPipeline.from_pretrained(trained / "pipeline", dtype=torch.float32)
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor, saved.tensors[f"average.transformer.{name}"].half().float())


def test_a_run_from_a_pipeline_ends_with_the_same_bits_in_one_piece_and_in_two(
    trained: Path, options: list[str], tmp_path: Path
) -> None:
    begin = [*options, "--no-compile", "--from", str(trained / "pipeline"), "--synonyms", "--total-steps", "4"]
    transformer.main([*begin, "--checkpoints", str(tmp_path / "one")])
    transformer.main([*begin, "--checkpoints", str(tmp_path / "two"), "--steps", "2", "--guided-share", "0.4"])
    changed = ["--checkpoints", str(tmp_path / "two"), "--resume", "--guided-share", "0.2"]
    transformer.main([*options[:2], "--device", "cpu", "--no-compile", *changed, "--export", str(tmp_path / "out")])
    one, two = (last_checkpoint(tmp_path / name / "transformer") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    whole, pieces = read_checkpoint(one), read_checkpoint(two)
    assert whole.values["settings"] == pieces.values["settings"]
    assert whole.values["settings"]["synonyms"] == transformer.SYNONYMS_SHARE
    assert whole.tensors.keys() == pieces.tensors.keys()
    assert [name for name, tensor in whole.tensors.items() if not torch.equal(tensor, pieces.tensors[name])] == []
    files = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")}
    assert files == {path.relative_to(tmp_path / "one/pipeline") for path in (tmp_path / "one/pipeline").rglob("*")}
    # It began where the pipeline was: four steps of warm-up move little, and the average moves 0.2 % of it each.
    before = FluxPipeline.from_pretrained(trained / "pipeline", dtype=torch.float32).transformer.state_dict()
    moved, average_moved = (
        max(float((old - whole.tensors[f"{which}.transformer.{name}"]).abs().max()) for name, old in before.items())
        for which in ("modules", "average")
    )
    assert 0 < moved < 1e-3
    assert 0 < average_moved < 4 * 0.003 * moved


def test_a_transformer_without_an_autoencoder_is_told_what_to_do(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train the autoencoder, or begin --from a pipeline"):
        transformer.main([*options, "--checkpoints", str(tmp_path), "--steps", "1"])


def test_prompts_that_the_tokenizers_cut_are_noticed(trained: Path) -> None:
    model = transformer.model_of_pipeline(trained / "pipeline")
    tokenizers = model.tokenizer, model.tokenizer_2
    long = "red disc in " + "purple and " * 20 + "flat style"
    assert transformer.fitting(["red disc, flat", long, "réd, flat"], *tokenizers) == {"red disc, flat"}
