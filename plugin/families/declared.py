"""Families that are a declaration: which lists of blocks a transformer has, and what an example call of it looks like.

The transformer's own forward runs, with stand-ins for its lists of blocks (`plugin.families.standing_in`); so embed and
finish are diffusers' code. What engines need beyond that is read off the stand-ins' calls: the arguments of the block
stack are the tensors that the forward gives its blocks, and an axis is dynamic if its length differs between example
calls of other sizes. What plans need (tokens, width) is declared, because a plan loads no transformer.

Letters: B batch, I tokens of the picture or video, T tokens of text, D inner width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from plugin.families.base import BlockInputs, Constants, Inputs, Step
from plugin.families.examples import Example, NotExported, every_token
from plugin.families.leaves import leaves
from plugin.families.previews import unpacked, unscaled
from plugin.families.refusals import check_call
from plugin.families.rotation import Rotation
from plugin.families.stack import DeclaredStack
from plugin.families.standing_in import Arguments, Blocks, StandingIn, block_list
from plugin.families.traces import ExampleCalls
from plugin.request import GenerationRequest


class DeclaredFamily(ExampleCalls):
    """A family that is declared by its class's attributes.

    Attributes:
        lists: the transformer's lists of blocks, in the order of its forward.
        stepwise: the forward's arguments that change at every step: what is denoised, and the timestep.
        kept: dotted names of submodules whose results follow from its other arguments: embedders of pooled text and of
            guidance.
        timed: those whose results follow from the timestep; they are kept for all requests. If the forward calls one of
            them again, the further results follow from its other arguments.
        embeds: those whose results only blocks read; at forecast steps they do not run.
        stream_embeds: submodules that embed what is denoised, and whose results only blocks read; at forecast steps
            they do not run, and their results are left empty.
        refiners: lists of submodules whose results only blocks read; at forecast steps they do not run either.
        patch: frames, height and width of a token, in latents; None where the configuration says it.
        video: whether the latents have frames.
        joint: whether the blocks' stream holds the text's tokens beside the picture's, so that anchors hold them too.
        layers: the configuration's entries that count the blocks, one for each list.
        batch_axis: arguments of blocks whose batch is not their first axis.
        attention_options: what pipelines put into the attention's keyword arguments.
        torch_only: why the block stack cannot be exported; None where it can.
        guidance: the argument of the pipeline's call that the guidance scale becomes.
        unguided: the guidance scale up to which a pipeline computes one branch alone.
        guider: whether the pipeline has one, which computes one branch alone at a scale of 1 and at no other.
        no_negative_prompt: given where a request has none, to pipelines that leave guidance out without one.
    """

    lists: ClassVar[tuple[Blocks, ...]]
    stepwise: ClassVar[tuple[str, str]] = ("hidden_states", "timestep")
    kept: ClassVar[tuple[str, ...]] = ()
    timed: ClassVar[tuple[str, ...]] = ()
    embeds: ClassVar[tuple[str, ...]] = ()
    stream_embeds: ClassVar[tuple[str, ...]] = ()
    refiners: ClassVar[tuple[str, ...]] = ()
    patch: ClassVar[tuple[int, int, int] | None] = None
    joint: ClassVar[bool] = False
    layers: ClassVar[tuple[str, ...]] = ("num_layers",)
    batch_axis: ClassVar[Mapping[str, int]] = {}
    attention_options: ClassVar[tuple[str, ...]] = ()
    torch_only: ClassVar[str | None] = None
    guidance: ClassVar[str] = "guidance_scale"
    unguided: ClassVar[float] = 1.0
    guider: ClassVar[bool] = False
    no_negative_prompt: ClassVar[str | None] = None

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__(transformer)
        self._lists = [block_list(transformer, each) for each in self.lists]

    # A request

    def forward(self, inputs: Inputs, constants: Constants, step: Step) -> Any:
        self.check(inputs)
        if "standing_in" not in constants:
            constants["standing_in"] = StandingIn(self.transformer, self._lists, self)
        return constants["standing_in"](
            inputs,
            step,
            lambda calls: self.as_called(self.lists[-1].stream, step.features(lambda: self._flattened(calls))),
        )

    def check(self, inputs: Inputs) -> None:
        """Checks that a call changes nothing in the blocks.

        Raises:
            ValueError: it does; the message names the argument.
        """
        check_call(inputs, self.attention_options)

    def shapes(self, inputs: Inputs) -> object:
        return [
            value.shape if isinstance(value, torch.Tensor) else [each.shape for each in value]
            for value in inputs.values()
            if isinstance(value, torch.Tensor) or (isinstance(value, list) and isinstance(value[0], torch.Tensor))
        ]

    def completed(self, blocks: BlockInputs) -> BlockInputs:
        """Left out are masks where every token counts. True, or 0 in a mask that is added, says the same.

        Raises:
            ValueError: the call gives the blocks what the example call does not.
        """
        examples = self.example_inputs()
        if more := blocks.keys() - examples.keys():
            raise ValueError(f"{', '.join(sorted(more))} of the blocks is given, must be left out with this engine")
        if len(blocks) == len(examples):
            return blocks
        lengths = {
            name: blocks[argument].shape[axis]
            for argument, axes in self.block_axes.items()
            for axis, name in axes.items()
            if argument in blocks
        }
        return {
            argument: blocks[argument]
            if argument in blocks
            else every_token(example, self.block_axes[argument], lengths)
            for argument, example in examples.items()
        }

    # The block stack

    def block_stack(self) -> nn.Module:
        return DeclaredStack(self.transformer, self._lists, self)

    def export_stack(self) -> nn.Module:
        """With complex numbers as pairs of real ones. Raises NotExported where no form can be exported."""
        if self.torch_only is not None:
            name, reason = type(self.transformer).__name__, self.torch_only
            raise NotExported(f"the blocks of {name} cannot be exported ({reason}): set engine to torch")
        return DeclaredStack(self.transformer, self._lists, self, Rotation)

    def run_blocks(self, blocks: Sequence[nn.Module], spec: Blocks, arguments: Arguments) -> Arguments:
        """Runs one list of blocks as the forward does.

        Args:
            blocks: the list.
            spec: what is declared of it.
            arguments: of the first block.

        Returns:
            The arguments that a further block would get.
        """
        for index, block in enumerate(blocks):
            own = {name: arguments[name][:, index] for name in spec.per_block}
            arguments = {**arguments, **spec.taken(block(**{**arguments, **own}))}
        return arguments

    def rows_first(self, argument: str, tensor: torch.Tensor) -> torch.Tensor:
        """An argument of a block as engines take it: the batch, if it has one, is its first axis."""
        return tensor.movedim(self.batch_axis[argument], 0) if argument in self.batch_axis else tensor

    def as_called(self, argument: str, tensor: torch.Tensor) -> torch.Tensor:
        """The inverse of `rows_first`."""
        return tensor.movedim(0, self.batch_axis[argument]) if argument in self.batch_axis else tensor

    def given(self, name: str, arguments: Arguments) -> Any:
        """An argument of the first block of a list as the block stack gets it."""
        return arguments[name]

    def _flattened(self, calls: Sequence[Sequence[Arguments]]) -> BlockInputs:
        """The tensors among the arguments of all lists' blocks; see `nested` for their names."""
        inputs: BlockInputs = {}
        first = self._lists[0].spec
        for index, (blocks, own) in enumerate(zip(self._lists, calls, strict=True)):
            spec, arguments = blocks.spec, dict(own[0])
            in_first = {name: calls[0][0].get(original) for original, name in spec.renamed}
            for name in spec.per_block:
                arguments[name] = torch.stack([each[name] for each in own], dim=1)
            for name, value in arguments.items():
                same = value is calls[0][0].get(name, in_first.get(name))
                if index and (same or name in spec.returns or name in first.returns):
                    continue  # it is an argument of the first list, or comes from the list before
                known = "hidden_states" if not index and name == first.stream else name
                given = self.given(name, arguments)
                for leaf, tensor in leaves(known if not index else f"{index}.{name}", given, self.device):
                    inputs[leaf] = self.rows_first(name, tensor)
        return inputs

    # Sizes

    def tokens(self, size: Example) -> int:
        tokens, _ = self.feature_shape(self.transformer.config, size.latent_size)
        return tokens

    @classmethod
    def feature_shape(cls, config: Mapping[str, Any], latent_size: tuple[int, int, int]) -> tuple[int, int]:
        tokens = math.prod(length // side for length, side in zip(latent_size, cls.patch_of(config), strict=True))
        return tokens, cls.width(config)

    @classmethod
    def patch_of(cls, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """Frames, height and width of a token, in latents."""
        if cls.patch is not None:
            return cls.patch
        sides = config["patch_size"]
        if isinstance(sides, int):
            sides = (sides, sides)
        frames, height, width = sides if len(sides) == 3 else (config.get("patch_size_t") or 1, *sides)
        return frames, height, width

    @classmethod
    def width(cls, config: Mapping[str, Any]) -> int:
        """D."""
        return config["num_attention_heads"] * config["attention_head_dim"]

    @classmethod
    def module_features(cls, config: Mapping[str, Any], tokens: int, text_tokens: int) -> int:
        rows = tokens + text_tokens if len(cls.lists[0].returns) > 1 or cls.joint else tokens
        modules = sum(each.modules * config[name] for each, name in zip(cls.lists, cls.layers, strict=True))
        return modules * rows * cls.width(config)

    @classmethod
    def text_rows(cls, text_tokens: int) -> int:
        """How many rows of a stream that many tokens of text are."""
        return text_tokens

    @classmethod
    def rows(cls, tokens: int, text_tokens: int) -> int:
        return tokens + cls.text_rows(text_tokens) if cls.joint else tokens

    # Pipelines

    def call_arguments(self, request: GenerationRequest, max_sequence_length: int | None) -> dict[str, Any]:
        arguments = super().call_arguments(request, max_sequence_length)
        arguments[self.guidance] = arguments.pop("guidance_scale")
        if self.guidance_branches(request) > 1 and request.negative_prompt is None:
            arguments["negative_prompt"] = self.no_negative_prompt
        return arguments | ({"num_frames": request.num_frames} if self.video else {})

    @classmethod
    def guidance_branches(cls, request: GenerationRequest) -> int:
        scale = request.guidance_scale
        if request.task is not None and not request.task.guided:
            return 1
        return 2 if (not math.isclose(scale, 1.0) if cls.guider else scale > cls.unguided) else 1

    def preview_latents(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
        """Latents that the autoencoder scales and shifts, or of which its configuration holds mean and deviation;
        packed ones are unpacked by the pipeline."""
        own = latents[:1]
        return unscaled(pipe.vae.config, unpacked(pipe, own, height, width) if own.ndim == 3 else own)

    def release_blocks(self) -> None:
        for each in self.lists:
            setattr(self.transformer, each.name, nn.ModuleList())
