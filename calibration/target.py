"""Targets: the two ways to write a plan into graphs, because no graph serves all engines (docs/int8.md).

- "trt": TensorRT needs constant scales and symmetric INT8. So the operand is divided by its scale before a Q/DQ of
  scale 1, and the product is multiplied by it. A zero point is added before the Q/DQ; its share is subtracted from the
  bias.
- "cpu": ONNX Runtime takes scales and zero points as data, and UINT8 operands. Its INT8 convolutions write UINT8 too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.sites import Site

SCALES, ZERO_POINTS = "activation_scales", "activation_zero_points"


@dataclass(frozen=True)
class Target:
    """The form of a plan that an engine needs."""

    name: str
    weight_levels: int  # largest magnitude of an INT8 weight
    unsigned: bool  # operands are UINT8 with a zero point
    half: bool  # everything else is FP16
    per_channel: bool = True  # one scale for each output channel of a weight; False: one for the whole weight


TARGETS = {
    # 7 bits: AVX2 adds pairs of UINT8 x INT8 products in 16 bits, which would saturate with 8-bit weights.
    "cpu": Target("cpu", 64, unsigned=True, half=False),
    "trt": Target("trt", 127, unsigned=False, half=True),
}


@dataclass(frozen=True)
class Activation:
    """How a tensor becomes 8 bits: `scale` (K,) or (1,), and `zero` of the same shape, which holds integers."""

    scale: np.ndarray
    zero: np.ndarray


def step_input(prefix: str, site: Site) -> str:
    """Return the name of the transformer's input with the scales or zero points of a site's block.

    Each block has its own input. With one tensor for all blocks, an engine compiles each block's offset into its
    kernels, so that every block needs its own kernels.
    """
    return f"{prefix}_{site.block}"
