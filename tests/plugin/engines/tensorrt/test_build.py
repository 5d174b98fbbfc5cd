"""Builds: what is compiled without a GPU, what is kept of it, and what every failure says.

Engines are compiled for real, by TensorRT-RTX for GPUs that need not be there; running them needs one. Exports are
shared (`kept_exports`): two precisions of one family are two exports, two sizes or targets of one precision are one.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from plugin.building.build_model import BuildRequest, build_model
from plugin.config import ModelConfig
from plugin.denoising.loading import load_pipeline
from plugin.engines.base import EngineError
from plugin.engines.progress import NoProgress
from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.engine import choose_profile
from plugin.engines.tensorrt.options import BuildOptions, SizeClass
from plugin.engines.tensorrt.record import find_engine
from plugin.families import family_of
from plugin.serving.plan import architecture_of, axis_sizes, example_request
from tests.support.commands import run
from tests.support.models import FLAVOUR, write_model
from tests.support.repository import write_pair
from tests.support.tiny import FAMILIES, TinyFamily, block_inputs_of
from tests.support.tiny.pictures import CASES, picture

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")

TARGETS = ("SM89", "SM120")


def two_sizes(family: TinyFamily) -> tuple[tuple[int, int], ...]:
    """Two sizes with different numbers of tokens; none where the transformer has only one."""
    sizes = (family.sizes[0], family.sizes[-1]) if len(family.sizes) > 1 else ()
    return tuple((size["height"], size["width"]) for size in sizes)


@pytest.mark.compiles
@pytest.mark.parametrize(("name", "precision"), [*((name, "fp16") for name in FAMILIES), ("flux", "bf16")])
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
            served, inputs = block_inputs_of(family, pipe, arguments)
            profile = engine.profiles[choose_profile(engine, inputs)]
            fields = {key: value for key, value in size.items() if key in ("height", "width", "num_frames")}
            axes = axis_sizes(
                served, config, architecture_of(config.source.pipeline), example_request(config, **fields)
            )
            tokens = next(axes[axis] for axis in ("image_tokens", "video_tokens") if axis in axes)
            assert profile.largest["hidden_states"][1] == tokens == inputs["hidden_states"].shape[1]


def test_an_engine_is_found_again_and_one_that_is_damaged_is_built_again(own):
    family, options, built = own.family, own.options, own.built
    content, modified = built.path.read_bytes(), built.path.stat().st_mtime_ns
    assert build_engine(family, FLAVOUR, options, own.cache) == built
    assert find_engine(family, FLAVOUR, "SM120", own.cache) == built
    assert built.path.stat().st_mtime_ns == modified

    built.path.write_bytes(content[: len(content) // 2])
    again = build_engine(family, FLAVOUR, options, own.cache)
    assert again.path == built.path
    assert again.path.stat().st_mtime_ns != modified
    assert again.engine_bytes == again.path.stat().st_size


def test_weights_can_stream(own):
    other = build_engine(own.family, FLAVOUR, replace(own.options, weight_streaming=True), own.cache)
    assert other.path != own.built.path
    assert other.path.parent.parent == own.built.path.parent.parent, "engines of the same weights lie together"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_refit_wants_a_gpu(own):
    with pytest.raises(EngineError, match=r"cannot compile the block stack \(with refit it wants a GPU to build on\)"):
        build_engine(own.family, FLAVOUR, replace(own.options, refit=True), own.cache)


@pytest.mark.compiles
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


@pytest.mark.compiles
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


@pytest.mark.compiles
def test_the_command_prints_what_it_built_and_how_to_serve_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    model = write_model(tmp_path, "dit", "float32")
    arguments = ["build", "dit", "--model-repository", str(model.parent), "--target", "SM89", "--precision", "fp16"]
    code, output = run(*arguments)
    assert code == 0, output
    for text in ("SM89", "float16", "16x16, batch 1 to 2", "layers", "weights", "scratch"):
        assert text in output
    assert "TAYLORSEER_DIT_DTYPE=float16" in output
    (path,) = (tmp_path / "cache").glob("tensorrt-rtx/*/*/engine.plan")
    assert str(path) in output.replace("\n", "")


FULL_DISK = """
import os, resource, sys
from pathlib import Path
from plugin.building.build_model import BuildRequest, build_model

exports = os.environ.pop("TRITON_TAYLORSEER_EXPORTS")
for limit in (1000, 300_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        build_model(Path(sys.argv[1]), BuildRequest(precision="fp16", targets=("SM89",)))
    except OSError as error:
        print(limit, error)
    os.environ["TRITON_TAYLORSEER_EXPORTS"] = exports
"""


@pytest.mark.compiles
def test_a_full_disk_during_the_export_or_during_the_build(tmp_path, monkeypatch):
    """A limit on the size of files stands in for a disk that is full: the write itself fails, half-way. In the second
    case the export is there, and the engine does not fit."""
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    model = write_model(tmp_path, "dit", "float32")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sentences = done.stdout.splitlines()
    assert [sentence.split()[0] for sentence in sentences] == ["1000", "300000"]
    for sentence in sentences:
        assert re.match(rf"\d+ no engine can be built in {tmp_path}/.* \(File too large\): make room there", sentence)
    assert not list((tmp_path / "cache").glob("tensorrt-rtx/*/*/*")), "nothing is left"


def test_options_that_cannot_be(tmp_path):
    model = write_model(tmp_path, "dit", "float32")
    for arguments, sentence in (
        ("--target SM90", "target is SM90, must be one of: SM75, SM80"),
        ("--engine tensorrt --target SM89", "engine tensorrt needs the package|must be left out: tensorrt"),
        ("--target SM89 --precision int3", "precision is int3, must be one of: fp32, fp16, bf16"),
        ("--target SM89 --batch 2,1,1", r"batch is \(2, 1, 1\), must be min,opt,max"),
        ("--target SM89 --batch 2", "batch is '2', must be MIN,OPT,MAX"),
        ("--target SM89 --size 16", "size is '16', must be HEIGHTxWIDTH"),
        ("--target SM89 --size 17x16", "height is 17, must be a multiple of 8"),
        ("--target SM89 --num-frames 0", "num-frames is '0', must be an integer of at least 1"),
        ("--engine onnxruntime --refit", "refit is for the engines tensorrt, tensorrt-rtx"),
    ):
        code, output = run("build", "dit", "--model-repository", str(model.parent), *arguments.split())
        assert code == 1, arguments
        assert re.search(sentence, " ".join(output.split())), output
        assert "Traceback" not in output, arguments


@pytest.mark.compiles
def test_a_picture_of_any_ratio_falls_into_the_profile_for_pictures(tmp_path, monkeypatch):
    """Kontext's pictures have tokens of their own, and how many depends on the ratio of their sides."""
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    case = CASES["flux kontext"]
    pipe = case.make(tmp_path)
    pipe.save_pretrained(tmp_path / "kontext")
    write_pair(tmp_path / "models", "kontext", {"pipeline": str(tmp_path / "kontext"), **case.parameters})
    request = BuildRequest("tensorrt-rtx", sizes=((32, 64),), targets=("SM89",))
    (built,) = build_model(tmp_path / "models/kontext_stream", request)
    assert built.engine is not None
    assert [profile.size for profile in built.engine.profiles] == ["32x64", "32x64 with a picture"]
    arguments = {"prompt": "a red apple", "height": 32, "width": 64, "max_area": 32 * 64, "max_sequence_length": 16}
    for size, profile in ((None, 0), ((64, 64), 1), ((300, 40), 1), ((20, 90), 1)):
        given = {} if size is None else {"image": picture(*size)}
        _, inputs = block_inputs_of(FAMILIES["flux"], pipe, {**arguments, **given})
        assert choose_profile(built.engine, inputs) == profile
