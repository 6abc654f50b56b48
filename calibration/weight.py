"""The INT8 arithmetic of one product: weights symmetric, with a scale for each output channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calibration.sites import Site
from calibration.target import Activation, Target


@dataclass(frozen=True)
class Int8Weight:
    """The weight of a product in INT8. Each number is computed when it is asked for: weights are large."""

    site: Site
    target: Target
    read: Callable[[str], np.ndarray]  # a tensor of the FP32 bundle's weight file
    channel_scaling: np.ndarray | None  # (C,): the operand is divided by it, the weight's rows multiplied

    def integers(self) -> np.ndarray:
        """int8; of a Gemm transposed to what MatMul takes."""
        weight, axis = self._float(), self.site.out_axis
        whole = integers(weight, weight_scale(weight, axis, self.target), axis, self.target)
        return whole.T if self.site.op == "Gemm" else whole

    def scale(self) -> np.ndarray:
        """(out,) float32"""
        return weight_scale(self._float(), self.site.out_axis, self.target)

    def column_sums(self) -> np.ndarray:
        """(out,): what a product makes of an operand that is 1 everywhere."""
        result: np.ndarray = self.integers().sum(0, dtype=np.int64) * self.scale()
        return result

    def bias_scale(self, operand: Activation) -> np.ndarray:
        """(out,): one step of a bias in INT32, which is added to sums of products of steps."""
        result: np.ndarray = operand.scale[0] * self.scale()
        return result

    def bias(self, name: str, operand: Activation) -> np.ndarray:
        """The bias `name` in these steps, int32."""
        return np.round(self.read(name) / self.bias_scale(operand).astype(np.float64)).astype(np.int32)

    def _float(self) -> np.ndarray:
        weight = self.read(self.site.weight).astype(np.float32)
        return weight if self.channel_scaling is None else weight * self.channel_scaling[:, None]


def weight_scale(weight: np.ndarray, axis: int, target: Target) -> np.ndarray:
    """One INT8 step of each output channel, which is `axis` of the weight: (out,) float32."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(others)
    if not target.per_channel:
        largest = np.full_like(largest, largest.max())
    scale = np.maximum(largest, 1e-30) / target.weight_levels
    if target.half:  # the graph keeps it in FP16, so the weights are rounded to multiples of what that holds
        scale = np.maximum(scale, np.finfo(np.float16).tiny).astype(np.float16)
    result: np.ndarray = scale.astype(np.float32)
    return result


def integers(weight: np.ndarray, scale: np.ndarray, axis: int, target: Target) -> np.ndarray:
    """The weight in steps of `scale`, int8."""
    steps = weight / np.expand_dims(scale, [i for i in range(weight.ndim) if i != axis])
    result: np.ndarray = np.clip(np.round(steps), -target.weight_levels, target.weight_levels).astype(np.int8)
    return result
