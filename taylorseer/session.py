"""One request's cache: which of its steps are full, the anchors of each guidance branch, and what happened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from taylorseer.anchors import Anchors
from taylorseer.coordinates import NoiseLevel, step_positions
from taylorseer.learnt import LEARNT, RunWeights
from taylorseer.schedule import CacheConfig

_GROWTH = 2.0  # by which one audit may stretch the distance between full steps: a single good one may be chance


class StepKind(Enum):
    """What a branch did at a step: computed its features, or forecast them."""

    FULL = "full"
    FORECAST = "forecast"


@dataclass(frozen=True)
class StepRecord:
    """What one branch did at one step.

    Attributes:
        step: the step index.
        branch: the guidance branch, for example "cond".
        kind: full or forecast.
        audit: at a full step for which a forecast was possible, the relative L2 distance between that forecast and the
            computed features, |forecast - computed| / |computed|; else None.
    """

    step: int
    branch: str
    kind: StepKind
    audit: float | None = None


class CacheSession:
    """The cache of one request, used by one thread.

    The caller names the step and the branch at each call, and nothing is counted here. So solvers may call the
    transformer several times a step, or skip a branch at some steps. A branch whose first call comes at a forecast step
    has nothing to forecast from; that step becomes full for it.

    Args:
        config: the cache settings.
        num_steps: steps of the run, as in `begin`; 0 if it is not known yet and `begin` is called later.
        noise_levels: as in `begin`.

    Attributes:
        num_steps: steps of the run; 0 before `begin`.
        records: what each branch did at each step so far.
        learnt: the learnt rows of the run; None with another predictor.

    Raises:
        ValueError: as `begin`.
    """

    def __init__(
        self, config: CacheConfig, num_steps: int = 0, noise_levels: Sequence[NoiseLevel] | None = None
    ) -> None:
        self.config = config
        self._anchors: dict[str, Anchors] = {}
        # From reserve to write: the forecast for the audit, and the number of steps since its newest anchor.
        self._expected: dict[str, tuple[torch.Tensor, int] | None] = {}
        self.num_steps = 0
        self.records: list[StepRecord] = []
        self.learnt: RunWeights | None = None
        if num_steps:
            self.begin(num_steps, noise_levels)

    def begin(self, num_steps: int, noise_levels: Sequence[NoiseLevel] | None = None) -> None:
        """Begins a run, or begins again with another schedule; all earlier anchors and records are dropped.

        Args:
            num_steps: steps of the run, at least 1.
            noise_levels: (signal, noise) at the beginning of each step, which coordinates other than "step" need, and
                learnt weights compare with those they were learnt at.

        Raises:
            ValueError: the coordinate cannot be computed from these noise levels.
        """
        config = self.config
        self.clear()
        self.num_steps = num_steps
        self.records = []
        self._positions: tuple[float, ...] | None = None
        if config.coordinate != "step":
            if not noise_levels:
                raise ValueError(f"coordinate is {config.coordinate!r}, must be 'step': no noise levels are known")
            self._positions = step_positions(config.coordinate, noise_levels)
        planned = config.full_steps(num_steps)
        self._planned = frozenset(planned)
        if config.learnt is not None and config.predictor == LEARNT and config.enabled:
            self.learnt = config.learnt.for_run(num_steps, planned, noise_levels or ())
        self._most = config.most_full_steps(num_steps)
        self._added = 0  # full steps beyond those of the schedule
        self._gap = config.interval  # with max_error: steps from the last full step to the next, by the latest audit
        self._adapted = -1  # the step of that audit
        self._kind_of_step: dict[int, StepKind] = {}
        self._last_full = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all anchors held."""
        return sum(anchors.nbytes for anchors in self._anchors.values())

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The steps at which some branch has been computed so far, ascending."""
        return tuple(sorted({record.step for record in self.records if record.kind is StepKind.FULL}))

    @property
    def engine_calls(self) -> int:
        """How often features have been computed so far: full steps, times branches that are separate calls."""
        return sum(record.kind is StepKind.FULL for record in self.records)

    def kind(self, step: int, branch: str) -> StepKind:
        """Whether a branch must compute its features at a step or can forecast them.

        Raises:
            ValueError: the step is outside the run.
        """
        if not 0 <= step < self.num_steps:
            raise ValueError(f"step is {step}, must be from 0 to {self.num_steps - 1}")
        if step not in self._kind_of_step:  # decided once, so that all branches do the same
            self._kind_of_step[step] = self._decide(step)
        anchors = self._anchors.get(branch)
        return self._kind_of_step[step] if anchors is not None and anchors.steps else StepKind.FULL

    def reserve(self, step: int, branch: str, like: torch.Tensor) -> torch.Tensor | None:
        """The memory in which a full step's features will be kept, so that an engine can compute them in place.

        Optional: `write` alone does the same with a copy. The forecast that the audit needs is computed here, because
        the oldest anchor is overwritten.

        Args:
            step: the step index.
            branch: the guidance branch.
            like: a tensor of the features' shape, dtype and device; its content is not read.

        Returns:
            (*feature), or None if the cache is off and nothing is kept.
        """
        if not self.config.enabled:
            return None
        anchors = self._anchors.setdefault(branch, self._new_anchors())
        known = anchors.steps
        self._expected[branch] = (anchors.forecast(step), step - known[-1]) if known and step not in known else None
        return anchors.reserve(step, like)

    def write(self, step: int, branch: str, features: torch.Tensor) -> None:
        """Audits the forecast of a full step against its computed features, and keeps these.

        Args:
            step: the step index.
            branch: the guidance branch.
            features: (*feature), floating; copied if later steps need them and they are not in reserved memory.
        """
        audit = None
        self._last_full = step  # also where a branch without anchors made it full
        if self.config.enabled:
            if branch not in self._expected:
                self.reserve(step, branch, features)
            expected = self._expected.pop(branch)
            if expected is not None:
                forecast, distance = expected
                audit = relative_distance(forecast, features)
                if step >= self.config.warmup_steps:  # earlier forecasts had too few anchors for their order
                    self._adapt(step, audit, distance)
            self._anchors[branch].write(step, features)
        self.records.append(StepRecord(step, branch, StepKind.FULL, audit))

    def forecast(self, step: int, branch: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """The forecast features of a branch at a step.

        Args:
            step: the step index.
            branch: the guidance branch.
            out: an earlier forecast of the branch that is not needed any more; its memory is used again.

        Returns:
            (*feature) in the dtype of the features: `out`, or memory of its own.

        Raises:
            LookupError: the branch has no anchors.
        """
        if branch not in self._anchors:
            raise LookupError(f"step {step} of branch {branch!r} cannot be forecast: no full step came before it")
        features = self._anchors[branch].forecast(step, out)
        self.records.append(StepRecord(step, branch, StepKind.FORECAST))
        return features

    def forget(self, branch: str) -> None:
        """Drops the anchors of one branch; its next step is full."""
        self._anchors.pop(branch, None)
        self._expected.pop(branch, None)

    def clear(self) -> None:
        """Drops all anchors and their memory; each branch's next step is full."""
        self._anchors.clear()
        self._expected.clear()

    def _new_anchors(self) -> Anchors:
        return Anchors(
            self.config.predictor, self.config.order, self.config.first_anchor_step, self._positions, self.learnt
        )

    def _decide(self, step: int) -> StepKind:
        full = step in self._planned
        if self.config.max_error is not None and not full:
            full = step - self._last_full >= self._gap and self._added < self._most - len(self._planned)
            self._added += full
        return StepKind.FULL if full else StepKind.FORECAST

    def _adapt(self, step: int, audit: float, distance: int) -> None:
        """Chooses when the next full step comes, in the way that solvers of differential equations choose their step
        size: the error of a forecast of order O grows with the (O+1)-th power of its distance."""
        config = self.config
        if config.max_error is None:
            return
        ratio = config.max_error / audit if audit > 0 else math.inf
        gap = distance * min(_GROWTH, ratio ** (1 / (config.order + 1)))
        gap = max(config.min_interval, min(config.interval, math.floor(gap)))
        self._gap = min(self._gap, gap) if step == self._adapted else gap  # the worst of several branches
        self._adapted = step


def relative_distance(forecast: torch.Tensor, computed: torch.Tensor) -> float:
    """|forecast - computed| / |computed| in float32; infinite if only `computed` is 0."""
    reference = computed.float()
    error = torch.linalg.vector_norm(forecast.float() - reference)
    return float(error / torch.linalg.vector_norm(reference))
