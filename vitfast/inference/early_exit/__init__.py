"""Early exit: inference that stops at the first exit that is confident enough, and its calibration."""

from vitfast.inference.early_exit.calibrate import calibrate_exits
from vitfast.inference.early_exit.cost import exit_gmacs, exit_latency_ms
from vitfast.inference.early_exit.early_exit import EarlyExit
from vitfast.inference.early_exit.statistics import (
    ExitPoint,
    ExitStatistics,
    collect_exit_statistics,
    geometric_sweep,
)

__all__ = [
    "EarlyExit",
    "ExitPoint",
    "ExitStatistics",
    "calibrate_exits",
    "collect_exit_statistics",
    "exit_gmacs",
    "exit_latency_ms",
    "geometric_sweep",
]
