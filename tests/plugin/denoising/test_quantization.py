"""Weights below 16 bits: each kind loads, has its bytes, and is served as plain diffusers runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, GGUFQuantizationConfig
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from plugin.building.judge import psnr
from plugin.config import ModelConfig, PipelineSource
from plugin.denoising.fingerprint import fingerprint
from plugin.denoising.host import PipelineHost
from plugin.denoising.loading import load_pipeline
from plugin.engines.base import EngineError
from plugin.engines.batch_limit import calibrated_rows
from plugin.engines.export import stack_key
from plugin.families import family_of
from plugin.families.weights import is_quantized, plain_tensors, weight_bytes
from taylorseer import CacheConfig
from tests.support.paths import REPOSITORY
from tests.support.quantized import expected_bytes, nf4_on_cpu, plain_mapping, write_gguf
from tests.support.tiny import FAMILIES, latents_of

OFF, ON = CacheConfig(interval=1), CacheConfig(interval=3, warmup_steps=1)
FLUX = FAMILIES["flux"]
ENCODERS = ("text_encoder", "text_encoder_2")
EVERYTHING = ("transformer", *ENCODERS)
EMOJI = REPOSITORY / "emoji/1"  # its encoders are wide enough for bitsandbytes on a CPU: rows of 64 numbers and more
# What can be quantised without a GPU: diffusers makes nf4 of a transformer on one alone.
WAYS = [("int8", EVERYTHING), ("fp8", EVERYTHING), ("nf4", ENCODERS)]
IDS = [kind for kind, _ in WAYS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny FLUX pipeline, LoRA weights for it, and its transformer as a GGUF file."""
    folder = tmp_path_factory.mktemp("quantization")
    pipe = FLUX.make(tmp_path_factory.mktemp("flux"), torch.float32)
    pipe.save_pretrained(folder / "pipeline")
    write_gguf(pipe.transformer, folder / "q8.gguf")
    torch.manual_seed(1)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    type(pipe).save_lora_weights(folder / "lora", transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    return folder


def folder_for(kind: str, saved: Path) -> Path:
    return EMOJI if kind == "nf4" else saved


def source(folder: Path, *quantization: tuple[str, str], dtype: str = "bfloat16", **more: Any) -> PipelineSource:
    return PipelineSource(str(folder / "pipeline"), dtype=dtype, quantization=quantization, **more)


def quantized(folder: Path, kind: str, names: tuple[str, ...], dtype: str = "bfloat16") -> Any:
    return load_pipeline(source(folder, *((name, kind) for name in names), dtype=dtype))


def plain(folder: Path, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    """The pipeline as a user of diffusers loads it."""
    pipe = DiffusionPipeline.from_pretrained(folder / "pipeline", dtype=dtype, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def gguf_transformer(folder: Path) -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_single_file(
        str(folder / "q8.gguf"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
        dtype=torch.bfloat16,
        config=str(folder / "pipeline"),
        subfolder="transformer",
    )


def run(pipe: Any, steps: int = 4) -> torch.Tensor:
    return latents_of(pipe, steps=steps, **FLUX.arguments, **FLUX.sizes[0])


# Loading


@pytest.mark.parametrize(("kind", "names"), WAYS, ids=IDS)
def test_quantised_weights_have_the_bytes_that_their_shapes_say(saved, kind, names):
    folder = folder_for(kind, saved)
    before, after = plain(folder), quantized(folder, kind, names)
    for name in names:
        kept = ("wo",) if kind == "nf4" and name == "text_encoder_2" else ()  # transformers keeps T5's out of nf4
        assert weight_bytes(getattr(after, name)) == expected_bytes(getattr(before, name), kind, kept)
        assert is_quantized(getattr(after, name))
        assert not is_quantized(getattr(before, name))
    assert (
        weight_bytes(after.vae) == weight_bytes(before.vae) == 2 * sum(each.numel() for each in before.vae.parameters())
    )


def test_a_component_from_elsewhere_is_quantised_too(saved):
    place = str(saved / "pipeline/text_encoder_2")
    elsewhere = source(saved, ("text_encoder_2", "int8"), components=(("text_encoder_2", place),))
    own = quantized(saved, "int8", ("text_encoder_2",))
    given = load_pipeline(elsewhere)
    assert weight_bytes(given.text_encoder_2) == weight_bytes(own.text_encoder_2)
    assert torch.equal(run(given), run(own))


def test_where_the_transformer_alone_is_wanted_it_alone_is_quantised(saved):
    wanted = source(saved, *((name, "int8") for name in EVERYTHING))
    pipe = load_pipeline(wanted, denoisers_only=True)
    assert is_quantized(pipe.transformer)
    assert pipe.text_encoder is None


@pytest.mark.parametrize(("kind", "names"), WAYS, ids=IDS)
def test_a_pipeline_that_was_saved_quantised_loads_and_gives_the_same(saved, tmp_path, kind, names):
    pipe = quantized(folder_for(kind, saved), kind, names)
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = load_pipeline(source(tmp_path))
    for name in names:
        assert weight_bytes(getattr(loaded, name)) == weight_bytes(getattr(pipe, name))
    assert torch.equal(run(PipelineHost(loaded).pipeline_for(OFF)), run(pipe))


# Serving


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("kind", "names"), WAYS, ids=IDS)
def test_off_is_bit_for_bit_plain_diffusers_with_the_same_quantisation(saved, kind, names, dtype):
    folder, own = folder_for(kind, saved), getattr(torch, dtype)
    expected = run(plain(folder, own, quantization_config=plain_mapping(dict.fromkeys(names, kind), own)))
    served = run(PipelineHost(quantized(folder, kind, names, dtype)).pipeline_for(OFF))
    assert torch.equal(served, expected)
    assert not torch.equal(served, run(plain(folder, own))), "quantising must change something"


def test_off_is_bit_for_bit_plain_diffusers_with_the_same_gguf_file(saved):
    expected = run(plain(saved, transformer=gguf_transformer(saved)))
    pipe = load_pipeline(source(saved, components=(("transformer", str(saved / "q8.gguf")),)))
    assert is_quantized(pipe.transformer)
    assert torch.equal(run(PipelineHost(pipe).pipeline_for(OFF)), expected)


def test_off_is_bit_for_bit_a_transformer_in_nf4(saved):
    pipe = plain(saved)
    pipe.transformer = nf4_on_cpu(pipe.transformer, torch.bfloat16)
    expected = run(pipe)
    assert torch.equal(run(PipelineHost(pipe).pipeline_for(OFF)), expected)


def test_forecast_steps_run_no_quantised_block(saved):
    pipe = quantized(saved, "int8", EVERYTHING)
    calls: list[int] = []
    pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    served = PipelineHost(pipe).pipeline_for(ON)
    with_cache = run(served, steps=8)
    assert len(calls) == len(served.transformer.session.full_steps) == 3
    assert with_cache.isfinite().all()


@pytest.mark.parametrize(("kind", "floor"), [("int8", 30), ("fp8", 20)])
def test_pictures_stay_close_to_those_of_the_whole_weights(kind, floor):
    """The embedded model, in float32 to see the quantisation alone. Floors are some dB below what
    benchmarks/results/quantized.json has: int8 has 127 steps for a row's largest weight, fp8 8 in each power of two."""
    config = ModelConfig.from_folder(REPOSITORY / "emoji_stream").source

    def picture(*quantization: tuple[str, str]) -> np.ndarray:
        own = PipelineSource(config.pipeline, quantization=quantization)
        pipe = PipelineHost(load_pipeline(own)).pipeline_for(OFF)
        seed = torch.Generator().manual_seed(0)
        size = {"height": 64, "width": 64, "num_inference_steps": 8, "max_sequence_length": 16}
        return (pipe("red apple, 3d", generator=seed, output_type="np", **size).images * 255).round()

    assert floor < psnr(picture(("transformer", kind)), picture()) < 60


# What else reads weights


def quantised_pipelines(folder: Path) -> dict[str, Callable[[], Any]]:
    def nf4() -> Any:
        pipe = plain(folder)
        pipe.transformer = nf4_on_cpu(pipe.transformer, torch.bfloat16)
        return pipe

    return {
        "int8": lambda: quantized(folder, "int8", ("transformer",)),
        "fp8": lambda: quantized(folder, "fp8", ("transformer",)),
        "nf4": nf4,
        "gguf": lambda: load_pipeline(source(folder, components=(("transformer", str(folder / "q8.gguf")),))),
    }


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4", "gguf"])
def test_a_family_of_quantised_weights_knows_its_dtype_and_arguments(saved, tmp_path, kind):
    host = PipelineHost(quantised_pipelines(saved)[kind]())
    assert host.family.dtype is torch.bfloat16
    expected = PipelineHost(plain(saved)).family.example_inputs()
    given = host.family.example_inputs()
    assert {name: (each.shape, each.dtype) for name, each in given.items()} == {
        name: (each.shape, each.dtype) for name, each in expected.items()
    }
    axes = {"image_tokens": 16, "text_tokens": 8, "all_tokens": 24}
    assert 1 <= calibrated_rows(host.lane_engine, host.family, axes, None, tmp_path) <= 8


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4", "gguf"])
def test_quantised_weights_have_a_fingerprint_and_a_key_of_their_own(saved, kind):
    make = quantised_pipelines(saved)[kind]
    first, again, other = make().transformer, make().transformer, make().transformer
    whole = plain(saved).transformer
    _, numbers = next(plain_tensors(other.transformer_blocks[1].attn.to_q.weight))
    numbers.view(torch.uint8).view(-1)[0] ^= 1  # one bit of one weight, or of its scale
    prints = [fingerprint([each]) for each in (first, whole, other)]
    keys = [stack_key(family, family.block_stack()) for family in map(family_of, (first, whole, other))]
    assert len({*prints}) == len({*keys}) == 3
    assert fingerprint([again]) == prints[0]
    assert stack_key(family_of(again), family_of(again).block_stack()) == keys[0]


def test_learnt_presets_are_served_with_quantised_weights():
    """They name the transformer that they were learnt for, whose weights these were before they were quantised."""
    folder = REPOSITORY / "emoji_stream"
    parameters = {"pipeline": "../emoji/1/pipeline", "engine": "torch", "quantization": "transformer=int8"}
    config = ModelConfig.from_parameters(parameters, folder)
    learnt = [name for name, cache in config.presets.items() if cache.learnt is not None]
    host = PipelineHost.from_config(load_pipeline(config.source), config)
    assert learnt
    assert host.fingerprint != config.presets[learnt[0]].learnt.fingerprint
    served = host.pipeline_for(config.presets[learnt[0]])
    served("star", height=32, width=32, num_inference_steps=20, max_sequence_length=16, output_type="latent")
    assert len(served.transformer.session.full_steps) < 20


def test_first_calls_at_once_compute_with_settled_layers(saved):
    """bitsandbytes' layers change themselves at their first call."""
    pipe = quantized(EMOJI, "nf4", ENCODERS)
    host = PipelineHost(pipe)
    layers = [
        part for name in ENCODERS for part in getattr(pipe, name).modules() if type(part).__name__ == "Linear4bit"
    ]
    before = [part.weight.data_ptr() for part in layers]
    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(lambda _: run(host.pipeline_for(OFF)), range(4))]
    assert [part.weight.data_ptr() for part in layers] == before
    assert layers
    mapping = plain_mapping(dict.fromkeys(ENCODERS, "nf4"), torch.bfloat16)
    expected = run(plain(EMOJI, quantization_config=mapping))
    assert all(torch.equal(each, expected) for each in results)


# LoRA


@pytest.mark.parametrize(("kind", "floor"), [("int8", 50), ("fp8", 40)])
def test_a_lora_is_fused_into_quantised_weights(saved, kind, floor):
    lora = {"lora": str(saved / "lora"), "lora_scale": 4.0}
    whole = run(load_pipeline(source(saved, dtype="float32", **lora)))
    without = run(load_pipeline(source(saved, dtype="float32")))
    fused = load_pipeline(source(saved, ("transformer", kind), dtype="float32", **lora))
    assert is_quantized(fused.transformer)
    distance = decibels(run(fused), whole)
    assert distance > floor  # as far as the quantised weights are from whole ones without a LoRA
    assert distance > decibels(without, whole) + 6, "the LoRA must do more than the quantisation"


def decibels(value: torch.Tensor, reference: torch.Tensor) -> float:
    error = (value - reference).square().mean()
    return float(10 * torch.log10(reference.abs().max().square() / error))


def test_a_lora_that_cannot_be_fused_is_named(saved):
    gguf = source(saved, components=(("transformer", str(saved / "q8.gguf")),), lora=str(saved / "lora"))
    with pytest.raises(
        ValueError, match=rf"lora {saved / 'lora'} cannot be fused into the quantised weights of transf"
    ):
        load_pipeline(gguf)


# What is refused


def test_a_component_that_the_pipeline_does_not_have_is_named(saved):
    with pytest.raises(ValueError, match=r"quantization names 'text_encoder_3', which .* does not have, must be of"):
        quantized(saved, "int8", ("text_encoder_3",))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which diffusers quantises")
def test_a_transformer_is_not_quantised_to_nf4_without_a_gpu(saved, tmp_path):
    with pytest.raises(ValueError, match="quantization of transformer is nf4, must be int8 or fp8 without a GPU"):
        quantized(saved, "nf4", ("transformer",))
    pipe = plain(saved)
    pipe.save_pretrained(tmp_path / "pipeline")
    config = tmp_path / "pipeline/transformer/config.json"
    nf4 = '{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true},'
    config.write_text(config.read_text().replace("{", nf4, 1))
    with pytest.raises(OSError, match="has weights that bitsandbytes has quantised, must have others without a GPU"):
        load_pipeline(source(tmp_path))


@pytest.mark.parametrize(
    ("package", "options", "what"),
    [
        ("torchao", {"quantization": (("transformer", "int8"),)}, "quantization of transformer to int8"),
        ("torchao", {"quantization": (("text_encoder", "fp8"),)}, "quantization of text_encoder to fp8"),
        ("bitsandbytes", {"quantization": (("text_encoder", "nf4"),)}, "quantization of text_encoder to nf4"),
        ("gguf", {"components": (("transformer", "/a.gguf"),)}, "component transformer /a.gguf"),
    ],
    ids=["int8", "fp8", "nf4", "gguf"],
)
def test_a_package_that_is_missing_is_named(saved, monkeypatch, package, options, what):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    message = rf"{what} needs the package {package}, which is not installed: pip install 'triton-taylorseer\[quant"
    with pytest.raises(OSError, match=message):
        load_pipeline(PipelineSource(str(saved / "pipeline"), **options))


def test_a_gguf_file_that_is_not_there_is_named(saved):
    for place in (str(saved / "none.gguf"), "none.gguf"):
        with pytest.raises(OSError, match=f"component transformer {place} cannot be had"):
            load_pipeline(source(saved, components=(("transformer", place),)))


def test_a_class_without_gguf_files_is_named(tmp_path):
    pipe = FAMILIES["dit"].make(tmp_path, torch.float32)
    pipe.save_pretrained(tmp_path / "pipeline")
    with pytest.raises(ValueError, match="diffusers reads no such file for DiTTransformer2DModel"):
        load_pipeline(source(tmp_path, components=(("transformer", "/a.gguf"),)))


def test_an_engine_that_takes_no_quantised_blocks_says_so(saved, tmp_path):
    """Of a pipeline that was quantised before, which its parameters do not tell."""
    pipe = quantized(saved, "int8", ("transformer",))
    message = "engine is 'onnxruntime', must be 'torch' with the quantised weights of FluxTransformer2DModel: onnx"
    with pytest.raises(EngineError, match=message):
        PipelineHost(pipe, "onnxruntime", cache_dir=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_compiled_engines_run_beside_quantised_encoders(saved, engine_cache):
    pipe = quantized(saved, "int8", ENCODERS, "float32")
    expected = run(pipe)
    served = run(PipelineHost(pipe, "onnxruntime", cache_dir=engine_cache).pipeline_for(OFF))
    assert (served - expected).abs().max() <= 1e-3 * expected.abs().max()  # as with encoders of whole weights


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="diffusers quantises a transformer to nf4 on a GPU alone")
def test_a_transformer_in_nf4_is_served_bit_for_bit_on_a_gpu(saved):
    own = source(saved, ("transformer", "nf4"), ("text_encoder_2", "nf4"), device="cuda:0")
    pipe = load_pipeline(own)
    mapping = plain_mapping(dict.fromkeys(("transformer", "text_encoder_2"), "nf4"), torch.bfloat16)
    expected = run(plain(saved, quantization_config=mapping).to("cuda:0"))
    assert torch.equal(run(PipelineHost(pipe).pipeline_for(OFF)), expected)
    assert isinstance(pipe.transformer, nn.Module)
    assert weight_bytes(pipe.transformer) == expected_bytes(plain(saved).transformer, "nf4")
