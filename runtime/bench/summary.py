"""Statistics of repeated timings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Statistics of timings in seconds, and the timings in the order they were measured."""

    median: float
    min: float
    max: float
    iqr: float  # interquartile range: the width of the middle half
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        low, median, high = np.percentile(samples, [25, 50, 75]).tolist()
        return cls(median, min(samples), max(samples), high - low, tuple(samples))


@dataclass(frozen=True)
class Ratio:
    """How many times longer one kind of run took than another. Each round has one run of both kinds."""

    of_medians: float
    min: float  # min and max are over the rounds, because other load on the machine slows both runs of a round
    max: float

    @classmethod
    def of(cls, slower: Summary, faster: Summary) -> Ratio:
        rounds = [a / b for a, b in zip(slower.samples, faster.samples, strict=True)]
        return cls(slower.median / faster.median, min(rounds), max(rounds))
