"""What a served model holds in the memory of its device, computed before anything is downloaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import torch
from torch import nn

from plugin.config import ModelConfig
from plugin.engine_specs import engine_spec
from plugin.parameters import DENOISERS
from plugin.request import GenerationRequest
from plugin.serving.components import history_of, parts_of
from plugin.serving.dry_run import Machine, without_numbers
from plugin.serving.parts import PipelinePart
from plugin.serving.peaks import StepMemory, decoding_bytes, encoding_bytes, latent_channels, step_memory
from plugin.serving.plan import architecture_of, axis_sizes, feature_of, plan_request
from plugin.serving.published import Architecture
from plugin.serving.weights import Weights, block_bytes, family_on_meta, weights_of

# ONNX Runtime 1.32.0 beside the weights: the graph, about 6 KiB for each of its 80 nodes a block; and an arena that has
# the memory of a call twice, piece by piece of the first call and in one piece of the second one.
_SESSION_BLOCK_BYTES = 2**19
_ARENAS = 2
_FREE_SHARE_GPU, _FREE_SHARE_CPU = 0.8, 0.5  # of the free memory, which requests may take by default


@dataclass(frozen=True)
class EngineMemory:
    """What an engine holds of its own, in bytes.

    Attributes:
        weights: its copies of the blocks' weights.
        scratch: what its calls need, and what it keeps for them.
        note: how that is counted.
    """

    weights: int
    scratch: int
    note: str

    @property
    def nbytes(self) -> int:
        return self.weights + self.scratch


@dataclass(frozen=True)
class Phase:
    """What requests do one after the other, each for itself.

    Attributes:
        name: of the phase.
        weights: bytes that are on the device while at least one request is in it.
        each: bytes that each request in it holds beyond what it always holds, at most.
        at_once: how many requests can be in it at once; None for any number.
    """

    name: str
    weights: int
    each: int
    at_once: int | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a model on its device, in bytes.

    Attributes:
        weights: of each component; of a transformer without its blocks where the engine has them.
        engine: what the engine holds of its own.
        text_cache: the most that the embeddings of the latest prompts take.
        anchors: of one request of the default size and preset.
        working: what one request keeps beside them from step to step: what the blocks are given, forecasts, latents.
        phases: of a request.
        admitted: what admission reserves for one request.
        requests: how many may run at once.
        budget: of admission; 0 for its default, a share of what is free.
        free_share: that share, 0 to 1.
        further_rank: with several processes, what each but the first holds; else 0.
        splits_tokens: whether several processes can share the tokens of a call.
        estimated: whether the full step is an estimate.
    """

    weights: tuple[Weights, ...]
    engine: EngineMemory
    text_cache: int
    anchors: int
    working: int
    phases: tuple[Phase, ...]
    admitted: int
    requests: int
    budget: int
    free_share: float
    further_rank: int = 0
    splits_tokens: bool = False
    estimated: bool = False

    @cached_property
    def resident(self) -> int:
        """Bytes that are there without a request."""
        return sum(each.nbytes for each in self.weights if not each.offload) + self.engine.nbytes + self.text_cache

    def peak(self, requests: int) -> int:
        """The most bytes that the phases of so many requests take at once, whichever each is in.

        Requests that share engine calls end together, so all of them may decode at once.
        """
        chosen = (
            each for count in range(1, min(requests, len(self.phases)) + 1) for each in combinations(self.phases, count)
        )
        return max((_held_in(phases, requests) for phases in chosen), default=0)

    def total(self, requests: int | None = None) -> int:
        """The most bytes at once, with so many requests running; None for as many as may run."""
        running = self.requests if requests is None else requests
        return self.resident + running * (self.anchors + self.working) + self.peak(running)

    def requests_within(self, nbytes: int) -> int:
        """How many requests can run at once within so many bytes: as the memory allows, and as admission does."""
        idle = sum(each.nbytes for each in self.weights if each.offload == "idle")
        budget = self.budget or int(self.free_share * max(0, nbytes - self.resident - idle))
        return max(
            (
                number
                for number in range(1, self.requests + 1)
                if self.total(number) <= nbytes and number * self.admitted <= budget
            ),
            default=0,
        )


def plan_memory(config: ModelConfig, request: GenerationRequest) -> MemoryPlan:
    """The memory plan of a model.

    Args:
        config: its settings.
        request: what each running request is taken to be.

    Raises:
        OSError: the pipeline's folder lacks a configuration.
        ValueError: the pipeline, a component or the engine is not known here.
        TypeError: the transformer's class is not served.
    """
    return _Planner(config, request).plan()


def _held_in(phases: Sequence[Phase], requests: int) -> int:
    """The most bytes where each of these phases has a request, and the others are in the largest that takes them."""
    held, left = sum(each.weights + each.each for each in phases), requests - len(phases)
    for phase in sorted(phases, key=lambda phase: phase.each, reverse=True):
        more = left if phase.at_once is None else min(left, phase.at_once - 1)
        held, left = held + more * phase.each, left - more
    return held


class _Planner:
    """Works out one plan."""

    def __init__(self, config: ModelConfig, request: GenerationRequest) -> None:
        self._config, self._request = config, request
        self._spec = engine_spec(config.engine)
        self._architecture: Architecture = architecture_of(config.source.pipeline)
        self._parts: Mapping[str, PipelinePart] = parts_of(config.source)
        self._planned = plan_request(config, self._architecture, request)
        denoiser = next(name for name in DENOISERS if name in self._parts)
        self._transformer, self._dtype = self._parts[denoiser], self._dtype_of(denoiser)
        self._family = family_on_meta(self._transformer, self._dtype)
        self._latent_size = self._family.latent_size(self._architecture.config, request, self._architecture.compression)
        self._on_gpu = config.source.device != "cpu"
        self._machine = Machine(gpu=self._on_gpu)

    def plan(self) -> MemoryPlan:
        config, planned = self._config, self._planned
        weights = sorted(
            (weights_of(name, part, config.source) for name, part in self._parts.items()),
            key=lambda each: (each.name not in DENOISERS, each.name),
        )
        blocks = {name: block_bytes(part, self._dtype) for name, part in self._parts.items() if name in DENOISERS}
        if not self._spec.keeps_torch_blocks:
            weights = [replace(each, nbytes=each.nbytes - blocks.get(each.name, 0)) for each in weights]
        step, engine = self._step(self._own_rows), self._engine(sum(blocks.values()))
        calls = 1 if self._family.batches_guidance else planned.branches
        return MemoryPlan(
            weights=tuple(weights),
            engine=engine,
            text_cache=config.text_cache_mib * 2**20,
            anchors=planned.cache_bytes,
            working=calls * step.constant + planned.branches * planned.anchor_bytes + self._latents(),
            phases=(*self._encodings(weights), self._full_step(weights, engine), *self._decoding(weights)),
            admitted=planned.cache_bytes + planned.working_bytes,
            requests=config.max_in_flight,
            budget=config.memory_budget_mib * 2**20,
            free_share=_FREE_SHARE_GPU if self._on_gpu else _FREE_SHARE_CPU,
            further_rank=engine.weights + self._shared(step) if config.parallelism else 0,
            splits_tokens=self._family.token_split is not None,
            estimated=step.estimated,
        )

    def _dtype_of(self, component: str) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self._config.source.dtype_of(component))
        return dtype

    @property
    def _own_rows(self) -> int:
        """Rows of an engine call of one request."""
        return self._planned.branches if self._family.batches_guidance else 1

    def _latents(self) -> int:
        """Bytes of the latents, of what the transformer is given and returns of each branch, and of those of earlier
        steps, which the scheduler keeps; all of them in float32."""
        one = latent_channels(self._parts["vae"]) * math.prod(self._latent_size) * 4
        return (1 + 2 * self._planned.branches + history_of(self._config.source)) * one

    def _step(self, rows: int, *, fused: bool = True) -> StepMemory:
        machine = replace(self._machine, fuses_attention=fused)
        stream = rows * self._planned.anchor_bytes
        try:
            with without_numbers():
                axes = axis_sizes(self._family, self._config, self._architecture, self._request)
        except (NotImplementedError, RuntimeError):
            axes = {}
        return step_memory(self._transformer, self._dtype, (*axes.items(), ("batch", rows)), stream, machine)

    def _shared(self, step: StepMemory) -> int:
        """What each process holds of a call that several share."""
        sequence = self._config.parallelism.sequence if self._config.parallelism else 1
        return (step.stream + step.constant + step.beyond) // sequence

    def _engine(self, blocks: int) -> EngineMemory:
        spec, config = self._spec, self._config
        if spec.keeps_torch_blocks:
            return EngineMemory(0, 0, "torch's own blocks")
        if spec.needs_server:
            return EngineMemory(0, 0, f"in model {config.engine_model.name}" if config.engine_model else "elsewhere")
        if spec.flavour is not None:
            kind = "fp8" if spec.fp8 else None
            copies = sum(block_bytes(each, self._dtype, kind) for each in self._denoisers)
            return EngineMemory(copies, self._step(self._rows).beyond, "about: `build` prints both")
        if spec.has_own_threads:
            sessions, call = 1 + (config.engine_lanes > 1), self._step(self._rows, fused=False).beyond
            stacks = [family_on_meta(each, self._dtype).block_stack() for each in self._denoisers]
            graph = _SESSION_BLOCK_BYTES * sum(map(_count_blocks, stacks))
            arenas = _ARENAS + (1 + config.engine_lanes if sessions > 1 else 0)
            return EngineMemory(sessions * (blocks + graph), arenas * call, f"{sessions} sessions, about")
        return EngineMemory(blocks, 0, "the blocks")

    @property
    def _denoisers(self) -> list[PipelinePart]:
        return [part for name, part in self._parts.items() if name in DENOISERS]

    @property
    def _rows(self) -> int:
        """Rows of the largest engine call."""
        return max(self._own_rows, self._config.fixed_batch, self._config.max_batch)

    def _full_step(self, weights: Sequence[Weights], engine: EngineMemory) -> Phase:
        rows, config = self._rows, self._config
        step = self._step(rows)
        each = step.stream + (step.constant if rows > self._own_rows else 0)  # joined
        each += rows * self._planned.anchor_bytes if self._planned.anchors else 0  # the forecast that is audited
        each += max(one.unpacked_bytes for one in weights if one.name in DENOISERS)
        if config.parallelism:
            each += step.constant + self._shared(step)
        elif not self._spec.needs_server and not engine.scratch:
            each += step.beyond
        return Phase("full step", 0, each, 1 if self._on_gpu else config.engine_lanes)

    def _encodings(self, weights: Sequence[Weights]) -> Iterator[Phase]:
        _, _, tokens = feature_of(self._config, self._architecture, self._request)
        for each in weights:
            if each.name not in (*DENOISERS, "vae") and each.offload != "cpu":
                held = encoding_bytes(self._parts[each.name], self._dtype_of(each.name), tokens)
                yield Phase(each.name, each.nbytes if each.offload else 0, held + each.unpacked_bytes)

    def _decoding(self, weights: Sequence[Weights]) -> Iterator[Phase]:
        source = self._config.source
        for each in weights:
            if each.name == "vae" and each.offload != "cpu":
                dtype = self._dtype_of(each.name)
                held = decoding_bytes(self._parts["vae"], dtype, self._latent_size, source.vae_tiling, self._machine)
                yield Phase("decoding", each.nbytes if each.offload else 0, held)


def _count_blocks(stack: nn.Module) -> int:
    """Blocks of a stack, whose lists may be in a list."""
    lists = [each for each in stack.children() if isinstance(each, nn.ModuleList)]
    return sum(_count_blocks(each) or len(each) for each in lists)
