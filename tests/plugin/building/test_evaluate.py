"""Evaluating a tiny model, and published scores through their packages or with what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from plugin.building import scores
from plugin.building.evaluate import EvaluateRequest, evaluate, table
from plugin.building.scores import ScoreMissing
from tests.support.repository import SHIPPED, write_pair


@pytest.fixture
def tiny(tmp_path, flux) -> Path:
    """A repository with a tiny model of 6 steps and a paper preset, and a file of prompts beside it."""
    flux.save_pretrained(tmp_path / "weights")
    options = {"height": "32", "width": "32", "num_inference_steps": "6", "max_sequence_length": "16"}
    options |= {"cache_interval": "3", "cache_warmup_steps": "1", "cache_preset_paper": "interval=2, order=2"}
    write_pair(tmp_path / "models", "tiny", {"pipeline": str(tmp_path / "weights"), "engine": "torch", **options})
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    return tmp_path


def request(folder: Path, **options: Any) -> EvaluateRequest:
    prompts = ("a cat", "a dog")
    return EvaluateRequest("tiny", folder / "models", prompts, pictures=2, output=folder / "out", **options)


def test_every_preset_stands_beside_the_uncached_run_and_as_few_plain_steps(tiny):
    progress: list[tuple[int, int]] = []
    result = evaluate(request(tiny), lambda done, of: progress.append((done, of)))
    rows = {row["way"]: row for row in result["rows"]}
    assert list(rows) == ["uncached", "2 plain steps", "4 plain steps", "default", "paper"]
    assert [row["full_steps"] for row in rows.values()] == [6, 2, 4, 2, 4]
    assert (rows["uncached"]["psnr"], rows["uncached"]["perceptual"]) == (60.0, pytest.approx(0, abs=1e-6))
    assert all(rows[way]["psnr"] < 60 for way in ("2 plain steps", "default"))
    for way in rows:
        assert Image.open(tiny / "out" / way.replace(" ", "_") / "0001.png").size == (32, 32)
    assert progress == [(done, 5) for done in range(6)]
    assert (result["model"], result["engine"], result["pictures"], result["num_steps"]) == ("tiny", "torch", 2, 6)
    assert json.loads(json.dumps(result)) == result
    printed = table(result)
    assert printed.title == "tiny: 2 pictures, 6 steps, engine torch"
    assert [column.header for column in printed.columns] == ["way", "full_steps", "psnr", "ssim", "perceptual"]
    assert [*printed.columns[0].cells] == list(rows)


def test_a_score_that_cannot_be_had_is_reported_and_the_others_stay(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    result = evaluate(request(tiny, presets=("paper",), scores=("imagereward",)))
    assert [row["way"] for row in result["rows"]] == ["uncached", "4 plain steps", "paper"]
    assert all("pip install image-reward" in row["imagereward"] for row in result["rows"])
    assert all(np.isfinite(row["psnr"]) for row in result["rows"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presets": ("fast",)}, "preset is 'fast', must be one of: default, paper"),
        ({"fields": {"height": 7}}, "height is 7, must be a multiple of"),
        ({"scores": ("beauty",)}, "score is 'beauty', must be one of: clip, imagereward, fid, vbench"),
        ({"scores": ("fid",)}, "reference is missing, must be a folder of real pictures for the score fid"),
    ],
)
def test_what_cannot_be_evaluated_is_named(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(request(tiny, **options))


def test_a_request_without_pictures_or_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pictures is 0, must be at least 1"):
        EvaluateRequest("tiny", tmp_path, ("a cat",), pictures=0)
    with pytest.raises(ValueError, match="prompts has none, must have at least one"):
        EvaluateRequest("tiny", tmp_path, ())


@pytest.mark.parametrize(
    ("module", "score", "package"),
    [
        ("ImageReward", lambda files: scores.image_reward(files, ["a"]), "image-reward"),
        ("cleanfid.fid", lambda files: scores.fid(files[0].parent, files[0].parent), "clean-fid"),
        ("vbench", lambda files: scores.vbench(files[0].parent), "vbench"),
    ],
)
def test_a_package_that_is_not_here_is_named(tmp_path, monkeypatch, module, score, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ScoreMissing, match=f"{package} cannot be imported .*: pip install {package}"):
        score([tmp_path / "a.png"])


def test_packages_are_called_as_they_document_it(tmp_path, monkeypatch):
    """Against stand-ins of their modules, since their weights are in no package registry: arguments and results."""
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.new("RGB", (8, 8), "red").save(file)
    calls: list[tuple] = []

    class Bench:
        def __init__(self, device, info, output):
            self.output = Path(output)
            calls.append((Path(info).name,))

        def evaluate(self, videos_path, name, dimension_list, mode):
            calls.append((videos_path, mode))
            found = {dimension: [0.5, []] for dimension in dimension_list}
            (self.output / f"{name}_eval_results.json").write_text(json.dumps(found))

    def rewarded(prompt, file):
        calls.append((prompt, file))
        return 1.0 if prompt == "a cat" else 0.0

    def fid_of(one, other, num_workers):
        calls.append((one, other))
        return 3.0

    monkeypatch.setitem(
        sys.modules, "ImageReward", SimpleNamespace(load=lambda name: SimpleNamespace(score=rewarded, name=name))
    )
    monkeypatch.setitem(sys.modules, "cleanfid.fid", SimpleNamespace(compute_fid=fid_of))
    monkeypatch.setitem(sys.modules, "vbench", SimpleNamespace(VBench=Bench, __file__=str(tmp_path / "__init__.py")))
    assert scores.image_reward(files, ["a cat", "a dog"]) == 0.5
    assert scores.fid(tmp_path, tmp_path / "real") == 3.0
    assert scores.vbench(tmp_path) == dict.fromkeys(scores.VBENCH_DIMENSIONS, 0.5)
    assert calls == [
        ("a cat", str(files[0])),
        ("a dog", str(files[1])),
        (str(tmp_path), str(tmp_path / "real")),
        ("VBench_full_info.json",),
        (str(tmp_path), "custom_input"),
    ]


@pytest.fixture
def clip(tmp_path) -> Path:
    """A tiny CLIP with random weights, as a folder, with the embedded model's tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(SHIPPED / "emoji/1/pipeline/tokenizer")
    size: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size["intermediate_size"] = 16
    text = CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **size)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(pixels, tokenizer).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_clip_score_is_the_cosine_that_the_models_own_logits_hold(tmp_path, clip):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, colour in zip(files, ("red", "green"), strict=True):
        Image.new("RGB", (48, 40), colour).save(file)
    prompts = ["red apple", "cactus"]
    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    pictures = [Image.open(file) for file in files]
    with torch.no_grad():
        logits = model(**processor(text=prompts, images=pictures, return_tensors="pt", padding=True)).logits_per_image
    cosines = (logits.diag() / model.logit_scale.exp()).tolist()
    # padding of the shorter prompt changes nothing but rounding
    assert scores.clip_score(files, prompts, str(clip)) == pytest.approx(
        100 * np.mean(np.maximum(cosines, 0)), rel=1e-4
    )


def test_weights_that_cannot_be_had_are_named(tmp_path, monkeypatch):
    with pytest.raises(ScoreMissing, match=r"weights of CLIP .*nowhere cannot be had"):
        scores.clip_score([tmp_path / "a.png"], ["a"], str(tmp_path / "nowhere"))

    def load(name):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore")

    monkeypatch.setitem(sys.modules, "ImageReward", SimpleNamespace(load=load))
    with pytest.raises(ScoreMissing, match=r"weights of ImageReward-v1\.0 cannot be had \(We couldn't connect"):
        scores.image_reward([tmp_path / "a.png"], ["a"])
