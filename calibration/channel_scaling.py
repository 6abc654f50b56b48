"""Channel scaling: outlier channels share their size with the weights, exactly before rounding.

Known as SmoothQuant (Xiao et al., 2023).
"""

from __future__ import annotations

import numpy as np

SMALLEST = 1e-5  # share of the largest channel below which channels count as equal


def scaling_vector(channels: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """What to divide an operand's channels by, and to multiply the weight's rows with: (C,) float32, geometric mean 1.

    channels (C,): largest magnitudes of the operand. weight (C, out).
    """
    largest = np.maximum(channels, SMALLEST * channels.max())
    rows = np.abs(weight).max(1)
    rows = np.maximum(rows, SMALLEST * max(rows.max(), 1e-30))
    logarithm = alpha * np.log(largest) - (1 - alpha) * np.log(rows)
    result: np.ndarray = np.exp(logarithm - logarithm.mean()).astype(np.float32)
    return result
