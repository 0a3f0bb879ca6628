"""What runs models rather than trains them: early exit, and where a model looks."""

from vitfast.inference.calibrate_exits import calibrate_exits
from vitfast.inference.early_exit import EarlyExit
from vitfast.inference.exit_gmacs import exit_gmacs
from vitfast.inference.exit_latency import exit_latency_ms
from vitfast.inference.exit_statistics import ExitStatistics, collect_exit_statistics
from vitfast.inference.exit_sweep import ExitPoint, geometric_sweep

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
