"""The shortcuts of the runtime in PyTorch, written for reading: what the runtime draws is compared with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.model import VAR, VQVAE
from export.model.reference import Generation, draw, guided, probabilities
from runtime.sampling import Sampling

Models = tuple[VAR, VQVAE]


@torch.inference_mode()
def generate_shortened(
    models: Models,
    labels: Sequence[int],
    uniforms: Sequence[np.ndarray],
    sampling: Sampling,
    guidance_scales: int,
    lead: Sequence[np.ndarray] = (),
) -> Generation:
    """Generate one image per label, with guidance at the first `guidance_scales` scales.

    At the other scales the half of the columns without label does not run. `uniforms` are K arrays (N, p²) in [0, 1).
    `lead` are the tokens (N, p²) of the first scales, which are not drawn. Smooth sampling is not supported.
    """
    (var, vqvae), count = models, len(labels)
    recipe, quantize = var.recipe, vqvae.quantize
    conditioned = torch.cat((torch.tensor(labels), torch.full((count,), recipe.num_classes)))
    modulation, head_modulation, x = var.condition(conditioned)  # (depth, 6, 2N, C), (2, 2N, C), (1, 2N, C)
    past = [[torch.zeros(0, 2 * count, recipe.heads, recipe.head_size)] * recipe.depth] * 2  # keys, then values
    f_hat = torch.zeros(count, recipe.code_size, recipe.grid, recipe.grid)
    tokens: list[Tensor] = []
    kept_logits: list[Tensor] = []
    for k, scale in enumerate(recipe.scales):
        if k == guidance_scales:
            modulation, head_modulation = modulation[:, :, :count], head_modulation[:, :count]
            past = [[block[:, :count] for block in blocks] for blocks in past]
        x = x[:, : count if k >= guidance_scales else 2 * count]
        logits, *new = var(x, modulation, head_modulation, *past)  # (L, 2N or N, V)
        past = [[torch.cat(pair) for pair in zip(*blocks, strict=True)] for blocks in zip(past, new, strict=True)]
        if k < guidance_scales:
            logits = guided(logits, sampling.cfg * k / (len(recipe.scales) - 1))
        else:
            logits = logits.transpose(0, 1)
        kept_logits.append(logits)  # (N, L, V)
        drawn = draw(probabilities(logits, sampling.tokens_kept, sampling.top_p), torch.from_numpy(uniforms[k]))
        tokens.append(torch.from_numpy(lead[k]) if k < len(lead) else drawn)
        h = quantize.embedding(tokens[k]).transpose(1, 2).unflatten(2, (scale.side, scale.side))  # (N, Z, p, p)
        if scale.side != recipe.grid:
            h = F.interpolate(h, size=(recipe.grid, recipe.grid), mode="bicubic")
        f_hat = f_hat + quantize.smoothed(k, h)
        if k + 1 < len(recipe.scales):
            following = recipe.scales[k + 1]
            features = F.interpolate(f_hat, size=(following.side, following.side), mode="area")
            positions = var.positions()[following.offset :][: following.tokens]
            x = var.embed(features.flatten(2).permute(2, 0, 1), positions).repeat(1, 2, 1)  # (L, 2N, C)
    pixels = vqvae.decode(f_hat)
    images = ((pixels.clamp(-1, 1) * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return Generation(images.numpy(), [maps.numpy() for maps in tokens], [maps.numpy() for maps in kept_logits])


def generate_drafted(
    draft: Models,
    refiner: Models,
    labels: Sequence[int],
    uniforms: Sequence[np.ndarray],
    sampling: Sampling,
    guidance_scales: int,
    draft_scales: int,
) -> Generation:
    """Generate one image per label: the first `draft_scales` scales by `draft`, the others and the image by `refiner`.

    The logits of a scale are those of the model that drew it.
    """
    drafted = generate_shortened(draft, labels, uniforms, sampling, guidance_scales)
    lead = drafted.tokens[:draft_scales]
    refined = generate_shortened(refiner, labels, uniforms, sampling, guidance_scales, lead)
    logits = [*drafted.logits[:draft_scales], *refined.logits[draft_scales:]]
    return Generation(refined.images, refined.tokens, logits)
