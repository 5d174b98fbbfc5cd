"""Where the second of two transformers takes over in a run, as in Wan2.2's pipelines with two experts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Experts:
    """Two transformers that share a run's steps: the first makes those of much noise, the second the others.

    Attributes:
        boundary: the share of the scheduler's training timesteps below which the second makes a step, 0 to 1.
        scheduler: the scheduler's configuration as diffusers saves it, in JSON.
    """

    boundary: float
    scheduler: str

    def takeover(self, num_steps: int) -> int | None:
        """The second's first step in a run of `num_steps`; None where it has none."""
        return _takeover(self, num_steps)


@lru_cache(maxsize=1024)  # a schedule takes milliseconds, and admission asks for one with every request
def _takeover(experts: Experts, num_steps: int) -> int | None:
    import diffusers  # late: it takes seconds, and only these pipelines need it for a plan

    config = json.loads(experts.scheduler)
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(num_steps)
    # As WanPipeline compares them (pipeline_wan.py of diffusers 0.42.0)
    boundary = experts.boundary * scheduler.config.num_train_timesteps
    return next((step for step, each in enumerate(scheduler.timesteps.tolist()) if each < boundary), None)
