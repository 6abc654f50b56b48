"""The multi-scale residual quantizer: tokens to and from the feature map f_hat (Tian et al., 2024, algorithms 1, 2)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoint.recipe import Recipe, phi_indices


def bicubic_matrix(source: int, target: int) -> Tensor:
    """Return the matrix (target, source) that resizes one axis bicubically (align_corners false, no antialias).

    It is the identity if the sizes are equal.
    """
    matrix = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * source / target - 0.5
        first = math.floor(centre) - 1
        for tap in range(first, first + 4):
            matrix[row, min(max(tap, 0), source - 1)] += _cubic(abs(centre - tap))
    return torch.from_numpy(matrix.astype(np.float32))


def _cubic(distance: float, a: float = -0.75) -> float:
    """Return the cubic convolution kernel of Keys (1981) at this distance."""
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    return a * (((distance - 5) * distance + 8) * distance - 4) if distance < 2 else 0.0


def area_matrix(source: int, target: int) -> Tensor:
    """Return the matrix (target, source) that resizes one axis by area (adaptive average); the identity if equal."""
    matrix = np.zeros((target, source), np.float32)
    for row in range(target):
        start, end = row * source // target, -(-(row + 1) * source // target)
        matrix[row, start:end] = 1 / (end - start)
    return torch.from_numpy(matrix)


def resize(maps: Tensor, matrix: Tensor) -> Tensor:
    """Resize maps (B, Z, p, p) with a matrix (q, p) to (B, Z, q, q)."""
    return matrix @ maps @ matrix.T


def _phi_bank(recipe: Recipe) -> nn.Module:
    """Return the phi convolutions, named as in the checkpoints: the name depends on how the scales share them."""
    size = recipe.code_size
    convolutions = nn.ModuleList(nn.Conv2d(size, size, 3, padding=1) for _ in range(recipe.phi_count))
    if recipe.share_quant_resi == 0 or not convolutions:
        return convolutions
    bank = nn.Module()
    shared = recipe.share_quant_resi == 1
    bank.add_module("qresi" if shared else "qresi_ls", convolutions[0] if shared else convolutions)
    return bank


class Quantizer(nn.Module):
    """Codebook and phi convolutions."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        self.embedding = nn.Embedding(recipe.vocab_size, recipe.code_size)
        self.quant_resi = _phi_bank(recipe)
        self.phi = phi_indices(len(recipe.patch_nums), recipe.phi_count)

    def phis(self) -> list[nn.Conv2d]:
        return [phi for phi in self.quant_resi.modules() if isinstance(phi, nn.Conv2d)]

    def smoothed(self, k: int, h: Tensor) -> Tensor:
        """Return (1 - r) h + r phi(h) for h (B, Z, P, P) of scale k, where r is the recipe's `quant_resi`."""
        phis, share = self.phis(), self.recipe.quant_resi
        return (1 - share) * h + share * phis[self.phi[k]](h) if phis else h

    def contribution(self, k: int, codes: Tensor) -> Tensor:
        """Return what scale k adds to f_hat: codes (B, Z, p, p) -> (B, Z, P, P)."""
        upsampled = resize(codes, bicubic_matrix(codes.shape[-1], self.recipe.grid).to(codes))
        return self.smoothed(k, upsampled)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Look up the codes (B, Z, p, p) of tokens (B, p²)."""
        side = round(tokens.shape[1] ** 0.5)
        result: Tensor = self.embedding(tokens).transpose(1, 2).unflatten(2, (side, side))
        return result

    def f_hat(self, tokens: list[Tensor]) -> Tensor:
        """Return f_hat (B, Z, P, P) of the tokens (B, p²) of every scale."""
        return torch.stack([self.contribution(k, self.lookup(t)) for k, t in enumerate(tokens)]).sum(0)

    def nearest(self, features: Tensor) -> Tensor:
        """Return tokens (B, p²) of features (B, Z, p, p): the nearest code by distance or cosine, of ties the first."""
        flat = features.flatten(2).transpose(1, 2)  # (B, p², Z)
        codebook = self.embedding.weight  # (V, Z)
        if self.recipe.using_znorm:
            return (F.normalize(flat, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(-1)
        distance = (flat**2).sum(-1, keepdim=True) + (codebook**2).sum(-1) - 2 * (flat @ codebook.T)
        return distance.argmin(-1)

    def tokenize(self, features: Tensor) -> list[Tensor]:
        """Quantize the features (B, Z, P, P) of images to tokens (B, p²) per scale."""
        tokens, rest = [], features
        for k, side in enumerate(self.recipe.patch_nums):
            tokens.append(self.nearest(resize(rest, area_matrix(self.recipe.grid, side).to(rest))))
            rest = rest - self.contribution(k, self.lookup(tokens[k]))
        return tokens

    def next_features(self, k: int, f_hat: Tensor) -> Tensor:
        """Return the features (L, B, Z) of f_hat (B, Z, P, P) from which the input of scale k is embedded."""
        side = self.recipe.patch_nums[k]
        small = resize(f_hat, area_matrix(self.recipe.grid, side).to(f_hat))  # (B, Z, p, p)
        return small.flatten(2).permute(2, 0, 1)
