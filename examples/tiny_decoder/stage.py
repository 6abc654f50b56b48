"""The training stage of a tiny decoder: imitate the images of the decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.demo_model.device import autocast
from examples.demo_model.loop import Stage
from examples.demo_model.vqvae_stage import edge_loss, psnr
from export.model.tiny_decoder import TinyDecoder
from runtime.bundle.manifest import Model


class TinyDecoderStage(Stage):
    """A tiny decoder, trained on pairs of f_hat and image."""

    def __init__(self, model: Model):
        super().__init__()
        self.tiny_decoder = TinyDecoder(model)

    def loss(self, f_hat: Tensor, images: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return L1, L2 and edges between the decoded f_hat (B, Z, P, P) and images (B, 3, H, W) in [-1, 1]."""
        with autocast(f_hat.device):
            decoded = self.tiny_decoder(f_hat.contiguous(memory_format=torch.channels_last))
        decoded = decoded.float()
        loss = F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images) + 0.5 * edge_loss(decoded, images)
        return loss, {"psnr": psnr(decoded.detach(), images).mean().item()}

    @torch.no_grad()
    def validate(self, f_hat: Tensor, images: Tensor) -> dict[str, float]:
        """Return the mean PSNR in dB, of finished images and of previews: they alternate."""
        decoded = torch.cat([self.tiny_decoder(part) for part in f_hat.split(64)])
        values = psnr(decoded, images)
        return {"psnr": values[::2].mean().item(), "previews": values[1::2].mean().item()}
