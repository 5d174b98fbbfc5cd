"""What a family of diffusion transformers must provide so that its forward can be served."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from plugin.request import GenerationRequest

Inputs = Mapping[str, Any]  # the arguments of one call of the transformer's forward, by name
BlockInputs = dict[str, torch.Tensor]  # the arguments of the block stack, by name
Constants = dict[str, Any]  # what stays the same over the steps of one branch of a request; the caller keeps it

_MAX_TIMESTEPS = 4096  # embeddings kept; about eighty different schedules of 50 steps


class Family(ABC):
    """The forward of one transformer as `finish(inputs, block_stack(**embed(inputs, c)), c)`, `c = condition(inputs)`.

    The parts together must do exactly what the module's own forward does, operation by operation: with the cache off,
    an image is bit for bit that of the plain pipeline. `condition` computes what both ends of the stack need, at every
    step. `embed` computes what only the blocks need; forecast steps skip it.

    Attributes:
        transformer: the shared diffusers module; only `release_blocks` changes it.
        name: the family's name.
        block_axes: for each argument of the block stack its dynamic axes, axis index -> name. "batch" is the request
            axis; an argument without it is shared by all requests of an engine call.
        output_axes: the same for the stack's output.
        random_arguments: those arguments of the block stack that are states, which `inputs_of_size` fills with random
            numbers; the others are masks, tables, timesteps or labels.
        batches_guidance: whether pipelines give the transformer both guidance branches as one batch.
    """

    name: str
    block_axes: ClassVar[Mapping[str, Mapping[int, str]]]
    output_axes: ClassVar[Mapping[int, str]]
    random_arguments: ClassVar[Collection[str]]
    batches_guidance: ClassVar[bool] = False

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self._timesteps: dict[tuple[object, ...], torch.Tensor] = {}  # (dtype, *timesteps) -> their embedding

    @classmethod
    def of(cls, transformer: nn.Module) -> Family:
        """The family of one transformer; a subclass where its configuration asks for another split."""
        return cls(transformer)

    # Cached, because every request reads them: on the module, each read walks all submodules.

    @cached_property
    def signature(self) -> inspect.Signature:
        """The signature of the transformer's forward."""
        return inspect.signature(self.transformer.forward)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The transformer's dtype."""
        return self.transformer.dtype  # type: ignore[return-value]

    @cached_property
    def device(self) -> torch.device:
        """The transformer's device."""
        return self.transformer.device  # type: ignore[return-value]

    def embedded_once(
        self,
        timestep: torch.Tensor,
        scheduled: float | None,
        compute: Callable[[], torch.Tensor],
        *dtypes: torch.dtype,
    ) -> torch.Tensor:
        """The embedding of a timestep, kept for all requests; computing it is half of a forecast step's kernels.

        Args:
            timestep: (B,).
            scheduled: the same timestep as the scheduler has it, on the host: on a GPU, reading `timestep` would wait
                for the device. If it is None there, the embedding is computed and not kept.
            compute: computes it from the timestep, these dtypes and this family's weights alone. Nothing may write to
                what it returns.
            dtypes: of other arguments of the forward that `compute` reads. Autocast is taken into account as well.
        """
        if timestep.device.type == "cpu":
            values = timestep.tolist()
        elif scheduled is None:
            return compute()
        else:
            values = [scheduled] * len(timestep)
        key = (timestep.dtype, dtypes, autocast_state(timestep.device.type), *values)
        embedded = self._timesteps.get(key)
        if embedded is None:
            if len(self._timesteps) >= _MAX_TIMESTEPS:
                self._timesteps.clear()
            embedded = self._timesteps[key] = compute()
        return embedded

    @abstractmethod
    def block_stack(self) -> nn.Module:
        """The blocks as one module. Its keyword arguments are named as in `block_axes`; it returns the feature."""

    def export_stack(self) -> nn.Module:
        """The block stack in a form that `torch.onnx.export` takes. A family overrides it if the blocks themselves
        cannot be exported: with the same arguments and weights, and the same feature within rounding."""
        return self.block_stack()

    @abstractmethod
    def example_inputs(self) -> BlockInputs:
        """Small arguments of the block stack for tracing; every dynamic axis is longer than 1."""

    def inputs_of_size(self, lengths: Mapping[str, int]) -> BlockInputs:
        """Arguments of the block stack to measure or warm up with: those of `random_arguments` are random, the others
        repeat the first entry of `example_inputs` along every dynamic axis.

        Args:
            lengths: the length of every dynamic axis by name, the batch included.
        """
        inputs = {}
        for name, example in self.example_inputs().items():
            axes = self.block_axes[name]
            shape = [lengths[axes[axis]] if axis in axes else length for axis, length in enumerate(example.shape)]
            if name in self.random_arguments:
                inputs[name] = torch.randn(shape, dtype=example.dtype, device=example.device)
                continue
            for axis in axes:
                example = example.narrow(axis, 0, 1)
            inputs[name] = example.expand(shape).clone()
        return inputs

    @abstractmethod
    def condition(self, inputs: Inputs, constants: Constants, scheduled: float | None = None) -> torch.Tensor:
        """The step's conditioning, which `embed` and `finish` need.

        Args:
            inputs: the arguments of the forward.
            constants: empty at the first call of a branch of a request; what does not change from step to step may be
                put into it.
            scheduled: the timestep as the scheduler has it, if it is known; see `embedded_once`.
        """

    @abstractmethod
    def embed(self, inputs: Inputs, condition: torch.Tensor, constants: Constants) -> BlockInputs:
        """The arguments of the block stack. Their memory may be that of earlier steps.

        Raises:
            ValueError: the call uses something that the family does not serve; the message names it.
        """

    @abstractmethod
    def finish(self, inputs: Inputs, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The forward's output, from the stack's output. Of the inputs, it reads only the shape of `hidden_states`."""

    def call_arguments(self, request: GenerationRequest, max_sequence_length: int | None) -> dict[str, Any]:
        """The arguments of the pipeline's call for a request, without those that are the same in every family.

        By default they are those of an image from a prompt, with classifier-free guidance.
        """
        arguments = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "guidance_scale": request.guidance_scale,
            "height": request.height,
            "width": request.width,
        }
        return arguments if max_sequence_length is None else arguments | {"max_sequence_length": max_sequence_length}

    @abstractmethod
    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Latents in the form that the autoencoder's decoder takes, (1, C, [1,] H, W): the first of a batch, the first
        frame of a video.

        Args:
            pipe: the request's pipeline.
            latents: what the transformer was given, with the noise removed.
            height, width: of the picture, in pixels.
        """

    @classmethod
    def guidance_branches(cls, request: GenerationRequest) -> int:
        """The number of guidance branches of a request, whether they share a call of the transformer or not."""
        return 2 if request.guidance_scale > 1 else 1

    @classmethod
    def latent_size(
        cls, config: Mapping[str, Any], request: GenerationRequest, compression: tuple[int, int]
    ) -> tuple[int, int, int]:
        """(frames, height, width) of the latents that the pipeline makes for a request.

        Args:
            config: the transformer's configuration.
            request: the request.
            compression: of the autoencoder, in time and in space.
        """
        time, space = compression
        return (request.num_frames - 1) // time + 1, request.height // space, request.width // space

    @classmethod
    @abstractmethod
    def feature_shape(cls, config: Mapping[str, Any], latent_size: tuple[int, int, int]) -> tuple[int, int]:
        """(tokens, width) of the cached feature of one guidance branch of one picture or video.

        Args:
            config: the transformer's configuration.
            latent_size: (frames, height, width) of the latents, as `latent_size` returns them.
        """

    @classmethod
    def appended_tokens(cls, width: int, height: int, compression: tuple[int, int]) -> int:
        """The tokens of a picture that the pipeline appends to those of the result, for tasks that do that.

        Args:
            width, height: of the picture, in pixels.
            compression: of the autoencoder, in time and in space.
        """
        raise NotImplementedError(f"{cls.name} appends no tokens")

    @classmethod
    def appended_range(cls, compression: tuple[int, int]) -> tuple[int, int, int]:
        """The fewest, the usual and the most tokens that `appended_tokens` returns, for engines of fixed sizes."""
        raise NotImplementedError(f"{cls.name} appends no tokens")

    @classmethod
    @abstractmethod
    def axis_sizes(cls, tokens: int, text_tokens: int, frames: int = 1) -> dict[str, int]:
        """The length of each dynamic axis of `block_axes` but the batch, by name.

        Args:
            tokens: of the picture or video.
            text_tokens: of the text that the pipeline gives the transformer, and of pictures that it encodes with it.
            frames: of the latents.
        """

    @classmethod
    @abstractmethod
    def module_features(cls, config: Mapping[str, Any], tokens: int, text_tokens: int) -> int:
        """Elements of one anchor if every module were cached as in TaylorSeer's own code (attention and feed-forward of
        each block), for one guidance branch with `tokens` image and `text_tokens` text tokens."""

    @abstractmethod
    def release_blocks(self) -> None:
        """Drops the blocks' weights from the shared module; called once an engine has its own copy of them."""


def once(constants: Constants, name: str, sources: Sequence[object], compute: Callable[[], Any]) -> Any:
    """What `compute` returns, kept in `constants` for as long as its sources stay the same.

    A tensor is the same while it is the same object and nothing has been written into it since: callbacks may replace
    the embeddings of a prompt, or edit them. Of what inference mode makes nobody knows that; then nothing is kept.

    Args:
        constants: of the branch.
        name: of the value.
        sources: all that it is computed from but the weights: tensors, shapes, dtypes, None.
        compute: computes it.
    """
    kept = constants.get(name)
    now = [_state_of(each) for each in sources]
    if kept is not None and all(map(_is_same, kept[0], now)):
        return kept[1]
    value = compute()
    constants[name] = now, value
    return value


def _state_of(source: object) -> tuple[object, int | None]:
    """A source, and how often it has been written into; None where that is not known."""
    if not isinstance(source, torch.Tensor):
        return source, 0
    return source, None if source.is_inference() else source._version


def _is_same(before: tuple[object, int | None], now: tuple[object, int | None]) -> bool:
    if isinstance(now[0], torch.Tensor):
        return before[0] is now[0] and now[1] is not None and before[1] == now[1]
    return type(before[0]) is type(now[0]) and before[0] == now[0]


def autocast_state(device_type: str) -> tuple[bool, torch.dtype | None]:
    """What of this thread's autocast decides what an operation returns: what was computed in one must not be used in
    another."""
    if not torch.amp.is_autocast_available(device_type):
        return False, None
    return torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)


def refuse_adapters(inputs: Inputs, name: str) -> None:
    """Checks that a call brings no adapter scales or other options of attention.

    Args:
        inputs: the arguments of the forward.
        name: of the argument that would hold them.

    Raises:
        ValueError: it is not empty; the message names its keys.
    """
    if inputs[name]:
        names = ", ".join(inputs[name])
        raise ValueError(f"{name} has {names}, must be empty: adapters are not served per request")


class EmbeddedGuidanceFamily(Family):
    """A family whose guidance scale is an input of the transformer.

    With a negative prompt, `guidance_scale` becomes that of classifier-free guidance between the two prompts, and the
    embedded guidance is 1 (none): otherwise the two would multiply.
    """

    def call_arguments(self, request: GenerationRequest, max_sequence_length: int | None) -> dict[str, Any]:
        arguments = super().call_arguments(request, max_sequence_length)
        if request.negative_prompt is None:
            return arguments
        return arguments | {"true_cfg_scale": request.guidance_scale, "guidance_scale": 1.0}

    @classmethod
    def guidance_branches(cls, request: GenerationRequest) -> int:
        return 1 if request.negative_prompt is None else super().guidance_branches(request)
