"""Loads a diffusers pipeline once and hands out one for each request, sharing everything but the request's state."""

from __future__ import annotations

import copy
import inspect
import threading
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from plugin.engines import make_engine
from plugin.families import family_of
from plugin.families.base import Family
from plugin.transformer import DenoisingRun, ForecastingTransformer, StepObserver
from taylorseer import CacheConfig


class PipelineHost:
    """Shares one pipeline's weights, engine and encoders between any number of concurrent requests.

    Args:
        pipe: a loaded diffusers pipeline with a transformer of a served family.
        engine: a name in `plugin.engines.ENGINES`.
        cache_dir: where compiled engines are kept; None for `plugin.cache_dir.default_cache_dir()`.
        engine_threads: threads of one engine call on a CPU, at least 1; None for all cores.
        release_blocks: drop the torch blocks once the engine holds its own copy of their weights. `pipe` itself cannot
            run any more after that.

    Attributes:
        families: the family of each denoising transformer, by the component's name.
        engines: the engine of each.

    Raises:
        TypeError: the transformer's class is not served.
        ValueError: an unknown engine.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        engine: str = "torch",
        *,
        cache_dir: Path | None = None,
        engine_threads: int | None = None,
        release_blocks: bool = False,
    ) -> None:
        self.families = {name: family_of(getattr(pipe, name)) for name in _transformers(pipe)}
        self.engines = {
            name: make_engine(engine, family, cache_dir, engine_threads) for name, family in self.families.items()
        }
        if release_blocks:
            for family in self.families.values():
                family.release_blocks()
        self._shared = copy.copy(pipe)
        for name in pipe.components:
            if name.startswith("tokenizer") and getattr(pipe, name) is not None:
                self._shared.__dict__[name] = _LockedTokenizer(getattr(pipe, name))
        self._variants: dict[type[DiffusionPipeline], DiffusionPipeline] = {type(pipe): self._shared}

    @property
    def family(self) -> Family:
        """The family, which both transformers of a pipeline share."""
        return next(iter(self.families.values()))

    @property
    def engine_name(self) -> str:
        """The engine's name, for reports."""
        return next(iter(self.engines.values())).name

    def pipeline_for(
        self,
        cache: CacheConfig,
        observer: StepObserver | None = None,
        pipeline_class: type[DiffusionPipeline] | None = None,
    ) -> Any:
        """An ordinary diffusers pipeline for one call, usable from any thread.

        Args:
            cache: the cache settings of the call.
            observer: follows the call's steps.
            pipeline_class: another pipeline over the same components, for example FluxImg2ImgPipeline; None for the
                class that was loaded.

        Returns:
            A pipeline whose scheduler and transformers are its own; `pipe.transformer.session` tells what the call did.
        """
        shared = self._shared if pipeline_class is None else self._variant(pipeline_class)
        pipe = copy.copy(shared)
        pipe.scheduler = copy.deepcopy(shared.scheduler)
        run = DenoisingRun(pipe.scheduler, cache, observer or StepObserver())
        # Not through DiffusionPipeline.__setattr__, which would look for the stand-ins in a library of components.
        for name, family in self.families.items():
            pipe.__dict__[name] = ForecastingTransformer(family, self.engines[name], run)
        if getattr(shared, "vae", None) is not None:
            pipe.__dict__["vae"] = copy.copy(shared.vae)  # video decoders keep the frames in progress on themselves
        return pipe

    def _variant(self, pipeline_class: type[DiffusionPipeline]) -> DiffusionPipeline:
        if pipeline_class not in self._variants:
            wanted = inspect.signature(pipeline_class.__init__).parameters
            components = {name: part for name, part in self._shared.components.items() if name in wanted}
            self._variants[pipeline_class] = pipeline_class(**components)
            self._variants[pipeline_class].set_progress_bar_config(**getattr(self._shared, "_progress_bar_config", {}))
        return self._variants[pipeline_class]


def load_pipeline(source: str, dtype: str = "float32", device: str = "cpu") -> DiffusionPipeline:
    """Loads a pipeline by `from_pretrained`.

    Args:
        source: a hub id or a folder with a model_index.json.
        dtype: the name of a torch dtype, for all components.
        device: a torch device.

    Raises:
        OSError: the folder or the hub's model cannot be had; the message says which.
    """
    if Path(source).is_absolute() and not (Path(source) / "model_index.json").is_file():
        raise FileNotFoundError(f"pipeline {source} has no model_index.json, must be a folder that diffusers saved")
    pipe = DiffusionPipeline.from_pretrained(source, dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _transformers(pipe: DiffusionPipeline) -> tuple[str, ...]:
    """The components that are denoising transformers; Wan2.2 has two experts, either of which may be left out."""
    present = [name for name in ("transformer", "transformer_2") if getattr(pipe, name, None) is not None]
    return tuple(present) or ("transformer",)


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
