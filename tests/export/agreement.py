"""What it means that the runtime draws what PyTorch draws."""

from __future__ import annotations

import numpy as np

from export.reference import Generation
from runtime.pipeline import Result

BOUNDARY = 1e-5  # of probability: nearer to the end of its token's interval, float32 may draw the neighbour


def pictures_with_equal_tokens(reference: Generation, result: Result) -> np.ndarray:
    """(N,) bool. Where the first difference of a picture is no draw at a boundary, this fails."""
    count = len(result.images)
    equal = np.ones(count, bool)
    for k, (expected, margin) in enumerate(zip(reference.tokens, reference.margins, strict=True)):
        differs = expected != result.tokens[k]  # (N, p²)
        first = differs & equal[:, None]  # what follows a difference differs for that reason
        assert (margin[first] < BOUNDARY).all(), f"scale {k}: margins {margin[first]} of tokens that differ"
        equal &= ~differs.any(axis=1)
    return equal


def share_within_one_step(expected: np.ndarray, images: np.ndarray) -> float:
    """Share of values within 1/255. expected (N, 3, H, W) in [0, 1], images (N, H, W, 3) uint8."""
    error = np.abs(images.transpose(0, 3, 1, 2) - expected.astype(np.float64) * 255)
    return float((error <= 1).mean())
