"""The block stack of one engine call shared by several processes, each with a device of its own.

Tokens are shared by Ulysses attention (arXiv 2309.14509), which is diffusers' context parallelism: each process has a
run of the tokens, and for each attention they exchange them for a share of the heads, and back. Rows are shared by
groups of such processes. Only full steps come here: the anchors, the scheduler and the forecasts are the model's own
process's alone, which is the first of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from plugin.engines.base import EngineError, UnsupportedShape
from plugin.engines.packing import is_shared
from plugin.engines.parallel.exchange import receive, send
from plugin.engines.parallel.group import Place, Share, can_share, heads_of, join, open_meeting
from plugin.engines.parallel.messages import SharedCall, Start
from plugin.engines.parallel.processes import SILENCE_S, OtherProcesses
from plugin.engines.parallel.weights import Shape, TakenApart, mapped, put_together, sent, shared_memory, take_apart
from plugin.families.base import BlockInputs, Family
from plugin.families.token_split import SplitCall, TokenSplit
from plugin.parallelism import Parallelism

T = TypeVar("T")


@dataclass(frozen=True)
class _Part:
    """The rows of a call that one group computes.

    Attributes:
        ranks: of the group.
        split: its arguments, cut for them.
        features: (rows, tokens, D), where the result is to be.
        even: as `Share.run` has it.
    """

    ranks: Sequence[int]
    split: SplitCall
    features: torch.Tensor
    even: bool

    def places(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Each rank, and where its tokens' features are to be."""
        begin = 0
        for number, rank in enumerate(self.ranks):
            tokens = self.split.tokens_of(number)
            yield rank, self.features.narrow(1, begin, tokens)
            begin += tokens


class Team:
    """The processes that share the calls of a model's block stacks.

    Args:
        families: of its transformers, by the component's name, with their blocks in place. Their weights move into
            memory that the processes share, where they are on a CPU.
        parallelism: how many there are, and where.
        threads: of torch in each further process, on a CPU; None for an equal share of the cores.
        silence_s: how long a process may give no sign of life.

    Raises:
        EngineError: a process cannot be started, or the blocks cannot be shared; the message says why.
    """

    def __init__(
        self,
        families: Mapping[str, Family],
        parallelism: Parallelism,
        threads: int | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        first = next(iter(families.values()))
        self.place = Place(0, parallelism.devices_from(str(first.device)), parallelism.sequence)
        _check(families, self.place)
        self._threads = threads or max(1, len(os.sched_getaffinity(0)) // len(self.place.devices))
        self._heads_divide = {
            name: (heads_of(family.block_stack()) or 1) % parallelism.sequence == 0 for name, family in families.items()
        }
        self._changed = threading.Condition()
        self._in_order = threading.Lock()
        self._free = set(range(self.place.groups))
        self._calls = 0
        # Kept as long as processes may still get to know each other: NCCL's do when they first exchange something.
        self._meeting: TCPStore | None = open_meeting(len(self.place.devices))
        memory: int | None = None
        taken, tensors = _taken_apart(families)
        if self.place.device.type == "cpu":
            memory, tensors = _into_shared_memory(tensors)
        self.processes = OtherProcesses(self.place.devices[1:], [] if memory is None else [memory], silence_s)
        try:
            self._share = self._start(taken, tensors, memory)
        except BaseException:
            self.close()
            raise
        finally:
            if memory is not None:
                os.close(memory)  # what is mapped stays

    @property
    def calls(self) -> tuple[int, ...]:
        """How many calls each process has run, by rank; each counts for itself."""
        return self._calls, *self.processes.calls.values()

    def run(self, name: str, family: Family, inputs: BlockInputs, out: torch.Tensor | None) -> torch.Tensor:
        """The features of one call; see `Engine.run`."""
        hidden_states = inputs["hidden_states"]
        features = torch.empty_like(hidden_states) if out is None else out
        with self._groups(min(len(hidden_states), self.place.groups)) as groups:
            parts = list(self._parts(name, family, inputs, features, groups))
            self._run(name, parts)
        return features

    def close(self) -> None:
        """Ends all further processes; may be called again, as every engine of a model does."""
        self.processes.close()
        if dist.is_initialized() and self._meeting is not None:
            dist.destroy_process_group()
        self._meeting = None

    def _start(
        self,
        taken: Mapping[str, TakenApart],
        tensors: Mapping[str, Sequence[torch.Tensor]],
        memory: int | None,
    ) -> Share:
        place, meeting = self.place, self._meeting
        assert meeting is not None
        starts = {
            rank: Start(Place(rank, place.devices, place.sequence), meeting.port, memory, dict(taken), self._threads)
            for rank in range(1, len(place.devices))
        }
        self.processes.start(starts)
        config = join(place, meeting)
        if memory is None:
            sent([tensor for each in tensors.values() for tensor in each])
        self.processes.wait_for_all()
        stacks = {name: put_together(each.structure, tensors[name]) for name, each in taken.items()}
        return Share(stacks, config)

    def _parts(
        self, name: str, family: Family, inputs: BlockInputs, features: torch.Tensor, groups: Sequence[int]
    ) -> Iterator[_Part]:
        sequence = self.place.sequence
        rows = [len(each) for each in features.tensor_split(len(groups))]
        begin = 0
        for group, count in zip(groups, rows, strict=True):
            own = {
                argument: tensor if is_shared(family, argument) else tensor.narrow(0, begin, count)
                for argument, tensor in inputs.items()
            }
            split = SplitCall(family.token_split or TokenSplit(), family.block_axes, own, sequence)
            if not split.masks_fit:
                raise UnsupportedShape(
                    f"the picture has {split.tokens} tokens, must have at least {sequence**2} for {sequence} processes"
                )
            ranks = range(group * sequence, (group + 1) * sequence)
            even = split.even and self._heads_divide[name]
            yield _Part(ranks, split, features.narrow(0, begin, count), even)
            begin += count

    def _run(self, name: str, parts: Sequence[_Part]) -> None:
        """Has every process compute its part, this one too, and gathers the features."""
        for part in parts:
            self._begin(name, part)
        errors: dict[int, BaseException] = {}
        if 0 in parts[0].ranks:
            try:
                self._compute(name, parts[0])
            except BaseException as error:
                self.processes.raised(error)  # the others get some seconds to end too
                errors[0] = error
        for rank in (rank for part in parts for rank in part.ranks if rank):
            if (text := self.processes.outcome(rank).error) is not None:
                errors[rank] = EngineError(f"process {rank} of the engine: {text}")
        for part in parts:
            self._gather(part, errors)
        self.processes.settled(rank for part in parts for rank in part.ranks)
        if errors:
            self.processes.check()  # the exchange was broken off
            raise errors[min(errors)]

    def _begin(self, name: str, part: _Part) -> None:
        """Gives the other processes their parts."""
        for number, rank in enumerate(part.ranks):
            if rank:
                inputs = part.split.part(number)
                shapes = {argument: Shape.of(tensor) for argument, tensor in inputs.items()}
                self.processes.tell(rank, SharedCall(name, shapes, part.even))
                for tensor in inputs.values():
                    self._exchanging(rank, partial(send, tensor, rank))

    def _compute(self, name: str, part: _Part) -> None:
        """Computes this process's part."""
        self._calls += 1
        own = self._share.run(name, part.split.part(0), part.even)
        next(part.places())[1].copy_(own)

    def _gather(self, part: _Part, errors: Mapping[int, BaseException]) -> None:
        """Receives the features of a group. Where only some of its processes have them, the exchange between them has
        been left half done, and no further one can be trusted."""
        wrong = [rank for rank in part.ranks if rank in errors]
        if wrong and len(wrong) < len(part.ranks):
            self.processes.fail(f"a call ended with an error in process {wrong[0]} alone: {errors[wrong[0]]}")
            self.processes.check()
        for rank, place in part.places():
            if rank and not wrong:
                place.copy_(self._exchanging(rank, partial(receive, Shape.of(place), rank, place.device)))

    def _exchanging(self, rank: int, exchange: Callable[[], T]) -> T:
        """Sends to a process or receives from it; where that fails, it is lost."""
        try:
            return exchange()
        except RuntimeError as error:
            raise self.processes.lost(rank) from error

    @contextmanager
    def _groups(self, count: int) -> Iterator[Sequence[int]]:
        """Waits for groups that are free, in order of arrival: else calls of one could overtake a call of several."""
        with self._in_order, self._changed:
            while len(self._free) < count:
                self._changed.wait()
            self.processes.check()
            groups = sorted(self._free)[:count]
            self._free.difference_update(groups)
        try:
            yield groups
        finally:
            with self._changed:
                self._free.update(groups)
                self._changed.notify_all()


class ParallelEngine:
    """One transformer's block stack, shared by a team.

    Args:
        team: runs it.
        name: the component's name.
        family: its family.

    Attributes:
        team: runs it.
    """

    name = "parallel"

    def __init__(self, team: Team, component: str, family: Family) -> None:
        self.team = team
        self._component = component
        self._family = family

    @property
    def failure(self) -> str | None:
        """Why the engine cannot be used any more; None while it can."""
        return self.team.processes.failure

    @property
    def calls_at_once(self) -> int:
        """How many calls of one row can run at once."""
        return self.team.place.groups

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """See `Engine.run`; the result is `out` or memory of its own.

        Raises:
            ProcessesLost: a process is lost, before the call or in it.
            UnsupportedShape: the picture has too few tokens for the processes.
        """
        return self.team.run(self._component, self._family, inputs, out)

    def close(self) -> None:
        """Ends the team."""
        self.team.close()


def load_engines(
    families: Mapping[str, Family], threads: int | None, parallelism: Parallelism
) -> dict[str, ParallelEngine]:
    """The engines of a model's transformers, which one team runs; see `Team`."""
    team = Team(families, parallelism, threads)
    return {name: ParallelEngine(team, name, family) for name, family in families.items()}


def _check(families: Mapping[str, Family], place: Place) -> None:
    if place.devices[0] != "cpu" and (present := torch.cuda.device_count()) < len(place.devices):
        raise EngineError(
            f"devices is {', '.join(place.devices)}, and this machine has {present} GPUs: set sequence_parallel and "
            "cfg_parallel lower"
        )
    if dist.is_initialized():
        raise EngineError(
            "a process can have one parallel engine or other group of torch.distributed, and this one has it"
        )
    for family in families.values():
        if place.sequence == 1:
            continue
        transformer, stack = type(family.transformer).__name__, family.block_stack()
        heads = heads_of(stack)
        if family.token_split is None or heads is None:
            raise EngineError(
                f"sequence_parallel is {place.sequence}, must be 1: processes cannot share the tokens of {transformer}"
            )
        if not can_share(heads, place.sequence):
            numbers = ", ".join(str(each) for each in range(1, heads + 1) if can_share(heads, each))
            raise EngineError(
                f"sequence_parallel is {place.sequence}, must be one of {numbers}: {transformer} has {heads} heads"
            )


def _taken_apart(families: Mapping[str, Family]) -> tuple[dict[str, TakenApart], dict[str, list[torch.Tensor]]]:
    taken, tensors = {}, {}
    for name, family in families.items():
        taken[name], tensors[name] = take_apart(family)
    return taken, tensors


def _into_shared_memory(tensors: Mapping[str, Sequence[torch.Tensor]]) -> tuple[int, dict[str, list[torch.Tensor]]]:
    """Moves weights into memory that all processes map, each tensor in turn, so that they are there once."""
    shapes = [Shape.of(tensor) for each in tensors.values() for tensor in each]
    memory = shared_memory(shapes)
    places = iter(mapped(memory, shapes))
    moved: dict[str, list[torch.Tensor]] = {}
    for name, each in tensors.items():
        moved[name] = []
        for tensor in each:
            place = next(places).copy_(tensor.detach())
            tensor.data = place
            moved[name].append(place)
    return memory, moved
