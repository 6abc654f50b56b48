"""Write the dump of a generation: its tokens and images, to compare two runs, backends or machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .base_pipeline import Result
from .files.atomic import atomic_file


def write_dump(path: Path, result: Result, logits: Sequence[np.ndarray] = ()) -> None:
    """Write an .npz file with `tokens_k` (B, p*p) int32 and `image` (B, H, W, 3) uint8.

    After an edit it also has `drawn_k`, the tokens before the kept ones replaced them. With `logits`, a list of K
    arrays, it also has `logits_k` (B, p*p, V) float32.
    """
    arrays = {f"tokens_{k}": tokens for k, tokens in enumerate(result.tokens)}
    if result.drawn is not result.tokens:
        arrays |= {f"drawn_{k}": drawn for k, drawn in enumerate(result.drawn)}
    arrays |= {f"logits_{k}": values for k, values in enumerate(logits)}
    with atomic_file(path) as file:
        np.savez(file, **arrays, image=result.images)  # type: ignore[arg-type]
