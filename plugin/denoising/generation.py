"""Runs one request on a host: from a GenerationRequest to pixels and a report."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from plugin.denoising.host import PipelineHost
from plugin.denoising.transformer import StepObserver, noise_levels
from plugin.engines.packer import Ticket
from plugin.families.base import Family
from plugin.request import GenerationRequest
from taylorseer import CacheSession, StepKind

Pixels = npt.NDArray[np.uint8]

FEW_STEPS = 10  # below, clients are told what that means for forecasts: docs/quality.md has the figures


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


class NotFinite(ArithmeticError):
    """A run's numbers overflowed, so that it has no picture; the message says what may help."""


@dataclass(frozen=True)
class Report:
    """What a generation did; times in seconds.

    Attributes:
        num_steps: denoising steps.
        full_steps: the indices of the full ones.
        engine_calls: calls of the block stack: full steps, times guidance branches that are separate calls.
        cache_bytes: memory of the anchors.
        audits: [step, relative L2 distance between forecast and computed features], of the full steps that could have
            been forecast.
        queue_s: from arrival to the start of the work.
        encode_s: from there to the first step: text encoding, noise, schedule.
        denoise_s: the steps.
        decode_s: the autoencoder.
        total_s: from arrival to the picture.
        seed: the seed used.
        cache_interval: the interval used.
        stretched_by: "deadline" or "load" where one of them made that larger than what was asked for, else None.
        warnings: what the client should know about its settings, sentences; mostly none.
        engine: the engine's name.
        height, width: pixels.
        num_frames: 1 for a picture.
        fps: frames per second that a video is meant to be shown at.
    """

    num_steps: int
    full_steps: list[int]
    engine_calls: int
    cache_bytes: int
    audits: list[tuple[int, float]]
    queue_s: float
    encode_s: float
    denoise_s: float
    decode_s: float
    total_s: float
    seed: int
    cache_interval: int
    stretched_by: str | None
    warnings: list[str]
    engine: str
    height: int
    width: int
    num_frames: int
    fps: int

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Generation:
    """The result of one request: `image` is (frames, height, width, 3) uint8."""

    image: Pixels
    report: Report


class RunEvents(Protocol):
    """What a running request tells and asks; a class that inherits these methods does nothing in them."""

    def check(self, step: int, num_steps: int) -> None:
        """Called before each step and before decoding; raises Cancelled or DeadlinePassed to end the run."""
        return None

    def progress(self, step: int, num_steps: int, preview: Pixels | None) -> None:
        """Called when `step` of `num_steps` steps are done, with a preview (height, width, 3) where one is due."""
        return None

    def step_done(self, kind: StepKind, seconds: float) -> None:
        """Called after each step with what it was and how long it took, the scheduler's part included."""
        return None

    def engine_called(self, batch_size: int) -> None:
        """Called for each engine call with the number of requests that shared it; only one of those is told."""
        return None

    def cache_changed(self, delta_bytes: int) -> None:
        """Called when the request's cache grows, and with what it gives back at its end."""
        return None


class NoEvents(RunEvents):
    """Nobody listens."""


def generate(
    host: PipelineHost,
    request: GenerationRequest,
    events: RunEvents | None = None,
    *,
    max_sequence_length: int | None = None,
    preview_interval: int = 5,
    arrived: float | None = None,
) -> Generation:
    """Makes the picture of a request in the calling thread.

    Args:
        host: the loaded model.
        request: the valid request.
        events: told of progress; may end the run by raising.
        max_sequence_length: text tokens, or None for the pipeline's default.
        preview_interval: steps from one preview to the next.
        arrived: `time.perf_counter()` at arrival; None for now.

    Raises:
        Cancelled, DeadlinePassed: raised by `events`.
        NotFinite: the decoded picture has NaN in it.
    """
    events = events or NoEvents()
    started = time.perf_counter()
    run = _Run(host.family, request, events, preview_interval, packed=host.packer is not None)
    ticket = Ticket(float(request.priority), run.check)
    pipe = host.pipeline_for(request.cache, run, ticket=ticket)
    run.pipe = pipe
    arguments = host.family.call_arguments(request, max_sequence_length)
    try:
        output = pipe(
            **arguments,
            num_inference_steps=request.num_inference_steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
        )
        done = time.perf_counter()
        pixels = output[0][0] if output[0].ndim == 5 else output[0]  # a video comes in a batch of one
        image = _levels(pixels)
        return Generation(image, _report(request, image, run, host.engine_name, arrived or started, started, done))
    finally:
        if host.packer is not None:
            host.packer.leave(ticket)
            for batch_size in ticket.batches:
                events.engine_called(batch_size)
        run.release()


def _levels(pixels: npt.NDArray[np.float32]) -> Pixels:
    """Pixels of 0 to 1 as 0 to 255; same shape."""
    if not np.isfinite(pixels.sum()):  # NaN reaches the sum; this takes a tenth of the time of the cast below
        raise NotFinite(
            "the picture has values that are not finite: numbers overflowed on the way, where another seed, "
            "guidance_scale or cache_order may help, or a dtype of more range for the model"
        )
    return (pixels * 255).round().astype(np.uint8)


def _report(
    request: GenerationRequest,
    image: Pixels,
    run: _Run,
    engine: str,
    arrived: float,
    started: float,
    done: float,
) -> Report:
    session: CacheSession = run.session
    num_frames, height, width, _ = image.shape  # HiDream keeps only the ratio of what is asked for
    return Report(
        num_steps=session.num_steps,
        full_steps=list(session.full_steps),
        engine_calls=session.engine_calls,
        cache_bytes=session.nbytes,
        audits=[(each.step, each.audit) for each in session.records if each.audit is not None],
        queue_s=started - arrived,
        encode_s=run.first_step - started,
        denoise_s=run.last_output - run.first_step,
        decode_s=done - run.last_output,
        total_s=done - arrived,
        seed=request.seed,
        cache_interval=request.cache.interval,
        stretched_by=request.stretched_by and request.stretched_by.value,
        warnings=_warnings(session),
        engine=engine,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=request.fps,
    )


def _warnings(session: CacheSession) -> list[str]:
    num_steps, full = session.num_steps, len(session.full_steps)
    if full == num_steps or num_steps >= FEW_STEPS:
        return []
    return [
        f"num_inference_steps is {num_steps}: in runs of fewer than {FEW_STEPS} steps there is little to save and a "
        "forecast spans much of the run; models distilled for so few have not been measured. cache_interval=1 turns "
        "the cache off"
    ]


@dataclass
class _Run(StepObserver):
    """Turns the transformer's calls into the events of one run."""

    family: Family
    request: GenerationRequest
    events: RunEvents
    preview_interval: int
    packed: bool  # whether the packer tells how many requests shared each engine call
    pipe: Any = None
    first_step: float = field(default=0.0, init=False)
    last_output: float = field(default=0.0, init=False)
    _step: tuple[int, int] = field(default=(0, 0), init=False)  # the one that has begun, and how many there are
    _step_began: float = field(default=0.0, init=False)
    _kind: StepKind | None = field(default=None, init=False)
    _cache_bytes: int = field(default=0, init=False)
    # Where previews are wanted: of each step, and of the one before this.
    _noise_levels: list[tuple[float, float]] = field(default_factory=list, init=False)
    _noisier: NoisyLatents | None = field(default=None, init=False)

    @property
    def session(self) -> Any:
        """The request's cache; Wan2.2's two experts share one, and either of them may be missing."""
        return (self.pipe.transformer or self.pipe.transformer_2).session

    def check(self) -> None:
        """Lets the listener end the run; at each step, and while the request waits for its turn at the engine."""
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
        session = self.session
        if kind is StepKind.FULL:
            self._update_cache_bytes(session.nbytes)
            if not self.packed:
                self.events.engine_called(1)
        if self._kind is not StepKind.FULL:  # of several branches at one step, one that computes makes it full
            self._kind = kind
        self.last_output = time.perf_counter()
        if step + 1 == session.num_steps:
            self.events.check(step + 1, session.num_steps)

    def release(self) -> None:
        """Gives the anchors' memory back and closes the last step."""
        self._end_step(self.last_output)
        if self.pipe is not None and self.session is not None:
            self.session.clear()
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
            self._noise_levels = noise_levels(self.pipe.scheduler)
        noisy = NoisyLatents(latents, *self._noise_levels[step])
        noisier, self._noisier = self._noisier, noisy
        if noisier is None or step % self.preview_interval:
            return None
        pipe = self.pipe
        clean = clean_latents(noisier, noisy)
        decoded = pipe.vae.decode(
            self.family.preview_latents(pipe, clean, self.request.height, self.request.width).to(pipe.vae.dtype),
            return_dict=False,
        )[0]  # (1, 3, [1,] height, width)
        pixels = (decoded.float().flatten(0, -3) / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)  # (height, width, 3)
        return (pixels * 255).round().byte().cpu().numpy()
