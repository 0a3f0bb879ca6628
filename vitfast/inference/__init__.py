"""Inference: accelerated models, early exit and attention maps."""

from vitfast.inference.early_exit import (
    EarlyExit,
    ExitPoint,
    ExitStatistics,
    calibrate_exits,
    collect_exit_statistics,
    exit_gmacs,
    exit_latency_ms,
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
