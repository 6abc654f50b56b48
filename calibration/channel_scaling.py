"""Channel scaling: move the large magnitudes of outlier channels into the weights. Before rounding it changes nothing.

The method is known as SmoothQuant (Xiao et al., 2023).
"""

from __future__ import annotations

import numpy as np

SMALLEST = 1e-5  # channels below this share of the largest channel count as equal


def scaling_vector(channels: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """Return the factors (C,) float32, geometric mean 1, that divide an operand's channels and multiply weight rows.

    channels (C,): largest magnitudes of the operand. weight (C, out).
    """
    largest = np.maximum(channels, SMALLEST * channels.max())
    rows = np.abs(weight).max(1)
    rows = np.maximum(rows, SMALLEST * max(rows.max(), 1e-30))
    logarithm = alpha * np.log(largest) - (1 - alpha) * np.log(rows)
    result: np.ndarray = np.exp(logarithm - logarithm.mean()).astype(np.float32)
    return result
