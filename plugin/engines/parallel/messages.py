"""What the processes of an engine tell each other."""

from __future__ import annotations

from dataclasses import dataclass

from plugin.engines.parallel.group import Place
from plugin.engines.parallel.weights import Shape, TakenApart


@dataclass(frozen=True)
class Start:
    """What a process is told first.

    Attributes:
        place: its own.
        meeting: the port of the store by which all get to know each other.
        memory: the file descriptor of the memory with the weights of all stacks; None where they are sent.
        stacks: the block stacks without their weights, by the component's name.
        threads: of torch, on a CPU.
    """

    place: Place
    meeting: int
    memory: int | None
    stacks: dict[str, TakenApart]
    threads: int


@dataclass(frozen=True)
class SharedCall:
    """One call, which its tensors follow.

    Attributes:
        stack: the component's name.
        shapes: of the arguments, by name, in the order in which they are sent.
        even: as `Share.run` has it.
    """

    stack: str
    shapes: dict[str, Shape]
    even: bool


@dataclass(frozen=True)
class CallEnd:
    """How a call ended in one process.

    Attributes:
        calls: how many it has run so far.
        error: what was raised; None where the features follow.
    """

    calls: int
    error: str | None = None
