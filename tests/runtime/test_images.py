"""Pictures on disk: every value kept, and every one of them on the sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.images import GAP, grid, write_png


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (8, 3, 3), (9, 3, 3)])
def test_grid_holds_every_picture(count: int, rows: int, columns: int) -> None:
    images = np.arange(count * 4 * 6 * 3, dtype=np.uint8).reshape(count, 4, 6, 3)
    sheet = grid(images)
    assert sheet.shape == (rows * (4 + GAP) - GAP, columns * (6 + GAP) - GAP, 3)
    for i, image in enumerate(images):
        y, x = i // columns * (4 + GAP), i % columns * (6 + GAP)
        assert np.array_equal(sheet[y : y + 4, x : x + 6], image)


def test_png_keeps_every_value(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "picture.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "picture.png")), image)
