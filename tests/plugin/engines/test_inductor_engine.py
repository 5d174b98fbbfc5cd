"""Engine inductor: it computes what torch computes, is compiled once, has no weights twice, and says what it lacks."""

from __future__ import annotations

import gc
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor import config
from torch._inductor.cpp_builder import cpp_compiler_search

from plugin.denoising.host import PipelineHost
from plugin.engines import inductor_package, make_engine
from plugin.engines.base import Engine, EngineError
from plugin.engines.inductor_package import built_package
from plugin.families import family_of
from plugin.families.base import BlockInputs, Family
from taylorseer import CacheConfig
from tests.support.commands import run
from tests.support.models import write_model
from tests.support.tiny import FAMILIES, TinyFamily, block_inputs_of, latents_of
from tests.support.tiny.shallow import made_shallow

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles with g++")

# float32 through a few blocks, whose sums are in another order: measured 1e-7 of the largest number of the feature
TOLERANCE = 1e-5


def made(name: str, folder: Path) -> tuple[TinyFamily, Family]:
    """A tiny pipeline's family, with one block of each kind; each call makes the same weights."""
    tiny = FAMILIES[name]
    pipe = made_shallow(tiny.make(folder, torch.float32), tiny.transformer)
    return tiny, family_of(getattr(pipe, tiny.transformer))


def difference(engine: Engine, family: Family, inputs: BlockInputs) -> float:
    """Of the features from those of the torch blocks, as a part of the largest of these."""
    with torch.no_grad():
        expected, features = family.block_stack()(**inputs), engine.run(inputs)
    assert features.shape == expected.shape == inputs["hidden_states"].shape
    return float((features - expected).abs().max() / expected.abs().max())


def dit_inputs(batch: int, tokens: int) -> BlockInputs:
    generator = torch.Generator().manual_seed(100 * batch + tokens)
    return {
        "hidden_states": torch.randn(batch, tokens, 32, generator=generator),
        "timestep": 1000 * torch.rand(batch, generator=generator),
        "class_labels": torch.randint(1000, (batch,), generator=generator),
    }


@dataclass(frozen=True)
class Built:
    """A DiT of one block whose package `build` has made.

    Attributes:
        model: the folder that was built.
        output: of the command.
        path: of the package.
        family: of equal weights.
        engine: that computes with them.
    """

    model: Path
    output: str
    path: Path
    family: Family
    engine: Engine


@pytest.fixture(scope="module")
def dit(tmp_path_factory, engine_cache) -> Built:
    """Shared: tests must not change it."""
    folder = tmp_path_factory.mktemp("dit")
    model = write_model(folder, "dit", "float32", shallow=True, engine="inductor", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_TAYLORSEER_CACHE", str(engine_cache))
        code, output = run("build", "dit", "--model-repository", model.parent)
        assert code == 0, output
        patch.setattr(inductor_package, "_compile", lambda *_: pytest.fail("it is compiled again"))
        _, family = made("dit", folder)
        engine = make_engine("inductor", family)
    return Built(model, output, Path(output.strip().splitlines()[-1]), family, engine)


@pytest.fixture
def uncompiled(monkeypatch) -> list[Path]:
    """The packages that are compiled from now on; a few bytes stand in for each."""
    written: list[Path] = []

    def write(family: Family, stack: nn.Module, path: Path) -> None:
        path.write_bytes(b"code")
        written.append(path)

    monkeypatch.setattr(inductor_package, "_compile", write)
    return written


@pytest.fixture
def no_compiler(tmp_path, monkeypatch) -> Iterator[None]:
    """No program can be found, a C++ compiler among them."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    cpp_compiler_search.cache_clear()
    yield
    cpp_compiler_search.cache_clear()


def test_build_prints_the_package_and_takes_no_options_of_tensorrt(dit, engine_cache):
    assert (dit.path.name, dit.path.parent.parent) == ("blocks.pt2", engine_cache / "inductor")
    assert dit.path.is_file()
    code, output = run("build", "dit", "--model-repository", dit.model.parent, "--refit")
    assert code == 1
    assert "refit is for the engines tensorrt, tensorrt-rtx, must be left out with inductor" in output


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_what_torch_computes_at_every_size_and_batch(name, tmp_path, engine_cache):
    """One package for all: the axes are dynamic. The blocks get what a pipeline gives them, tables and masks too."""
    tiny = FAMILIES[name]
    pipe = made_shallow(tiny.make(tmp_path, torch.float32), tiny.transformer)
    kinds = [kind.arguments for kind in tiny.guidance.values()]
    calls = [{**size, **kinds[index % len(kinds)]} for index, size in enumerate(tiny.sizes)]
    calls += [{**tiny.sizes[0], **kind} for kind in kinds[1:]]
    calls += [{**call, **tiny.batch} for call in calls if "negative_prompt" not in call]
    engine: Engine | None = None
    shapes = set()
    for call in calls:
        family, inputs = block_inputs_of(tiny, pipe, {**tiny.arguments, **call})
        engine = engine or make_engine("inductor", family, engine_cache)
        inputs = family.completed(inputs)
        shapes.add(inputs["hidden_states"].shape)
        assert difference(engine, family, inputs) <= TOLERANCE, call
    assert len(shapes) > 1


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("tokens", [1, 4, 33])
def test_any_batch_and_number_of_tokens(dit, batch, tokens):
    """It is compiled from an example of a batch of 2; 1 is a length that compilers like to take for a constant."""
    assert difference(dit.engine, dit.family, dit_inputs(batch, tokens)) <= TOLERANCE


def test_inputs_are_run_as_they_read_however_they_lie_in_memory(dit):
    inputs = dit_inputs(2, 16)
    inputs["hidden_states"] = inputs["hidden_states"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["timestep"] = inputs["timestep"].repeat(2)[::2]
    assert not inputs["hidden_states"].is_contiguous()
    assert difference(dit.engine, dit.family, inputs) <= TOLERANCE


def test_inputs_that_it_was_not_compiled_for_are_refused(dit):
    """The code would read another dtype's bytes as they are, and leave an argument out that it does not know."""
    inputs = dit_inputs(1, 4)
    with pytest.raises(EngineError, match=r"input class_labels is torch.int32, must be torch.int64 as it was compiled"):
        dit.engine.run(inputs | {"class_labels": inputs["class_labels"].int()})
    names = "hidden_states, timestep, class_labels"
    with pytest.raises(EngineError, match=f"inputs are {names}, mask, must be {names} as it was compiled"):
        dit.engine.run(inputs | {"mask": torch.ones(1, 4)})
    del inputs["class_labels"]
    with pytest.raises(EngineError, match=f"inputs are hidden_states, timestep, must be {names} as it was compiled"):
        dit.engine.run(inputs)


def test_a_result_survives_the_next_call(dit):
    inputs = dit_inputs(1, 16)
    features = dit.engine.run(inputs)
    kept = features.clone()
    dit.engine.run(dit_inputs(1, 16) | {"timestep": torch.zeros(1)})
    assert torch.equal(features, kept)


def test_eight_threads_at_once_get_what_each_gets_alone(dit):
    engine = dit.engine
    every = [dit_inputs(1 + index % 3, 4 + index) for index in range(8)]
    alone = [engine.run(inputs) for inputs in every]

    def again(inputs: BlockInputs) -> list[torch.Tensor]:
        torch.set_num_threads(1)
        return [engine.run(inputs) for _ in range(20)]

    with ThreadPoolExecutor(len(every)) as pool:
        for expected, results in zip(alone, pool.map(again, every), strict=True):
            assert all(torch.equal(result, expected) for result in results)


def test_a_pipeline_without_torch_blocks_makes_the_same_picture(tmp_path, engine_cache):
    """With the cache on. The latents of 6 steps: 1e-3 of their size, as for every engine."""
    tiny = FAMILIES["flux"]
    pipe = made_shallow(tiny.make(tmp_path, torch.float32))
    cache = CacheConfig(interval=2, order=1, warmup_steps=1)
    arguments = {**tiny.arguments, **tiny.sizes[2]}
    expected = latents_of(PipelineHost(pipe).pipeline_for(cache), steps=6, **arguments)
    host = PipelineHost(pipe, "inductor", cache_dir=engine_cache, release_blocks=True)
    assert not [*pipe.transformer.transformer_blocks.parameters()]
    served = host.pipeline_for(cache)
    assert (latents_of(served, steps=6, **arguments) - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert served.transformer.session.engine_calls < 6


def test_the_package_is_found_again_and_no_compiler_is_needed(dit, engine_cache, no_compiler, monkeypatch):
    files = {path: path.stat().st_mtime_ns for path in engine_cache.rglob("*") if path.is_file()}
    monkeypatch.setattr(inductor_package, "_compile", lambda *_: pytest.fail("it is compiled again"))
    engine = make_engine("inductor", dit.family, engine_cache)
    assert difference(engine, dit.family, dit_inputs(2, 9)) <= TOLERANCE
    assert {path: path.stat().st_mtime_ns for path in engine_cache.rglob("*") if path.is_file()} == files


def test_a_damaged_package_is_set_aside_and_built_again_and_nothing_is_kept(dit, engine_cache, tmp_path, caplog):
    """By itself, torch would keep the blocks that it compiled last, and the weights that a package was given."""
    cache = tmp_path / "cache"
    shutil.copytree(dit.path.parent, cache / dit.path.parent.relative_to(engine_cache))
    path = cache / dit.path.relative_to(engine_cache)
    path.write_bytes(path.read_bytes()[:-1000])
    _, family = made("dit", tmp_path)
    caplog.set_level("WARNING")
    engine = make_engine("inductor", family, cache)
    assert "is damaged (blocks.pt2 has another content than it was written with): it is set aside" in caplog.text
    assert difference(engine, family, dit_inputs(2, 9)) <= TOLERANCE
    folders = sorted(each.name for each in path.parent.parent.iterdir() if each.is_dir())
    assert folders == [path.parent.name, f"{path.parent.name}.damaged"]

    weight = family.transformer.transformer_blocks[0].ff.net[2].weight
    memory = weakref.ref(weight.untyped_storage())
    with torch.no_grad():
        weight += 1
    assert difference(engine, family, dit_inputs(2, 9)) <= TOLERANCE, "the engine computes with the blocks' own weights"
    del weight
    family.release_blocks()
    gc.collect()
    assert memory() is not None, "the engine needs them"
    del engine
    gc.collect()
    assert memory() is None


def test_the_key_holds_what_decides_the_code(tmp_path, uncompiled, monkeypatch):
    _, family = made("dit", tmp_path)
    gpu = type("Properties", (), {"name": "A GPU", "major": 9, "minor": 0})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)

    def path() -> Path:
        return built_package(family, family.export_stack(), tmp_path / "cache")

    first = path()
    assert path() == first
    paths = [first]
    with config.patch({"max_autotune": True}):
        paths.append(path())
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": False, "l2_cache_size": 1})
        paths.append(path())
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": False, "l2_cache_size": 2})
        assert path() == paths[-1], "a size of the cache decides nothing"
    family.__dict__["device"] = torch.device("cuda:0")
    paths.append(path())
    gpu.name = "Another"
    paths.append(path())
    gpu.minor = 3
    paths.append(path())
    family.__dict__["device"] = torch.device("cpu")
    linear = family.transformer.transformer_blocks[0].ff.net[2]
    linear.weight = nn.Parameter(linear.weight.T.contiguous().T)  # equal, and with other strides
    paths.append(path())
    with torch.no_grad():
        linear.weight[0, 0] += 1
    paths.append(path())
    assert len(set(paths)) == len(paths)
    assert len(uncompiled) == len(paths)


def test_without_a_compiler_it_says_what_to_install(tmp_path, no_compiler):
    _, family = made("dit", tmp_path)
    with pytest.raises(
        EngineError, match=r"engine inductor compiles with a C\+\+ compiler, which is missing: apt install"
    ):
        make_engine("inductor", family, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache/inductor").iterdir() if path.is_dir()], "nothing is left"


def test_without_the_package_triton_a_gpu_says_so(tmp_path, monkeypatch):
    _, family = made("dit", tmp_path)
    stack = family.export_stack()
    monkeypatch.setattr(inductor_package, "_processors", lambda device: [])
    family.__dict__["device"] = torch.device("cuda:0")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(EngineError, match="engine inductor on cuda:0 compiles with OpenAI's Triton, which cannot be"):
        built_package(family, stack, tmp_path / "cache")


@pytest.mark.compiles
def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    _, family = made("dit", tmp_path)
    compiler = tmp_path / "bin/g++"
    compiler.parent.mkdir()
    real = shutil.which("g++")
    # It can do everything but compile what the code generator writes for the blocks.
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *.wrapper.cpp*) echo "wrapper.cpp:1:1: error: out of ink" >&2; exit 1;; esac\n'
        f'exec {real} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent), prepend=":")
    sentence = (
        r"engine inductor cannot compile the blocks of DiTTransformer2DModel \(wrapper.cpp:1:1: error: out of ink\): "
        "remove the reason, or set engine to another one"
    )
    with pytest.raises(EngineError, match=sentence):
        make_engine("inductor", family, tmp_path / "cache")


@pytest.mark.compiles
def test_blocks_with_tensors_that_are_no_weights_are_refused(tmp_path, monkeypatch):
    """A package that is loaded again could not be given them."""

    class Shifted(nn.Module):
        def __init__(self, stack: nn.Module) -> None:
            super().__init__()
            self.stack = stack
            self.shift = torch.arange(32.0)

        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            return self.stack(**inputs) + self.shift

    _, family = made("dit", tmp_path)
    export_stack: Callable[[], nn.Module] = family.export_stack
    monkeypatch.setattr(family, "export_stack", lambda: Shifted(export_stack()))
    with pytest.raises(EngineError, match=r"\(tensors that are neither parameters nor buffers: stack.shift\)"):
        make_engine("inductor", family, tmp_path / "cache")


def test_a_package_that_torch_refuses_is_named(tmp_path, uncompiled):
    _, family = made("dit", tmp_path)
    with pytest.raises(
        EngineError, match=r"package .*/blocks.pt2 cannot be loaded \(.+\): delete it and build it again"
    ):
        make_engine("inductor", family, tmp_path / "cache")
