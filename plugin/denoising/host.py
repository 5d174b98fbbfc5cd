"""Loads a diffusers pipeline once and hands out one for each request, sharing everything but the request's state."""

from __future__ import annotations

import copy
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HFValidationError
from transformers import AutoTokenizer

from plugin.config import PipelineSource
from plugin.denoising.text_cache import TextCache
from plugin.denoising.transformer import DenoisingRun, ForecastingTransformer, StepObserver, counting
from plugin.engines import make_engine
from plugin.engines.base import Engine, no_gpu
from plugin.engines.packer import PackedEngine, Packer, PackSettings, Ticket
from plugin.families import family_of
from plugin.families.base import Family
from taylorseer import CacheConfig


class PipelineHost:
    """Shares one pipeline's weights, engine and encoders between any number of concurrent requests.

    Args:
        pipe: a loaded diffusers pipeline with a transformer of a served family.
        engine: a name in `plugin.engines.ENGINES`, or what makes a transformer's engine from its family.
        cache_dir: where compiled engines are kept; None for `plugin.paths.default_cache_dir()`.
        engine_threads: threads of one engine call on a CPU, at least 1; None for all cores.
        engine_lanes: engine calls that will run at once behind `pack`, at least 1; on a CPU each has its share of the
            threads.
        text_cache_bytes: for the embeddings of the latest prompts, see `TextCache`.
        release_blocks: drop the torch blocks once the engine holds its own copy of their weights. `pipe` itself cannot
            run any more after that.

    Attributes:
        families: the family of each denoising transformer, by the component's name.
        engines: the engine of each.
        packer: packs full steps of several requests into one engine call; None until `pack`.
        text_cache: the embeddings of the latest prompts.

    Raises:
        TypeError: the transformer's class is not served.
        ValueError: an unknown engine.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        engine: str | Callable[[Family], Engine] = "torch",
        *,
        cache_dir: Path | None = None,
        engine_threads: int | None = None,
        engine_lanes: int = 1,
        text_cache_bytes: int = 0,
        release_blocks: bool = False,
    ) -> None:
        self.families = {name: family_of(getattr(pipe, name)) for name in denoisers(pipe)}
        lane_threads = max(1, (engine_threads or len(os.sched_getaffinity(0))) // engine_lanes)

        def made(family: Family, threads: int | None) -> Engine:
            return engine(family) if callable(engine) else make_engine(engine, family, cache_dir, threads)

        self.engines = {name: made(family, engine_threads) for name, family in self.families.items()}
        self._in_lane: dict[Engine, Engine] = {}  # what takes an engine's place in calls beside others
        # Only ONNX Runtime has threads of its own; its second session holds the weights a second time.
        if engine_lanes > 1 and engine == "onnxruntime":
            self._in_lane = {alone: made(self.families[name], lane_threads) for name, alone in self.engines.items()}
        if release_blocks:
            for family in self.families.values():
                family.release_blocks()
        self._shared = copy.copy(pipe)
        for name in pipe.components:
            if name.startswith("tokenizer") and getattr(pipe, name) is not None:
                self._shared.__dict__[name] = _LockedTokenizer(getattr(pipe, name))
        self._variants: dict[type[DiffusionPipeline], DiffusionPipeline] = {type(pipe): self._shared}
        self.packer: Packer | None = None
        self.text_cache = TextCache(text_cache_bytes)

    @property
    def family(self) -> Family:
        """The family, which both transformers of a pipeline share."""
        return next(iter(self.families.values()))

    @property
    def engine_name(self) -> str:
        """The engine's name, for reports."""
        return next(iter(self.engines.values())).name

    @property
    def pipe(self) -> DiffusionPipeline:
        """The loaded pipeline, to read from; `pipeline_for` gives those that can be called."""
        return self._shared

    @property
    def lane_engine(self) -> Engine:
        """The first transformer's engine, as it is called beside others."""
        engine = next(iter(self.engines.values()))
        return self._in_lane.get(engine, engine)

    def pack(self, settings: PackSettings) -> None:
        """Has full steps of several requests share engine calls from now on."""
        self.packer = Packer(settings)

    def pipeline_for(
        self,
        cache: CacheConfig,
        observer: StepObserver | None = None,
        pipeline_class: type[DiffusionPipeline] | None = None,
        ticket: Ticket | None = None,
    ) -> Any:
        """An ordinary diffusers pipeline for one call, usable from any thread.

        Args:
            cache: the cache settings of the call.
            observer: follows the call's steps.
            pipeline_class: another pipeline over the same components, for example FluxImg2ImgPipeline; None for the
                class that was loaded.
            ticket: the call's place at the packer, where there is one.

        Returns:
            A pipeline whose scheduler and transformers are its own; `pipe.transformer.session` tells what the call did.
        """
        shared = self._shared if pipeline_class is None else self._variant(pipeline_class)
        pipe = copy.copy(shared)
        pipe.scheduler = counting(copy.deepcopy(shared.scheduler))
        run = DenoisingRun(pipe.scheduler, cache, observer or StepObserver())
        # Not through DiffusionPipeline.__setattr__, which would look for the stand-ins in a library of components.
        for name, family in self.families.items():
            engine = self.engines[name]
            if self.packer is not None:
                packed = PackedEngine(engine, self._in_lane.get(engine, engine))
                engine = self.packer.engine_for(packed, family, ticket := ticket or Ticket())
            pipe.__dict__[name] = ForecastingTransformer(family, engine, run)
        if hasattr(pipe, "encode_prompt"):
            pipe.__dict__["encode_prompt"] = self.text_cache.wrap(pipe.encode_prompt)
        if getattr(shared, "vae", None) is not None:
            pipe.__dict__["vae"] = copy.copy(shared.vae)  # video decoders keep the frames in progress on themselves
        return pipe

    def _variant(self, pipeline_class: type[DiffusionPipeline]) -> DiffusionPipeline:
        if pipeline_class not in self._variants:
            wanted = inspect.signature(pipeline_class.__init__).parameters
            # Its own options too, for example the boundary between Wan2.2's experts; config names components as well.
            parts = {**self._shared.config, **self._shared.components}
            self._variants[pipeline_class] = pipeline_class(**{name: parts[name] for name in parts if name in wanted})
            self._variants[pipeline_class].set_progress_bar_config(**getattr(self._shared, "_progress_bar_config", {}))
        return self._variants[pipeline_class]


def load_pipeline(source: PipelineSource, *, denoisers_only: bool = False) -> DiffusionPipeline:
    """Loads a pipeline by `from_pretrained`, with LoRA weights fused in where the source names some.

    Args:
        source: what to load.
        denoisers_only: leave encoders and autoencoder out, where only the transformers are wanted.

    Raises:
        OSError: the pipeline, a component or the LoRA cannot be had; the message says which and what helps.
        ValueError: a component is not part of the pipeline's class, or the device is a GPU that torch does not have.
    """
    if source.device.startswith("cuda") and (missing := no_gpu()):
        raise ValueError(f"device is {source.device}, and {missing}, or set device to cpu")
    path = Path(source.pipeline)
    if path.is_absolute() and not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"pipeline {source.pipeline} has no model_index.json, must be a folder that diffusers saved"
        )
    default = getattr(torch, source.dtype)
    dtypes = {name: getattr(torch, dtype) for name, dtype in source.component_dtypes}
    components: dict[str, Any] = {}
    if denoisers_only:
        components = dict.fromkeys(_other_components(source.pipeline))
    elif source.components:
        pipeline_class = _pipeline_class(source.pipeline)
        for name, component in source.components:
            components[name] = _load_component(pipeline_class, name, component, dtypes.get(name, default))
    with _named(f"pipeline {source.pipeline}"):
        pipe = DiffusionPipeline.from_pretrained(source.pipeline, dtype={"default": default, **dtypes}, **components)
    if source.lora is not None:
        with _named(f"lora {source.lora}"):
            pipe.load_lora_weights(source.lora)
        pipe.fuse_lora(lora_scale=source.lora_scale)
        pipe.unload_lora_weights()  # what is fused stays
    if source.vae_tiling and not denoisers_only:
        pipe.vae.enable_tiling()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(source.device)


def _pipeline_class(pipeline: str) -> type[DiffusionPipeline]:
    with _named(f"pipeline {pipeline}"):
        return getattr(diffusers, DiffusionPipeline.load_config(pipeline)["_class_name"])


def _other_components(pipeline: str) -> list[str]:
    """The components of a pipeline that are neither denoising transformers nor their scheduler."""
    with _named(f"pipeline {pipeline}"):
        index = DiffusionPipeline.load_config(pipeline)
    kept = ("transformer", "transformer_2", "scheduler")
    return [name for name, value in index.items() if isinstance(value, list) and name not in kept]


def _load_component(pipeline_class: type[DiffusionPipeline], name: str, source: str, dtype: torch.dtype) -> Any:
    """A component by the class that the pipeline's constructor declares for it."""
    declared = get_type_hints(pipeline_class.__init__)
    if name not in declared:
        known = ", ".join(declared)
        raise ValueError(f"component {name!r} is unknown to {pipeline_class.__name__}, must be one of: {known}")
    with _named(f"component {name} {source}"):
        if name.startswith("tokenizer"):
            return AutoTokenizer.from_pretrained(source)
        return declared[name].from_pretrained(source, dtype=dtype)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turns what a hub's library says of something that cannot be had into one sentence that says what helps."""
    try:
        yield
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"{what} cannot be had ({reason}): name a folder that holds it, or a hub id that this machine can reach, "
            "with HF_TOKEN set where its licence must be accepted"
        ) from error


def denoisers(pipe: DiffusionPipeline) -> tuple[str, ...]:
    """The names of the components that are denoising transformers; Wan2.2 has two experts, and may lack either."""
    present = [name for name in ("transformer", "transformer_2") if getattr(pipe, name, None) is not None]
    return tuple(present) or ("transformer",)


def only_denoiser(pipe: DiffusionPipeline, what: str) -> Any:
    """The transformer of a pipeline that has a single one.

    Args:
        pipe: a loaded pipeline.
        what: who wants it, for the message.

    Raises:
        ValueError: there are two.
    """
    names = denoisers(pipe)
    if len(names) > 1:
        raise ValueError(f"{what} serves pipelines of one transformer, and this one has {' and '.join(names)}")
    return getattr(pipe, names[0])


class _LockedTokenizer:
    """A tokenizer for many threads: the fast ones change their padding state on each call, of `tokenize` too."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.RLock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self._tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tokenizer, name)
        if not callable(value):
            return value

        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return value(*args, **kwargs)

        return locked
