"""Plans: computed from shapes, equal to what runs hold, with the published models' numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import WanPipeline
from PIL import Image

from plugin.config import ModelConfig
from plugin.denoising.generation import generate
from plugin.denoising.host import PipelineHost
from plugin.paths import REPOSITORY
from plugin.serving.plan import Plan, architecture_of, architecture_of_pipe, plan_request
from plugin.serving.published import PUBLISHED
from taylorseer import CacheConfig
from tests.support.commands import run
from tests.support.tiny import FAMILIES
from tests.support.tiny.wan import tiny_wan

MIB, GIB = 2**20, 2**30


def plan_of(model: str, **changes: Any) -> Plan:
    """The plan of a shipped model's default request, with changes."""
    config = ModelConfig.from_folder(REPOSITORY / f"{model}_stream")
    return plan_request(config, architecture_of(config.source.pipeline), replace(config.defaults, **changes))


# Against runs


@pytest.mark.parametrize(
    ("dtype", "cache"),
    [("float32", CacheConfig(3, 2, 1)), ("bfloat16", CacheConfig(5, 0, 0)), ("float32", CacheConfig(1))],
    ids=["N3 O2", "reuse in bfloat16", "off"],
)
@pytest.mark.parametrize(
    "guidance",
    [{"guidance_scale": 1.0}, {"guidance_scale": 4.0}, {"guidance_scale": 4.0, "negative_prompt": "ugly"}],
    ids=["none", "guided", "negative prompt"],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_plan_is_what_a_run_holds_and_does(tmp_path: Path, name, dtype, guidance, cache):
    family = FAMILIES[name]
    pipe = family.make(tmp_path, getattr(torch, dtype))
    pipe.save_pretrained(tmp_path / "pipeline")
    parameters = {"pipeline": str(tmp_path / "pipeline"), "dtype": dtype, "max_sequence_length": "16"}
    config = ModelConfig.from_parameters(parameters, tmp_path)
    subject = {"class_label": 3} if name == "dit" else {"prompt": "a red apple"}
    size = {"height": 16, "width": 16, **family.sizes[-1]}
    request = replace(config.defaults, num_inference_steps=7, cache=cache, **subject, **size, **guidance)
    plan = plan_request(config, architecture_of(config.source.pipeline), request)
    report = generate(PipelineHost(pipe), request, max_sequence_length=16).report
    assert plan.cache_bytes == report.cache_bytes
    assert plan.full_steps == tuple(report.full_steps)
    assert (plan.cache_bytes > 0) == cache.enabled


@pytest.mark.parametrize(
    ("cache", "full"),
    [
        (CacheConfig(4, 1, 2), (0, 1, 5, 6, 9)),
        (CacheConfig(3, 1, 1), (0, 3, 6, 9)),
        (CacheConfig(1), tuple(range(12))),
    ],
    ids=["one more", "planned anyway", "off"],
)
def test_the_step_at_which_a_second_expert_takes_over_is_planned(tmp_path, cache, full):
    """Of 12 steps the second makes those from step 6 on."""
    pipe = tiny_wan(tmp_path, boundary_ratio=0.8)
    pipe.save_pretrained(tmp_path / "pipeline")
    config = ModelConfig.from_parameters({"pipeline": str(tmp_path / "pipeline"), "dtype": "float32"}, tmp_path)
    size = {"height": 16, "width": 16, "num_frames": 5}
    request = replace(config.defaults, prompt="a red apple", num_inference_steps=12, cache=cache, **size)
    report = generate(PipelineHost(pipe), request, max_sequence_length=16).report
    for architecture in (architecture_of(config.source.pipeline), architecture_of_pipe(pipe)):
        assert plan_request(config, architecture, request).full_steps == tuple(report.full_steps) == full


@pytest.mark.parametrize("missing", ["transformer", "transformer_2"])
def test_one_expert_alone_takes_nothing_over(tmp_path, missing):
    both = tiny_wan(tmp_path, boundary_ratio=1.0 if missing == "transformer" else None)
    pipe = WanPipeline(**{**both.components, missing: None}, boundary_ratio=both.config.boundary_ratio)
    pipe.save_pretrained(tmp_path / "pipeline")
    for architecture in (architecture_of(str(tmp_path / "pipeline")), architecture_of_pipe(pipe)):
        assert (architecture.transformer, architecture.experts) == ("WanTransformer3DModel", None)


# Published models


@pytest.mark.parametrize("order", [0, 1, 2])
def test_flux_holds_one_output_where_every_module_takes_gigabytes(order):
    plan = plan_of("flux_dev", cache=CacheConfig(6, order, 3))
    assert (plan.tokens, plan.width, plan.branches) == (4096, 3072, 1)
    assert plan.anchor_bytes == 24 * MIB
    assert plan.cache_bytes == (order + 1) * 24 * MIB
    assert plan.module_cache_bytes / GIB == pytest.approx((order + 1) * 2.0, rel=0.005)
    assert (len(plan.full_steps), plan.speed_up_bound) == (10, 5.0)


def test_videos_would_not_fit_with_every_module_cached():
    hunyuan = plan_of("hunyuan_video")
    assert (hunyuan.tokens, hunyuan.anchors, hunyuan.branches) == (33 * 45 * 80, 2, 1)
    assert round(hunyuan.cache_bytes / GIB, 2) == 1.36
    assert round(hunyuan.module_cache_bytes / GIB, 1) == 109.0
    wan = plan_of("wan2_1_t2v", height=720, width=1280)
    assert (wan.tokens, wan.anchors, wan.branches) == (21 * 45 * 80, 2, 2)
    assert round(wan.cache_bytes / GIB, 2) == 2.88
    assert int(wan.module_cache_bytes / GIB) == 346


@pytest.mark.parametrize(
    ("model", "tokens", "width", "branches", "full", "modules"),
    [
        ("krea_2", 64 * 64 + 512, 48 * 128, 2, 9, 28 * 2 * (64 * 64 + 512)),
        ("flux2_dev", 64 * 64, 48 * 128, 1, 12, (8 * 2 + 48) * (64 * 64 + 512)),
        ("flux2_klein", 64 * 64, 24 * 128, 2, 12, (5 * 2 + 20) * (64 * 64 + 512)),
        ("qwen_image", 64 * 64, 24 * 128, 2, 12, 60 * 2 * (64 * 64 + 512)),
        ("qwen_image_edit", 64 * 64, 24 * 128, 2, 12, 60 * 2 * (64 * 64 + 1024)),
        ("z_image_turbo", 64 * 64 + 512, 3840, 1, 5, 30 * 2 * (64 * 64 + 512)),
        ("sd3_5_large", 64 * 64, 38 * 64, 2, 9, 38 * 2 * (64 * 64 + 256)),
        ("hunyuan_video_1_5", 31 * 30 * 53, 16 * 128, 2, 12, 54 * 2 * (31 * 30 * 53 + 1000)),
    ],
)
def test_models_of_declared_families_are_planned(model, tokens, width, branches, full, modules):
    """In bfloat16, of order 1. Those whose blocks have one stream keep the text's tokens too."""
    plan = plan_of(model)
    assert (plan.tokens, plan.width, plan.branches, plan.anchors) == (tokens, width, branches, 2)
    assert plan.anchor_bytes == tokens * width * 2
    assert plan.module_anchor_bytes == modules * width * 2
    assert len(plan.full_steps) == full


def test_the_last_of_eight_steps_is_full_where_a_model_is_distilled_for_them():
    assert plan_of("z_image_turbo").full_steps == (0, 1, 3, 5, 7)


def test_dit_is_planned_at_its_own_size():
    plan = plan_of("dit_xl_2_256", height=512)
    assert (plan.tokens, plan.width, plan.branches, plan.anchors) == (256, 1152, 2, 5)
    assert plan.module_anchor_bytes == 28 * 2 * plan.anchor_bytes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_options_make_a_transformer_of_the_published_size(name):
    architecture = PUBLISHED[name]
    with torch.device("meta"):
        transformer = getattr(diffusers, architecture.transformer)(**architecture.options)
    parameters = transformer.num_parameters()
    if name == "facebook/DiT-XL-2-256":  # the authors embed timestep and label once, diffusers in each of 28 blocks
        embedding = transformer.transformer_blocks[0].norm1.emb
        parameters -= 27 * sum(each.numel() for each in embedding.parameters())
    assert parameters == pytest.approx(architecture.parameters, rel=0.03)
    assert all(transformer.config[option] == value for option, value in architecture.config.items())


@pytest.mark.parametrize(("parameters", "text_tokens"), [({}, 512), ({"max_sequence_length": "128"}, 128)])
def test_dtype_and_text_tokens_are_the_models_own(tmp_path, parameters, text_tokens):
    pipeline = "black-forest-labs/FLUX.1-dev"
    parameters = {"pipeline": pipeline, "dtype": "float32", "component_dtypes": "transformer=bfloat16", **parameters}
    config = ModelConfig.from_parameters(parameters, tmp_path)
    plan = plan_request(config, architecture_of(pipeline), config.defaults)
    assert plan.anchor_bytes == 24 * MIB
    assert plan.module_anchor_bytes == (2 * 19 + 38) * (4096 + text_tokens) * 3072 * 2


# Folders


@pytest.mark.parametrize(
    ("name", "compression", "text_tokens"),
    [
        ("dit", (1, 2), 0),
        ("flux", (1, 2), 512),
        ("wan", (4, 8), 512),
        ("hunyuan_video", (4, 8), 256),
        ("hidream", (1, 1), 128),
    ],
)
def test_compression_and_text_tokens_are_read_from_a_folder(tmp_path, name, compression, text_tokens):
    FAMILIES[name].make(tmp_path, torch.float32).save_pretrained(tmp_path)
    architecture = architecture_of(str(tmp_path))
    assert (architecture.compression, architecture.text_tokens) == (compression, text_tokens)


def test_a_folder_that_names_the_predecessor_of_the_class_is_planned_as_it_is_loaded(tmp_path):
    FAMILIES["dit"].make(tmp_path, torch.float32).save_pretrained(tmp_path)
    path = tmp_path / "transformer/config.json"
    path.write_text(path.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    assert architecture_of(str(tmp_path)).transformer == "DiTTransformer2DModel"


# What cannot be planned


def test_a_hub_id_whose_numbers_are_unknown_is_refused_by_name():
    with pytest.raises(ValueError, match="pipeline is nobody/unicorn, must be a folder or one of: black-forest-labs/"):
        architecture_of("nobody/unicorn")


def test_a_folder_without_configurations_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"transformer/config.json is missing, must be as diffusers saved it"):
        architecture_of(str(tmp_path))


# The command


def test_the_command_prints_the_plan_of_what_is_asked():
    code, output = run("plan", "flux_dev")
    assert code == 0
    printed = ["height 1024, width 1024", "10 of 50: 0, 1, 2, 8,", "5.00x", "4096 tokens x 3072"]
    assert not [text for text in (*printed, "72.0 MiB: 1 x 3 anchors of 24.0 MiB", "6.0 GiB") if text not in output]
    options = ["--steps", 20, "--interval", 4, "--order", 1, "--warmup", 1, "--height", 512, "--width", 768]
    code, output = run("plan", "flux_dev_stream", *options, "--negative-prompt", "ugly")
    assert code == 0
    printed = ["height 512, width 768", "5 of 20: 0, 4, 8, 12, 16", "4.00x", "1536 tokens"]
    assert not [text for text in (*printed, "36.0 MiB: 2 x 2 anchors of 9.0 MiB") if text not in output]
    assert re.search(r"forecasts +│ taylor, order 1", output)
    assert re.search(r"forecasts +│ learnt, order 4", run("plan", "emoji", "--preset", "tuned-8")[1])
    assert "forecasts" not in run("plan", "flux_dev", "--interval", 1)[1], "every step is full"
    assert "1 of 50: 0 " in run("plan", "wan2_1_t2v", "--preset", "paper", "--interval", 100, "--warmup", 0)[1]
    assert "2 x 2 anchors" in run("plan", "wan2_1_t2v", "--num-frames", 5)[1]
    assert "1 x 2 anchors" in run("plan", "wan2_1_t2v", "--num-frames", 5, "--guidance-scale", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["unicorn"], "unicorn_stream/config.pbtxt is missing, must be the model's configuration"),
        (["flux_dev", "--order", 9], "error: cache_order is 9, must be"),
        (["flux_dev", "--height", 1000], "error: height is 1000, must be a multiple of 16"),
        (["flux_dev", "--num-frames", 5], "error: num_frames is 5, must be 1"),
        (["flux_dev", "--preset", "fast"], "error: cache_preset is 'fast', must be one of: default, paper"),
    ],
)
def test_the_command_refuses_what_the_server_would_refuse(arguments, sentence):
    code, output = run("plan", *arguments)
    assert code == 1
    assert sentence in output


def test_the_command_plans_a_request_with_a_picture(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (96, 64)).save(path)
    code, output = run("plan", "emoji", "--image", path, "--strength", 0.4)
    assert code == 0
    assert "height 64, width 96" in output
    assert re.search(r"steps +│ 20 of 50", output)
    assert re.search(r"feature +│ 96 tokens x 192", output)
    assert "FluxInpaintPipeline: input_image (1), mask_image," in output
    code, output = run("plan", "emoji", "--image", path, "--image", path)
    assert (code, output.strip()) == (1, "error: input_image has 2 files, must have 0 or 1 of them")
    code, output = run("plan", "emoji", "--image", tmp_path / "none.png")
    assert code == 1
    assert "none.png" in output


def test_a_picture_of_its_own_tokens_is_planned_with_them(tmp_path):
    """Kontext resizes it to 1248 x 832 pixels, 78 x 52 tokens, whatever the result's size is."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (96, 64)).save(path)
    code, output = run("plan", "flux_kontext_dev", "--image", path, "--height", 512, "--width", 768)
    assert code == 0
    assert re.search(rf"feature +│ {32 * 48 + 78 * 52} tokens x 3072", output)


@pytest.mark.parametrize(
    ("model", "tokens", "width"),
    [("qwen_image_edit", 78 * 52, 3072), ("flux2_dev", 6 * 4, 6144), ("flux2_klein", 6 * 4, 3072)],
)
def test_several_pictures_are_planned_with_the_tokens_of_each(tmp_path, model, tokens, width):
    """Qwen-Image-Edit resizes each to 1248 x 832 pixels; FLUX.2 leaves them as small as they are."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (96, 64)).save(path)
    code, output = run("plan", model, "--image", path, "--image", path, "--height", 512, "--width", 768)
    assert code == 0
    assert re.search(rf"feature +│ {32 * 48 + 2 * tokens} tokens x {width}", output)


@pytest.mark.parametrize(
    "model",
    [
        *("flux_kontext_dev", "flux_fill_dev", "wan2_1_i2v", "hunyuan_video_i2v"),
        *("flux2_dev", "flux2_klein", "qwen_image", "qwen_image_edit", "sd3_5_large", "z_image_turbo"),
    ],
)
def test_the_shipped_models_of_pictures_take_them(model):
    code, output = run("plan", model)
    assert code == 0
    assert "input_image (1" in output
