"""What the scheduler is given at a forecast step, as a function of the step's weights.

Guidance lies in the pipeline, between the transformer's calls and the scheduler's step. It is a weighted sum of what
the guidance branches return, or nearly one, so its coefficients follow from one step by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plugin.denoising.schedulers import SolverStep
from taylorseer.predictors import Weights


@dataclass(frozen=True)
class Forecast:
    """One call of the transformer at a forecast step.

    Attributes:
        place: which of the step's calls it is, from 0.
        anchors: (rows, *feature) each, the newest anchors, oldest first.
        respond: what the transformer returns for features (rows, *feature).
    """

    place: int
    anchors: tuple[torch.Tensor, ...]
    respond: Callable[[torch.Tensor], Any]

    def output(self, weights: Weights | torch.Tensor) -> Any:
        """What the transformer returns for the sum of the anchors with these weights."""
        return self.respond(weighted(self.anchors, weights))


class StepProblem:
    """The weights of one forecast step as a least-squares problem: `output(weights)` is to be `target`.

    Args:
        calls: the forecasts among the step's calls.
        outputs: what all calls of the step have returned.
        weights: with which they did.
        solver: the scheduler's step with the output that this led to.
        next_latents: (B, *latent) of the uncached run after this step.

    Attributes:
        calls: as given.
        weights: as given.
        target: (B, *latent) float32: given this, the scheduler comes to the latents of the uncached run.

    Raises:
        ValueError: the transformer's output has another form than what the scheduler is given.
    """

    def __init__(
        self,
        calls: Sequence[Forecast],
        outputs: Sequence[Any],
        weights: Weights,
        solver: SolverStep,
        next_latents: torch.Tensor,
    ) -> None:
        self.calls = calls
        self.weights = weights
        self._outputs = outputs
        self._given = solver.output
        self._size = len(next_latents)
        self._pieces = _pieces(outputs, self._given, self._size)
        given = self._given[: self._size].float()
        self._factors = _coefficients(given, self._pieces)
        latents = solver.tried(self._given).float()
        slope = _slope(self._given.float(), solver.tried(2 * self._given).float() - latents)
        self.target = given + (next_latents.float() - latents[: self._size]) / slope if slope else given

    def outputs(self, weights: Weights) -> list[Any]:
        """What the step's calls return with other weights."""
        changed = list(self._outputs)
        for call in self.calls:
            changed[call.place] = call.output(weights)
        return changed

    def output(self, weights: Weights) -> torch.Tensor:
        """(B, *latent) float32: what the scheduler is given with these weights."""
        return self._guided(self.outputs(weights))

    def given(self, outputs: Sequence[Any]) -> torch.Tensor:
        """(rows, *latent): the same for what the calls return, in the form that the scheduler takes."""
        output = self._guided(outputs)
        return output.repeat(len(self._given) // self._size, *[1] * (output.ndim - 1)).to(self._given.dtype)

    def _guided(self, outputs: Sequence[Any]) -> torch.Tensor:
        total = self._given[: self._size].float().clone()
        changed = _pieces(outputs, self._given, self._size)
        for factor, before, after in zip(self._factors, self._pieces, changed, strict=True):
            total.add_(after - before, alpha=factor)
        return total


def weighted(anchors: Sequence[torch.Tensor], weights: Weights | torch.Tensor) -> torch.Tensor:
    """sum_j weights[j] * anchors[j], summed in float32 and returned in the anchors' dtype; weights in a tensor may be
    differentiated."""
    if isinstance(weights, torch.Tensor):
        products = [anchor.float() * weight for anchor, weight in zip(anchors, weights, strict=True)]
        return torch.stack(products).sum(0).to(anchors[0].dtype)
    total = anchors[0].float() * float(weights[0])
    for anchor, weight in zip(anchors[1:], weights[1:], strict=True):
        total.add_(anchor.float(), alpha=float(weight))
    return total.to(anchors[0].dtype)


def _pieces(outputs: Sequence[Any], like: torch.Tensor, size: int) -> list[torch.Tensor]:
    """(B, *latent) float32 for each guidance branch, from what the calls returned."""
    found = []
    for output in outputs:
        tensor = output[0] if isinstance(output, tuple) else output.sample
        tensor = torch.stack(list(tensor)) if isinstance(tensor, list | tuple) else tensor
        if tensor.ndim != like.ndim or len(tensor) % size:
            raise ValueError(
                f"the transformer returns {tuple(tensor.shape)} where the scheduler takes {tuple(like.shape)}: "
                "forecast weights cannot be learnt for this pipeline"
            )
        for piece in tensor.float().split(size):
            for axis in range(1, piece.ndim):  # channels of a variance, tokens of a picture that was appended
                piece = piece.narrow(axis, 0, min(piece.shape[axis], like.shape[axis]))
            found.append(piece)
    return found


def _coefficients(output: torch.Tensor, pieces: Sequence[torch.Tensor]) -> list[float]:
    """Of the branches in guidance's result (B, *latent)."""
    matrix = torch.stack([each.flatten() for each in pieces]).double()
    gram = matrix @ matrix.T
    gram += (1e-9 * gram.diagonal().mean() + 1e-30) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, matrix @ output.flatten().double()).tolist()


def _slope(output: torch.Tensor, change: torch.Tensor) -> float:
    """By how much the next latents change with the scheduler's input, which is one number: solvers are linear in it."""
    power = float(output.square().sum())
    return float((change * output).sum()) / power if power else 0.0
