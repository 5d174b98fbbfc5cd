"""Per-request pipelines: what they share, what is their own, what they refuse."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxKontextPipeline, FluxPipeline
from transformers.utils import is_torchvision_available

from plugin.config import PipelineSource
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.denoising.transformer import StepObserver
from plugin.engines.packer import PackSettings
from taylorseer import CacheConfig, StepKind
from tests.support.tiny.qwen_image import tiny_qwen_image_edit

MAX_SEQUENCE_LENGTH = 16

OFF = CacheConfig(interval=1)
TRUE_CFG = {"negative_prompt": "ugly", "true_cfg_scale": 3.0}


def latents(
    pipe: Any, *, steps: int = 6, height: int = 32, width: int = 32, seed: int = 0, **more: Any
) -> torch.Tensor:
    arguments = {"prompt": "a red apple", "guidance_scale": 2.5} | more
    return pipe(
        **arguments,
        num_inference_steps=steps,
        height=height,
        width=width,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images


@pytest.fixture(scope="module")
def host(flux: FluxPipeline) -> PipelineHost:
    return PipelineHost(flux)


@pytest.mark.parametrize("options", [{"guidance_embeds": False}, {"dtype": torch.bfloat16}, {"dynamic_shift": False}])
def test_cache_off_is_bit_for_bit_for_other_kinds_of_flux(make_flux, options):
    pipe = make_flux(**options)
    assert torch.equal(latents(PipelineHost(pipe).pipeline_for(OFF)), latents(pipe))


@pytest.mark.parametrize("guidance", [{}, TRUE_CFG], ids=["distilled", "true cfg"])
@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_image_to_image_is_bit_for_bit_the_plain_pipeline(flux, host, guidance, strength):
    picture = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    plain = FluxImg2ImgPipeline(**flux.components)
    plain.set_progress_bar_config(disable=True)
    arguments = {"image": picture, "strength": strength, "steps": 10, "width": 48, **guidance}
    pipe = host.pipeline_for(OFF, pipeline_class=FluxImg2ImgPipeline)
    assert torch.equal(latents(pipe, **arguments), latents(plain, **arguments))
    assert pipe.transformer.session.num_steps == int(10 * strength)


def test_kontext_is_bit_for_bit_the_plain_pipeline(flux, host):
    """Its reference picture's tokens stand behind those of the latents."""
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain = FluxKontextPipeline(**flux.components)
    plain.set_progress_bar_config(disable=True)
    arguments = {"image": picture, "max_area": 32 * 32, "_auto_resize": False}
    pipe = host.pipeline_for(OFF, pipeline_class=FluxKontextPipeline)
    assert torch.equal(latents(pipe, **arguments), latents(plain, **arguments))


def test_image_to_image_caches_each_branch_though_it_opens_no_context(host):
    pipe = host.pipeline_for(CacheConfig(interval=4, warmup_steps=2), pipeline_class=FluxImg2ImgPipeline)
    latents(pipe, image=torch.rand(1, 3, 32, 32), strength=1.0, steps=10, **TRUE_CFG)
    session = pipe.transformer.session
    assert session.full_steps == (0, 1, 5, 9)
    assert session.engine_calls == 2 * 4
    assert session.nbytes == 2 * 2 * (16 * 16 // 4) * 32 * 4  # branches x slots x tokens x width x float32


def test_forecast_steps_run_neither_blocks_nor_embedders(make_flux):
    pipe = make_flux()
    calls = dict.fromkeys(("x_embedder", "context_embedder", "pos_embed", "norm_out"), 0)
    for name in calls:
        getattr(pipe.transformer, name).register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    pipe.transformer.transformer_blocks[0].register_forward_hook(
        lambda *_: calls.__setitem__("block", calls.get("block", 0) + 1)
    )
    latents(PipelineHost(pipe).pipeline_for(CacheConfig(interval=5, warmup_steps=3)), steps=20)
    assert calls == {"x_embedder": 6, "context_embedder": 1, "pos_embed": 1, "block": 6, "norm_out": 20}


def test_each_branch_forecasts_into_one_memory_of_its_own(make_flux):
    pipe = make_flux()
    seen: list[int] = []
    pipe.transformer.norm_out.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].data_ptr()))
    pipeline = PipelineHost(pipe).pipeline_for(CacheConfig(interval=4, order=1, warmup_steps=1))
    latents(pipeline, steps=8, **TRUE_CFG)
    records = pipeline.transformer.session.records
    memory = {
        (record.branch, address)
        for record, address in zip(records, seen, strict=True)
        if record.kind is StepKind.FORECAST
    }
    assert sorted(branch for branch, _ in memory) == ["cond", "uncond"]
    assert len({address for _, address in memory}) == 2


def test_eight_requests_in_eight_threads_give_what_each_gives_alone(host):
    requests = [
        (CacheConfig(interval=1 + i % 4, order=i % 3, warmup_steps=1 + i % 2), {"steps": 6 + i, "seed": i})
        for i in range(8)
    ]
    requests[3][1].update(TRUE_CFG)
    requests[5][1].update(height=16, width=64)

    def run(request: tuple[CacheConfig, dict[str, Any]]) -> torch.Tensor:
        torch.set_num_threads(1)
        return latents(host.pipeline_for(request[0]), **request[1])

    alone = [run(request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, requests))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_lanes_compute_what_a_request_alone_gets(make_flux, engine_cache):
    """With a session of other thread counts, and packed; the tolerance is the rounding of kernels at another batch."""
    host = PipelineHost(make_flux(), "onnxruntime", cache_dir=engine_cache, engine_threads=2, engine_lanes=2)
    cache = CacheConfig(interval=3)
    alone = [latents(host.pipeline_for(cache), steps=8, seed=seed) for seed in range(6)]
    host.pack(PackSettings(max_rows=2, lanes=2))
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: latents(host.pipeline_for(cache), steps=8, seed=seed), range(6)))
    assert host.lane_engine is not host.engines["transformer"]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_calls_of_a_tokenizer_never_overlap(make_flux):
    """Fast tokenizers keep padding and truncation between setting and using them, in `tokenize` as in `__call__`."""

    class Tokenizer:
        def __init__(self) -> None:
            self.inside = 0
            self.overlaps = 0

        def __call__(self, prompt: str) -> None:
            self.inside += 1
            time.sleep(0.002)
            self.overlaps += self.inside > 1
            self.inside -= 1

        tokenize = __call__

    pipe = make_flux()
    pipe.__dict__["tokenizer_2"] = counting = Tokenizer()
    host = PipelineHost(pipe)

    def tokenize(i: int) -> None:
        tokenizer = host.pipeline_for(OFF).tokenizer_2
        (tokenizer if i % 2 else tokenizer.tokenize)("a red apple")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tokenize, range(16)))
    assert counting.overlaps == 0


def test_what_a_pipeline_sets_on_its_tokenizer_is_set(make_flux):
    pipe = make_flux()
    served = PipelineHost(pipe).pipeline_for(OFF)
    served.tokenizer.padding_side = "left"
    assert (served.tokenizer.padding_side, pipe.tokenizer.padding_side) == ("left", "left")


def test_a_pipeline_used_twice_starts_a_new_cache(host):
    config = CacheConfig(interval=4, warmup_steps=2)
    pipe = host.pipeline_for(config)
    first = latents(pipe, steps=9)
    latents(pipe, steps=5, prompt="a blue house", seed=3)
    assert torch.equal(latents(pipe, steps=9), first)
    assert pipe.transformer.session.full_steps == config.full_steps(9)


def test_an_observer_that_raises_ends_the_run_before_the_next_step(host):
    class Stop(StepObserver):
        steps: list[int]

        def __init__(self) -> None:
            self.steps = []

        def step_started(self, step: int, num_steps: int, latents: torch.Tensor) -> None:
            self.steps.append(step)
            if step == 3:
                raise KeyError("stopped")

    observer = Stop()
    with pytest.raises(KeyError, match="stopped"):
        latents(host.pipeline_for(OFF, observer), steps=9)
    assert observer.steps == [0, 1, 2, 3]


def test_the_loaded_pipeline_is_left_as_it_was(flux):
    before = dict(vars(flux))
    latents(PipelineHost(flux).pipeline_for(CacheConfig()))
    assert vars(flux) == before


def test_release_blocks_frees_the_torch_blocks(make_flux, engine_cache):
    pipe = make_flux()
    expected = latents(pipe)
    host = PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache, release_blocks=True)
    assert not pipe.transformer.transformer_blocks
    assert not pipe.transformer.single_transformer_blocks
    torch.testing.assert_close(latents(host.pipeline_for(OFF)), expected, rtol=0, atol=1e-4 * expected.abs().max())


def test_a_saved_pipeline_loads_and_gives_the_same(flux, tmp_path):
    flux.save_pretrained(tmp_path / "saved")
    loaded = load_pipeline(PipelineSource(str(tmp_path / "saved")))
    assert torch.equal(latents(PipelineHost(loaded).pipeline_for(OFF)), latents(flux))


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model_index\.json"):
        load_pipeline(PipelineSource(str(tmp_path)))


def test_what_is_not_served_is_refused_by_name(make_flux):
    flux = make_flux()
    transformer = PipelineHost(flux).pipeline_for(OFF).transformer
    inputs = {
        "hidden_states": torch.zeros(1, 4, 16),
        "encoder_hidden_states": torch.zeros(1, 2, 32),
        "pooled_projections": torch.zeros(1, 32),
        "timestep": torch.ones(1),
        "guidance": torch.ones(1),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(2, 3),
    }
    with torch.no_grad():
        with pytest.raises(ValueError, match="controlnet_block_samples is given, must be left out"):
            transformer(**inputs, controlnet_block_samples=[torch.zeros(1, 4, 32)])
        with pytest.raises(ValueError, match="joint_attention_kwargs has scale, must be empty"):
            transformer(**inputs, joint_attention_kwargs={"scale": 1.0})
    with pytest.raises(ValueError, match="engine is 'abacus', must be one of: torch, onnxruntime"):
        PipelineHost(flux, "abacus")


def test_a_transformer_of_no_family_is_refused(flux):
    pipe = FluxPipeline(**{**flux.components, "transformer": None})
    with pytest.raises(
        TypeError, match="FluxPipeline has no transformer, must be a pipeline with one of: DiTTransformer2DModel, Flux"
    ):
        PipelineHost(pipe)


def test_a_hub_id_that_cannot_be_had_is_named_with_what_helps(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"pipeline nobody/nothing cannot be had .* HF_TOKEN set where its licence"):
        load_pipeline(PipelineSource("nobody/nothing"))


def test_components_come_from_their_own_source_and_in_their_own_dtype(flux, tmp_path):
    flux.save_pretrained(tmp_path / "pipeline")
    for name in ("text_encoder_2", "tokenizer_2"):
        (tmp_path / "pipeline" / name).rename(tmp_path / name)
    parts = tuple((name, str(tmp_path / name)) for name in ("text_encoder_2", "tokenizer_2"))
    source = PipelineSource(
        str(tmp_path / "pipeline"), "bfloat16", component_dtypes=(("vae", "float32"),), components=parts
    )
    pipe = load_pipeline(source)
    dtypes = {name: getattr(pipe, name).dtype for name in ("transformer", "vae", "text_encoder_2")}
    assert dtypes == {"transformer": torch.bfloat16, "vae": torch.float32, "text_encoder_2": torch.bfloat16}
    assert pipe.tokenizer_2("a red apple").input_ids == flux.tokenizer_2("a red apple").input_ids
    with pytest.raises(ValueError, match="component 'encoder' is unknown to FluxPipeline, must be one of: scheduler, "):
        load_pipeline(PipelineSource(str(tmp_path / "pipeline"), components=(("encoder", "a/b"),)))
    with pytest.raises(OSError, match=r"component vae .*/nowhere cannot be had"):
        load_pipeline(PipelineSource(str(tmp_path / "pipeline"), components=(("vae", str(tmp_path / "nowhere")),)))


@pytest.mark.skipif(is_torchvision_available(), reason="is about a package that is missing")
def test_a_package_that_a_component_needs_is_named(tmp_path):
    tiny_qwen_image_edit(tmp_path).save_pretrained(tmp_path / "pipeline")
    index = tmp_path / "pipeline/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"processor": ["transformers", "Qwen2VLProcessor"]}))
    (index.parent / "processor/video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "Qwen2VLVideoProcessor"})
    )
    with pytest.raises(OSError, match=r"needs a package that is not installed: .*requires the Torchvision library"):
        load_pipeline(PipelineSource(str(tmp_path / "pipeline"), device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence():
    with pytest.raises(ValueError, match=r"device is cuda:0, and (this torch|torch finds) .* or set device to cpu"):
        load_pipeline(PipelineSource("nobody/nothing", device="cuda:0"))
