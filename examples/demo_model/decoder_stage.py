"""The last training stage of the VQVAE: only the decoder, on fixed tokens, to minimise the squared error."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.demo_model.device import autocast
from examples.demo_model.loop import Stage
from examples.demo_model.vqvae_stage import psnr
from export.model.vqvae import VQVAE


class DecoderStage(Stage):
    """A trained VQVAE of which only `post_quant_conv` and `decoder` are trained further.

    Its tokens do not change, so a transformer that was trained on them remains valid.
    """

    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.vqvae = vqvae.requires_grad_(False)
        self.vqvae.post_quant_conv.requires_grad_(True)
        self.vqvae.decoder.requires_grad_(True)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the mean squared error of images (B, 3, H, W) in [-1, 1] after encoding and decoding."""
        decoded = self._decoded(images)
        loss = F.mse_loss(decoded, images)
        return loss, {"psnr": psnr(decoded.detach(), images).mean().item()}

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the mean PSNR in dB after encoding and decoding."""
        decoded = torch.cat([self._decoded(part) for part in images.split(64)])
        return {"psnr": psnr(decoded, images).mean().item()}

    def _decoded(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            with autocast(images.device):
                features = self.vqvae.features(images)
            quantizer = self.vqvae.quantize
            f_hat = quantizer.f_hat(quantizer.tokenize(features.float()))
        with autocast(images.device):
            decoded = self.vqvae.decode(f_hat.contiguous(memory_format=torch.channels_last))
        return decoded.float()
