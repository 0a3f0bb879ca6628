"""Inference: accelerated models, early exit and attention maps."""

from vitfast.inference.early_exit import EarlyExit as EarlyExit
from vitfast.inference.early_exit import ExitPoint as ExitPoint
from vitfast.inference.early_exit import ExitStatistics as ExitStatistics
from vitfast.inference.early_exit import calibrate_exits as calibrate_exits
from vitfast.inference.early_exit import collect_exit_statistics as collect_exit_statistics
from vitfast.inference.early_exit import exit_gmacs as exit_gmacs
from vitfast.inference.early_exit import exit_latency_ms as exit_latency_ms
from vitfast.inference.early_exit import geometric_sweep as geometric_sweep
