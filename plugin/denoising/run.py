"""One request's run as others see it: its clock, its progress and previews, and the ways in which it is ended early."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from plugin.denoising.events import Pixels, RunEvents
from plugin.denoising.transformer import DenoisingRun, StepObserver
from plugin.engines.packer import Ticket
from plugin.families.base import Family
from plugin.request import GenerationRequest
from taylorseer import StepKind


@dataclass(frozen=True)
class NoisyLatents:
    """latents = signal * clean + noise * gaussian, any shape."""

    latents: torch.Tensor
    signal: float
    noise: float


def clean_latents(noisier: NoisyLatents, noisy: NoisyLatents) -> torch.Tensor:
    """The clean latents on the line through two steps' latents, eliminating the noise that both share. For Euler and
    DDIM steps that is what the first of the steps predicted, guidance included."""
    a, b = noisier, noisy
    return (a.noise * b.latents - b.noise * a.latents) / (a.noise * b.signal - b.noise * a.signal)


@dataclass(eq=False)
class RunReporter(StepObserver, Ticket):
    """Turns the transformer's calls into the events of one run, and is the request's ticket at the packer.

    Args:
        family: of the model.
        request: what is made.
        events: what the run reports to.
        preview_interval: steps from one preview to the next.
        packed: whether a packer counts the engine calls.

    Attributes:
        first_step: `time.perf_counter()` at the first step; 0 before.
        last_output: the same at the latest output of the transformer.
    """

    family: Family
    request: GenerationRequest
    events: RunEvents
    preview_interval: int
    packed: bool
    first_step: float = field(default=0.0, init=False)
    last_output: float = field(default=0.0, init=False)
    priority: float = field(default=0.0, init=False)
    batches: list[int] = field(default_factory=list, init=False)
    _pipe: Any = field(default=None, init=False)
    _run: DenoisingRun | None = field(default=None, init=False)
    _step: tuple[int, int] = field(default=(0, 0), init=False)  # the one that has begun, and how many there are
    _step_began: float = field(default=0.0, init=False)
    _kind: StepKind | None = field(default=None, init=False)
    _cache_bytes: int = field(default=0, init=False)
    # Where previews are wanted: of each step, and of the one before this.
    _noise_levels: list[tuple[float, float]] = field(default_factory=list, init=False)
    _noisier: NoisyLatents | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.priority = float(self.request.priority)

    def follow(self, pipe: Any, run: DenoisingRun) -> None:
        """Says which pipeline and run the events are of, before it begins."""
        self._pipe, self._run = pipe, run

    def check(self) -> None:
        """Ends the run where the listener wants it: at each step, and while the request waits for its engine call."""
        self.events.check(*self._step)

    def step_started(self, step: int, num_steps: int, latents: torch.Tensor) -> None:
        now = time.perf_counter()
        self._end_step(now)
        self.first_step = self.first_step or now
        self._step_began = now
        self._step = step, num_steps
        self.check()
        preview = self._preview(step, latents) if self.request.preview else None
        if step:
            self.events.progress(step, num_steps, preview)

    def step_computed(self, step: int, kind: StepKind) -> None:
        assert self._run is not None, "follow() comes first"
        session = self._run.session
        if kind is StepKind.FULL:
            self._update_cache_bytes(session.nbytes)
            if not self.packed:
                self.batches.append(1)
        if self._kind is not StepKind.FULL:  # of several branches at one step, one that computes makes it full
            self._kind = kind
        self.last_output = time.perf_counter()
        if step + 1 == session.num_steps:
            self._step = step + 1, session.num_steps
            self.check()

    def release(self) -> None:
        """Ends the last step, reports the engine calls, and gives the anchors' memory back."""
        self._end_step(self.last_output)
        for batch_size in self.batches:
            self.events.engine_called(batch_size)
        if self._run is not None:
            self._run.session.clear()
        self._update_cache_bytes(0)

    def _end_step(self, now: float) -> None:
        if self._kind is not None:
            self.events.step_done(self._kind, now - self._step_began)
            self._kind = None

    def _update_cache_bytes(self, nbytes: int) -> None:
        if nbytes != self._cache_bytes:
            self.events.cache_changed(nbytes - self._cache_bytes)
            self._cache_bytes = nbytes

    def _preview(self, step: int, latents: torch.Tensor) -> Pixels | None:
        """The picture that the steps so far point to, where one is due at this step."""
        if step == 0:
            assert self._run is not None, "follow() comes first"
            self._noise_levels = self._run.noise_levels()
        noisy = NoisyLatents(latents, *self._noise_levels[step])
        noisier, self._noisier = self._noisier, noisy
        if noisier is None or step % self.preview_interval or noisier.latents.shape != latents.shape:
            return None
        pipe, request = self._pipe, self.request
        clean = clean_latents(noisier, noisy)
        shown = self.family.preview_latents(pipe, clean, request.height, request.width)
        if shown is None:
            return None
        decoded = pipe.vae.decode(shown.to(pipe.vae.dtype), return_dict=False)[0]  # (1, 3, [1,] height, width)
        pixels = (decoded.float().flatten(0, -3) / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)  # (height, width, 3)
        return (pixels * 255).round().byte().cpu().numpy()
