"""TaylorSeer feature caching: which steps are full, and what the other steps forecast (needs torch and numpy only)."""

from taylorseer.anchors import Anchors
from taylorseer.coordinates import COORDINATES, step_positions
from taylorseer.predictors import PREDICTORS, forecast_weights
from taylorseer.schedule import SCHEDULES, CacheConfig, even_steps, full_steps
from taylorseer.session import CacheSession, StepKind, StepRecord

__all__ = [
    "COORDINATES",
    "PREDICTORS",
    "SCHEDULES",
    "Anchors",
    "CacheConfig",
    "CacheSession",
    "StepKind",
    "StepRecord",
    "even_steps",
    "forecast_weights",
    "full_steps",
    "step_positions",
]
