"""Training of the VQVAE: multi-scale residual quantisation, straight-through (Tian et al., 2024, section 3.2)."""

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
_DEAD_BELOW = 0.03  # mean uses per batch
_USAGE_DECAY = 0.98
_REVIVE_EVERY = 50  # steps


class VQVAEStage(Stage):
    """The VQVAE, how often each code is used, and candidates to replace the unused ones."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.vqvae = VQVAE(recipe)
        for phi in self.vqvae.quantize.phis():
            nn.init.dirac_(phi.weight)  # phi starts as the identity
            nn.init.zeros_(phi.bias)
        self.register_buffer("usage", torch.zeros(recipe.vocab_size))  # mean uses per batch
        self.register_buffer("candidates", torch.zeros(recipe.vocab_size, recipe.code_size))

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction (L1, L2, edges) plus quantisation loss."""
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(images.device):
            features = self.vqvae.features(images)  # (B, Z, P, P)
        f_hat, quantisation, tokens, residuals = quantise(self.vqvae.quantize, features.float())
        self._count(tokens, residuals)
        with autocast(images.device):
            decoded = self.vqvae.decode(f_hat.contiguous(memory_format=torch.channels_last))
        decoded = decoded.float()
        l1, l2 = F.l1_loss(decoded, images), F.mse_loss(decoded, images)
        reconstruction = l1 + 2 * l2 + _EDGE_WEIGHT * _edge_loss(decoded, images)
        figures = {
            "psnr": -10 * torch.log10(l2.detach() / 4).item(),
            "vq": quantisation.item(),
            "codes": (self.usage > _DEAD_BELOW).float().mean().item(),
        }
        return reconstruction + quantisation, figures

    @torch.no_grad()
    def _count(self, tokens: Tensor, residuals: Tensor) -> None:
        """tokens (B T,), residuals (B T, Z): update the statistics that `maintain` revives codes from."""
        uses = torch.bincount(tokens, minlength=len(self.usage)).float()
        self.usage.lerp_(uses, 1 - _USAGE_DECAY)
        drawn = torch.randint(len(residuals), (len(self.usage),)).to(residuals.device)
        self.candidates.copy_(residuals[drawn])

    @torch.no_grad()
    def maintain(self, average: Stage, step: int) -> None:
        """Move codes that are hardly used onto residuals of the last batch; at first that is all of them."""
        if step % _REVIVE_EVERY and step != 1:
            return
        dead = self.usage < _DEAD_BELOW if step > 1 else torch.ones_like(self.usage, dtype=torch.bool)
        assert isinstance(average, VQVAEStage)
        for stage in (self, average):
            stage.vqvae.quantize.embedding.weight[dead] = self.candidates[dead]
            stage.usage[dead] = 2 * _DEAD_BELOW  # time to be found before the next round

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Mean PSNR of the pictures after encoding to tokens and decoding, in dB."""
        with autocast(images.device):
            decoded = torch.cat([self.vqvae.decode_tokens(self.vqvae.encode(part)) for part in images.split(64)])
        return {"psnr": psnr(decoded.float(), images).mean().item()}


def psnr(decoded: Tensor, images: Tensor) -> Tensor:
    """PSNR (B,) in dB of pictures (B, 3, H, W) in [-1, 1]; the decoded ones are clamped first."""
    error = ((decoded.clamp(-1, 1) - images) / 2).square().mean((1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-10))


def quantise(quantizer: Quantizer, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Quantizer.tokenize` made trainable.

    Args:
        quantizer: gets its gradient from the distance of every partial sum to the features.
        features: (B, Z, P, P) f32.

    Returns:
        f_hat (B, Z, P, P) whose gradient goes straight through to `features`, the quantisation loss (),
        the tokens (B T,) of all scales and what each of them stands for (B T, Z).
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


def _edge_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 between the finite differences of two pictures (B, 3, H, W): outlines matter more than flat areas."""
    error = decoded - images
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
