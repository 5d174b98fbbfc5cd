"""On which GPUs a model fits, and what to set so that it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from plugin.config import ModelConfig, PipelineSource
from plugin.parallelism import Parallelism
from plugin.parameters import PARAMETERS
from plugin.quantization import check_quantization
from plugin.repository import InvalidConfig
from plugin.request import GenerationRequest
from plugin.serving.memory import MemoryPlan, plan_memory
from plugin.serving.weights import Weights

GPU_GIGABYTES = (16, 24, 48, 80)
# A card of 24 GB is taken to have 24 x 10^9 bytes for a model. Those that are sold as such have 24 x 2^30, or a little
# less: what is above is left to CUDA (half a GiB) and to what torch's allocator cannot use of what it holds.
GIGABYTE = 10**9

_LARGE_BYTES = 2**30  # encoders below that stay where they are


@dataclass(frozen=True)
class Fit:
    """How a model fits on a GPU.

    Attributes:
        gigabytes: of the GPU.
        requests: how many run at once, with these settings; 0 where none of the known settings is enough.
        needed: bytes of that; where none is enough, those that the smallest needs for one request.
        settings: parameters that must be set for it, name -> text; none for the model's own.
    """

    gigabytes: int
    requests: int
    needed: int
    settings: Mapping[str, str] = field(default_factory=dict)


def fits(config: ModelConfig, request: GenerationRequest, sizes: Sequence[int] = GPU_GIGABYTES) -> list[Fit]:
    """For each size of GPU the first settings with which a model fits, from those that cost least. Each is computed as
    the model's own, and none is among them that could be left out.

    Args:
        config: the model's settings.
        request: what each running request is taken to be.
        sizes: of GPUs, in gigabytes.

    Raises:
        OSError, ValueError, TypeError: as `plan_memory`.
    """
    search = _Search(config, request)
    return [search.fit(each) for each in sizes]


class _Search:
    """Looks for settings with which one model fits; plans are made once."""

    def __init__(self, config: ModelConfig, request: GenerationRequest) -> None:
        self._config, self._request = config, request
        self._plans: dict[tuple[tuple[str, str], ...], MemoryPlan | None] = {}
        own = plan_memory(config, request)
        self._candidates = [dict(settings) for settings in _candidates(config, own)]

    def fit(self, gigabytes: int) -> Fit:
        """How the model fits on a GPU of that size; without a fit, the one that needs least."""
        tried = (self._tried(gigabytes, each) for each in self._candidates)
        possible = []
        for each in tried:
            if each is not None and each.requests:
                return self._pruned(each)
            possible += [each] if each is not None else []
        return min(possible, key=lambda each: each.needed)

    def _tried(self, gigabytes: int, settings: Mapping[str, str]) -> Fit | None:
        """How the model fits with these settings; None where they cannot be set together."""
        key = tuple(sorted(settings.items()))
        if key not in self._plans:
            try:
                self._plans[key] = plan_memory(with_settings(self._config, settings), self._request)
            except InvalidConfig:
                self._plans[key] = None
        plan = self._plans[key]
        if plan is None:
            return None
        requests = plan.requests_within(gigabytes * GIGABYTE)
        return Fit(gigabytes, requests, plan.total(max(requests, 1)), settings)

    def _pruned(self, found: Fit) -> Fit:
        """The same without settings that make no difference to how many requests fit."""
        for name in found.settings:
            fewer = {other: text for other, text in found.settings.items() if other != name}
            tried = self._tried(found.gigabytes, fewer)
            if tried is not None and tried.requests >= found.requests:
                return self._pruned(tried)
        return found


def with_settings(config: ModelConfig, settings: Mapping[str, str]) -> ModelConfig:
    """The same model with other parameters.

    Args:
        config: the model's settings.
        settings: parameters of the pipeline or of the engine, name -> text.

    Raises:
        InvalidConfig: they cannot be set together.
    """
    read = {name: PARAMETERS[name].read(text) for name, text in settings.items()}
    of_source = {each.name for each in fields(PipelineSource)}
    source = replace(config.source, **{name: value for name, value in read.items() if name in of_source})
    engine = read.get("engine", config.engine)
    check_quantization(engine, source.quantization, source.components, source.lora)
    sequence = read.get("sequence_parallel")
    parallelism = Parallelism(sequence) if sequence else config.parallelism if engine == config.engine else None
    return replace(config, source=source, engine=engine, parallelism=parallelism)


def _candidates(config: ModelConfig, plan: MemoryPlan) -> Iterator[dict[str, str]]:
    """Settings in the order in which they cost: nothing, time at the end or at the beginning of a request, digits."""
    large = [each.name for each in plan.weights if _is_large_encoder(each)]
    denoisers = [each.name for each in plan.weights if each.name.startswith("transformer")]
    tiled = {} if config.source.vae_tiling else {"vae_tiling": "true"}
    idle = {"offload": _pairs(dict.fromkeys(large, "idle"))} if large else {}
    away = {"offload": _pairs(dict.fromkeys(large, "cpu") | {"vae": "idle"})}
    int8, nf4 = _quantized("int8", *denoisers), _quantized("nf4", *denoisers)
    yield from (_merged(config, each) for each in ({}, tiled, idle, idle | tiled, int8, int8 | tiled))
    yield _merged(config, _quantized("int8", *denoisers, *large))
    yield _merged(config, int8 | idle | tiled)
    yield _merged(config, _quantized("nf4", *denoisers, *large) | tiled)
    yield from (_merged(config, nf4 | each | tiled) for each in (idle, away))
    if plan.splits_tokens:  # it takes no weight off a GPU, but half of a long step
        for processes in "24":
            yield {"engine": "parallel", "sequence_parallel": processes} | idle | tiled


def _is_large_encoder(weights: Weights) -> bool:
    return not weights.name.startswith(("transformer", "vae")) and weights.nbytes >= _LARGE_BYTES


def _quantized(kind: str, *names: str) -> dict[str, str]:
    return {"engine": "torch", "quantization": _pairs(dict.fromkeys(names, kind))}


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _merged(config: ModelConfig, changes: dict[str, str]) -> dict[str, str]:
    """Without what is set already."""
    return {name: text for name, text in changes.items() if name != "engine" or text != config.engine}
