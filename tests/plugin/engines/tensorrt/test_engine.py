"""Compiled engines: what they take; on a GPU equal to torch, written in place, safe from several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from plugin.denoising.host import PipelineHost
from plugin.engines import make_engine
from plugin.engines.base import EngineError, UnsupportedShape
from plugin.engines.packing import joined
from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.engine import choose_profile, deserialize
from plugin.engines.tensorrt.options import BuildOptions, SizeClass
from plugin.engines.tensorrt.package import PACKAGES, Messages, load_package
from plugin.engines.tensorrt.record import BuiltEngine
from plugin.families.base import BlockInputs, Family
from taylorseer import CacheConfig
from tests.support.models import FLAVOUR
from tests.support.tiny import FAMILIES, block_inputs_of, latents_of


def on_a_gpu(test: Callable[..., None]) -> Any:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")(test))


FLAVOURS = [flavour for flavour, package in PACKAGES.items() if find_spec(package)]


def shaped(built: BuiltEngine, tokens: int, batch: int = 1) -> BlockInputs:
    shapes = built.profiles[0].smallest
    length = {"hidden_states": (batch, tokens, shapes["hidden_states"][2])}
    length["rotary_cos"] = length["rotary_sin"] = (tokens + 8, shapes["rotary_cos"][1])
    length["encoder_hidden_states"] = (batch, 8, shapes["encoder_hidden_states"][2])
    length["temb"] = (batch, shapes["temb"][1])
    return {name: torch.zeros(shape) for name, shape in length.items()}


def test_size_outside_all_profiles(compiled):
    built = compiled.built
    assert choose_profile(built, shaped(built, 16)) == 0
    assert choose_profile(built, shaped(built, 64, batch=2)) == 1
    for tokens, batch in ((32, 1), (16, 3), (65, 1)):
        sentence = rf"{tokens} tokens at batch {batch}, must be of a size that .* 16x16 at batch 1 to 2; 32x32 at batch"
        with pytest.raises(UnsupportedShape, match=sentence):
            choose_profile(built, shaped(built, tokens, batch))
    with pytest.raises(UnsupportedShape):
        choose_profile(built, {**shaped(built, 16), "temb": torch.zeros(1, 1, 32)})


def test_inputs_of_another_dtype(compiled):
    inputs = shaped(compiled.built, 16)
    inputs["temb"] = inputs["temb"].bfloat16()
    with pytest.raises(EngineError, match="input temb is bfloat16, must be float32"):
        choose_profile(compiled.built, inputs)


def runtime_and_messages() -> tuple[Any, Messages]:
    trt = load_package(FLAVOUR)
    messages = Messages(trt)
    return trt.Runtime(messages.logger), messages


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_driver(compiled):
    with pytest.raises(EngineError, match=r"cannot be loaded: .*driver"):
        deserialize(*runtime_and_messages(), compiled.built)


def test_truncated_engine(compiled, tmp_path):
    path = tmp_path / "engine.plan"
    for content in (None, b"", compiled.built.path.read_bytes()[:1000]):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EngineError, match=rf"engine {path} (is damaged|cannot be read).*build it again"):
            deserialize(*runtime_and_messages(), replace(compiled.built, path=path))


# On a GPU


@pytest.fixture(scope="module", params=[(name, flavour) for name in FAMILIES for flavour in FLAVOURS], ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A tiny pipeline on the GPU in bfloat16, its first block inputs, the cache of its engine, and the flavour."""
    name, flavour = request.param
    folder, family = tmp_path_factory.mktemp(name), FAMILIES[name]
    pipe = family.make(folder, torch.bfloat16).to("cuda")
    guidance = next(iter(family.guidance.values()))
    arguments = {**family.arguments, **family.sizes[0], **guidance.arguments}
    served, inputs = block_inputs_of(family, pipe, arguments)
    rows, first = inputs["hidden_states"].shape[0], SizeClass("first", axes_of(served, inputs))
    build_engine(served, flavour, BuildOptions((rows, rows, rows), (first,)), folder)
    return name, pipe, served, inputs, folder, flavour, arguments


@on_a_gpu
def test_an_engine_gives_what_torch_gives_in_place_and_from_threads(case: tuple[Any, ...]) -> None:
    _, _, served, inputs, folder, flavour, _ = case
    with torch.no_grad():
        expected = make_engine("torch", served).run(inputs)
    engine = make_engine(flavour, served, folder)
    slots = torch.full((2, *expected.shape), torch.nan, dtype=expected.dtype, device="cuda")
    output = engine.run(inputs, slots[1])
    assert output.data_ptr() == slots[1].data_ptr()
    # bfloat16 of 8 bits through a handful of blocks, with other summation orders
    assert (output.float() - expected.float()).norm() <= 2e-2 * expected.float().norm()
    assert slots[0].isnan().all()
    with ThreadPoolExecutor(4) as pool:
        for other in pool.map(lambda _: engine.run(inputs), range(16)):
            assert torch.equal(other, output)


@on_a_gpu
def test_sizes_and_batches_take_turns_in_one_engine(case: tuple[Any, ...], tmp_path: Path) -> None:
    """Two profiles, whose contexts share their scratch memory: each call gives what torch gives, and the same bits each
    time; what TensorRT-RTX compiles for a shape is kept beside the engine."""
    name, pipe, served, inputs, _, flavour, arguments = case
    family = FAMILIES[name]
    if family.sizes[0] == family.sizes[-1]:
        pytest.skip("its transformer has one size")
    _, others = block_inputs_of(family, pipe, {**arguments, **family.sizes[-1]})
    rows = inputs["hidden_states"].shape[0]
    sizes = tuple(SizeClass(str(each["hidden_states"].shape[1]), axes_of(served, each)) for each in (inputs, others))
    built = build_engine(served, flavour, BuildOptions((rows, rows, 2 * rows), sizes), tmp_path)
    engine = make_engine(flavour, served, tmp_path)
    calls = [inputs, others, *(joined(served, [each, each]) for each in (inputs, others))]
    with torch.no_grad():
        expected = [make_engine("torch", served).run(each) for each in calls]
    first = [engine.run(each).clone() for each in calls]
    for _ in range(3):
        for call, before, right in zip(calls, first, expected, strict=True):
            again = engine.run(call)
            assert torch.equal(again, before)
            assert (again.float() - right.float()).norm() <= 2e-2 * right.float().norm()
    kept = built.path.with_name("runtime.cache")
    assert kept.is_file() == (flavour == "tensorrt-rtx")
    assert torch.equal(make_engine(flavour, served, tmp_path).run(others), first[1])


def axes_of(served: Family, inputs: BlockInputs) -> dict[str, int]:
    """The length of every dynamic axis but the batch."""
    axes = {
        axis: inputs[argument].shape[index]
        for argument, dynamic in served.block_axes.items()
        for index, axis in dynamic.items()
    }
    return {axis: length for axis, length in axes.items() if axis != "batch"}


@on_a_gpu
def test_another_size_is_refused_and_the_engine_goes_on(case: tuple[Any, ...]) -> None:
    _, _, served, inputs, folder, flavour, _ = case
    engine = make_engine(flavour, served, folder)
    double = {name: tensor.repeat_interleave(5, dim=0) for name, tensor in inputs.items()}
    with pytest.raises(UnsupportedShape):
        engine.run(double)
    assert engine.run(inputs).isfinite().all()


@on_a_gpu
def test_a_pipeline_runs_the_engine_only_at_full_steps(case: tuple[Any, ...], tmp_path: Path) -> None:
    name, pipe, _, _, folder, flavour, arguments = case
    cache = CacheConfig(interval=3, order=1, warmup_steps=1)
    compiled = PipelineHost(pipe, flavour, cache_dir=folder).pipeline_for(cache)
    latents = latents_of(compiled, steps=7, **arguments)
    expected = latents_of(PipelineHost(pipe).pipeline_for(cache), steps=7, **arguments)
    session = getattr(compiled, FAMILIES[name].transformer).session
    assert session.full_steps == cache.full_steps(7)
    assert (latents.float() - expected.float()).norm() <= 5e-2 * expected.float().norm()
