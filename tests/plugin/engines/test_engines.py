"""The engines: equal to the torch blocks, cached under all that decides their content, safe when two build at once."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import onnx
import pytest
import torch

from plugin.denoising.host import PipelineHost
from plugin.engine_specs import tensorrt_engine_name
from plugin.engines import ENGINES, make_engine
from plugin.engines.base import EngineError
from plugin.engines.export import optimized_onnx, stack_key
from plugin.engines.onnxruntime_session import providers
from plugin.engines.tensorrt.package import PACKAGES
from plugin.families import family_of
from taylorseer import CacheConfig
from tests.support.engines import RecordingEngine

# ONNX Runtime sums in another order than torch: float32 rounding through five blocks
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def block_inputs(batch: int, image_tokens: int, text_tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch + image_tokens)
    angles = torch.rand(text_tokens + image_tokens, 16, generator=generator)
    return {
        "hidden_states": torch.randn(batch, image_tokens, 32, generator=generator),
        "encoder_hidden_states": torch.randn(batch, text_tokens, 32, generator=generator),
        "temb": torch.randn(batch, 32, generator=generator),
        "rotary_cos": angles.cos(),
        "rotary_sin": angles.sin(),
    }


@pytest.fixture(scope="module")
def engines(flux, engine_cache):
    family = family_of(flux.transformer)
    return make_engine("torch", family), make_engine("onnxruntime", family, engine_cache, threads=1)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(("image_tokens", "text_tokens"), [(4, 16), (64, 16), (33, 7), (1, 1)])
def test_onnxruntime_equals_torch_at_any_batch_and_token_count(engines, batch, image_tokens, text_tokens):
    inputs = block_inputs(batch, image_tokens, text_tokens)
    with torch.no_grad():
        expected, output = (engine.run(inputs) for engine in engines)
    torch.testing.assert_close(output, expected, **TOLERANCE)


def test_onnxruntime_result_survives_the_next_call(engines):
    first, second = block_inputs(1, 16, 8), block_inputs(1, 16, 9)
    output = engines[1].run(first)
    kept = output.clone()
    engines[1].run(second)
    assert torch.equal(output, kept)


def test_onnxruntime_computes_into_given_memory(engines):
    inputs, out = block_inputs(1, 16, 8), torch.full((3, 1, 16, 32), torch.nan)
    output = engines[1].run(inputs, out[1])
    assert output.data_ptr() == out[1].data_ptr()
    assert torch.equal(out[1], engines[1].run(inputs))
    assert out[0].isnan().all()
    assert out[2].isnan().all()


def test_full_steps_are_computed_where_the_cache_keeps_them(flux):
    host = PipelineHost(flux)
    engine = host.engines["transformer"] = RecordingEngine(host.engines["transformer"])
    given = engine.outs
    call = {"prompt": "apple", "num_inference_steps": 6, "height": 32, "width": 32, "output_type": "latent"}
    host.pipeline_for(CacheConfig(interval=3, order=1, warmup_steps=1))(**call)
    assert [out.shape for out in given] == [(1, 64, 32)] * 2
    assert given[0].untyped_storage().data_ptr() == given[1].untyped_storage().data_ptr(), "slots of one ring"
    assert given[0].data_ptr() != given[1].data_ptr()
    given.clear()
    host.pipeline_for(CacheConfig(interval=1))(**call)
    assert given == [None] * 6


def test_inputs_that_are_not_contiguous_are_run_as_they_read(engines):
    inputs = block_inputs(2, 16, 8)
    turned = inputs | {"hidden_states": inputs["hidden_states"].transpose(0, 1).contiguous().transpose(0, 1)}
    assert not turned["hidden_states"].is_contiguous()
    assert torch.equal(engines[1].run(turned), engines[1].run(inputs))


def test_built_engine_is_found_again(flux, engine_cache):
    family = family_of(flux.transformer)
    path = optimized_onnx(family, engine_cache)
    modified = path.stat().st_mtime_ns
    assert optimized_onnx(family, engine_cache) == path
    assert path.stat().st_mtime_ns == modified


def test_weights_are_kept_beside_the_graph_whatever_their_size(flux, engine_cache):
    """A graph with its weights inside may not exceed 2 GB, so every weight of 1 kB and more is left outside."""
    path = optimized_onnx(family_of(flux.transformer), engine_cache)
    weights = onnx.load(str(path), load_external_data=False).graph.initializer
    large = [weight for weight in weights if math.prod(weight.dims) * 4 >= 1024]
    assert len(large) > 20
    assert all(weight.data_location == onnx.TensorProto.EXTERNAL for weight in large)
    blocks = (
        *flux.transformer.transformer_blocks.parameters(),
        *flux.transformer.single_transformer_blocks.parameters(),
    )
    assert path.with_suffix(".bin").stat().st_size > 0.8 * sum(weight.nbytes for weight in blocks)


def test_key_changes_with_weights_and_architecture(make_flux):
    first, second = family_of(make_flux().transformer), family_of(make_flux().transformer)
    assert stack_key(first, first.block_stack()) == stack_key(second, second.block_stack())
    with torch.no_grad():
        second.transformer.single_transformer_blocks[1].proj_out.bias[3] += 1e-3
    assert stack_key(first, first.block_stack()) != stack_key(second, second.block_stack())
    other = family_of(make_flux(guidance_embeds=False).transformer)
    assert stack_key(first, first.block_stack()) != stack_key(other, other.block_stack())


@pytest.mark.compiles
def test_two_builders_at_once_leave_one_whole_engine(make_flux, tmp_path):
    family = family_of(make_flux().transformer)
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(optimized_onnx(family, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert len(set(paths)) == 1
    folders = [path for path in (tmp_path / "onnx").iterdir() if path.is_dir()]
    assert folders == [paths[0].parent], "no scratch folder is left"


@pytest.mark.compiles
def test_a_failed_build_leaves_nothing_behind(make_flux, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("plugin.engines.export._optimize", fail)
    with pytest.raises(OSError, match="No space left"):
        optimized_onnx(family_of(make_flux().transformer), tmp_path)
    assert not [path for path in (tmp_path / "onnx").iterdir() if path.is_dir()]


def test_onnxruntime_runs_on_the_device_of_the_model(monkeypatch):
    """On the CPU where the model is, whatever else it could; on a GPU on that one, and in float32 without TF32."""
    both = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: both)
    assert providers(torch.device("cpu")) == [("CPUExecutionProvider", {})]
    (name, options), (other, _) = providers(torch.device("cuda:1"))
    assert (name, other) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {"device_id": "1", "use_tf32": "0"}
    assert providers(torch.device("cuda"))[0][1]["device_id"] == "0"


def test_onnxruntime_without_cuda_says_so_before_anything_is_exported(make_flux, tmp_path, monkeypatch):
    family = family_of(make_flux().transformer)
    family.__dict__["device"] = torch.device("cuda:0")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"engine onnxruntime on cuda:0 needs an ONNX Runtime with CUDA: .*gpu"):
        make_engine("onnxruntime", family, tmp_path)
    assert not list(tmp_path.iterdir())


def test_engines_are_imported_only_when_asked_for():
    """Their table loads no torch either: the command line and the configuration read it."""
    code = "import sys, plugin.engines; assert not {'onnxruntime', 'onnx', 'torch'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_engine_can_be_loaded_by_its_name():
    for name, spec in ENGINES.items():
        assert spec.name == name
        module = import_module(spec.module)
        assert callable(module.load_engines if spec.is_parallel else module.load_engine)
        assert hasattr(module, "make_file") == bool(spec.made_ahead)
    for flavour in PACKAGES:
        for fp8 in (False, True):
            spec = ENGINES[tensorrt_engine_name(flavour, fp8)]
            assert (spec.flavour, spec.fp8) == (flavour, fp8)


def test_an_unknown_engine_is_named(flux):
    with pytest.raises(ValueError, match="engine is 'cuda', must be one of: torch, onnxruntime, inductor, parallel"):
        make_engine("cuda", family_of(flux.transformer))
