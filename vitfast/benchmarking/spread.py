"""A median and how far the middle half of the samples lies around it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """What many samples of one quantity say.

    Medians and quartiles rather than mean and deviation: whatever else the machine does makes single samples much
    longer, and never shorter.

    Attributes:
        median: half of the samples are smaller.
        lower: a quarter of the samples are smaller.
        upper: a quarter of the samples are larger.
    """

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarizes samples; quartiles are interpolated between the samples, so they lie within their range.

        Raises:
            ValueError: there are no samples.
        """
        if not samples:
            raise ValueError("a spread needs at least one sample")
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)

    @classmethod
    def of_ratios(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
        """Summarizes the ratios of pairs. Pairs of one round share the machine's state, so their ratio spreads less.

        Raises:
            ValueError: the sequences differ in length or are empty.
        """
        return cls.of([upper / lower for upper, lower in zip(numerators, denominators, strict=True)])

    def scaled(self, factor: float) -> Spread:
        """The spread of the samples in another unit; ``factor`` is positive."""
        return Spread(self.median * factor, self.lower * factor, self.upper * factor)
