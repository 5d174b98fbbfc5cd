"""How one engine call is spread over processes: how many share its tokens, how many its rows, and on which devices."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Parallelism:
    """The processes of one model's engine. The first one is the model's own.

    Attributes:
        sequence: how many processes share the tokens of one engine call, at least 1.
        cfg: how many groups of them there are, at least 1; rows of one call, or calls of different guidance branches,
            go to different groups.
        devices: the torch device of each process, as "cuda:0"; empty for those that `devices_from` counts.

    Raises:
        ValueError: a number or a device cannot be; the message names it.
    """

    sequence: int = 1
    cfg: int = 1
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.devices and len(self.devices) != self.processes:
            raise ValueError(
                f"devices is {', '.join(self.devices)}, must be {self.processes} devices: sequence_parallel "
                f"{self.sequence} x cfg_parallel {self.cfg}"
            )
        kinds = {device.split(":")[0] for device in self.devices}
        if len(kinds) > 1:
            raise ValueError(f"devices is {', '.join(self.devices)}, must be devices of one kind")
        twice = [device for device, count in Counter(self.devices).items() if count > 1 and device != "cpu"]
        if twice:
            raise ValueError(f"devices has {twice[0]} twice, must name each GPU once")

    @property
    def processes(self) -> int:
        """How many there are, the model's own included."""
        return self.sequence * self.cfg

    def devices_from(self, device: str) -> tuple[str, ...]:
        """The device of each process, where the pipeline is on `device`: the GPUs from that one on, or the CPU.

        Raises:
            ValueError: the first of `devices` is another one.
        """
        kind, _, index = device.partition(":")
        if kind == "cpu":
            counted = ("cpu",) * self.processes
        else:
            counted = tuple(f"{kind}:{int(index or 0) + rank}" for rank in range(self.processes))
        devices = self.devices or counted
        if devices[0] != counted[0]:
            raise ValueError(f"devices is {', '.join(devices)}, must begin with the pipeline's device, {counted[0]}")
        return devices


def exchanged_bytes(tokens: int, width: int, attentions: int, rows: int, element_bytes: int, processes: int) -> int:
    """What the processes that share the tokens of one call send each other for its attentions, all together.

    Queries, keys and values are exchanged for a share of the heads, and the result back: of each of the four, a process
    keeps one part in N and sends the others (DeepSpeed Ulysses, arXiv 2309.14509, section 3.2). Exact where tokens and
    heads divide.

    Args:
        tokens: that attend to each other, of picture and text.
        width: D.
        attentions: in the block stack.
        rows: of the call.
        element_bytes: of one number.
        processes: N.
    """
    return 4 * attentions * rows * tokens * width * element_bytes * (processes - 1) // processes


def handed_bytes(
    tokens: int, text_tokens: int, width: int, table_bytes: int, rows: int, element_bytes: int, processes: int
) -> int:
    """What the first process sends the others of one group at the beginning of a call, and they send back at its end.

    Args:
        tokens: of the picture.
        text_tokens: of the text, where it is shared too.
        width: D.
        table_bytes: of the tables that go with the tokens, of all of them.
        rows: of the call.
        element_bytes: of one number.
        processes: N.
    """
    states = (2 * tokens + text_tokens) * width * element_bytes * rows  # the picture's there and back
    return (states + table_bytes) * (processes - 1) // processes + (processes - 1) * width * element_bytes * rows
