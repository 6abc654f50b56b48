"""Which tokens of a given picture an edit keeps: the mask of the published zero-shot editing demo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bundle.manifest import Model
from .errors import SettingsError

MODES = ("inpaint", "outpaint")
Box = tuple[float, float, float, float]  # y0, x0, y1, x1: shares of the picture's height and width


def kept_cells(region: Box | np.ndarray, mode: str, model: Model) -> np.ndarray:
    """What is kept, (P, P) bool on the last grid.

    `region` is a box, or a mask (H, W) bool of the model's picture size. In-painting keeps what is outside of it,
    out-painting what is inside. Raises SettingsError.
    """
    if mode not in MODES:
        raise SettingsError(f"mode: expected {' or '.join(MODES)}, found {mode!r}")
    inside = _in_mask(region, model) if isinstance(region, np.ndarray) else _in_box(region, model.grid)
    return inside if mode == "outpaint" else ~inside


def keep_masks(kept: np.ndarray, sides: Sequence[int]) -> list[np.ndarray]:
    """`kept` (P, P) bool at every scale: K masks (1, p*p) bool.

    Where `kept`, resized bilinearly, exceeds 0.5; the 1 x 1 scale is always kept, so the picture's tone stays.
    """
    return [_resized(kept, side).reshape(1, -1) if side > 1 else np.ones((1, 1), bool) for side in sides]


def greyed(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8 with grey where `kept` (P, P) bool is false: what an edit is given to see."""
    cell = len(image) // len(kept)
    return np.where(kept.repeat(cell, 0).repeat(cell, 1)[..., None], image, np.uint8(160))


def _in_box(box: Box, grid: int) -> np.ndarray:
    """(P, P) bool: the box, its edges rounded half to even."""
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
    """(P, P) bool: the tokens that the mask covers by more than a half."""
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
    """kept (P, P) bool -> (p, p) bool: bilinear without corner alignment, in PyTorch's arithmetic, above 0.5."""
    first, second, far = _taps(len(kept), side)
    near = 1 - far
    values = kept.astype(np.float32)
    rows = values[first] * near[:, None] + values[second] * far[:, None]  # (p, P)
    result: np.ndarray = rows[:, first] * near + rows[:, second] * far > 0.5
    return result


def _taps(size: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `side` outputs the two inputs of `size` it lies between, and the weight of the second, float32."""
    scale = np.float32(size) / np.float32(side)
    # Rounded once, as a fused multiply-add does: rounded twice, 13 from 16 decides a cell half covered otherwise.
    positions = (np.float64(scale) * (np.arange(side) + 0.5) - 0.5).astype(np.float32).clip(0)
    first = positions.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), positions - first.astype(np.float32)


def _listed(box: Box) -> str:
    return ",".join(f"{edge:g}" for edge in box)
