"""TaylorSeer feature caching: which steps are full, and what the other steps forecast (needs torch and numpy only)."""

from taylorseer.anchors import Anchors
from taylorseer.coordinates import COORDINATES, step_positions
from taylorseer.learnt import LearntRun, LearntWeights
from taylorseer.predictors import PREDICTORS, forecast_weights
from taylorseer.schedule import SCHEDULES, SETTINGS, CacheConfig, even_steps, full_steps
from taylorseer.session import CacheSession, StepKind, StepRecord

__all__ = [
    "COORDINATES",
    "PREDICTORS",
    "SCHEDULES",
    "SETTINGS",
    "Anchors",
    "CacheConfig",
    "CacheSession",
    "LearntRun",
    "LearntWeights",
    "StepKind",
    "StepRecord",
    "even_steps",
    "forecast_weights",
    "full_steps",
    "step_positions",
]
