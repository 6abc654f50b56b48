"""Compute which tokens of a given image an edit keeps, as the published zero-shot editing demo does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bundle.manifest import Model
from .errors import SettingsError
from .limits import shown

MODES = ("inpaint", "outpaint")
Box = tuple[float, float, float, float]  # y0, x0, y1, x1 as fractions of the image's height and width


def kept_cells(region: Box | np.ndarray, mode: str, model: Model) -> np.ndarray:
    """Return which cells of the last grid are kept, (P, P) bool.

    `region` is a box, or a mask (H, W) bool of the model's image size. Inpainting keeps the cells outside of it,
    outpainting those inside. Raises SettingsError.
    """
    if mode not in MODES:
        raise SettingsError(f"mode: expected {' or '.join(MODES)}, found {mode!r}")
    inside = _in_mask(region, model) if isinstance(region, np.ndarray) else _in_box(region, model.grid)
    return inside if mode == "outpaint" else ~inside


def read_box(text: str) -> Box:
    """Return the box in a text such as "0.25,0.25,0.75,0.75". Raises SettingsError."""
    try:
        y0, x0, y1, x1 = map(float, text.split(","))
    except ValueError:
        expected = "four numbers such as 0.25,0.25,0.75,0.75"
        raise SettingsError(f"box: expected {expected}, found {shown(text)}") from None
    return y0, x0, y1, x1


def keep_masks(kept: np.ndarray, sides: Sequence[int]) -> list[np.ndarray]:
    """Resize `kept` (P, P) bool to every scale, and return K masks (1, p*p) bool.

    A token is kept where `kept`, resized bilinearly, exceeds 0.5. The 1 x 1 scale is always kept, so that the overall
    tone of the image does not change.
    """
    return [_resized(kept, side).reshape(1, -1) if side > 1 else np.ones((1, 1), bool) for side in sides]


def greyed(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the image (H, W, 3) uint8 with grey where `kept` (P, P) bool is false."""
    cell = len(image) // len(kept)
    return np.where(kept.repeat(cell, 0).repeat(cell, 1)[..., None], image, np.uint8(160))


def _in_box(box: Box, grid: int) -> np.ndarray:
    """Return the cells inside the box, (P, P) bool; its edges are rounded, half to even. Raises SettingsError."""
    y0, x0, y1, x1 = box
    if not (0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1):
        raise SettingsError(f"box: expected 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1, found {_listed(box)}")
    top, left, bottom, right = (round(edge * grid) for edge in box)
    if top == bottom or left == right:
        raise SettingsError(f"box: {_listed(box)} rounds to none of the {grid} x {grid} tokens; take a larger one")
    inside = np.zeros((grid, grid), bool)
    inside[top:bottom, left:right] = True
    return inside


def _in_mask(mask: np.ndarray, model: Model) -> np.ndarray:
    """Return the cells that the mask covers by more than a half, (P, P) bool. Raises SettingsError."""
    side, grid = model.image_size, model.grid
    if mask.dtype != bool or mask.shape != (side, side):
        raise SettingsError(f"mask: expected ({side}, {side}) bool, found {mask.shape} {mask.dtype}")
    cell = side // grid
    inside = mask.reshape(grid, cell, grid, cell).mean((1, 3)) > 0.5
    if not inside.any():
        raise SettingsError(f"mask: covers none of the {grid} x {grid} tokens by more than a half; paint more in white")
    result: np.ndarray = inside
    return result


def _resized(kept: np.ndarray, side: int) -> np.ndarray:
    """Resize kept (P, P) bool to (p, p) bool: bilinearly, without corner alignment, then true above 0.5.

    The arithmetic is that of PyTorch, so that the results are equal.
    """
    first, second, far = _taps(len(kept), side)
    near = 1 - far
    values = kept.astype(np.float32)
    rows = values[first] * near[:, None] + values[second] * far[:, None]  # (p, P)
    result: np.ndarray = rows[:, first] * near + rows[:, second] * far > 0.5
    return result


def _taps(size: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each of `side` outputs, the two nearest of `size` inputs and the weight of the second, float32."""
    scale = np.float32(size) / np.float32(side)
    # Rounded once, like a fused multiply-add. Rounding twice changes a half-covered cell in the resize from 16 to 13.
    positions = (np.float64(scale) * (np.arange(side) + 0.5) - 0.5).astype(np.float32).clip(0)
    first = positions.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), positions - first.astype(np.float32)


def _listed(box: Box) -> str:
    return ",".join(f"{edge:g}" for edge in box)
