"""Early exit: inference that stops at the first exit that is confident enough, and its calibration."""

from vitfast.inference.early_exit.calibrate import calibrate_exits as calibrate_exits
from vitfast.inference.early_exit.cost import exit_gmacs as exit_gmacs
from vitfast.inference.early_exit.cost import exit_latency_ms as exit_latency_ms
from vitfast.inference.early_exit.early_exit import EarlyExit as EarlyExit
from vitfast.inference.early_exit.statistics import ExitPoint as ExitPoint
from vitfast.inference.early_exit.statistics import ExitStatistics as ExitStatistics
from vitfast.inference.early_exit.statistics import collect_exit_statistics as collect_exit_statistics
from vitfast.inference.early_exit.statistics import geometric_sweep as geometric_sweep
