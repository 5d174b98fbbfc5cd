"""A diffusers transformer for one guidance branch of one request: its own forward, without its blocks.

The copy shares every weight. Only its tables of submodules are its own: each list of blocks is a stand-in there, and
submodules whose results can be kept are wrapped. So embed and finish are diffusers' code, operation by operation.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from plugin.families.base import Inputs, Step
from plugin.families.submodules import Embed, Kept, Part, Present, Refiner, StreamEmbed, Submodules, Timed

Arguments = dict[str, Any]  # of one call of a block, by name


@dataclass(frozen=True)
class Blocks:
    """One list of blocks in a transformer.

    Attributes:
        name: the list's attribute.
        returns: the arguments of the next block that a block's outputs become, in order.
        stream: the one of them that holds the tokens of the picture.
        joined: the list goes on with one stream, those of the list before concatenated: text, then picture.
        per_block: arguments that the forward makes for each block again; they must not depend on the blocks before.
        renamed: arguments of blocks of the first list -> what these blocks call them.
        modules: of a block, as TaylorSeer's own code would cache them: attention, feed-forward, attention to the text;
            1 where attention and feed-forward are one.
    """

    name: str
    returns: tuple[str, ...] = ("hidden_states",)
    stream: str = "hidden_states"
    joined: bool = False
    per_block: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    modules: int = 2

    @property
    def text(self) -> str:
        """The other stream."""
        return next(name for name in self.returns if name != self.stream)

    def returned(self, arguments: Arguments) -> Any:
        """What a block returns, taken from arguments of these names."""
        if len(self.returns) == 1:
            return arguments[self.returns[0]]
        return tuple(arguments[name] for name in self.returns)

    def taken(self, output: Any) -> Arguments:
        """What a block has returned, as arguments of the next one."""
        return dict(zip(self.returns, output if isinstance(output, tuple) else (output,), strict=True))


@dataclass(frozen=True)
class BlockList:
    """A list of blocks of one transformer, as far as stand-ins need it; known before the blocks are released.

    Attributes:
        spec: what is declared of it.
        parameters: names of the arguments of a block's forward, in order.
        required: those that have no default.
        length: how many blocks it has.
    """

    spec: Blocks
    parameters: tuple[str, ...]
    required: tuple[str, ...]
    length: int


def block_list(transformer: nn.Module, spec: Blocks) -> BlockList:
    """A list of blocks as it is now, with its blocks in place."""
    blocks: nn.ModuleList = getattr(transformer, spec.name)
    _, *parameters = inspect.signature(type(blocks[0]).forward).parameters.values()
    named = [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    return BlockList(
        spec,
        tuple(each.name for each in named),
        tuple(each.name for each in named if each.default is each.empty),
        len(blocks),
    )


Compute = Callable[[list[list[Arguments]]], torch.Tensor]  # the features, from the arguments of each call of each list


class StandingIn:
    """A copy of a transformer whose lists of blocks are stand-ins.

    Args:
        transformer: the shared module.
        lists: its lists of blocks, in the order of the forward.
        submodules: what else of it is replaced.
    """

    def __init__(self, transformer: nn.Module, lists: Sequence[BlockList], submodules: Submodules) -> None:
        self._lists = lists
        self._calls: list[list[Arguments]] = []
        self._compute: Compute | None = None
        self._present = Present(submodules)
        self._module = _shallow(transformer)
        for index, each in enumerate(lists):
            self._module._modules[each.spec.name] = _StandIn(self, index, each)
        for name in submodules.refiners:
            self._module._modules[name] = Refiner(self._module._modules[name], self._present)
        replacements: dict[type[Part], tuple[str, ...]] = {
            Kept: submodules.kept,
            Timed: submodules.timed,
            Embed: submodules.embeds,
            StreamEmbed: submodules.stream_embeds,
        }
        for replacement, names in replacements.items():
            for name in names:
                _wrap(self._module, name.split("."), partial(replacement, present=self._present))

    def __call__(self, inputs: Inputs, step: Step, compute: Compute) -> Any:
        """The transformer's forward.

        Args:
            inputs: its arguments.
            step: what is known of it.
            compute: gives the features, in place of the blocks.
        """
        self._present.begin(inputs, step)
        self._compute, self._calls = compute, [[] for _ in self._lists]
        try:
            return self._module.forward(**inputs)
        finally:
            self._calls, self._compute = [], None

    def called(self, index: int, arguments: Arguments) -> Any:
        """What a block of one list returns: its own streams, until the last block of the last list gives the features.
        Only the picture's stream is read after that."""
        calls, spec = self._calls[index], self._lists[index].spec
        calls.append(arguments)
        if index + 1 < len(self._lists) or len(calls) < calls_of(self._lists[index]):
            return spec.returned(arguments)
        assert self._compute is not None, "blocks are called inside a forward"
        features, own = self._compute(self._calls), arguments[spec.stream]
        if spec.joined:  # the features are those of the picture; the text before them is cut off by the forward
            features = torch.cat([own[:, : own.shape[1] - features.shape[1]], features], dim=1)
        return spec.returned({**arguments, spec.stream: features})


def calls_of(blocks: BlockList) -> int:
    """How often a forward calls the stand-in of a list."""
    return blocks.length if blocks.spec.per_block else 1


class _StandIn(nn.Module):
    """In place of a list of blocks, and of each block that the forward calls."""

    def __init__(self, standing_in: StandingIn, index: int, blocks: BlockList) -> None:
        super().__init__()
        self.__dict__.update(_standing_in=standing_in, _index=index, _blocks=blocks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self] * calls_of(self._blocks))

    def __len__(self) -> int:
        blocks: BlockList = self._blocks
        return blocks.length

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(self._blocks.parameters, args, strict=False)), **kwargs}
        return self._standing_in.called(self._index, arguments)


def _shallow(module: nn.Module) -> nn.Module:
    """The same module with a table of submodules of its own."""
    shallow = copy.copy(module)
    shallow.__dict__["_modules"] = dict(module._modules)
    return shallow


def _wrap(module: nn.Module, path: Sequence[str], wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Puts a wrapper around the submodule at a path; those on the way are copied, so that others do not see it."""
    name, *rest = path
    part = module._modules.get(name)
    if part is None:  # not every configuration has it
        return
    if not rest:
        module._modules[name] = wrap(part)
        return
    module._modules[name] = inner = _shallow(part)
    _wrap(inner, rest, wrap)
