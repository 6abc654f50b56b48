"""Choose ranges from histograms: the values that 8-bit numbers cover, so that little is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from runtime.errors import VarEdgeError

BINS = 2048  # bins of a histogram, half of them below 0
LEVELS = 255  # steps of the quantized range
PERCENTILE = 0.9999  # share of the values that the percentile method covers
CANDIDATES = np.geomspace(0.05, 1, 121)  # shares of the full range that mse tries


class CalibrationError(VarEdgeError):
    """Ranges cannot be collected, or they do not fit the bundle."""


@dataclass
class Histogram:
    """Counts of values in equal bins over [-limit, limit), with the exact extremes. `limit` doubles when needed."""

    limit: float = 2.0**-20
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    low: float = 0.0  # 0 always belongs to the range: padding and absent tokens are 0
    high: float = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count values. Raises ValueError if one is not finite."""
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low + high):
            raise ValueError("not a number")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        bins = (values.ravel() * np.float32(BINS / 2 / self.limit) + np.float32(BINS / 2)).astype(np.int32)
        self.counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def merge(self, other: Histogram) -> None:
        counts = other.counts
        self._widen(other.limit)
        for _ in range(round(np.log2(self.limit / other.limit))):
            counts = _halved(counts)
        self.counts = self.counts + counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def centres(self) -> np.ndarray:
        return (np.arange(BINS) + 0.5 - BINS / 2) * (2 * self.limit / BINS)

    def _widen(self, magnitude: float) -> None:
        while self.limit < magnitude:
            self.limit *= 2
            self.counts = _halved(self.counts)


def _halved(counts: np.ndarray) -> np.ndarray:
    """Return the same counts in bins over twice the range."""
    quarter = BINS // 4
    merged = counts.reshape(-1, 2).sum(1)
    return np.concatenate((np.zeros(quarter, np.int64), merged, np.zeros(quarter, np.int64)))


Range = tuple[float, float]  # low <= 0 <= high


def minmax(histogram: Histogram, symmetric: bool) -> Range:
    return histogram.low, histogram.high


def percentile(histogram: Histogram, symmetric: bool) -> Range:
    """Return the range that leaves out the same share of values at both ends."""
    cumulative = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = np.arange(BINS + 1) * (2 * histogram.limit / BINS) - histogram.limit
    low = edges[np.searchsorted(cumulative, (1 - PERCENTILE) / 2, side="right")]
    high = edges[min(np.searchsorted(cumulative, (1 + PERCENTILE) / 2) + 1, BINS)]
    return max(histogram.low, min(low, 0.0)), min(histogram.high, max(high, 0.0))


def mse(histogram: Histogram, symmetric: bool) -> Range:
    """Return the range with the least mean squared error of rounding and clipping together."""
    used = histogram.counts > 0
    values, weights = histogram.centres()[used], histogram.counts[used]
    width = 2 * histogram.limit / BINS

    def loss(low: float, high: float) -> float:
        step = (2 * max(-low, high) if symmetric else high - low) / LEVELS
        # Values spread evenly within a bin: the squared error of rounding is step^2 / 12 if steps are wider than bins.
        rounded = np.clip(np.round(values / step) * step, low, high)
        inside = (values >= low) & (values <= high)
        error = np.where(inside & (step > width), (step**2) / 12, (rounded - values) ** 2)
        return float((error * weights).sum())

    return _best(histogram, loss)


def _best(histogram: Histogram, loss: Callable[[float, float], float]) -> Range:
    """Return the range of least loss among smaller and smaller ranges. The longer end shrinks first."""
    largest = max(-histogram.low, histogram.high)
    tried = {(max(histogram.low, -largest * share), min(histogram.high, largest * share)): None for share in CANDIDATES}
    return min(tried, key=lambda found: loss(*found))


METHODS: dict[str, Callable[[Histogram, bool], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}
