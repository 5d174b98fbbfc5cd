"""TensorRT: what is built without a GPU, what is kept of it, and what every failure says.

Engines are compiled for real, by TensorRT-RTX for GPUs that need not be there; running them needs one.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plugin.building.build_model import BuildRequest, build_model
from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline
from plugin.engines import make_engine
from plugin.engines.base import EngineError, UnsupportedShape
from plugin.engines.engine_cache import replace_file
from plugin.engines.progress import NoProgress
from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.compiler import configure
from plugin.engines.tensorrt.engine import choose_profile, deserialize
from plugin.engines.tensorrt.options import BuildOptions, SizeClass, options_key
from plugin.engines.tensorrt.package import Messages, present_architecture
from plugin.engines.tensorrt.record import BuiltEngine, find_engine
from plugin.families import family_of
from plugin.families.base import BlockInputs, Family
from plugin.serving.plan import architecture_of, axis_sizes, example_request
from tests.plugin.cli.test_cli import run
from tests.support.paths import ROOT
from tests.support.tiny import FAMILIES, TinyFamily, block_inputs_of

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")

FLAVOUR = "tensorrt-rtx"
TARGETS = ("SM89", "SM120")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


def write_model(folder: Path, name: str, dtype: str, **parameters: str) -> Path:
    """A model folder whose pipeline is a saved tiny one, with further parameters; the folder's path."""
    family = FAMILIES[name]
    pipe = family.make(folder, torch.float32)
    pipe.save_pretrained(folder / "pipeline")
    parameters = {
        "pipeline": str(folder / "pipeline"),
        "engine": FLAVOUR,
        "dtype": dtype,
        "device": "cuda:0",
        "max_sequence_length": "16",
        "size_multiple": "8",
        "max_frames": "9",
        **{axis: str(length) for axis, length in {"height": 16, "width": 16, **family.sizes[0]}.items()},
        **parameters,
    }
    lines = [f'parameters {{ key: "{key}" value: {{ string_value: "{parameters[key]}" }} }}' for key in parameters]
    (folder / f"{name}_stream").mkdir()
    (folder / f"{name}_stream/config.pbtxt").write_text("\n".join(lines))
    return folder / f"{name}_stream"


def two_sizes(family: TinyFamily) -> tuple[tuple[int, int], ...]:
    """Two sizes of other token counts; one where the transformer has only one."""
    sizes = (family.sizes[0], family.sizes[-1]) if len(family.sizes) > 1 else ()
    return tuple((size["height"], size["width"]) for size in sizes)


# Building


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_compiled_with_a_profile_for_each_size(tmp_path, monkeypatch, name, precision):
    """From a saved pipeline, as `build` does it; each size's real inputs must fall into that size's profile."""
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    model, family = write_model(tmp_path, name, "float32"), FAMILIES[name]
    sizes = two_sizes(family)
    frames = (5, 9) if "num_frames" in family.sizes[0] else ()
    request = BuildRequest(precision=precision, sizes=sizes, num_frames=frames, targets=TARGETS)
    (built,) = build_model(model, request)
    engine = built.engine
    assert engine is not None
    assert (engine.flavour, engine.version, engine.architectures) == (FLAVOUR, trt.__version__, TARGETS)
    assert engine.dtype == {"bf16": "bfloat16", "fp16": "float16"}[precision]
    assert len(engine.profiles) == max(1, len(sizes)) * max(1, len(frames))
    assert engine.layers > 50
    assert engine.engine_bytes == built.path.stat().st_size > engine.weights_bytes > 0
    assert engine.activation_bytes > 0

    config = ModelConfig.from_folder(model)
    pipe = load_pipeline(replace(config.source, dtype=engine.dtype, device="cpu"))
    for guidance in family.guidance.values():
        for size in (family.sizes[0], family.sizes[-1]):
            arguments = {**family.arguments, **guidance.arguments, **size}
            _, inputs = block_inputs_of(family, pipe, arguments)
            profile = engine.profiles[choose_profile(engine, inputs)]
            fields = {key: value for key, value in size.items() if key in ("height", "width", "num_frames")}
            axes = axis_sizes(config, architecture_of(config.source.pipeline), example_request(config, **fields))
            tokens = next(axes[axis] for axis in ("image_tokens", "video_tokens") if axis in axes)
            assert profile.largest["hidden_states"][1] == tokens == inputs["hidden_states"].shape[1]


def test_an_engine_is_found_again_and_one_that_is_damaged_is_built_again(flux, tmp_path):
    family = family_of(flux.transformer)
    options = BuildOptions((1, 1, 2), (SizeClass("tiny", family.axis_sizes(16, 8)),), TARGETS)
    built = build_engine(family, FLAVOUR, options, tmp_path)
    content, modified = built.path.read_bytes(), built.path.stat().st_mtime_ns
    assert build_engine(family, FLAVOUR, options, tmp_path) == built
    assert find_engine(family, FLAVOUR, "SM120", tmp_path) == built
    assert built.path.stat().st_mtime_ns == modified

    built.path.write_bytes(content[: len(content) // 2])
    again = build_engine(family, FLAVOUR, options, tmp_path)
    assert again.path == built.path
    assert again.path.stat().st_mtime_ns != modified
    assert again.engine_bytes == again.path.stat().st_size


@pytest.fixture(scope="module")
def compiled(flux, tmp_path_factory) -> tuple[Family, BuildOptions, BuiltEngine, Path]:
    """A small engine, its options and its cache; tests must not change it."""
    cache = tmp_path_factory.mktemp("tensorrt")
    family = family_of(flux.transformer)
    sizes = (SizeClass("16x16", family.axis_sizes(16, 8)), SizeClass("32x32", family.axis_sizes(64, 8)))
    options = BuildOptions((1, 2, 2), sizes, ("SM89",))
    return family, options, build_engine(family, FLAVOUR, options, cache), cache


def test_whatever_decides_an_engine_is_in_its_key():
    sizes = (SizeClass("16x16", {"image_tokens": 16}), SizeClass("32x32", {"image_tokens": 64}))
    options = BuildOptions((1, 1, 1), sizes)
    others = (
        replace(options, batch=(1, 1, 2)),
        replace(options, sizes=sizes[:1]),
        replace(options, targets=("SM86",)),
        replace(options, workspace_bytes=2**28),
        replace(options, refit=True),
        replace(options, weight_streaming=True),
    )
    keys = [options_key("1.0", ("SM89",), each) for each in (options, *others)]
    keys += [options_key("1.1", ("SM89",), options), options_key("1.0", ("SM90",), options)]
    assert len({*keys}) == 9
    assert options_key("1.0", ("SM89",), replace(options)) == keys[0]


def test_weights_can_stream(compiled):
    family, options, built, cache = compiled
    other = build_engine(family, FLAVOUR, replace(options, weight_streaming=True), cache)
    assert other.path != built.path
    assert other.path.parent.parent == built.path.parent.parent, "engines of the same weights lie together"


@no_gpu
def test_refit_wants_a_gpu(compiled):
    family, options, _, cache = compiled
    with pytest.raises(EngineError, match=r"cannot compile the block stack \(with refit it wants a GPU to build on\)"):
        build_engine(family, FLAVOUR, replace(options, refit=True), cache)


def test_two_builders_at_once_leave_one_whole_engine(flux, tmp_path):
    family, built = family_of(flux.transformer), []
    options = BuildOptions((1, 1, 1), (SizeClass("tiny", family.axis_sizes(16, 8)),), ("SM89",))

    def build() -> None:
        built.append(build_engine(family, FLAVOUR, options, tmp_path))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built[0] == built[1]
    folders = [path for path in built[0].path.parent.parent.iterdir() if path.is_dir()]
    assert folders == [built[0].path.parent], "no scratch folder is left"


class Watching(NoProgress):
    def __init__(self, stop_after: float = math.inf) -> None:
        self.stages: list[str] = []
        self.phases: list[tuple[str, str | None]] = []
        self.steps = 0
        self._stop_after = stop_after

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        self.phases.append((name, parent))

    def step_done(self, name: str, step: int) -> bool:
        self.steps += 1
        return self.steps < self._stop_after


def test_a_build_is_followed_and_can_be_ended(flux, tmp_path):
    family = family_of(flux.transformer)
    options = BuildOptions((1, 1, 1), (SizeClass("tiny", family.axis_sizes(16, 8)),), ("SM89",))
    impatient = Watching(stop_after=3)
    with pytest.raises(EngineError, match="cannot compile the block stack"):
        build_engine(family, FLAVOUR, options, tmp_path, impatient)
    assert not [path for path in (tmp_path / FLAVOUR).glob("*/*") if path.is_dir()], "nothing is left"
    patient = Watching()
    build_engine(family, FLAVOUR, options, tmp_path, patient)
    assert patient.stages == ["exporting the block stack", f"compiling with {FLAVOUR} {trt.__version__} for SM89"]
    assert patient.steps > impatient.steps
    names = {name for name, _ in patient.phases}
    assert any(parent in names for _, parent in patient.phases), "phases are nested"


def test_the_command_tells_what_it_built_and_how_to_serve_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    model = write_model(tmp_path, "dit", "float32")
    arguments = ["build", "dit", "--model-repository", str(model.parent), "--target", "SM89", "--precision", "bf16"]
    code, output = run(*arguments)
    assert code == 0, output
    for text in ("SM89", "bfloat16", "16x16, batch 1 to 2", "layers", "weights", "scratch"):
        assert text in output
    assert "TAYLORSEER_DIT_DTYPE=bfloat16" in output
    (path,) = (tmp_path / "cache").glob("tensorrt-rtx/*/*/engine.plan")
    assert str(path) in output.replace("\n", "")


def test_float32_is_not_rounded_to_tf32(compiled):
    """TensorRT multiplies float32 in TF32 by default, with the mantissa of float16."""
    config = trt.Builder(Messages(trt).logger).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32), "is what it does by itself"
    configure(trt, config, compiled[1])
    assert not config.get_flag(trt.BuilderFlag.TF32)


RUN = {  # what plugin/engines/tensorrt/engine.py uses of TensorRT-RTX to run an engine: no GPU is here to show that
    "ICudaEngine": (
        "create_execution_context",
        "create_runtime_config",
        "get_device_memory_size_for_profile_v2",
        "get_tensor_mode",
        "get_tensor_name",
        "get_weight_streaming_automatic_budget",
        "num_io_tensors",
        "streamable_weights_size",
        "weight_streaming_budget_v2",
    ),
    "IExecutionContext": (
        "execute_async_v3",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
    ),
    "IRuntimeConfig": (
        "create_runtime_cache",
        "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    ),
    "IRuntimeCache": ("deserialize", "serialize"),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("OUTPUT",),
}


@pytest.mark.parametrize("name", RUN)
def test_the_package_has_what_runs_an_engine(name):
    source = (ROOT / "plugin/engines/tensorrt/engine.py").read_text()
    assert [each for each in RUN[name] if each not in source] == [], "the table is of what is used"
    assert [each for each in RUN[name] if not hasattr(getattr(trt, name), each)] == []


def test_a_file_that_cannot_be_replaced_leaves_no_other(tmp_path):
    (tmp_path / "runtime.cache").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path / "runtime.cache", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["runtime.cache"]


# Failures, each with its sentence


@pytest.mark.parametrize(("flavour", "package"), [("tensorrt", "tensorrt"), (FLAVOUR, "tensorrt_rtx")])
def test_no_tensorrt(flux, monkeypatch, tmp_path, flavour, package):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = f"engine {flavour} needs the package {package}, which cannot be imported"
    with pytest.raises(EngineError, match=sentence):
        make_engine(flavour, family_of(flux.transformer), tmp_path)
    with pytest.raises(EngineError, match=sentence):
        build_model(write_model(tmp_path, "dit", "float32"), BuildRequest(engine=flavour))


@no_gpu
def test_no_gpu(flux, tmp_path):
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU with its driver, and (this torch|torch finds)"):
        make_engine(FLAVOUR, family_of(flux.transformer), tmp_path)
    with pytest.raises(EngineError, match="or name the GPU to compile for with --target"):
        build_model(write_model(tmp_path, "dit", "float32"), BuildRequest())
    with pytest.raises(EngineError, match=r"gpus all$"):
        present_architecture("tensorrt")


@no_gpu
def test_no_driver(compiled):
    _, _, built, _ = compiled
    messages = Messages(trt)
    with pytest.raises(EngineError, match=r"cannot be loaded: .*driver"):
        deserialize(trt.Runtime(messages.logger), messages, built)


@pytest.mark.parametrize("content", [b"", b"half", None], ids=["empty", "truncated", "missing"])
def test_truncated_engine(compiled, tmp_path, content):
    _, _, built, _ = compiled
    path = tmp_path / "engine.plan"
    if content is not None:
        path.write_bytes(content and built.path.read_bytes()[:1000])
    messages = Messages(trt)
    with pytest.raises(EngineError, match=rf"engine {path} (is damaged|cannot be read).*build it again"):
        deserialize(trt.Runtime(messages.logger), messages, replace(built, path=path))


def found_with(
    compiled: tuple[Family, BuildOptions, BuiltEngine, Path], **changes: Any
) -> Callable[[str], BuiltEngine]:
    """Looks for the engine after its record has been changed; the record is put back."""
    family, _, built, cache = compiled
    record = built.path.with_name("engine.json")
    original = record.read_text()

    def find(architecture: str) -> BuiltEngine:
        try:
            record.write_text(json.dumps({**json.loads(original), **changes}))
            return find_engine(family, FLAVOUR, architecture, cache)
        finally:
            record.write_text(original)

    return find


def only(compiled: tuple[Family, BuildOptions, BuiltEngine, Path], tmp_path: Path) -> Any:
    """The same engine, alone in a cache of its own."""
    family, options, _, _ = compiled
    return family, options, build_engine(family, FLAVOUR, options, tmp_path), tmp_path


def test_engine_of_another_version(compiled, tmp_path):
    alone = only(compiled, tmp_path)
    with pytest.raises(EngineError, match=rf"is of {FLAVOUR} 1.2.3, and {trt.__version__} is installed.*Build one"):
        found_with(alone, version="1.2.3")("SM89")
    with pytest.raises(EngineError, match=r"is for SM89, and the GPU is SM90.*triton-taylorseer build MODEL --engine"):
        find_engine(alone[0], FLAVOUR, "SM90", alone[3])
    with pytest.raises(EngineError, match=r"engine\.json is damaged \(.*build the engine again"):
        found_with(alone, profiles=None)("SM89")
    assert find_engine(alone[0], FLAVOUR, "SM89", alone[3]) == alone[2]


def test_engine_of_other_weights(compiled, make_flux):
    other = make_flux()
    with torch.no_grad():
        other.transformer.transformer_blocks[0].attn.to_q.bias[0] += 1
    with pytest.raises(EngineError, match=r"holds none for these weights in float32\. Build one"):
        find_engine(family_of(other.transformer), FLAVOUR, "SM89", compiled[3])


def shaped(built: BuiltEngine, tokens: int, batch: int = 1) -> BlockInputs:
    shapes = built.profiles[0].smallest
    length = {"hidden_states": (batch, tokens, shapes["hidden_states"][2])}
    length["rotary_cos"] = length["rotary_sin"] = (tokens + 8, shapes["rotary_cos"][1])
    length["encoder_hidden_states"] = (batch, 8, shapes["encoder_hidden_states"][2])
    length["temb"] = (batch, shapes["temb"][1])
    return {name: torch.zeros(shape) for name, shape in length.items()}


def test_size_outside_all_profiles(compiled):
    _, _, built, _ = compiled
    assert choose_profile(built, shaped(built, 16)) == 0
    assert choose_profile(built, shaped(built, 64, batch=2)) == 1
    for tokens, batch in ((32, 1), (16, 3), (65, 1)):
        sentence = rf"{tokens} tokens at batch {batch}, must be of a size that .* 16x16 at batch 1 to 2; 32x32 at batch"
        with pytest.raises(UnsupportedShape, match=sentence):
            choose_profile(built, shaped(built, tokens, batch))
    with pytest.raises(UnsupportedShape):
        choose_profile(built, {**shaped(built, 16), "temb": torch.zeros(1, 1, 32)})


def test_inputs_of_another_dtype(compiled):
    _, _, built, _ = compiled
    inputs = shaped(built, 16)
    inputs["temb"] = inputs["temb"].bfloat16()
    with pytest.raises(EngineError, match="input temb is bfloat16, must be float32"):
        choose_profile(built, inputs)


FULL_DISK = """
import resource, sys
from pathlib import Path
from plugin.building.build_model import BuildRequest, build_model
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
build_model(Path(sys.argv[1]), BuildRequest(targets=("SM89",)))
"""


@pytest.mark.parametrize("limit", [1000, 300_000], ids=["during the export", "during the build"])
def test_full_disk_during_a_build(tmp_path, monkeypatch, limit):
    """A limit on the size of files stands in for a disk that is full: the write itself fails, half-way."""
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    model = write_model(tmp_path, "dit", "float32")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, model, str(limit)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "OSError: no engine can be built in" in done.stderr
    assert "make room there" in done.stderr
    assert not list((tmp_path / "cache").glob("tensorrt-rtx/*/*/*")), "nothing is left"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", "SM90"], "target is SM90, must be one of: SM75, SM80"),
        (["--engine", "tensorrt", "--target", "SM89"], "engine tensorrt needs the package|must be left out: tensorrt"),
        (["--target", "SM89", "--precision", "int3"], "precision is int3, must be one of: fp32, fp16, bf16"),
        (["--target", "SM89", "--batch", "2,1,1"], r"batch is \(2, 1, 1\), must be min,opt,max"),
        (["--target", "SM89", "--batch", "2"], "batch is '2', must be MIN,OPT,MAX"),
        (["--target", "SM89", "--size", "16"], "size is '16', must be HEIGHTxWIDTH"),
        (["--target", "SM89", "--size", "17x16"], "height is 17, must be a multiple of 8"),
        (["--target", "SM89", "--num-frames", "0"], "num-frames is '0', must be an integer of at least 1"),
        (["--engine", "onnxruntime", "--refit"], "refit is for the engines tensorrt, tensorrt-rtx"),
    ],
)
def test_options_that_cannot_be(tmp_path, arguments, sentence):
    import re

    model = write_model(tmp_path, "dit", "float32")
    code, output = run("build", "dit", "--model-repository", str(model.parent), *arguments)
    assert code == 1
    assert re.search(sentence, " ".join(output.split())), output
    assert "Traceback" not in output
