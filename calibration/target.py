"""What engines want of a plan.

There are two emissions of one plan, because no graph serves all engines (docs/int8.md):

- "trt": TensorRT wants constant scales and symmetric INT8, so the operand is divided by its scale before a Q/DQ of
  scale 1 and the product multiplied by it. A zero point is added before, and its share taken off the bias.
- "cpu": ONNX Runtime takes scales and zero points as data, and UINT8 operands. Its INT8 convolutions write UINT8 too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.sites import Site

SCALES, ZERO_POINTS = "activation_scales", "activation_zero_points"


@dataclass(frozen=True)
class Target:
    """What an engine wants of the same plan."""

    name: str
    weight_levels: int  # largest magnitude of an INT8 weight
    unsigned: bool  # operands are UINT8 with a zero point
    half: bool  # everything else is FP16
    per_channel: bool = True  # a scale for each output channel of a weight, or one for all


TARGETS = {
    # 7 bits: products of UINT8 and INT8 are added in pairs in 16 bits on AVX2, where 8-bit weights would saturate.
    "cpu": Target("cpu", 64, unsigned=True, half=False),
    "trt": Target("trt", 127, unsigned=False, half=True),
}


@dataclass(frozen=True)
class Activation:
    """How a tensor becomes 8 bits: `scale` (K,) or (1,), `zero` of the same shape, whole numbers."""

    scale: np.ndarray
    zero: np.ndarray


def step_input(prefix: str, site: Site) -> str:
    """The transformer's input with the scales or zero points of a site's block.

    Each block has its own: engines write the offset into one tensor into their kernels, which then differ by block.
    """
    return f"{prefix}_{site.block}"
