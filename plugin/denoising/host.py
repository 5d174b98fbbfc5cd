"""Takes a loaded pipeline and hands out one for each request, sharing everything but the request's state."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.guiders.guider_utils import BaseGuidance

from plugin.config import ModelConfig
from plugin.denoising.fingerprint import check_presets, fingerprint
from plugin.denoising.loading import LockedTokenizer, denoisers
from plugin.denoising.offloading import Offload, stand_ins
from plugin.denoising.quantized import settle
from plugin.denoising.schedulers import counting
from plugin.denoising.text_cache import TextCache
from plugin.denoising.transformer import DenoisingRun, ForecastingTransformer, StepObserver
from plugin.denoising.unserved import (
    NotServed,
    adapters_of,
    check_arguments,
    check_class,
    check_hooks,
    check_pipeline,
    refusals,
)
from plugin.engines import ENGINES, prepare_engines
from plugin.engines.base import Engine, drop_blocks
from plugin.engines.packer import PackedEngine, Packer, PackSettings, Ticket
from plugin.families import family_of
from plugin.families.base import Family
from plugin.families.weights import is_quantized
from plugin.parallelism import Parallelism
from taylorseer import CacheConfig


class PipelineHost:
    """Shares one pipeline's weights, engine and encoders between any number of concurrent requests.

    Args:
        pipe: a loaded diffusers pipeline with a transformer of a served family.
        engine: a name in `plugin.engines.ENGINES`, or what makes a transformer's engine from its family.
        cache_dir: where compiled engines and idle weights are kept; None for `plugin.paths.default_cache_dir()`.
        engine_threads: threads of one engine call on a CPU, at least 1; None for all cores.
        engine_lanes: engine calls that will run at once behind `pack`, at least 1; on a CPU each has its share of the
            threads.
        parallelism: the processes that share an engine call, with engine "parallel"; None for two that share the
            tokens. `close` ends them.
        text_cache_bytes: for the embeddings of the latest prompts, see `TextCache`.
        release_blocks: drop the torch blocks once the engine holds its own copy of their weights. `pipe` itself cannot
            run any more after that.
        offload: (component, "cpu" or "idle") of encoders and autoencoders that run on the CPU, or are on the
            transformer's device only while requests use them; see `plugin.denoising.offloading`. `pipe` itself must not
            be called any more after that.

    Attributes:
        families: the family of each denoising transformer, by the component's name.
        engines: the engine of each.
        fingerprint: of the transformers' weights, see `plugin.denoising.fingerprint`; empty unless `from_config` made
            the host.
        packer: packs full steps of several requests into one engine call; None until `pack`.
        text_cache: the embeddings of the latest prompts.
        idle_bytes: of weights that are not on the device while no request uses them, and will be.

    Raises:
        TypeError: `pipe` is no pipeline, or its transformer's class is not served.
        ValueError: an unknown engine; or something that a host does not serve (`plugin.denoising.unserved`).
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        engine: str | Callable[[Family], Engine] = "torch",
        *,
        cache_dir: Path | None = None,
        engine_threads: int | None = None,
        engine_lanes: int = 1,
        parallelism: Parallelism | None = None,
        text_cache_bytes: int = 0,
        release_blocks: bool = False,
        offload: Offload = (),
    ) -> None:
        check_pipeline(pipe, engine)
        self.families = {name: family_of(getattr(pipe, name)) for name in denoisers(pipe)}
        self.fingerprint = ""
        lane_threads = max(1, (engine_threads or len(os.sched_getaffinity(0))) // engine_lanes)
        made = self._prepared(engine, cache_dir, parallelism, release_blocks)
        self.engines = made(engine_threads)
        for name, family in self.families.items():
            family.completes = getattr(self.engines[name], "needs_all_arguments", False)
        self._in_lane: dict[Engine, Engine] = {}  # what takes an engine's place in calls beside others
        # Its second session holds the weights a second time.
        if engine_lanes > 1 and not callable(engine) and ENGINES[engine].has_own_threads:
            in_lane = made(lane_threads)
            self._in_lane = {alone: in_lane[name] for name, alone in self.engines.items()}
        if release_blocks:
            drop_blocks(self.families.values())
        self._adapters = {name: adapters_of(family.transformer) for name, family in self.families.items()}
        self._shared = copy.copy(pipe)
        for name in pipe.components:
            if name.startswith("tokenizer") and getattr(pipe, name) is not None:
                self._shared.__dict__[name] = LockedTokenizer(getattr(pipe, name))
        self._shared.__dict__.update(refusals(pipe))
        offloaded = stand_ins(pipe, self.family.device, offload, cache_dir)
        self._shared.__dict__.update(offloaded)
        settle(pipe)
        self.idle_bytes = sum(each.place.idle_bytes for each in offloaded.values())
        self._variants: dict[type[DiffusionPipeline], DiffusionPipeline] = {type(pipe): self._shared}
        self.packer: Packer | None = None
        self.text_cache = TextCache(text_cache_bytes)

    def _prepared(
        self,
        engine: str | Callable[[Family], Engine],
        cache_dir: Path | None,
        parallelism: Parallelism | None,
        release_blocks: bool,
    ) -> Callable[[int | None], Mapping[str, Engine]]:
        """What makes the engines, with the threads of one call. The blocks are dropped before an engine is opened that
        needs them no more, so that memory does not hold both."""
        if callable(engine):
            return lambda _: {name: engine(family) for name, family in self.families.items()}
        made = prepare_engines(engine, self.families, cache_dir, parallelism)
        if release_blocks and ENGINES[engine].opens_file:
            drop_blocks(self.families.values())
        return made

    @classmethod
    def from_config(
        cls, pipe: DiffusionPipeline, config: ModelConfig, engine: Callable[[Family], Engine] | None = None
    ) -> PipelineHost:
        """The host of a loaded pipeline with a served model's settings.

        Args:
            pipe: loaded from `config.source`.
            config: the settings.
            engine: what makes a transformer's engine; None for the configured one.

        Raises:
            NotServed: the pipeline's call needs what no request has; and as the constructor.
            InvalidConfig: a preset has forecast weights that were learnt for another transformer.
        """
        check_arguments(pipe)
        transformers = [getattr(pipe, name) for name in denoisers(pipe)]
        weights = fingerprint(transformers)  # some engines drop the blocks
        # An adapter that is fused changes the fingerprint, and so does quantising.
        if config.source.lora is None and not any(map(is_quantized, transformers)):
            check_presets(config.presets, weights)
        host = cls(
            pipe,
            engine or config.engine,
            engine_threads=config.engine_threads or None,
            engine_lanes=config.engine_lanes,
            parallelism=config.parallelism,
            text_cache_bytes=config.text_cache_mib * 2**20,
            release_blocks=engine is not None or not ENGINES[config.engine].keeps_torch_blocks,
            offload=config.source.offload,
        )
        host.fingerprint = weights
        return host

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

    @property
    def failure(self) -> str | None:
        """Why the engine cannot be used any more; None while it can."""
        return next((reason for each in self.engines.values() if (reason := getattr(each, "failure", None))), None)

    def close(self) -> None:
        """Ends the processes of the engine, where it has some."""
        for engine in self.engines.values():
            getattr(engine, "close", lambda: None)()

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
            A pipeline whose scheduler and transformers are its own; `pipe.transformer.session` says what the call did.
            Its methods that would change what all requests share raise `NotServed`.

        Raises:
            NotServed: the loaded transformer has got hooks or other adapters since the host was made.
        """
        return self.prepare(cache, observer, pipeline_class, ticket)[0]

    def prepare(
        self,
        cache: CacheConfig,
        observer: StepObserver | None = None,
        pipeline_class: type[DiffusionPipeline] | None = None,
        ticket: Ticket | None = None,
    ) -> tuple[Any, DenoisingRun]:
        """What `pipeline_for` returns, and the run that its call will be; `run.session` is the cache."""
        self._check_unchanged()
        shared = self._shared if pipeline_class is None else self._variant(pipeline_class)
        pipe = copy.copy(shared)
        pipe.scheduler = counting(copy.deepcopy(shared.scheduler))
        pipe.__dict__.pop("_num_timesteps", None)  # of a call before this
        run = DenoisingRun(pipe, cache, observer or StepObserver())
        ticket = ticket or Ticket()
        # Not through DiffusionPipeline.__setattr__, which would look for the stand-ins in a library of components.
        for name, family in self.families.items():
            overlaps = getattr(self.engines[name], "calls_at_once", 1) > 1 and not family.batches_guidance
            pipe.__dict__[name] = ForecastingTransformer(family, self._engine_for(name, ticket), run, overlaps=overlaps)
        if hasattr(pipe, "encode_prompt"):
            pipe.__dict__["encode_prompt"] = self.text_cache.wrap(pipe.encode_prompt)
        for name, component in shared.components.items():
            if isinstance(component, BaseGuidance):  # it keeps the step, and some of them sums over the steps
                pipe.__dict__[name] = copy.deepcopy(component)
        if getattr(shared, "vae", None) is not None:
            pipe.__dict__["vae"] = copy.copy(shared.vae)  # video decoders keep the frames in progress on themselves
        return pipe, run

    def _check_unchanged(self) -> None:
        for name, family in self.families.items():
            check_hooks(family.transformer)
            if adapters_of(family.transformer) != self._adapters[name]:
                raise NotServed(
                    f"the adapters of {name} have changed since PipelineHost was made, must stay as they were: make a "
                    "host for each set of adapters"
                )

    def _engine_for(self, name: str, ticket: Ticket) -> Engine:
        """A transformer's engine as one request calls it."""
        engine = self.engines[name]
        if self.packer is None:
            return engine
        packed = PackedEngine(engine, self._in_lane.get(engine, engine))
        return self.packer.engine_for(packed, self.families[name], ticket)

    def _variant(self, pipeline_class: type[DiffusionPipeline]) -> DiffusionPipeline:
        if pipeline_class not in self._variants:
            wanted = inspect.signature(pipeline_class.__init__).parameters
            # Its own options too, for example the boundary between Wan2.2's experts; config names components as well.
            parts = {**self._shared.config, **self._shared.components}
            variant = pipeline_class(**{name: parts[name] for name in parts if name in wanted})
            check_class(variant)
            variant.set_progress_bar_config(**getattr(self._shared, "_progress_bar_config", {}))
            variant.__dict__.update(refusals(variant))
            self._variants[pipeline_class] = variant  # once it is whole: other threads take it at once
        return self._variants[pipeline_class]
