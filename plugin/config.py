"""A model's settings: the parameters of its config.pbtxt, parsed once into one frozen type."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from plugin.engine_specs import ENGINES
from plugin.limits import Limits
from plugin.parallelism import Parallelism
from plugin.parameters import PARAMETERS, parse_parameters
from plugin.presets import PARAMETER_PREFIX, parse_preset, presets_path, saved_presets
from plugin.quantization import check_quantization
from plugin.repository import InvalidConfig, overrides, read_max_batch_size, read_parameters
from plugin.request import GenerationRequest, ResponseFormat
from taylorseer import SETTINGS, CacheConfig

_BACKEND_PARAMETERS = ("EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS")


@dataclass(frozen=True)
class PipelineSource:
    """What `load_pipeline` loads.

    Attributes:
        pipeline: a hub id, or a folder that `from_pretrained` can read.
        dtype: "float32", "bfloat16" or "float16", of all components.
        component_dtypes: (component, dtype) of components that need another one, for example a video autoencoder.
        components: (component, hub id or folder) of components that are not part of the pipeline's own repository, for
            example HiDream's Llama text encoder and its tokenizer; of a transformer also a GGUF file, in a folder or of
            the hub.
        device: a torch device, "cpu" or "cuda:0".
        lora: a hub id, folder or file of LoRA weights that are fused into the pipeline, or None.
        lora_scale: the strength they are fused with.
        allow_pickle: whether weights may be pickles, which torch's restricted unpickler reads; code is never loaded.
        quantization: (component, "int8", "fp8" or "nf4") of components whose weights are below 16 bits.
        offload: (component, "cpu" or "idle") of components that run on the CPU, or are on the device only for a call.
        vae_tiling: decode in tiles, which needs less memory for large videos.
    """

    pipeline: str
    dtype: str = PARAMETERS["dtype"].default
    component_dtypes: tuple[tuple[str, str], ...] = PARAMETERS["component_dtypes"].default
    components: tuple[tuple[str, str], ...] = PARAMETERS["components"].default
    device: str = PARAMETERS["device"].default
    lora: str | None = PARAMETERS["lora"].default
    lora_scale: float = PARAMETERS["lora_scale"].default
    allow_pickle: bool = PARAMETERS["allow_pickle"].default
    quantization: tuple[tuple[str, str], ...] = PARAMETERS["quantization"].default
    offload: tuple[tuple[str, str], ...] = PARAMETERS["offload"].default
    vae_tiling: bool = PARAMETERS["vae_tiling"].default

    def dtype_of(self, component: str) -> str:
        """The dtype of a component, by name."""
        return dict(self.component_dtypes).get(component, self.dtype)


@dataclass(frozen=True)
class EngineModel:
    """The model of the same repository that runs the block stack, with engine triton.

    Attributes:
        name: the model's name.
        max_batch_size: of its config.pbtxt; 0 if it has no batch axis.
    """

    name: str
    max_batch_size: int

    @classmethod
    def in_repository(cls, repository: Path, name: str) -> EngineModel:
        """The model as its config.pbtxt describes it; it does not have to be loaded.

        Raises:
            InvalidConfig: there is no such file, or it cannot be read.
        """
        path = repository / name / "config.pbtxt"
        try:
            return cls(name, read_max_batch_size(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise InvalidConfig(
                f"parameter 'engine_model' is {name!r}, must be a model beside this one: {path}: {error.strerror}"
            ) from None
        except InvalidConfig as error:
            raise InvalidConfig(f"parameter 'engine_model' is {name!r}: {error}") from None


@dataclass(frozen=True)
class ModelConfig:
    """The settings of one served model. Names, defaults and meanings are those of `plugin.parameters.PARAMETERS`.

    Attributes:
        source: where the pipeline comes from, and in what form.
        engine: a name in `plugin.engine_specs.ENGINES`.
        engine_model: what engine triton calls; None with every other engine.
        torch_threads: threads of one torch operation on the CPU; 0 for all cores.
        engine_threads: threads of one engine call on the CPU; 0 for all cores.
        engine_lanes: concurrent engine calls on the CPU, each with its share of the threads, at least 1. Small
            operations of two calls use two cores better than those of one.
        parallelism: the processes that share an engine call; None with every engine but parallel.
        max_sequence_length: text tokens of the pipeline's text encoder, or None for the pipeline's own default.
        max_in_flight: requests that run at once, at least 1.
        max_waiting: requests that may be queued beyond those, at least 0; further ones are refused as UNAVAILABLE.
        memory_budget_mib: for the caches and the work of all running requests; 0 for four fifths of the GPU memory,
            or half of the main memory, that is free once the model is loaded.
        text_cache_mib: for the embeddings of the latest prompts; 0 keeps none.
        max_batch: most rows of one engine call; 0 for the batch limit that a measurement at load finds. 1 packs
            nothing.
        fixed_batch: every engine call is padded to this many rows, so that results are bit-identical whatever else is
            running; 0 does not pad.
        max_batch_wait_ms: longest time that an engine call waits for other requests to join it.
        max_cache_interval: how far a request's interval may be stretched, to meet its deadline or for the load.
        stretch_from_waiting: queue length from which the intervals of starting requests are stretched, evenly up to
            `max_cache_interval` at a full queue; 0 for never.
        stuck_after_s: how long one operation of a request may take (an engine call, the encoding of its text, the
            decoding of its picture, its model's load) before the model counts as failed; 0 for no limit.
        unload_after_s: how long a model may be idle before its weights leave the memory, until its next request; 0 for
            always in memory.
        preview_interval: steps from one preview to the next, at least 1.
        defaults: what a request gets for the fields that it leaves out.
        presets: cache settings by name, from which a request chooses. "default" are the model's own; a request that
            sets some cache fields itself starts from them.
        limits: what a request may ask for.
    """

    source: PipelineSource
    engine: str
    engine_model: EngineModel | None
    torch_threads: int
    engine_threads: int
    engine_lanes: int
    parallelism: Parallelism | None
    max_sequence_length: int | None
    max_in_flight: int
    max_waiting: int
    memory_budget_mib: int
    text_cache_mib: int
    max_batch: int
    fixed_batch: int
    max_batch_wait_ms: float
    max_cache_interval: int
    stretch_from_waiting: int
    stuck_after_s: float
    unload_after_s: float
    preview_interval: int
    defaults: GenerationRequest
    presets: Mapping[str, CacheConfig]
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def from_parameters(
        cls,
        parameters: Mapping[str, str],
        model_dir: Path,
        environment: Mapping[str, str] | None = None,
        *,
        model: str | None = None,
    ) -> ModelConfig:
        """The settings of a model from its parameters.

        Args:
            parameters: config.pbtxt's parameters, name -> string; those of Triton's Python backend are ignored.
            model_dir: the model's folder; a pipeline, component or LoRA that begins with "." is relative to it.
            environment: TAYLORSEER_<MODEL>_<PARAMETER>, in capitals, overrides a parameter, as
                TAYLORSEER_FLUX_DEV_PIPELINE does the pipeline of flux_dev.
            model: its name, if the folder has another one: Triton loads overridden files from a temporary folder.

        Raises:
            InvalidConfig: an unknown name, a missing pipeline, or a value that cannot be read.
        """
        own = {name: text for name, text in parameters.items() if name not in _BACKEND_PARAMETERS}
        texts = {**own, **overrides(model or model_dir.name, PARAMETERS, environment or {})}
        preset_texts = {
            name.removeprefix(PARAMETER_PREFIX): texts.pop(name)
            for name in [*texts]
            if name.startswith(PARAMETER_PREFIX)
        }
        read = parse_parameters(texts)
        for name in ("pipeline", "lora"):
            read[name] = read[name] and _beside(model_dir, read[name])
        read["components"] = tuple((name, _beside(model_dir, place)) for name, place in read["components"])
        _check_folder(texts["pipeline"], read["pipeline"])
        if read["engine_lanes"] > 1 and read["device"] != "cpu":
            raise InvalidConfig(f"parameter 'engine_lanes' is {read['engine_lanes']}, must be 1 on {read['device']}")
        read["engine_model"] = _engine_model(read["engine"], read["engine_model"], model_dir.parent)
        read["parallelism"] = _parallelism(read)
        check_quantization(read["engine"], read["quantization"], read["components"], read["lora"])
        presets = saved_presets(presets_path(read["pipeline"], model_dir))
        presets |= {name: parse_preset(name, text) for name, text in preset_texts.items()}
        return cls._from_values(read, presets)

    @classmethod
    def from_folder(cls, model_dir: Path) -> ModelConfig:
        """The settings of a model from its folder's config.pbtxt, read without a server.

        Raises:
            InvalidConfig: as `from_parameters`, or the folder has no config.pbtxt.
        """
        path = model_dir / "config.pbtxt"
        if not path.is_file():
            raise InvalidConfig(f"{path} is missing, must be the model's configuration")
        return cls.from_parameters(read_parameters(path.read_text(encoding="utf-8")), model_dir, os.environ)

    @classmethod
    def _from_values(cls, read: dict[str, Any], presets: Mapping[str, CacheConfig]) -> ModelConfig:
        try:
            own_cache = CacheConfig(**{name: read[f"cache_{name}"] for name in SETTINGS})
        except ValueError as error:
            raise InvalidConfig(f"parameter cache_{error}") from None
        presets = {"default": own_cache, **presets}
        defaults = GenerationRequest(
            prompt=None,
            negative_prompt=None,
            class_label=None,
            seed=0,
            num_inference_steps=read["num_inference_steps"],
            guidance_scale=read["guidance_scale"],
            height=read["height"],
            width=read["width"],
            num_frames=read["num_frames"],
            fps=read["fps"],
            cache=_chosen(presets, read["cache_preset"]),
            deadline_ms=read["deadline_ms"],
            response_format=ResponseFormat.RAW,
            preview=False,
            strength=read["strength"],
        )
        limits = Limits(**{each.name: read[each.name] for each in fields(Limits)})
        source = PipelineSource(**{each.name: read[each.name] for each in fields(PipelineSource)})
        own = {each.name for each in fields(cls)} - {"source", "defaults", "presets", "limits"}
        return cls(
            source=source, **{name: read[name] for name in own}, defaults=defaults, presets=presets, limits=limits
        )


def _beside(model_dir: Path, place: str) -> str:
    """A place, which is relative to the model's folder where it begins with "."."""
    return str((model_dir / place).resolve()) if place.startswith(".") else place


def _check_folder(written: str, resolved: str) -> None:
    if written.startswith(".") and not Path(resolved).exists():
        raise InvalidConfig(
            f"parameter 'pipeline' is {written!r}, must be a folder beside the model's, and there is no {resolved}"
        )


def _chosen(presets: Mapping[str, CacheConfig], name: str) -> CacheConfig:
    if name not in presets:
        raise InvalidConfig(f"parameter 'cache_preset' is {name!r}, must be one of: {', '.join(presets)}")
    return presets[name]


def _parallelism(read: Mapping[str, Any]) -> Parallelism | None:
    engine, names = read["engine"], ("sequence_parallel", "cfg_parallel", "devices")
    sequence, cfg, devices = (read[name] for name in names)
    if engine not in ENGINES or not ENGINES[engine].is_parallel:
        for name, value in zip(names, (sequence, cfg, devices), strict=True):
            if value != PARAMETERS[name].default:
                raise InvalidConfig(f"parameter {name!r} is {value!r}, must be left out with engine {engine}")
        return None
    if sequence * cfg < 2:
        raise InvalidConfig(
            "parameter 'sequence_parallel' is 1, must be at least 2 with engine parallel, or cfg_parallel"
        )
    try:
        parallelism = Parallelism(sequence, cfg, devices)
        parallelism.devices_from(read["device"])
    except ValueError as error:
        raise InvalidConfig(f"parameter {error}") from None
    return parallelism


def _engine_model(engine: str, name: str | None, repository: Path) -> EngineModel | None:
    if engine not in ENGINES or not ENGINES[engine].needs_server:
        if name is not None:
            raise InvalidConfig(f"parameter 'engine_model' is {name!r}, must be left out with engine {engine}")
        return None
    if not name:
        raise InvalidConfig("parameter 'engine_model' is missing, must be the model that engine triton calls")
    return EngineModel.in_repository(repository, name)
