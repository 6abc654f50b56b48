"""Pictures to a PNG file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from .files import whole_file

GAP = 4  # pixels between two pictures of a grid
PAPER = 255


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """N pictures (N, H, W, 3) uint8 as one, row after row in `columns`, without them in a near-square grid."""
    count, height, width, _ = images.shape
    columns = columns or math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), PAPER, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[y : y + height, x : x + width] = image
    return sheet


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes (H, W, 3) uint8."""
    with whole_file(path) as file:
        Image.fromarray(image).save(file, format="png")
