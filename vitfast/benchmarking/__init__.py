"""Measuring: several implementations in one run, interleaved, with their agreement checked first."""

from vitfast.benchmarking.harness import Measurement, measure
from vitfast.benchmarking.spread import Spread
from vitfast.benchmarking.subject import Subject

__all__ = ["Measurement", "Spread", "Subject", "measure"]
