"""A model's settings: the parameters of its config.pbtxt, parsed once into one frozen type."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from plugin.engine_specs import ENGINES
from plugin.repository import InvalidConfig, overrides, read_max_batch_size, read_parameters
from plugin.request import GenerationRequest, Limits, ResponseFormat
from taylorseer import CacheConfig


@dataclass(frozen=True)
class PipelineSource:
    """What `load_pipeline` loads.

    Attributes:
        pipeline: a hub id, or a folder that `from_pretrained` can read.
        dtype: "float32", "bfloat16" or "float16", of all components.
        component_dtypes: (component, dtype) of components that want another one, for example a video autoencoder.
        components: (component, hub id or folder) of components that are not part of the pipeline's own repository, for
            example HiDream's Llama text encoder and its tokenizer.
        device: a torch device, "cpu" or "cuda:0".
        lora: a hub id, folder or file of LoRA weights that are fused into the pipeline, or None.
        lora_scale: the strength they are fused with.
        vae_tiling: decode in tiles, which needs less memory for large videos.
    """

    pipeline: str
    dtype: str = "float32"
    component_dtypes: tuple[tuple[str, str], ...] = ()
    components: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    lora: str | None = None
    lora_scale: float = 1.0
    vae_tiling: bool = False


@dataclass(frozen=True)
class EngineModel:
    """The model of the same repository that runs the block stack, with engine triton.

    Attributes:
        name: the model's name.
        max_batch_size: as its config.pbtxt has it; 0 where it has no batch axis.
    """

    name: str
    max_batch_size: int

    @classmethod
    def in_repository(cls, repository: Path, name: str) -> EngineModel:
        """What is known of a model from its config.pbtxt; it need not be loaded.

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
    """The settings of one served model.

    Attributes:
        source: where the pipeline comes from, and in what form.
        engine: a name in `plugin.engines.ENGINES`.
        engine_model: what engine triton calls; None with every other engine.
        torch_threads: threads of one torch operation on the CPU, at least 1; 0 for all cores.
        engine_threads: threads of one engine call on the CPU, at least 1; 0 for all cores.
        engine_lanes: engine calls that run at once on the CPU, each with its share of the threads, at least 1: small
            operations of two calls fill two cores better than those of one.
        max_sequence_length: text tokens of the pipeline's text encoder, or None for the pipeline's own default.
        max_in_flight: requests that are worked on at once, at least 1.
        max_waiting: requests that may wait beyond those, at least 0; further ones are refused as UNAVAILABLE.
        memory_budget_mib: for the caches and the work of all requests in flight; 0 for four fifths of the GPU memory,
            or half of the main memory, that is free once the model is loaded.
        text_cache_mib: for the embeddings of the latest prompts; 0 keeps none.
        max_batch: most rows of one engine call; 0 for the knee that a measurement at load finds. 1 packs nothing.
        fixed_batch: rows that every engine call is filled up to, so that results are the same bits whatever the
            company; 0 for calls as large as they come.
        max_batch_wait_ms: how long an engine call waits at most for company.
        max_cache_interval: how far a request's interval may be stretched, to meet its deadline or for the load.
        stretch_from_waiting: requests in line from which on the intervals of those that begin are stretched, evenly up
            to `max_cache_interval` where the line is full; 0 for never.
        stuck_after_s: how long one operation of a request may take (an engine call, the encoding of its text, the
            decoding of its picture) before the model counts as failed; 0 for ever.
        preview_interval: steps from one preview to the next, at least 1.
        defaults: what a request gets where it says nothing.
        presets: cache settings by name, which a request may ask for; "default" are the model's own, which a request
            starts from that sets some itself.
        limits: what a request may ask for.
    """

    source: PipelineSource
    engine: str
    engine_model: EngineModel | None
    torch_threads: int
    engine_threads: int
    engine_lanes: int
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
            parameters: config.pbtxt's parameters, name -> string; those of Triton's Python backend are passed over.
            model_dir: the model's folder; a pipeline that begins with "." is relative to it.
            environment: TAYLORSEER_<MODEL>_<PARAMETER>, in capitals, overrides a parameter, as
                TAYLORSEER_FLUX_DEV_PIPELINE does the pipeline of flux_dev.
            model: its name, where the folder has another one: Triton loads overridden files from a temporary folder.

        Raises:
            InvalidConfig: an unknown name, a missing pipeline, or a value that cannot be read.
        """
        own = {name: text for name, text in parameters.items() if name not in _BACKEND_PARAMETERS}
        parameters = {**own, **overrides(model or model_dir.name, _PARAMETERS, environment or {})}
        preset_texts = {
            name.removeprefix(_PRESET): parameters.pop(name) for name in [*parameters] if name.startswith(_PRESET)
        }
        unknown = sorted(set(parameters) - set(_PARAMETERS))
        if unknown:
            raise InvalidConfig(
                f"parameter {unknown[0]!r} is unknown, must be one of: {', '.join(sorted(_PARAMETERS))}"
            )
        if "pipeline" not in parameters:
            raise InvalidConfig("parameter 'pipeline' is missing, must be a hub id or a folder")
        read = {name: default for name, (_, default) in _PARAMETERS.items()}
        for name, text in parameters.items():
            read[name] = _parse(name, text)
        for name in ("pipeline", "lora"):
            if (read[name] or "").startswith("."):
                read[name] = str((model_dir / read[name]).resolve())
        if parameters["pipeline"].startswith(".") and not Path(read["pipeline"]).exists():
            raise InvalidConfig(
                f"parameter 'pipeline' is {parameters['pipeline']!r}, must be a folder beside the model's, "
                f"and there is no {read['pipeline']}"
            )
        if read["engine_lanes"] > 1 and read["device"] != "cpu":
            raise InvalidConfig(f"parameter 'engine_lanes' is {read['engine_lanes']}, must be 1 on {read['device']}")
        read["engine_model"] = _engine_model(read["engine"], read["engine_model"], model_dir.parent)
        presets = _saved_presets(presets_path(read["pipeline"], model_dir))
        presets |= {name: _parse_preset(name, text) for name, text in preset_texts.items()}
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
            own_cache = CacheConfig(**{each.name: read[f"cache_{each.name}"] for each in fields(CacheConfig)})
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
        )
        limits = Limits(**{each.name: read[each.name] for each in fields(Limits)})
        source = PipelineSource(**{each.name: read[each.name] for each in fields(PipelineSource)})
        own = {each.name for each in fields(cls)} - {"source", "defaults", "presets", "limits"}
        return cls(
            source=source, **{name: read[name] for name in own}, defaults=defaults, presets=presets, limits=limits
        )


def _parse_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _integer(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < low:
            raise ValueError(f"must be an integer of at least {low}")
        return int(text)

    return parse


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of: {', '.join(choices)}")
        return text

    return parse


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = tuple(tuple(part.strip() for part in pair.split("=", 1)) for pair in text.split(",") if pair.strip())
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError("must be name=value pairs, separated by commas")
    return pairs  # type: ignore[return-value]


def _dtype_pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = _pairs(text)
    for _, dtype in pairs:
        _dtype(dtype)
    return pairs


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


_dtype = _choice("float32", "bfloat16", "float16")
_BACKEND_PARAMETERS = ("EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS")
_PRESET = "cache_preset_"  # what follows is the preset's name

# name: (how its text is read, the default)
_PARAMETERS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "pipeline": (str, None),
    "engine": (str, "onnxruntime"),
    "engine_model": (str, None),
    "dtype": (_dtype, "float32"),
    "component_dtypes": (_dtype_pairs, ()),
    "components": (_pairs, ()),
    "device": (str, "cpu"),
    "lora": (str, None),
    "lora_scale": (_number, 1.0),
    "vae_tiling": (_parse_bool, False),
    "torch_threads": (_integer(0), 0),
    "engine_threads": (_integer(0), 0),
    "engine_lanes": (_integer(1), 1),
    "max_sequence_length": (_integer(1), None),
    "max_in_flight": (_integer(1), 8),
    "max_waiting": (_integer(0), 64),
    "memory_budget_mib": (_integer(0), 0),
    "text_cache_mib": (_integer(0), 64),
    "max_batch": (_integer(0), 0),
    "fixed_batch": (_integer(0), 0),
    "max_batch_wait_ms": (_number, 0.0),
    "max_cache_interval": (_integer(1), 10),
    "stretch_from_waiting": (_integer(0), 0),
    "stuck_after_s": (_number, 600.0),
    "preview_interval": (_integer(1), 5),
    "num_inference_steps": (_integer(1), 50),
    "guidance_scale": (_number, 3.5),
    "height": (_integer(1), 1024),
    "width": (_integer(1), 1024),
    "num_frames": (_integer(1), 1),
    "fps": (_integer(1), 16),
    "deadline_ms": (_integer(1), None),
    "cache_preset": (str, "default"),
    "cache_interval": (_integer(1), 5),
    "cache_order": (_integer(0), 1),
    "cache_warmup_steps": (_integer(0), 3),
    "cache_cooldown_steps": (_integer(0), 0),
    "cache_predictor": (str, "taylor"),
    "cache_schedule": (str, "interval"),
    "cache_coordinate": (str, "step"),
    "cache_max_error": (_number, None),
    "cache_min_interval": (_integer(1), 1),
    "cache_max_full_steps": (_integer(1), None),
    "max_steps": (_integer(1), Limits.max_steps),
    "max_prompt_bytes": (_integer(1), Limits.max_prompt_bytes),
    "min_size": (_integer(1), Limits.min_size),
    "max_size": (_integer(1), Limits.max_size),
    "size_multiple": (_integer(1), Limits.size_multiple),
    "max_frames": (_integer(1), Limits.max_frames),
    "frames_multiple": (_integer(1), Limits.frames_multiple),
    "num_classes": (_integer(1), Limits.num_classes),
    "takes_prompt": (_parse_bool, Limits.takes_prompt),
}


def _parse_preset(name: str, text: str) -> CacheConfig:
    """A preset such as "interval=6, order=1, warmup_steps=3"; what is left out has `CacheConfig`'s default."""
    settings: dict[str, Any] = {}
    known = {each.name for each in fields(CacheConfig)}
    try:
        for field_name, value in _pairs(text):
            if field_name not in known:
                raise ValueError(f"{field_name!r} is unknown, must be one of: {', '.join(sorted(known))}")
            settings[field_name] = _PARAMETERS[f"cache_{field_name}"][0](value)
        return CacheConfig(**settings)
    except ValueError as error:
        raise InvalidConfig(f"parameter '{_PRESET}{name}' is {text!r}: {error}") from None


def presets_path(pipeline: str, model_dir: Path) -> Path:
    """Where the cache settings of a model are kept that `triton-taylorseer tune` found: beside the weights, which they
    were found for, or in the model's folder where the weights are of a hub."""
    folder = Path(pipeline)
    return (folder if folder.is_dir() else model_dir) / "cache_presets.json"


def _saved_presets(path: Path) -> dict[str, CacheConfig]:
    """Those of a file, name -> {"cache": settings, ...}; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return {name: CacheConfig(**preset["cache"]) for name, preset in saved.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidConfig(f"{path} cannot be read, must be as `triton-taylorseer tune` writes it: {error}") from None


def _chosen(presets: Mapping[str, CacheConfig], name: str) -> CacheConfig:
    if name not in presets:
        raise InvalidConfig(f"parameter 'cache_preset' is {name!r}, must be one of: {', '.join(presets)}")
    return presets[name]


def _engine_model(engine: str, name: str | None, repository: Path) -> EngineModel | None:
    if engine not in ENGINES or not ENGINES[engine].needs_server:
        if name is not None:
            raise InvalidConfig(f"parameter 'engine_model' is {name!r}, must be left out with engine {engine}")
        return None
    if not name:
        raise InvalidConfig("parameter 'engine_model' is missing, must be the model that engine triton calls")
    return EngineModel.in_repository(repository, name)


def _parse(name: str, text: str) -> Any:
    try:
        return _PARAMETERS[name][0](text)
    except ValueError as error:
        raise InvalidConfig(f"parameter {name!r} is {text!r}, {error}") from None
