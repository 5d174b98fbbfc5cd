"""What a request costs, computed from shapes before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plugin.config import ModelConfig
from plugin.families import family_class
from plugin.families.base import Family
from plugin.pictures import stitched_size
from plugin.request import GenerationRequest, parse_request
from plugin.serving.autoencoders import compression_of
from plugin.serving.defaults import TOKENS_WITHIN, picture_tokens_of, text_tokens_of
from plugin.serving.experts import Experts
from plugin.serving.published import PUBLISHED, Architecture
from plugin.tasks import Several, Task

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PREDECESSORS = {"Transformer2DModel": "DiTTransformer2DModel"}  # the name in DiT's published folders


@dataclass(frozen=True)
class Plan:
    """What a request costs.

    Attributes:
        num_steps: denoising steps.
        full_steps: the indices of the full ones, the first step of a second expert among them. With max_error these are
            the fewest possible.
        branches: guidance branches.
        anchors: how many each branch keeps; 0 with the cache off.
        tokens, width: the shape of the cached feature of one branch. Where the blocks work on text and picture
            together, the text is counted at its longest.
        anchor_bytes: size of one anchor of one branch.
        module_anchor_bytes: its size if every module were cached, as TaylorSeer's own code does.
        pixels: of the picture, or of all frames of the video.
        picture_bytes: what the request's own pictures need: their pixels as decoded, and as tensors.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    branches: int
    anchors: int
    tokens: int
    width: int
    anchor_bytes: int
    module_anchor_bytes: int
    pixels: int
    picture_bytes: int = 0

    @property
    def working_bytes(self) -> int:
        """About what the request holds besides its anchors: of each branch the blocks' input, a forecast and the
        difference of an audit; the decoded pixels as float32 tensor, as array and scaled, and as bytes; its own
        pictures."""
        return 3 * self.branches * self.anchor_bytes + 3 * self.pixels * (4 + 4 + 4 + 1) + self.picture_bytes

    @property
    def cache_bytes(self) -> int:
        """Size of all anchors, which the request's cache holds from its first step to its last."""
        return self.branches * self.anchors * self.anchor_bytes

    @property
    def module_cache_bytes(self) -> int:
        """Size of all anchors if every module were cached."""
        return self.branches * self.anchors * self.module_anchor_bytes

    @property
    def speed_up_bound(self) -> float:
        """Steps over full steps: the speed-up of the denoising if forecast steps took no time."""
        return self.num_steps / len(self.full_steps)


def plan_request(config: ModelConfig, architecture: Architecture, request: GenerationRequest) -> Plan:
    """The plan of a request.

    Args:
        config: the model's settings.
        architecture: of its pipeline, as `architecture_of` reads it.
        request: the valid request.

    Raises:
        TypeError: the transformer's class is not served.
    """
    family, options = family_class(architecture.transformer), architecture.config
    tokens, width, text_tokens = feature_of(config, architecture, request)
    rows = family.rows(tokens, text_tokens)
    element_bytes = _ELEMENT_BYTES[config.source.dtype_of("transformer")]
    return Plan(
        num_steps=request.num_steps,
        full_steps=_full_steps(architecture, request),
        branches=family.guidance_branches(replace(request, task=request.task or architecture.tasks[0])),
        anchors=request.cache.order + 1 if request.cache.enabled else 0,
        tokens=rows,
        width=width,
        anchor_bytes=rows * width * element_bytes,
        module_anchor_bytes=family.module_features(options, tokens, text_tokens) * element_bytes,
        pixels=request.num_frames * request.height * request.width,
        picture_bytes=_picture_bytes(request),
    )


def axis_sizes(
    family: Family,
    config: ModelConfig,
    architecture: Architecture,
    request: GenerationRequest,
    appended: int = 0,
    text: int | None = None,
) -> dict[str, int]:
    """The length of each dynamic axis of a request's block inputs but the batch, as `Family.axis_sizes` names them.

    Args:
        family: of the loaded transformer.
        config: the model's settings.
        architecture: of its pipeline.
        request: the valid request.
        appended: tokens of a picture on top of those of the request.
        text: tokens of the text; None for as many as the pipeline gives the transformer at most.
    """
    tokens, _, most_text = feature_of(config, architecture, request)
    latent_size = family.latent_size(architecture.config, request, architecture.compression)
    return family.axis_sizes(tokens + appended, most_text if text is None else text, latent_size)


def example_request(config: ModelConfig, tasks: Sequence[Task] | None = None, /, **fields: Any) -> GenerationRequest:
    """A valid request of a model with these fields and, unless they name one, any subject.

    Args:
        config: the model's settings.
        tasks: what the model can do with pictures; None for a request of which no picture is asked.
        **fields: as `parse_request` has them; None is the model's default.

    Raises:
        InvalidRequest: a field that the model does not serve.
    """
    subject = {"prompt": b"any"} if config.limits.takes_prompt else {"class_label": 0}
    given = {
        name: value.encode() if isinstance(value, str) else value for name, value in fields.items() if value is not None
    }
    return parse_request({**subject, **given}, config.defaults, config.limits, 0, config.presets, tasks)


def architecture_of(pipeline: str) -> Architecture:
    """The architecture of a pipeline, without its weights.

    Args:
        pipeline: a folder that diffusers saved, or a hub id in `plugin.serving.published.PUBLISHED`.

    Raises:
        OSError: the folder lacks a configuration.
        ValueError: a hub id that is not in `PUBLISHED`.
    """
    folder = Path(pipeline)
    if not folder.is_absolute() and not folder.is_dir():
        if pipeline not in PUBLISHED:
            raise ValueError(f"pipeline is {pipeline}, must be a folder or one of: {', '.join(PUBLISHED)}")
        return PUBLISHED[pipeline]
    second_alone = (folder / "transformer_2").is_dir() and not (folder / "transformer").is_dir()  # as Wan2.2 may be
    transformer = read_configuration(folder / ("transformer_2" if second_alone else "transformer") / "config.json")
    class_name = transformer["_class_name"]
    index, encoder = read_configuration(folder / "model_index.json"), folder / "image_encoder" / "config.json"
    return Architecture(
        PREDECESSORS.get(class_name, class_name),
        {name: value for name, value in transformer.items() if name[0] != "_"},
        compression_of(read_configuration(folder / "vae" / "config.json")),
        text_tokens_of(index["_class_name"]),
        experts=_experts_of(folder, index),
        pipeline=index["_class_name"],
        expand_timesteps=bool(index.get("expand_timesteps")),
        distilled=bool(index.get("is_distilled")),
        picture_tokens=picture_tokens_of(
            transformer.get("image_condition_type"),
            transformer.get("pos_embed_seq_len"),
            read_configuration(encoder) if transformer.get("image_dim") and encoder.is_file() else None,
        ),
    )


def feature_of(config: ModelConfig, architecture: Architecture, request: GenerationRequest) -> tuple[int, int, int]:
    """Tokens and width of the feature of one guidance branch, and the tokens of text beside it, with those of a picture
    that is encoded with it."""
    family, options = family_class(architecture.transformer), architecture.config
    tokens, width = family.feature_shape(options, family.latent_size(options, request, architecture.compression))
    seen = architecture.picture_tokens
    if request.task is not None and request.task.appended:
        sizes = [(each.width, each.height) for each in request.pictures]
        seen += sum(family.seen_tokens(request.task.pipeline, *size) for size in sizes)
        if request.task.several is Several.STITCHED:
            sizes = [stitched_size(sizes)]
        tokens += sum(family.appended_tokens(*size, architecture.compression) for size in sizes)
    asked = None if architecture.pipeline in TOKENS_WITHIN else config.max_sequence_length
    return tokens, width, (asked or architecture.text_tokens) + seen


def architecture_of_pipe(pipe: Any) -> Architecture:
    """The architecture of a loaded pipeline."""
    transformer = getattr(pipe, "transformer", None) or pipe.transformer_2
    config = {name: value for name, value in transformer.config.items() if name[0] != "_"}
    vae = {"_class_name": pipe.vae.__class__.__name__, **pipe.vae.config}  # not its type: it may be a stand-in
    boundary = pipe.config.get("boundary_ratio")
    encoder = pipe.components.get("image_encoder")
    both = None not in (pipe.components.get("transformer"), pipe.components.get("transformer_2"))
    return Architecture(
        type(transformer).__name__,
        config,
        compression_of(vae),
        text_tokens_of(type(pipe).__name__),
        experts=Experts(boundary, pipe.scheduler.to_json_string()) if boundary and both else None,
        pipeline=type(pipe).__name__,
        expand_timesteps=bool(pipe.config.get("expand_timesteps")),
        distilled=bool(pipe.config.get("is_distilled")),
        picture_tokens=picture_tokens_of(
            config.get("image_condition_type"),
            config.get("pos_embed_seq_len"),
            encoder.config.to_dict() if config.get("image_dim") and encoder is not None else None,
        ),
    )


def _picture_bytes(request: GenerationRequest) -> int:
    files = [*request.pictures, *([request.mask] if request.mask else [])]
    frames = request.num_frames if request.task and request.task.several is Several.FRAMES else len(files)
    # Once resized, each is an array and three tensors of float32 on the way to the autoencoder.
    return sum(each.decoded_bytes for each in files) + frames * request.height * request.width * 3 * 4 * 4


def _full_steps(architecture: Architecture, request: GenerationRequest) -> tuple[int, ...]:
    num_steps = request.num_steps
    full = request.cache.full_steps(num_steps)
    takeover = architecture.experts.takeover(num_steps) if architecture.experts else None
    return full if takeover is None else tuple(sorted({*full, takeover}))


def _experts_of(folder: Path, index: Mapping[str, Any]) -> Experts | None:
    boundary = index.get("boundary_ratio")
    if not boundary or not all((folder / name).is_dir() for name in ("transformer", "transformer_2")):
        return None
    return Experts(boundary, json.dumps(read_configuration(folder / "scheduler" / "scheduler_config.json")))


def read_configuration(path: Path) -> dict[str, Any]:
    """A configuration file of a pipeline's folder.

    Raises:
        FileNotFoundError: it is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, must be as diffusers saved it")
    return json.loads(path.read_text(encoding="utf-8"))
