"""The tiny decoder: a small convolutional network that imitates the decoder of a VQVAE."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from runtime.bundle.manifest import Model

_WIDTH = 0.4  # share of the decoder's channels at the same resolution
_GROUP = 8  # channels are a multiple of this, which is what the kernels of all engines like
_BLOCKS = (2, 1)  # residual blocks at the lowest resolution, and at each later one


class TinyDecoder(nn.Module):
    """f_hat to an image, with at most 5 % of the decoder's FLOP.

    It has no norm and no attention, and no layer at the full resolution: the last convolution computes the 2 x 2 pixels
    of each position. It reads f_hat itself, so it needs no `post_quant_conv`.
    """

    def __init__(self, model: Model):
        super().__init__()
        widths = [_GROUP * max(1, round(_WIDTH * model.ch * m / _GROUP)) for m in reversed(model.ch_mult)]
        self.conv_in = nn.Conv2d(model.code_size, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        self.up = nn.ModuleList()
        for i, width in enumerate(widths[:-1]):
            self.blocks.append(nn.Sequential(*(_Block(width) for _ in range(_BLOCKS[i > 0]))))
            last = i == len(widths) - 2
            self.up.append(nn.Conv2d(width, 12 if last else widths[i + 1], 3, padding=1))

    def forward(self, f_hat: Tensor) -> Tensor:
        """Decode f_hat (B, Z, P, P) to an image (B, 3, H, W) in [-1, 1], not clamped."""
        h = self.conv_in(f_hat)
        for blocks, up in zip(self.blocks[:-1], self.up[:-1], strict=True):
            h = up(F.interpolate(blocks(h), scale_factor=2, mode="nearest"))
        return F.pixel_shuffle(self.up[-1](self.blocks[-1](h)), 2)


class _Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x))))
        return result
