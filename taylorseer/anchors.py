"""The anchors of one guidance branch: raw features of the last full steps, in memory that the cache owns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from taylorseer.learnt import LEARNT, RunWeights, fallback_weights
from taylorseer.predictors import forecast_weights
from taylorseer.weighted_sum import weighted_sum


class Anchors:
    """A ring of order+1 raw features with the steps they belong to.

    The buffer is allocated once, at the first write, in the dtype and on the device of the features, and is reused for
    the rest of the run.

    In place or copied: an engine may compute a full step's features in the memory that `reserve` returns. `write` then
    has nothing to copy. It recognises such features by their address and copies all others, because engines reuse their
    output buffers.

    Args:
        predictor: a name in `taylorseer.PREDICTORS`, or "learnt".
        order: O, 0 to 8; the ring has O+1 slots.
        first_step: anchors of earlier steps are not used by forecasts.
        positions: where each step lies along the coordinate that forecasts extrapolate along; None for step indices.
        learnt: the rows of predictor "learnt".
    """

    def __init__(
        self,
        predictor: str,
        order: int,
        first_step: int = 0,
        positions: Sequence[float] | None = None,
        learnt: RunWeights | None = None,
    ) -> None:
        self._learnt = learnt
        self._predictor = predictor
        self._order = order
        self._first_step = first_step
        self._positions = positions
        self._slots: torch.Tensor | None = None  # (order+1, *feature)
        self._slot_of_step: dict[int, int] = {}  # in the order of writing, oldest first

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the anchors that a forecast would use, oldest first."""
        return tuple(step for step in self._slot_of_step if step >= self._first_step)

    @property
    def nbytes(self) -> int:
        """Bytes that this ring holds: 0 before the first write, all slots from then on."""
        return 0 if self._slots is None else self._slots.nbytes

    def reserve(self, step: int, like: torch.Tensor) -> torch.Tensor:
        """The memory in which a full step's features will be kept, so that an engine can compute them in place.

        If the ring is full, the oldest anchor is given up. `write` for the same step makes the memory an anchor; until
        then forecasts do not read it.

        Args:
            step: the step index.
            like: a tensor of the features' shape, dtype and device; its content is not read.

        Returns:
            (*feature), a view of the ring.

        Raises:
            ValueError: shape, dtype or device differ from the first full step's.
        """
        slots, slot = self._reserve(step, like)
        return slots[slot]

    def write(self, step: int, features: torch.Tensor) -> None:
        """Keeps the features of a full step: as they are if they were computed in reserved memory, else as a copy.

        Args:
            step: the step index; a step written twice keeps the later features.
            features: (*feature), any floating dtype, the same shape, dtype and device at each call.

        Raises:
            ValueError: shape, dtype or device differ from the first full step's.
        """
        slots, slot = self._reserve(step, features)
        if slots[slot].data_ptr() != features.data_ptr():
            slots[slot].copy_(features.detach())  # with gradients, the ring would keep the graphs of all steps
        self._slot_of_step[step] = slot

    def forecast(self, step: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """The forecast features of a step, accumulated in float32 in one pass over the anchors.

        Args:
            step: the step index.
            out: an earlier forecast that is not needed any more; its memory is used again.

        Returns:
            (*feature) in the dtype of the features: `out`, or memory of its own.

        Raises:
            LookupError: no usable anchor has been written.
        """
        steps = self.steps
        if self._slots is None or not steps:
            raise LookupError(f"step {step} cannot be forecast: no full step came before it")
        weights = [0.0] * (self._order + 1)
        for anchor_step, weight in zip(steps, self._weigh(steps, step), strict=True):
            weights[self._slot_of_step[anchor_step]] = weight
        return weighted_sum(self._slots, weights, out)

    def _weigh(self, steps: tuple[int, ...], step: int) -> Sequence[float]:
        row = self._learnt.weights(steps, step) if self._learnt else None
        if row is not None:
            return row
        along = tuple(map(self._position, steps))
        return _weights(self._predictor, self._order, along, self._position(step))

    def _position(self, step: int) -> float:
        return step if self._positions is None else self._positions[step]

    def _reserve(self, step: int, like: torch.Tensor) -> tuple[torch.Tensor, int]:
        """All slots, and the index of the slot for a step; it is the same at each call until the step is written."""
        if self._slots is None:
            self._slots = torch.empty((self._order + 1, *like.shape), dtype=like.dtype, device=like.device)
        slots = self._slots
        if (like.shape, like.dtype, like.device) != (slots.shape[1:], slots.dtype, slots.device):
            raise ValueError(
                f"features are {tuple(like.shape)} {like.dtype} on {like.device}, "
                f"must be {tuple(slots.shape[1:])} {slots.dtype} on {slots.device} as at the first full step"
            )
        self._slot_of_step.pop(step, None)
        free = set(range(self._order + 1)).difference(self._slot_of_step.values())
        if not free:
            free = {self._slot_of_step.pop(next(iter(self._slot_of_step)))}
        return slots, min(free)

    def clear(self) -> None:
        """Drops the anchors and their memory."""
        self._slots = None
        self._slot_of_step.clear()


@lru_cache(maxsize=4096)
def _weights(predictor: str, order: int, anchor_steps: tuple[float, ...], step: float) -> tuple[float, ...]:
    """`forecast_weights`, cached: requests with the same schedule need the same weights."""
    if predictor == LEARNT:
        return tuple(fallback_weights(order, anchor_steps, step).tolist())
    return tuple(forecast_weights(predictor, order, anchor_steps, step).tolist())
