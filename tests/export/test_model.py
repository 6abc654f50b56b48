"""Parts of the model against PyTorch's own operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from export.checkpoint.recipe import phi_indices
from export.model.quantizer import area_matrix, bicubic_matrix, resize


@pytest.mark.parametrize("grid", [8, 16, 32])
def test_resizes_are_torchs(grid: int) -> None:
    for side in range(1, grid + 1):
        small = torch.randn(1, 2, side, side, dtype=torch.float64)
        large = torch.randn(1, 2, grid, grid, dtype=torch.float64)
        up = F.interpolate(small, size=(grid, grid), mode="bicubic")
        down = F.interpolate(large, size=(side, side), mode="area")
        torch.testing.assert_close(resize(small, bicubic_matrix(side, grid).double()), up, atol=1e-6, rtol=0)
        torch.testing.assert_close(resize(large, area_matrix(grid, side).double()), down, atol=1e-6, rtol=0)


def test_phi_of_ten_scales() -> None:
    assert phi_indices(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
