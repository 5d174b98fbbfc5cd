"""fp8: what is recorded of a model's own runs, what is quantised, what it changes, and what every failure says.

Engines are compiled for real, by TensorRT-RTX for GPUs that need not be there; ONNX Runtime runs the quantised stack.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch

from plugin.building.build_model import BuildRequest, build_model
from plugin.building.calibration import LABELS, PROMPTS, STEPS, calibration_of, record, spread
from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline
from plugin.engines import make_engine
from plugin.engines.base import EngineError
from plugin.engines.onnxruntime_engine import OnnxRuntimeEngine
from plugin.engines.progress import NoProgress
from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.engine import choose_profile
from plugin.engines.tensorrt.fp8 import Samples, check_architectures, quantize
from plugin.engines.tensorrt.options import BuildOptions, SizeClass, options_key
from plugin.engines.tensorrt.record import Quantized, find_engine
from plugin.families import family_of
from plugin.families.base import Family
from tests.support.commands import run
from tests.support.models import FLAVOUR, write_model
from tests.support.tiny import FAMILIES
from tests.support.tiny.pictures import CASES

FP8 = f"{FLAVOUR}-fp8"


def configured(folder: Path, name: str, **parameters: str) -> tuple[Path, ModelConfig]:
    """A model folder of a tiny pipeline that makes five steps, and its settings."""
    subject = {"takes_prompt": "false", "num_classes": "10"} if name == "dit" else {}
    model = write_model(folder, name, "float32", num_inference_steps="5", **subject, **parameters)
    return model, ModelConfig.from_folder(model)


# Calibration


def test_steps_are_spread_from_the_first_to_the_last():
    assert spread(4, 50) == {0, 16, 33, 49}
    assert spread(1, 50) == {0}
    assert spread(2, 1) == {0}
    assert spread(9, 4) == {0, 1, 2, 3}


def test_each_subject_runs_at_each_size_with_the_cache_off(tmp_path):
    _, config = configured(tmp_path, "flux")
    calibration = calibration_of(config, [(16, 16, 1), (32, 16, 1)])
    requests = calibration.requests
    assert calibration.steps == STEPS
    assert [(each.prompt, each.height) for each in requests] == [(p, h) for p in PROMPTS for h in (16, 32)]
    assert {each.cache.enabled for each in requests} == {False}
    assert {each.num_inference_steps for each in requests} == {config.defaults.num_inference_steps}
    assert len({each.seed for each in requests}) == len(requests)
    own = calibration_of(config, [(16, 16, 1)], ["a", "b"], 2)
    assert ([each.prompt for each in own.requests], own.steps) == (["a", "b"], 2)


def test_models_of_class_labels_are_calibrated_with_labels(tmp_path):
    _, config = configured(tmp_path, "dit")
    labels = [each.class_label for each in calibration_of(config, [(16, 16, 1)]).requests]
    assert len(set(labels)) == len(labels) == LABELS
    assert max(labels) < config.limits.num_classes
    with pytest.raises(ValueError, match="calibration-prompts is given, must be left out: this model takes a class_l"):
        calibration_of(config, [(16, 16, 1)], ["a dog"])


def test_what_is_recorded_is_what_the_blocks_are_given_in_real_runs(tmp_path):
    """Wan's guidance branches are calls of their own: both are there, at the wanted steps and no others."""
    _, config = configured(tmp_path, "wan", guidance_scale="5")
    calibration = calibration_of(config, [(32, 48, 5)], ["a red square", "a blue circle"], 2)
    pipe = load_pipeline(replace(config.source, dtype="float16", device="cpu"))
    (samples,) = record(pipe, calibration, 16).values()
    assert len(samples) == 2 * 2 * 2, "prompts, steps and branches"

    given: list[torch.Tensor] = []
    pipe.transformer.blocks[0].register_forward_pre_hook(lambda block, arguments: given.append(arguments[0].clone()))
    request = calibration.requests[1]
    arguments = family_of(pipe.transformer).call_arguments(request, 16)
    generator = torch.Generator().manual_seed(request.seed)
    pipe(**arguments, num_inference_steps=5, generator=generator, output_type="latent")
    assert len(given) == 5 * 2
    expected = [*given[:2], *given[8:]]  # both branches of the first and of the last step
    for ours, theirs in zip(samples[4:], expected, strict=True):
        assert torch.equal(ours["hidden_states"], theirs)


def test_a_calibration_is_followed_and_can_be_ended(flux, tmp_path):
    class Watching(NoProgress):
        def __init__(self, stop_at: int) -> None:
            self.stages: list[str] = []
            self.steps: list[int] = []
            self._stop_at = stop_at

        def stage(self, name: str) -> None:
            self.stages.append(name)

        def step_done(self, name: str, step: int) -> bool:
            self.steps.append(step)
            return len(self.steps) < self._stop_at

    _, config = configured(tmp_path, "flux")
    calibration = calibration_of(config, [(16, 16, 1)], ["a dog"])
    patient, impatient = Watching(100), Watching(2)
    record(flux, calibration, 16, patient)
    assert patient.stages == ["calibrating, run 1 of 1: a dog, 16x16"]
    assert patient.steps == [-1, 0, 1, 2, 3]
    with pytest.raises(EngineError, match="the build was ended while it calibrated"):
        record(flux, calibration, 16, impatient)


def test_a_pipeline_that_begins_with_a_picture_is_refused(tmp_path):
    case = CASES["flux fill"]
    config = ModelConfig.from_parameters({"pipeline": "hub/id", **case.parameters}, tmp_path)
    with pytest.raises(ValueError, match="pipeline is a FluxFillPipeline, must be one that needs no picture"):
        record(case.make(tmp_path), calibration_of(config, ((32, 32, 1),)))


def test_inputs_that_are_not_finite_are_refused(make_flux, tmp_path):
    _, config = configured(tmp_path, "flux")
    pipe = make_flux()
    with torch.no_grad():
        pipe.transformer.x_embedder.weight.fill_(torch.inf)
    with pytest.raises(
        EngineError, match="block input hidden_states is not finite in float32: this model cannot be bui"
    ):
        record(pipe, calibration_of(config, [(16, 16, 1)], ["a dog"]), 16)


# Building


@pytest.fixture
def kept(tmp_path, monkeypatch) -> list[tuple[Samples, Path]]:
    """Samples and quantised files of a test's builds, which themselves leave only engines; their cache is empty."""
    kept: list[tuple[Samples, Path]] = []

    def quantize_and_keep(exported: Path, samples: Samples, quantized: Path) -> Quantized:
        result = quantize(exported, samples, quantized)
        shutil.copytree(quantized.parent, tmp_path / f"kept {len(kept)}")
        kept.append((samples, tmp_path / f"kept {len(kept)}" / quantized.name))
        return result

    monkeypatch.setattr("plugin.engines.tensorrt.build.quantize", quantize_and_keep)
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    return kept


def linear_layers(exported: Path) -> int:
    """The matrix multiplications with a weight, of any number of rows for each request."""
    graph = onnx.load(str(exported), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return sum(node.op_type == "MatMul" and not weights.isdisjoint(node.input) for node in graph.node)


@pytest.mark.compiles
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_quantised_and_compiled(tmp_path, kept, name):
    """As `build` does it: a saved pipeline's own runs, modelopt, TensorRT-RTX. ONNX Runtime shows what rounding to fp8
    does: E4M3 has 3 bits of mantissa, so a factor is off by up to 6 %, against 0.05 % in float16."""
    model, config = configured(tmp_path, name)
    (built,) = build_model(model, BuildRequest(precision="fp8", targets=("SM89", "SM120"), calibration_steps=2))
    ((samples, quantized),) = kept
    engine = built.engine
    assert engine is not None
    assert engine.engine == FP8
    assert engine.dtype == "float16"
    assert engine.quantized is not None
    assert engine.quantized.fp8_matmuls == linear_layers(quantized.with_name("model.onnx")) > 10
    assert engine.quantized.samples == len(samples) > 0
    assert {path.name for path in built.path.parent.iterdir()} == {"engine.plan", "engine.json"}
    assert built.overrides == {"engine": FP8, "dtype": "float16"}
    for index in (0, -1):
        choose_profile(engine, samples[index])

    family = family_of(load_pipeline(replace(config.source, dtype="float16", device="cpu")).transformer)
    rounded, exact = OnnxRuntimeEngine(quantized, 1, torch.device("cpu")), make_engine("torch", family)
    for sample in (samples[0], samples[-1]):
        with torch.no_grad():
            expected = exact.run(sample).double()
        added = expected - sample["hidden_states"]  # by the blocks, to what passes by them
        assert 0.01 < (rounded.run(sample).double() - expected).norm() / added.norm() < 0.1


@pytest.fixture(scope="module")
def built_twice(tmp_path_factory) -> tuple[Family, Path]:
    """A family in float16, and a cache of two engines of it: one in fp8 and one, built later, without."""
    folder = tmp_path_factory.mktemp("fp8")
    _, config = configured(folder, "flux")
    pipe = load_pipeline(replace(config.source, dtype="float16", device="cpu"))
    family, calibration = family_of(pipe.transformer), calibration_of(config, [(16, 16, 1)], ["a dog"], 1)
    options = BuildOptions(
        (1, 1, 1), (SizeClass("16x16", family.axis_sizes(16, 16)),), ("SM89",), calibration=calibration
    )
    samples = partial(record, pipe, calibration, 16)
    build_engine(family, FLAVOUR, options, folder, samples=lambda: samples()["transformer"])
    build_engine(family, FLAVOUR, replace(options, calibration=None), folder)
    return family, folder


def test_a_server_loads_fp8_where_its_engine_says_so_and_only_there(built_twice):
    family, cache = built_twice
    with_fp8, without = (find_engine(family, FLAVOUR, "SM89", cache, fp8=fp8) for fp8 in (True, False))
    assert (with_fp8.engine, without.engine) == (FP8, FLAVOUR)
    assert with_fp8.path.parent.parent == without.path.parent.parent, "engines of the same weights lie together"
    assert with_fp8.weights_bytes < without.weights_bytes


def test_an_engine_of_the_other_kind_is_named(built_twice, tmp_path):
    family, cache = built_twice
    with_fp8, without = (find_engine(family, FLAVOUR, "SM89", cache, fp8=fp8) for fp8 in (True, False))
    stack = with_fp8.path.parent.parent.relative_to(cache)
    for index, (only, fp8, name) in enumerate(((with_fp8, False, FLAVOUR), (without, True, FP8))):
        alone = tmp_path / str(index)
        shutil.copytree(only.path.parent, alone / stack / only.path.parent.name)
        hint = f"--engine {FLAVOUR}{' --precision fp8' if fp8 else ''}$"
        with pytest.raises(EngineError, match=rf"no {name} engine to load: .*is of engine {only.engine}\. .*{hint}"):
            find_engine(family, FLAVOUR, "SM89", alone, fp8=fp8)


def test_a_second_build_records_nothing(built_twice):
    family, cache = built_twice
    engine = find_engine(family, FLAVOUR, "SM89", cache, fp8=True)
    (tmp,) = {path for path in cache.iterdir() if path.name.endswith("_stream")}
    calibration = calibration_of(ModelConfig.from_folder(tmp), [(16, 16, 1)], ["a dog"], 1)
    options = BuildOptions(
        (1, 1, 1), (SizeClass("16x16", family.axis_sizes(16, 16)),), ("SM89",), calibration=calibration
    )
    again = build_engine(family, FLAVOUR, options, cache, samples=lambda: pytest.fail("recorded again"))
    assert again == engine


def test_what_is_recorded_is_in_the_key(tmp_path):
    _, config = configured(tmp_path, "flux")
    sizes = (SizeClass("16x16", {"image_tokens": 16}),)
    calibration = calibration_of(config, [(16, 16, 1)])
    others = (
        calibration_of(config, [(16, 16, 1)], ["a dog"]),
        calibration_of(config, [(16, 16, 1)], steps=5),
        calibration_of(config, [(32, 32, 1)]),
        replace(calibration, requests=tuple(replace(each, seed=each.seed + 1) for each in calibration.requests)),
        replace(calibration, requests=tuple(replace(each, guidance_scale=1.0) for each in calibration.requests)),
        None,
    )
    keys = [
        options_key("1.0", ("SM89",), BuildOptions((1, 1, 1), sizes, calibration=each))
        for each in (calibration, *others, replace(calibration))
    ]
    assert len({*keys}) == 7
    assert keys[0] == keys[-1]


# The command


@pytest.mark.compiles
def test_the_command_prints_what_is_in_fp8_and_how_to_serve_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    model, _ = configured(tmp_path, "flux")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\n\n  a cat\n")
    arguments = ["--target", "SM89", "--precision", "fp8", "--calibration-prompts", str(prompts)]
    arguments += ["--calibration-steps", "1", "--calibration-sizes", "16x16,32x16x1"]
    code, output = run("build", "flux", "--model-repository", str(model.parent), *arguments)
    assert code == 0, output
    assert re.search(r"float16; \d+ of \d+ matrix multiplications in fp8", output)
    assert "calibrating, run 4 of 4: a cat, 32x16" in output
    assert "TAYLORSEER_FLUX_ENGINE=tensorrt-rtx-fp8 TAYLORSEER_FLUX_DTYPE=float16" in output
    (path,) = (tmp_path / "cache").glob("tensorrt-rtx/*/*/engine.json")
    assert json.loads(path.read_text())["quantized"]["samples"] == 4


# Failures, each with its sentence


def test_options_that_cannot_be(tmp_path):
    model, _ = configured(tmp_path, "flux")
    for name, text in {"empty": "\n\n", "long": "x" * 9000}.items():
        (tmp_path / name).write_text(text)
    fp8 = "--precision fp8 --target SM89"
    for arguments, sentence in (
        ("--precision fp8 --target SM86", "precision is fp8 for SM86, must be bf16, fp16 or fp32 there: GPUs"),
        ("--precision fp8 --target SM89,SM80", "precision is fp8 for SM80, must be"),
        (f"--engine {FP8} --precision bf16 --target SM89", f"precision is bf16, must be fp8 with engine {FP8}"),
        ("--target SM89 --calibration-steps 4", "calibration-steps is for precision fp8, must be left out"),
        ("--target SM89 --calibration-sizes 8x8", "calibration-sizes is for precision fp8, must be left"),
        (f"{fp8} --calibration-steps 0", "calibration-steps is 0, must be at least"),
        (f"{fp8} --calibration-sizes 8", "calibration-sizes is '8', must be HEIGHT"),
        (f"{fp8} --calibration-sizes 17x16", "height is 17, must be a multiple of 8"),
        (f"{fp8} --calibration-prompts {tmp_path}/empty", "which is empty: must hold a prom"),
        (f"{fp8} --calibration-prompts nowhere", "No such file or directory: 'now"),
        (f"{fp8} --calibration-prompts {tmp_path}/long", "prompt is 9000 bytes long, must be"),
        ("--engine onnxruntime --precision fp8", "precision is for the engines tensorrt, tensorrt-rtx"),
    ):
        code, output = run("build", "flux", "--model-repository", str(model.parent), *arguments.split())
        assert code == 1, arguments
        assert sentence in " ".join(output.split()), output
        assert "loading" not in output, "it is reported before minutes of loading"
        assert "Traceback" not in output, arguments


def test_no_modelopt(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", None)
    model, _ = configured(tmp_path, "flux")
    sentence = r"precision fp8 needs the package nvidia-modelopt, which cannot be imported .*pip install -e '\.\[fp8\]'"
    with pytest.raises(EngineError, match=sentence):
        build_model(model, BuildRequest(precision="fp8", targets=("SM89",)))


def test_the_gpu_here_is_too_old(tmp_path, monkeypatch):
    monkeypatch.setattr("plugin.building.build_model.present_architecture", lambda flavour: "SM80")
    model, _ = configured(tmp_path, "flux")
    with pytest.raises(EngineError, match="precision is fp8 for SM80"):
        build_model(model, BuildRequest(engine=FP8))
    check_architectures(["SM89", "SM90", "SM100", "SM120"])


def test_a_server_in_another_dtype(flux, tmp_path):
    with pytest.raises(EngineError, match=f"dtype is float32, must be float16 with engine {FP8}"):
        find_engine(family_of(flux.transformer), FLAVOUR, "SM89", tmp_path, fp8=True)


def test_what_modelopt_raises_is_reported(tmp_path):
    (tmp_path / "model.onnx").write_bytes(onnx.ModelProto().SerializeToString())
    with pytest.raises(EngineError, match=r"nvidia-modelopt [\d.]+ cannot quantise the block stack: \w+"):
        quantize(tmp_path / "model.onnx", [{"hidden_states": torch.zeros(1)}], tmp_path / "fp8.onnx")


def test_nothing_to_quantise(tmp_path):
    names = ("a", "b", "c")
    a, b, c = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, [4, 4]) for name in names)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"], "product")], "graph", [a, b], [c]
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "model.onnx")
    sample = {name: torch.ones(4, 4).half() for name in ("a", "b")}
    with pytest.raises(EngineError, match="quantised none of the block stack's 1 matrix multiplications"):
        quantize(tmp_path / "model.onnx", [sample], tmp_path / "fp8.onnx")


def test_a_transformer_without_a_part_in_the_recorded_steps(flux, tmp_path, monkeypatch):
    _, config = configured(tmp_path, "flux")
    monkeypatch.setattr("plugin.building.calibration.spread", lambda count, num_steps: frozenset({num_steps}))
    with pytest.raises(EngineError, match="transformer had no part in the 4 steps recorded: raise calibration-steps"):
        record(flux, calibration_of(config, [(16, 16, 1)], ["a dog"]), 16)
