"""Guidance and sampling in operations that every inference engine has: no sort, no TopK, no random numbers.

Top-k and top-p are both thresholds on the logit. Each is found by bisection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = -104.0  # exp(-104) is 0 in float32: a token this far below the largest logit is never drawn
REMOVED = -1e30  # not infinity: engines fuse softmax in ways that would make it NaN
ROUNDS = 30  # halvings of an interval of at most 104: finer than the resolution of logits in float32
BLOCK = 64  # a cumulative sum over V is computed within blocks of 64, then over their totals


def guided(logits: Tensor, guidance: Tensor) -> Tensor:
    """Apply classifier-free guidance to logits (L, 2B, V) with guidance (1,) -> (L, B, V)."""
    conditional, unconditional = logits.unflatten(1, (2, -1)).unbind(1)  # each (L, B, V)
    result: Tensor = (1 + guidance) * conditional - guidance * unconditional
    return result


def filtered(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return unnormalised probabilities (..., V) after top-k, then top-p: exp(logit - max), or 0 where removed.

    logits (..., V), top_k (1,) int64, top_p (1,); 0 keeps all. Equal logits are kept or removed together. Top-p keeps
    the smallest set whose share of the mass that top-k left is at least top_p.
    """
    relative = (logits - logits.amax(-1, keepdim=True)).clamp_min(LOWEST)  # (..., V), at most 0
    vocabulary = logits.shape[-1]
    wanted = torch.where(top_k > 0, top_k, vocabulary).to(logits.dtype)

    kept = relative >= _highest_threshold(relative, None, wanted)
    weights = relative.exp() * kept
    share = torch.where(top_p > 0, top_p, 2.0)  # 2: more than the whole mass, so all are kept
    mass = share * weights.sum(-1, keepdim=True)
    return weights * (relative >= _highest_threshold(relative, weights, mass))


def smoothed(
    logits: Tensor, noise: Tensor, sharpness: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> Tensor:
    """Return the Gumbel-softmax (..., V) of logits and noise (..., V) over the tokens that top-k and top-p keep."""
    noised = (logits * sharpness + noise) / temperature
    return torch.where(filtered(logits, top_k, top_p) > 0, noised, REMOVED).softmax(-1)


def finite(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return whether the numbers along `axes` are all finite: if one is NaN or infinite, so is their sum.

    It uses no IsNaN, IsInf or NaN != NaN, which engines may optimise away. A comparison with NaN is always false.
    """
    return values.sum(axes).abs() < torch.finfo(torch.float32).max


def _highest_threshold(values: Tensor, weights: Tensor | None, wanted: Tensor) -> Tensor:
    """Return the highest threshold (..., 1) such that the values at or above it weigh at least `wanted` in total.

    Returns the lowest value if all values together weigh less. values (..., V), at most 0; weights (..., V), or None
    to count the values.
    """
    low = values.amin(-1, keepdim=True)
    step = low * -0.5
    for _ in range(ROUNDS):
        above = (values >= low + step).to(values.dtype)
        weight = (above if weights is None else above * weights).sum(-1, keepdim=True)
        low = low + step * (weight >= wanted)
        step = step * 0.5
    return low


def drawn(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw the first index whose cumulative weight exceeds uniform x total, never one of weight 0.

    Rounding cannot lead past the last index that is kept. weights (..., V) unnormalised, uniforms (...) in [0, 1) ->
    (...) int64.
    """
    vocabulary = weights.shape[-1]
    index = torch.arange(vocabulary)
    cumulative = cumulative_sum(weights)
    kept = weights > 0
    exceeds = kept & (cumulative > uniforms.unsqueeze(-1) * cumulative[..., -1:])
    first = torch.where(exceeds, index, vocabulary).amin(-1)
    last_kept = torch.where(kept, index, 0).amax(-1)
    return torch.minimum(first, last_kept)


def cumulative_sum(weights: Tensor) -> Tensor:
    """Return the cumulative sums (..., V) of weights (..., V), as products with triangular matrices."""
    vocabulary = weights.shape[-1]
    if missing := -vocabulary % BLOCK:
        weights = F.pad(weights, (0, missing))
    blocks = weights.unflatten(-1, (-1, BLOCK))  # (..., V/64, 64)
    count = blocks.shape[-2]
    within = blocks @ torch.ones(BLOCK, BLOCK).triu()
    before = within[..., -1] @ torch.ones(count, count).triu(1)  # (..., V/64): total of all earlier blocks
    cumulative = (within + before.unsqueeze(-1)).flatten(-2)
    result: Tensor = cumulative[..., :vocabulary] if missing else cumulative
    return result
