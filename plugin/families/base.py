"""What a family of diffusion transformers must provide so that its forward can be served."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from plugin.families.token_split import TokenSplit
from plugin.request import GenerationRequest

Inputs = Mapping[str, Any]  # the arguments of one call of the transformer's forward, by name
BlockInputs = dict[str, torch.Tensor]  # the arguments of the block stack, by name
Constants = dict[str, Any]  # what stays the same over the steps of one branch of a request; the caller keeps it


@dataclass(frozen=True)
class Step:
    """What one call of a transformer must know of its step.

    Attributes:
        timestep: as the scheduler has it, known to the host; None where it is not known.
        blocks_run: whether the block stack runs; else its output is forecast.
        features: gives the output of the block stack, run on what its argument makes or forecast.
    """

    timestep: float | None
    blocks_run: bool
    features: Callable[[Callable[[], BlockInputs]], torch.Tensor]


# Of embeddings kept: about eighty different schedules of 50 steps, if they are small.
_MAX_TIMESTEPS = 4096
_MAX_TIMESTEP_BYTES = 256 * 2**20


class Family(ABC):
    """The forward of one transformer, with its block stack apart.

    It must do exactly what the module's own forward does, operation by operation: with the cache off, an image is bit
    for bit that of the plain pipeline.

    Attributes:
        transformer: the shared diffusers module; only `release_blocks` changes it.
        name: the family's name.
        block_axes: for each argument of the block stack its dynamic axes, axis index -> name. "batch" is the request
            axis; an argument without it is shared by all requests of an engine call.
        output_axes: the same for the stack's output.
        random_arguments: those arguments of the block stack that are states, which `inputs_of_size` fills with random
            numbers; the others are masks, tables, timesteps or labels.
        batches_guidance: whether pipelines give the transformer both guidance branches as one batch.
        completes: whether the engine needs `completed` arguments.
        text_varies: whether pipelines give the blocks as many tokens of text as the prompt has.
        text_mask: then the argument of the block stack that says which tokens of the text count, so that requests with
            texts of unequal lengths can share an engine call; None where there is none.
        text_first: whether the text stands before the picture where both are one stream.
    """

    name: str
    block_axes: ClassVar[Mapping[str, Mapping[int, str]]]
    output_axes: ClassVar[Mapping[int, str]]
    random_arguments: ClassVar[Collection[str]]
    batches_guidance: ClassVar[bool] = False
    text_varies: ClassVar[bool] = False
    text_mask: ClassVar[str | None] = None
    text_first: ClassVar[bool] = True

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.completes = False
        self._timesteps: dict[tuple[object, ...], torch.Tensor] = {}  # (dtype, *timesteps) -> their embedding
        self._timestep_bytes = 0  # about, as several threads count

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
        *more: object,
    ) -> torch.Tensor:
        """The embedding of a timestep, kept for all requests; computing it is half of a forecast step's kernels.

        Args:
            timestep: (B,).
            scheduled: the same timestep as the scheduler has it, on the host: on a GPU, reading `timestep` would wait
                for the device. If it is None there, the embedding is computed and not kept.
            compute: computes it from the timestep, `more` and this family's weights alone. Nothing may write to what it
                returns.
            more: what else it follows from, such as the dtypes of other arguments. Autocast is taken into account as
                well.
        """
        if timestep.device.type == "cpu":
            values = timestep.tolist()
        elif scheduled is None:
            return compute()
        else:
            values = [scheduled] * len(timestep)
        key = (timestep.dtype, more, autocast_state(timestep.device.type), *values)
        embedded = self._timesteps.get(key)
        if embedded is None:
            embedded = compute()
            if len(self._timesteps) >= _MAX_TIMESTEPS or self._timestep_bytes > _MAX_TIMESTEP_BYTES:
                self._timesteps.clear()
                self._timestep_bytes = 0
            self._timesteps[key] = embedded
            self._timestep_bytes += embedded.nbytes
        return embedded

    @abstractmethod
    def forward(self, inputs: Inputs, constants: Constants, step: Step) -> Any:
        """The forward of one call.

        Args:
            inputs: its arguments by name, defaults included.
            constants: empty at the first call of a branch of a request; what does not change from step to step may be
                put into it.
            step: gives the output of the block stack.

        Returns:
            What the transformer's own forward returns.

        Raises:
            ValueError: the call uses something that the family does not serve; the message names it.
        """

    def latents(self, inputs: Inputs) -> torch.Tensor:
        """What of the arguments is being denoised."""
        return inputs["hidden_states"]

    def shapes(self, inputs: Inputs) -> object:
        """Of the arguments that the feature's shape follows from; a call of other shapes cannot use earlier features.
        Pipelines change them within a run where they leave guidance out of its last steps."""
        return inputs["hidden_states"].shape

    def completed(self, blocks: BlockInputs) -> BlockInputs:
        """The arguments of the block stack with those that this call left out, as compiled engines need them."""
        return blocks

    @property
    def token_split(self) -> TokenSplit | None:
        """How several processes share the tokens of one call of the block stack; None where they cannot."""
        return None

    def bare(self) -> Family:
        """A copy without weights and without what is kept: as much as the block stack needs in another process."""
        transformer = copy.copy(self.transformer)
        transformer.__dict__ = {**self.transformer.__dict__, "_modules": {}, "_parameters": {}, "_buffers": {}}
        bare = copy.copy(self)
        bare.__dict__ = {"transformer": transformer, "completes": False, "_timesteps": {}, "_timestep_bytes": 0}
        return bare

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
    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
        """Latents in the form that the autoencoder's decoder takes, (1, C, [1,] H, W): the first of a batch, the first
        frame of a video; None where the decoder cannot make a single frame.

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
    def rows(cls, tokens: int, text_tokens: int) -> int:
        """Rows of the cached feature, where the picture or video has that many tokens and the text at most so many."""
        return tokens

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
    def seen_tokens(cls, pipeline: str, width: int, height: int) -> int:
        """The tokens that a text is longer by for a picture that the pipeline's text encoder sees with it.

        Args:
            pipeline: the name of the pipeline's class in diffusers.
            width, height: of the picture, in pixels.
        """
        return 0

    @classmethod
    def seen_range(cls, pipeline: str) -> tuple[int, int, int]:
        """The fewest, the usual and the most tokens that the pictures of a request add to its text."""
        return 0, 0, 0

    @abstractmethod
    def axis_sizes(
        self, tokens: int, text_tokens: int, latent_size: tuple[int, int, int] = (1, 1, 1)
    ) -> dict[str, int]:
        """The length of each dynamic axis of `block_axes` but the batch, by name.

        Args:
            tokens: of the picture or video.
            text_tokens: of the text that the pipeline gives the transformer, and of pictures that it encodes with it.
            latent_size: (frames, height, width) of the latents.
        """

    @classmethod
    @abstractmethod
    def module_features(cls, config: Mapping[str, Any], tokens: int, text_tokens: int) -> int:
        """Elements of one anchor if every module were cached as in TaylorSeer's own code (attention and feed-forward of
        each block), for one guidance branch with `tokens` image and `text_tokens` text tokens."""

    @abstractmethod
    def release_blocks(self) -> None:
        """Drops the blocks' weights from the shared module; called once an engine has its own copy of them."""


def autocast_state(device_type: str) -> tuple[bool, torch.dtype | None]:
    """What of this thread's autocast decides what an operation returns: what was computed in one must not be used in
    another."""
    if not torch.amp.is_autocast_available(device_type):
        return False, None
    return torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
