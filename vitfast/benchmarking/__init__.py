"""Benchmarks: several implementations timed in one run, interleaved, after their results have been compared."""

from vitfast.benchmarking.harness import Case, Spread, Timing, measure

__all__ = ["Case", "Spread", "Timing", "measure"]
