"""What a run reads of its scheduler: the noise at each step, and the index of the present step."""

from __future__ import annotations

from functools import cache, wraps
from typing import Any


def noise_levels(scheduler: Any) -> list[tuple[float, float]]:
    """(signal, noise) at the beginning of each step of a run, latents = signal * clean + noise * gaussian.

    Schedulers of flow matching mix by sigma, the others keep the products of alphas (diffusers 0.42.0). Some of them
    keep either on the GPU, so all are read at once.

    Args:
        scheduler: with its timesteps set.
    """
    begin = begin_index(scheduler)
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "alphas_cumprod") and not scheduler.config.get("use_flow_sigmas"):
        alphas = scheduler.alphas_cumprod
        return [(kept**0.5, (1 - kept) ** 0.5) for kept in alphas[timesteps.long().to(alphas.device)].tolist()]
    return [(1 - sigma, sigma) for sigma in scheduler.sigmas[begin : begin + len(timesteps)].tolist()]


def begin_index(scheduler: Any) -> int:
    """The index of the timestep that the run begins with; above 0 where `strength` leaves the first ones out."""
    return getattr(scheduler, "begin_index", None) or 0


def counting(scheduler: Any) -> Any:
    """Gives a scheduler a `step_index` if it has none, and returns it.

    Most of diffusers' schedulers have one. For DDIM and other old ones the class of this instance, which belongs to one
    request, is replaced by a subclass that counts `step` calls since `set_timesteps`.
    """
    if not hasattr(scheduler, "step_index"):
        kind: Any = type(scheduler)
        scheduler.__class__ = _counting(kind)
    return scheduler


@cache
def _counting(scheduler_class: Any) -> Any:
    class Counting(scheduler_class):  # type: ignore[misc]
        step_index: int | None = None

        @wraps(scheduler_class.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
            self.step_index = None
            return super().set_timesteps(*args, **kwargs)

        @wraps(scheduler_class.step)  # pipelines look for `eta` among its parameters
        def step(self, *args: Any, **kwargs: Any) -> Any:
            result = super().step(*args, **kwargs)
            self.step_index = (self.step_index or 0) + 1
            return result

    Counting.__name__ = scheduler_class.__name__
    return Counting
