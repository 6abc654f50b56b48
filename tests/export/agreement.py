"""What it means that the runtime draws what PyTorch draws."""

from __future__ import annotations

import numpy as np

from export.reference import Generation
from export.verify.metrics import parted
from runtime.pipeline import Result

BOUNDARY = 1e-5  # of probability


def pictures_with_equal_tokens(reference: Generation, result: Result) -> np.ndarray:
    """(N,) bool. Fails where a picture first parts from the reference at anything but a draw at a boundary."""
    equal, widest = parted(reference.tokens, result.tokens, reference.margins)
    assert widest < BOUNDARY
    return equal


def share_within_one_step(expected: np.ndarray, images: np.ndarray) -> float:
    """Share of values within 1/255. expected (N, 3, H, W) in [0, 1], images (N, H, W, 3) uint8."""
    error = np.abs(images.transpose(0, 3, 1, 2) - expected.astype(np.float64) * 255)
    return float((error <= 1).mean())
