"""Weights as INT8: symmetric, with a scale for each output channel."""

from __future__ import annotations

import numpy as np

from calibration.target import Target


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
