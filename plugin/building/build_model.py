"""Builds the engines of a model folder ahead of serving it: what `triton-taylorseer build` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from plugin.building.calibration import Size, calibration_of, record
from plugin.config import ModelConfig, PipelineSource
from plugin.denoising.loading import denoisers, load_pipeline
from plugin.engine_specs import EngineSpec, engine_spec, tensorrt_engine_name
from plugin.engines.base import check_weights
from plugin.engines.progress import BuildProgress, NoProgress
from plugin.engines.tensorrt.build import build_engine
from plugin.engines.tensorrt.fp8 import Calibration, Samples, check_architectures, load_modelopt
from plugin.engines.tensorrt.options import BuildOptions, SizeClass, SizeRange
from plugin.engines.tensorrt.package import (
    PACKAGES,
    PRECISIONS,
    check_targets,
    load_package,
    present_architecture,
)
from plugin.engines.tensorrt.record import BuiltEngine
from plugin.families import family_of
from plugin.families.base import Family
from plugin.quantization import check_quantization
from plugin.request import GenerationRequest
from plugin.serving.plan import architecture_of, axis_sizes, example_request, feature_of


@dataclass(frozen=True)
class BuildRequest:
    """What to build; settings that are left out are the model's own.

    Attributes:
        engine: a name in `plugin.engines.ENGINES`.
        precision: "bf16", "fp16", "fp32" or "fp8".
        batch: the smallest, the usual and the largest batch of one engine call.
        sizes: (height, width) in pixels.
        num_frames: lengths of videos; each goes with each size.
        targets, workspace_bytes, refit, weight_streaming: as in `BuildOptions`.
        calibration_prompts, calibration_steps: for precision fp8, as in `plugin.building.calibration.calibration_of`.
        calibration_sizes: (height, width, frames) of its runs.
    """

    engine: str | None = None
    precision: str | None = None
    batch: tuple[int, int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    num_frames: tuple[int, ...] = ()
    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    refit: bool = False
    weight_streaming: bool = False
    calibration_prompts: tuple[str, ...] = ()
    calibration_steps: int | None = None
    calibration_sizes: tuple[Size, ...] = ()


@dataclass(frozen=True)
class Built:
    """What was built for one transformer of a model.

    Attributes:
        transformer: the component's name.
        path: of the file that the server will load.
        engine: what is known of it where TensorRT built it.
        overrides: the parameters that the server needs besides those of the config.pbtxt to load it, name -> value.
    """

    transformer: str
    path: Path
    engine: BuiltEngine | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)


def build_model(model_dir: Path, request: BuildRequest, progress: BuildProgress | None = None) -> list[Built]:
    """Builds the engines of a model folder.

    Args:
        model_dir: a folder of the model repository with a config.pbtxt.
        request: what to build.
        progress: follows the build.

    Returns:
        One for each transformer; none for an engine that needs no build.

    Raises:
        InvalidConfig: the config.pbtxt cannot be read.
        InvalidRequest: a size that the model does not serve.
        EngineError: the engine cannot be built; the message says why.
        OSError: the pipeline cannot be loaded, or the cache cannot be written.
        ValueError: an unknown precision, or options that the engine does not have.
    """
    progress = progress or NoProgress()
    config = ModelConfig.from_folder(model_dir)
    spec = engine_spec(request.engine or config.engine)
    check_quantization(spec.name, config.source.quantization, config.source.components)
    if spec.flavour is not None:
        return _build_tensorrt(config, spec.flavour, _is_fp8(spec, request), request, progress)
    given = [name for name, value in vars(request).items() if value and name != "engine"]
    if given:
        raise ValueError(f"{given[0]} is for the engines {', '.join(PACKAGES)}, must be left out with {spec.name}")
    if not spec.made_ahead:
        return []
    progress.stage(f"loading {config.source.pipeline}")
    pipe = load_pipeline(config.source, denoisers_only=True)
    progress.stage(f"{spec.made_ahead} the block stack")
    make_file = import_module(spec.module).make_file
    return [Built(name, make_file(family, None)) for name, family in _families(pipe, spec).items()]


def _families(pipe: DiffusionPipeline, spec: EngineSpec) -> dict[str, Family]:
    """The family of each transformer, by the component's name; EngineError if the engine does not take the weights."""
    families = {name: family_of(getattr(pipe, name)) for name in denoisers(pipe)}
    for family in families.values():
        check_weights(spec, family)
    return families


def _is_fp8(spec: EngineSpec, request: BuildRequest) -> bool:
    """Whether an engine's name and a precision together ask for fp8."""
    if spec.fp8 and request.precision not in (None, "fp8"):
        raise ValueError(f"precision is {request.precision}, must be fp8 with engine {spec.name}")
    fp8 = spec.fp8 or request.precision == "fp8"
    given = [name for name, value in vars(request).items() if value is not None and value != ()]
    if not fp8 and (calibrating := [name for name in given if name.startswith("calibration_")]):
        raise ValueError(f"{calibrating[0].replace('_', '-')} is for precision fp8, must be left out without it")
    return fp8


def _build_tensorrt(
    config: ModelConfig, flavour: str, fp8: bool, request: BuildRequest, progress: BuildProgress
) -> list[Built]:
    _check_machine(flavour, fp8, request.targets)  # first, because loading takes minutes
    examples = tuple(_examples(config, request))
    calibration = _calibration(config, request) if fp8 else None
    source = _source(config.source, "fp8" if fp8 else request.precision)
    progress.stage(f"loading {source.pipeline}")
    pipe = load_pipeline(source, denoisers_only=calibration is None)
    recorded = _recorder(pipe, calibration, config.max_sequence_length, progress)
    built = []
    for name, family in _families(pipe, engine_spec(tensorrt_engine_name(flavour, fp8))).items():
        rows = 2 if family.batches_guidance else 1
        options = BuildOptions(
            batch=request.batch or (1, rows, rows),
            sizes=tuple(_size_classes(family, config, examples)),
            targets=request.targets,
            workspace_bytes=request.workspace_bytes,
            refit=request.refit,
            weight_streaming=request.weight_streaming,
            calibration=calibration,
        )
        engine = build_engine(family, flavour, options, None, progress, partial(recorded, name))
        wanted = {"engine": (engine.engine, config.engine), "dtype": (source.dtype, config.source.dtype)}
        overrides = {parameter: new for parameter, (new, old) in wanted.items() if new != old}
        built.append(Built(name, engine.path, engine, overrides))
    return built


def _check_machine(flavour: str, fp8: bool, targets: tuple[str, ...]) -> None:
    """Checks that the packages are installed, and that they can build for the GPUs."""
    check_targets(load_package(flavour), flavour, targets)
    if fp8:
        load_modelopt()
        check_architectures(targets)
    if not targets:
        architecture = present_architecture(flavour)
        if fp8:
            check_architectures([architecture])


def _calibration(config: ModelConfig, request: BuildRequest) -> Calibration:
    """At the sizes that are built, unless others are asked for."""
    sizes = request.calibration_sizes or tuple(_sizes(config, request))
    return calibration_of(config, sizes, request.calibration_prompts, request.calibration_steps)


def _recorder(
    pipe: DiffusionPipeline, calibration: Calibration | None, max_sequence_length: int | None, progress: BuildProgress
) -> Callable[[str], Samples]:
    """A function that returns the samples of a transformer, by its name.

    Its first call records those of all transformers, then drops the components that only the recording needed.
    """

    @cache
    def recorded() -> Mapping[str, Samples]:
        assert calibration is not None
        samples = record(pipe, calibration, max_sequence_length, progress)
        pipe.register_modules(**{name: None for name in pipe.components if name not in denoisers(pipe)})
        return samples

    return lambda name: recorded()[name]


def _source(source: PipelineSource, precision: str | None) -> PipelineSource:
    """The source on this machine, in another precision where one is asked for."""
    if source.device.startswith("cuda") and not torch.cuda.is_available():
        source = replace(source, device="cpu")
    if precision is None:
        return source
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision}, must be one of: {', '.join(PRECISIONS)}")
    others = tuple(pair for pair in source.component_dtypes if not pair[0].startswith("transformer"))
    return replace(source, dtype=PRECISIONS[precision], component_dtypes=others)


def _sizes(config: ModelConfig, request: BuildRequest) -> Iterator[Size]:
    defaults = config.defaults
    for height, width in request.sizes or ((defaults.height, defaults.width),):
        for num_frames in request.num_frames or (defaults.num_frames,):
            yield height, width, num_frames


def _examples(config: ModelConfig, request: BuildRequest) -> Iterator[GenerationRequest]:
    """A request of each size and length, each of which the model must serve."""
    for height, width, num_frames in _sizes(config, request):
        yield example_request(config, height=height, width=width, num_frames=num_frames)


def _size_classes(family: Family, config: ModelConfig, examples: Iterable[GenerationRequest]) -> Iterator[SizeClass]:
    """One for each request; and one more with a picture, where that has tokens of its own. A range where the text has
    as many tokens as the prompt."""
    architecture = architecture_of(config.source.pipeline)
    appends = [task for task in architecture.tasks if task.appended]

    def size_class(
        name: str, example: GenerationRequest, appended: tuple[int, int, int], seen: tuple[int, int, int] = (0, 0, 0)
    ) -> SizeClass:
        most_text = feature_of(config, architecture, example)[2]
        texts = (1, most_text // 4, most_text) if family.text_varies else (most_text,) * 3
        least, usual, most = (
            axis_sizes(family, config, architecture, example, tokens, text + more)
            for tokens, text, more in zip(appended, texts, seen, strict=True)
        )
        return SizeClass(name, usual) if least == most else SizeRange(name, usual, least, most)

    for example in examples:
        yield size_class(_size_name(example), example, (0, 0, 0))
        if appends:
            counts = family.appended_range(architecture.compression)
            seen = family.seen_range(appends[0].pipeline)
            yield size_class(f"{_size_name(example)} with a picture", example, counts, seen)


def _size_name(request: GenerationRequest) -> str:
    frames = f"x{request.num_frames}" if request.num_frames > 1 else ""
    return f"{request.height}x{request.width}{frames}"
