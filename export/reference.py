"""The whole generation in PyTorch, written for reading: what every bundle and engine is compared against.

It shares the modules with the exported graphs, but resizes by interpolation, filters by sorting and sums in float64,
where the graphs use matrices, bisection and block sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.model import VAR, VQVAE
from export.model.quantizer import PHI_RATIO
from export.model.transformer import HEAD_SIZE


@dataclass(frozen=True)
class Generation:
    """N pictures, their tokens per scale, and how near each draw came to another token."""

    images: np.ndarray  # (N, H, W, 3) uint8
    tokens: list[np.ndarray]  # K arrays (N, p²) int64
    logits: list[np.ndarray]  # K arrays (N, p², V) float32 after guidance
    margins: list[np.ndarray]  # K arrays (N, p²): distance of the uniform to the nearer end of its token's interval


@torch.inference_mode()
def generate(
    var: VAR,
    vqvae: VQVAE,
    labels: Sequence[int],
    uniforms: Sequence[np.ndarray],
    cfg: float,
    top_k: int,
    top_p: float,
) -> Generation:
    """Draws one picture per label; `uniforms` are K arrays (N, p²) in [0, 1)."""
    recipe, count = var.recipe, len(labels)
    both = torch.cat((torch.tensor(labels), torch.full((count,), recipe.num_classes)))
    x = var.condition(both)[-1]
    empty = [torch.zeros(0, 2 * count, recipe.heads, HEAD_SIZE)] * recipe.depth
    past_k, past_v = empty, empty
    f_hat = torch.zeros(count, recipe.code_size, recipe.grid, recipe.grid)
    result = Generation(np.empty(0), [], [], [])
    for k, scale in enumerate(recipe.scales):
        modulation, head_modulation, _ = var.condition(both)  # anew at every scale, as the published code does
        logits, new_k, new_v = var(x, modulation, head_modulation, past_k, past_v)  # (L, 2N, V)
        past_k = [torch.cat(pair) for pair in zip(past_k, new_k, strict=True)]
        past_v = [torch.cat(pair) for pair in zip(past_v, new_v, strict=True)]
        t = cfg * k / (len(recipe.scales) - 1)
        guided = ((1 + t) * logits[:, :count] - t * logits[:, count:]).transpose(0, 1)  # (N, L, V)
        tokens, margins = draw(probabilities(guided, top_k, top_p), torch.from_numpy(uniforms[k]))
        for kept, value in zip((result.tokens, result.logits, result.margins), (tokens, guided, margins), strict=True):
            kept.append(value.numpy())
        h = vqvae.quantize.lookup(tokens)  # (N, Z, p, p)
        if scale.side != recipe.grid:
            h = F.interpolate(h, size=(recipe.grid, recipe.grid), mode="bicubic")
        phi = vqvae.quantize.phis()[vqvae.quantize.phi[k]]
        f_hat = f_hat + (1 - PHI_RATIO) * h + PHI_RATIO * phi(h)
        if k + 1 < len(recipe.scales):
            following = recipe.scales[k + 1]
            features = F.interpolate(f_hat, size=(following.side, following.side), mode="area")
            positions = var.positions()[following.offset :][: following.tokens]
            x = var.embed(features.flatten(2).permute(2, 0, 1), positions).repeat(1, 2, 1)  # (L, 2N, C)
    pixels = vqvae.decode(f_hat).clamp(-1, 1) * 0.5 + 0.5  # (N, 3, H, W)
    images = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Generation(images, result.tokens, result.logits, result.margins)


def compare(reference: Generation, tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """Which pictures have the reference's tokens everywhere, (N,) bool, and how far from a tie the others parted.

    `tokens` are K arrays (N, p²). The second value is the largest margin of a token at the first scale where a picture
    differs (0 if none does); what follows differs for that reason. Below 1e-5 float32 may draw either neighbour.
    """
    equal, widest = np.ones(len(reference.images), bool), 0.0
    for expected, found, margin in zip(reference.tokens, tokens, reference.margins, strict=True):
        differs = expected != found  # (N, p²)
        widest = max(widest, margin[differs & equal[:, None]].max(initial=0.0))
        equal &= ~differs.any(axis=1)
    return equal, widest


def probabilities(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Float64 distribution (..., V) left by top-k, then top-p (0 = all): the definition, by sorting."""
    logits = logits.double()
    if top_k > 0:
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    distribution = logits.softmax(-1)
    if top_p > 0:
        descending, order = distribution.sort(-1, descending=True)
        before = descending.cumsum(-1) - descending  # mass of everything likelier
        removed = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        distribution = distribution.masked_fill(removed, 0)
        distribution = distribution / distribution.sum(-1, keepdim=True)
    return distribution


def draw(distribution: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """distribution (..., V), uniforms (...) -> tokens (...) int64, and how far inside its interval each uniform is."""
    cumulative = distribution.cumsum(-1)
    u = uniforms.double().unsqueeze(-1) * cumulative[..., -1:]
    exceeds = (cumulative > u) & (distribution > 0)
    tokens = exceeds.to(torch.uint8).argmax(-1, keepdim=True)  # the first
    above = cumulative.gather(-1, tokens) - u
    below = u - (cumulative - distribution).gather(-1, tokens)
    return tokens.squeeze(-1), torch.minimum(above, below).squeeze(-1)
