"""Where the benchmarks are, where their results are kept, and what stands beside each number."""

from __future__ import annotations

from plugin.building.environment import describe
from plugin.paths import ROOT

__all__ = ["RESULTS", "ROOT", "describe"]

RESULTS = ROOT / "benchmarks" / "results"
