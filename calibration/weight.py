"""The INT8 arithmetic of one product: symmetric weights, with a scale for each output channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calibration.sites import Site
from calibration.target import Activation, Target


@dataclass(frozen=True)
class Int8Weight:
    """The weight of a product in INT8. Each method computes anew instead of keeping its result: weights are large."""

    site: Site
    target: Target
    read: Callable[[str], np.ndarray]  # a tensor of the FP32 bundle's weight file
    channel_scaling: np.ndarray | None  # (C,): divides the operand, multiplies the weight's rows

    def integers(self) -> np.ndarray:
        """Return the weight as int8; a Gemm's weight is transposed for MatMul."""
        weight, axis = self._float(), self.site.out_axis
        whole = integers(weight, weight_scale(weight, axis, self.target), axis, self.target)
        return whole.T if self.site.op == "Gemm" else whole

    def scale(self) -> np.ndarray:
        """Return the scales (out,) float32 of the output channels."""
        return weight_scale(self._float(), self.site.out_axis, self.target)

    def column_sums(self) -> np.ndarray:
        """Return (out,): the product of an operand that is 1 everywhere."""
        result: np.ndarray = self.integers().sum(0, dtype=np.int64) * self.scale()
        return result

    def bias_scale(self, operand: Activation) -> np.ndarray:
        """Return (out,): the value of one step of an INT32 bias, which is added to sums of products of steps."""
        result: np.ndarray = operand.scale[0] * self.scale()
        return result

    def bias(self, name: str, operand: Activation) -> np.ndarray:
        """Return the bias `name` in steps of `bias_scale`, int32."""
        return np.round(self.read(name) / self.bias_scale(operand).astype(np.float64)).astype(np.int32)

    def _float(self) -> np.ndarray:
        weight = self.read(self.site.weight).astype(np.float32)
        return weight if self.channel_scaling is None else weight * self.channel_scaling[:, None]


def weight_scale(weight: np.ndarray, axis: int, target: Target) -> np.ndarray:
    """Return the value of one INT8 step (out,) float32 for each output channel; `axis` is that of the channels."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(others)
    if not target.per_channel:
        largest = np.full_like(largest, largest.max())
    scale = np.maximum(largest, 1e-30) / target.weight_levels
    if target.half:  # the graph stores it in FP16: round the weights to multiples of the FP16 value
        scale = np.maximum(scale, np.finfo(np.float16).tiny).astype(np.float16)
    result: np.ndarray = scale.astype(np.float32)
    return result


def integers(weight: np.ndarray, scale: np.ndarray, axis: int, target: Target) -> np.ndarray:
    """Return the weight in steps of `scale`, int8."""
    steps = weight / np.expand_dims(scale, [i for i in range(weight.ndim) if i != axis])
    result: np.ndarray = np.clip(np.round(steps), -target.weight_levels, target.weight_levels).astype(np.int8)
    return result
