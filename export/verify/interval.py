"""95 % intervals of measured means and shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.96  # normal quantile of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % interval."""

    value: float
    margin: float  # infinite if there is a single image

    @classmethod
    def of(cls, value: float, deviations: np.ndarray, images: int) -> Estimate:
        """Return the mean `value` that the images move by these `deviations`, which sum to 0.

        `images` is the number behind the part of the mean that has the fewest: it decides the quantile.
        """
        if images < 2:
            return cls(value, math.inf)
        variance = float((deviations**2).sum()) * images / (images - 1)
        return cls(value, t95(images - 1) * math.sqrt(variance))

    @property
    def relative(self) -> float:
        """The margin as a share of the value."""
        return self.margin / self.value if self.value > 0 else 0.0 if self.margin == 0 else math.inf

    def __str__(self) -> str:
        if not math.isfinite(self.margin):
            return f"{self.value:.2g} (one image: no interval)"
        digits = max(0, 1 - math.floor(math.log10(self.margin))) if self.margin > 0 else 4  # two of the margin's
        return f"{self.value:.{digits}f} ± {self.margin:.{digits}f}"


def t95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, within 1 % from 3 degrees of freedom (Abramowitz, Stegun 26.7.5)."""
    if freedom < 3:
        return (12.706, 4.303)[freedom - 1]
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(freedom) ** (i + 1) for i, term in enumerate(terms))


def share_interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, `count` of `total` (Wilson, 1927)."""
    p = count / total
    centre = (p + Z95**2 / (2 * total)) / (1 + Z95**2 / total)
    half = Z95 / (1 + Z95**2 / total) * math.sqrt(p * (1 - p) / total + Z95**2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)
