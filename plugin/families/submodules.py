"""What takes the place of submodules in a copy of a transformer that runs without its blocks: results that can be kept
are not computed again, and at forecast steps nothing runs that only blocks read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from plugin.families.base import Inputs, Step, autocast_state
from plugin.families.sameness import is_same, state_of


class Submodules(Protocol):
    """What must be known of a transformer's submodules, by dotted names; see `DeclaredFamily`."""

    stepwise: ClassVar[tuple[str, str]]
    kept: ClassVar[tuple[str, ...]]
    timed: ClassVar[tuple[str, ...]]
    embeds: ClassVar[tuple[str, ...]]
    stream_embeds: ClassVar[tuple[str, ...]]
    refiners: ClassVar[tuple[str, ...]]

    def embedded_once(
        self, timestep: torch.Tensor, scheduled: float | None, compute: Callable[[], Any], *more: object
    ) -> Any:
        """What a timestep is embedded as, kept for all requests."""
        ...


class Present:
    """What the parts of one copy of a transformer know of the present call of its forward.

    Attributes:
        blocks_run: whether the blocks read what they are given.
        unchanged: whether all arguments but those of `stepwise` are what they were in the call before.
        number: of the call.
    """

    def __init__(self, submodules: Submodules) -> None:
        self._submodules = submodules
        self._others: object = None
        self._timestep: Any = None
        self._scheduled: float | None = None
        self.blocks_run = True
        self.unchanged = False
        self.number = 0

    def begin(self, inputs: Inputs, step: Step) -> None:
        """Looks at the arguments of a call."""
        self.blocks_run, self._scheduled = step.blocks_run, step.timestep
        self._timestep = inputs[self._submodules.stepwise[1]]
        self.number += 1
        if not (self._submodules.kept or self._submodules.timed):
            return
        latents = inputs[self._submodules.stepwise[0]]
        first = latents if isinstance(latents, torch.Tensor) else latents[0]
        others = {name: value for name, value in inputs.items() if name not in self._submodules.stepwise}
        others[""] = first.dtype, *autocast_state(first.device.type)
        self.unchanged = self._others is not None and is_same(self._others, others)
        if not self.unchanged:
            self._others = state_of(others)

    def timed(self, compute: Callable[[], Any], *more: object) -> Any:
        """What follows from the timestep and from values that can be compared."""
        if not isinstance(self._timestep, torch.Tensor) or self._timestep.ndim > 1:  # a timestep for each token
            return compute()
        return self._submodules.embedded_once(self._timestep.reshape(-1), self._scheduled, compute, *more)


class Part(nn.Module):
    """In place of one submodule, which a forward may call several times."""

    def __init__(self, part: nn.Module, present: Present) -> None:
        super().__init__()
        self.__dict__.update(_part=part, _present=present, _number=0, _calls=0, _kept={})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The submodule's own, whose dtype a forward may ask for."""
        return self._part.named_parameters(*args, **kwargs)

    def which_call(self) -> int:
        """Of this submodule in the present forward, from 0."""
        if self._number == self._present.number:
            self.__dict__["_calls"] += 1
        else:
            self.__dict__.update(_number=self._present.number, _calls=0)
        return self._calls

    def kept(self, call: int, args: Any, kwargs: Any) -> Any:
        """The result, kept while the forward's arguments that no step should change are the same."""
        if call not in self._kept or not self._present.unchanged:
            self._kept[call] = self._part(*args, **kwargs)
        return self._kept[call]


class Kept(Part):
    """A submodule whose results follow from arguments of the forward that no step changes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.kept(self.which_call(), args, kwargs)


class Timed(Part):
    """A submodule whose result follows from the timestep, the first time that a forward calls it: that is kept for all
    requests. Further calls, as for a guidance scale, follow from arguments that no step changes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if call := self.which_call():
            return self.kept(call, args, kwargs)
        values = (*args, *kwargs.values())
        given = tuple((each.dtype, each.shape) if isinstance(each, torch.Tensor) else each for each in values)
        return self._present.timed(lambda: self._part(*args, **kwargs), id(self._part), *given)


class Embed(Part):
    """A submodule whose results only blocks read: where none runs, its last ones are given again, and elsewhere while
    its arguments are the same."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call, given = self.which_call(), (args, kwargs)
        if call in self._kept:
            states, result = self._kept[call]
            if not self._present.blocks_run or is_same(states, (given, result)):
                return result
        result = self._part(*args, **kwargs)
        self._kept[call] = state_of((given, result)), result
        return result


class StreamEmbed(Part):
    """A submodule that embeds what is denoised: where no block reads the result, memory that nobody has written to
    stands for it.

    Of a convolution's result that memory has the channels last, as tokens have them: the forward then copies nothing.
    """

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._kept and not self._present.blocks_run:
            return self._kept["empty"]()
        result: torch.Tensor = self._part(*args, **kwargs)
        order = _TOKENS_FIRST.get(type(self._part), torch.contiguous_format)
        options = {"dtype": result.dtype, "device": result.device, "memory_format": order}
        self._kept["empty"] = partial(torch.empty, result.shape, **options)
        return result


_TOKENS_FIRST: dict[type[nn.Module], torch.memory_format] = {
    nn.Conv2d: torch.channels_last,
    nn.Conv3d: torch.channels_last_3d,
}


class Refiner(nn.Module):
    """In place of a list of submodules that refine what the blocks are given: where none runs, it is empty."""

    def __init__(self, parts: nn.Module | None, present: Present) -> None:
        super().__init__()
        self.__dict__.update(_parts=parts, _present=present)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._parts if self._present.blocks_run else ())
