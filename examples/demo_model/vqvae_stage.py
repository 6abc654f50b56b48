"""Train the VQVAE by multi-scale residual quantisation, straight-through (Tian et al., 2024, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.demo_model.device import autocast
from examples.demo_model.loop import Stage
from export.checkpoint.recipe import Recipe
from export.model.quantizer import Quantizer, area_matrix, resize
from export.model.vqvae import VQVAE

_COMMITMENT = 0.25
_EDGE_WEIGHT = 0.5
_DEAD_BELOW = 0.03  # a code with fewer mean uses per batch is dead
_USAGE_DECAY = 0.98
_REVIVE_EVERY = 50  # steps


class VQVAEStage(Stage):
    """The VQVAE, the usage of each code, and candidates that replace unused codes."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.vqvae = VQVAE(recipe)
        for phi in self.vqvae.quantize.phis():
            nn.init.dirac_(phi.weight)  # phi starts as the identity
            nn.init.zeros_(phi.bias)
        self.register_buffer("usage", torch.zeros(recipe.vocab_size))  # mean uses per batch
        self.register_buffer("candidates", torch.zeros(recipe.vocab_size, recipe.code_size))

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the reconstruction loss (L1, L2, edges) plus the quantisation loss."""
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(images.device):
            features = self.vqvae.features(images)  # (B, Z, P, P)
        f_hat, quantisation, tokens, residuals = quantise(self.vqvae.quantize, features.float())
        self._count(tokens, residuals)
        with autocast(images.device):
            decoded = self.vqvae.decode(f_hat.contiguous(memory_format=torch.channels_last))
        decoded = decoded.float()
        l1, l2 = F.l1_loss(decoded, images), F.mse_loss(decoded, images)
        reconstruction = l1 + 2 * l2 + _EDGE_WEIGHT * edge_loss(decoded, images)
        figures = {
            "psnr": -10 * torch.log10(l2.detach() / 4).item(),
            "vq": quantisation.item(),
            "codes": (self.usage > _DEAD_BELOW).float().mean().item(),
        }
        return reconstruction + quantisation, figures

    @torch.no_grad()
    def _count(self, tokens: Tensor, residuals: Tensor) -> None:
        """Update the statistics that `maintain` uses, from tokens (B T,) and residuals (B T, Z)."""
        uses = torch.bincount(tokens, minlength=len(self.usage)).float()
        self.usage.lerp_(uses, 1 - _USAGE_DECAY)
        drawn = torch.randint(len(residuals), (len(self.usage),)).to(residuals.device)
        self.candidates.copy_(residuals[drawn])

    @torch.no_grad()
    def maintain(self, average: Stage, step: int) -> None:
        """Replace codes that are hardly used by residuals of the last batch; after the first step, all codes."""
        if step % _REVIVE_EVERY and step != 1:
            return
        dead = self.usage < _DEAD_BELOW if step > 1 else torch.ones_like(self.usage, dtype=torch.bool)
        assert isinstance(average, VQVAEStage)
        for stage in (self, average):
            stage.vqvae.quantize.embedding.weight[dead] = self.candidates[dead]
            stage.usage[dead] = 2 * _DEAD_BELOW  # gives them time to be used before the next check

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the mean PSNR in dB of images after encoding to tokens and decoding."""
        with autocast(images.device):
            decoded = torch.cat([self.vqvae.decode_tokens(self.vqvae.encode(part)) for part in images.split(64)])
        return {"psnr": psnr(decoded.float(), images).mean().item()}


def psnr(decoded: Tensor, images: Tensor) -> Tensor:
    """Return the PSNR (B,) in dB of images (B, 3, H, W) in [-1, 1]; `decoded` is clamped first."""
    error = ((decoded.clamp(-1, 1) - images) / 2).square().mean((1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-10))


def quantise(quantizer: Quantizer, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokenize features like `Quantizer.tokenize`, with gradients.

    Args:
        quantizer: its gradient comes from the distance of every partial sum to the features.
        features: (B, Z, P, P) f32.

    Returns:
        f_hat (B, Z, P, P), whose gradient passes straight through to `features`; the quantisation loss ();
        the tokens (B T,) of all scales; and the residual that each token replaces (B T, Z).
    """
    recipe, target = quantizer.recipe, features.detach()
    f_hat, loss = torch.zeros_like(features), features.new_zeros(())
    tokens, residuals = [], []
    for k, side in enumerate(recipe.patch_nums):
        rest = resize(target - f_hat.detach(), area_matrix(recipe.grid, side).to(features))  # (B, Z, p, p)
        chosen = quantizer.nearest(rest)  # (B, p²)
        f_hat = f_hat + quantizer.contribution(k, quantizer.lookup(chosen))
        loss = loss + F.mse_loss(f_hat, target) + _COMMITMENT * F.mse_loss(features, f_hat.detach())
        tokens.append(chosen.flatten())
        residuals.append(rest.permute(0, 2, 3, 1).flatten(0, 2))
    straight = features + (f_hat - features).detach()
    return straight, loss / len(recipe.patch_nums), torch.cat(tokens), torch.cat(residuals)


def edge_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Return the L1 distance of the finite differences of two images (B, 3, H, W), which gives outlines more weight."""
    error = decoded - images
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
