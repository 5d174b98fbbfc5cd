"""How the tokens of one call of a block stack are shared by several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

_KINDS = ("image_tokens", "text_tokens", "all_tokens")
Cut = dict[str, torch.Tensor]  # of the block stack, by name


@dataclass(frozen=True)
class TokenSplit:
    """What the attention of a family's blocks does with tokens, as far as processes that share them must know.

    Every process has a run of the picture's tokens and a run of the text's. Attention sees those of all: the order of
    tokens changes nothing there, as long as masks have the same.

    Attributes:
        text: whether the text is among the tokens that attend to each other; else every process has all of it.
        picture_first: whether the picture stands before the text there.
        whole: masks over the tokens of all processes.
        text_mask: a mask over the text's tokens, with which they are padded to a multiple of the processes.
    """

    text: bool = True
    picture_first: bool = False
    whole: tuple[str, ...] = ()
    text_mask: str | None = None


class SplitCall:
    """One call's arguments, cut for N processes.

    The first processes have ceil(tokens / N) tokens of the picture and of the text each, the last ones what is left.

    Args:
        split: of the family.
        axes: the family's `block_axes`.
        inputs: the arguments.
        processes: N, at least 1.

    Attributes:
        even: whether every process has as many tokens.
        tokens: of the picture.
    """

    def __init__(self, split: TokenSplit, axes: Mapping[str, Mapping[int, str]], inputs: Cut, processes: int) -> None:
        self._split, self._axes, self._processes = split, axes, processes
        if split.text_mask is not None:
            inputs = _with_text_padded(inputs, axes, split.text_mask, processes)
        self._inputs = inputs
        self.tokens = inputs["hidden_states"].shape[1]
        text = inputs["encoder_hidden_states"].shape[1] if split.text and "encoder_hidden_states" in inputs else 0
        self._lengths = {"image_tokens": self.tokens, "text_tokens": text}
        self.even = not any(length % processes for length in self._lengths.values())

    def part(self, rank: int) -> Cut:
        """The arguments of one process."""
        if self._processes == 1:
            return self._inputs
        return {name: self._cut(name, tensor, rank) for name, tensor in self._inputs.items()}

    @property
    def masks_fit(self) -> bool:
        """Whether diffusers joins the masks of the processes as it joins their tokens: it pads all to the longest one,
        and cuts what is too long off the end (attention_dispatch.py of 0.42.0)."""
        counts = [self._joint_tokens_of(rank) for rank in range(self._processes)]
        return self._split.text_mask not in self._inputs or len({*counts[:-1], max(counts)}) == 1

    def tokens_of(self, rank: int) -> int:
        """How many tokens of the picture one process has."""
        begin, end = _run(self.tokens, rank, self._processes)
        return end - begin

    def _joint_tokens_of(self, rank: int) -> int:
        return sum(end - begin for begin, end in (_run(each, rank, self._processes) for each in self._lengths.values()))

    def _cut(self, name: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
        axis, kind = next(((axis, kind) for axis, kind in self._axes[name].items() if kind in _KINDS), (0, ""))
        segments = self._segments(kind)
        if not segments:
            return tensor
        ranks = range(self._processes) if name in self._split.whole else (rank,)
        runs = [run for each in ranks for run in self._runs(segments, each)]
        return torch.cat([tensor.narrow(axis, begin, end - begin) for begin, end in runs], dim=axis)

    def _segments(self, kind: str) -> Sequence[int]:
        """The lengths of the streams that stand one after the other on an axis; none where it is not cut."""
        picture, text = self._lengths["image_tokens"], self._lengths["text_tokens"]
        if kind == "all_tokens":
            return (picture, text) if self._split.picture_first else (text, picture)
        return (self._lengths[kind],) if kind == "image_tokens" or (kind and self._split.text) else ()

    def _runs(self, segments: Sequence[int], rank: int) -> list[tuple[int, int]]:
        """(begin, end) of what one process has of each stream, counted along the axis."""
        runs, offset = [], 0
        for length in segments:
            begin, end = _run(length, rank, self._processes)
            runs.append((offset + begin, offset + end))
            offset += length
        return runs


def _run(length: int, rank: int, processes: int) -> tuple[int, int]:
    """(begin, end) of one process's tokens of a stream."""
    most = -(-length // processes)
    return min(rank * most, length), min((rank + 1) * most, length)


def _with_text_padded(inputs: Cut, axes: Mapping[str, Mapping[int, str]], mask: str, processes: int) -> Cut:
    """The arguments with the text padded by tokens that do not count."""
    rows, tokens = inputs["encoder_hidden_states"].shape[:2]
    more = -tokens % processes
    if not more:
        return inputs
    counted = inputs["hidden_states"].new_ones(rows, tokens, dtype=torch.bool)
    padded = {}
    for name, tensor in {mask: counted, **inputs}.items():
        axis = next((axis for axis, kind in axes[name].items() if kind == "text_tokens"), None)
        padded[name] = tensor if axis is None else pad(tensor, (0, 0) * (tensor.ndim - 1 - axis) + (0, more))
    return padded
