"""Encode augmented emoji to tokens once, for all transformers that are trained on one VQVAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from examples.demo_model.data import EmojiSet, augment
from examples.demo_model.device import autocast
from examples.demo_model.sampling import Sampler
from export.model.vqvae import VQVAE
from runtime.errors import SettingsError
from runtime.files.atomic import atomic_file

_BATCH = 32
_VQVAE = "vqvae_checkpoint_sha256"  # key in the metadata of the file


@dataclass(frozen=True)
class TokenSet:
    """N encoded images: tokens (N, T) of all scales, and labels (N,)."""

    tokens: Tensor
    labels: Tensor

    def draw(self, batch: int, generator: torch.Generator) -> TokenSet:
        """Return `batch` of the images, drawn with replacement."""
        chosen = torch.randint(len(self.labels), (batch,), generator=generator).to(self.labels.device)
        return TokenSet(self.tokens[chosen], self.labels[chosen])

    def to(self, device: torch.device) -> TokenSet:
        """Return the set on a device, with tokens and labels as int64."""
        return TokenSet(self.tokens.to(device).long(), self.labels.to(device).long())

    def save(self, path: Path, vqvae_sha256: str) -> None:
        """Write the set, and the hash of the VQVAE's checkpoint that it was encoded with."""
        tensors = {"tokens": self.tokens.to(torch.int32).cpu(), "labels": self.labels.to(torch.int32).cpu()}
        with atomic_file(path) as file:
            file.write(save(tensors, {_VQVAE: vqvae_sha256}))

    @classmethod
    def load(cls, path: Path, vqvae_sha256: str, tokens: int) -> TokenSet:
        """Read a set with this number of tokens in an image.

        Raises SettingsError if it is not there, or was encoded with another checkpoint or other scales.
        """
        again = "run `python -m examples.demo_model.train tokens` with the same --folder and --model"
        if not path.exists():
            raise SettingsError(f"{path}: not found; {again}")
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get(_VQVAE) != vqvae_sha256:
                    raise SettingsError(f"{path}: the VQVAE has changed since it was made; {again}")
                read = cls(file.get_tensor("tokens"), file.get_tensor("labels"))
        except SafetensorError as error:
            raise SettingsError(f"{path}: damaged ({error}); {again}") from None
        if read.tokens.shape[1] != tokens:
            found = read.tokens.shape[1]
            raise SettingsError(f"{path}: expected {tokens} tokens in an image, found {found}; {again}")
        return read


@torch.no_grad()
def encode(vqvae: VQVAE, images: Tensor) -> Tensor:
    """Return the tokens (B, T) of images (B, 3, H, W) in [-1, 1]."""
    with autocast(images.device):
        features = vqvae.features(images.contiguous(memory_format=torch.channels_last))
    return torch.cat(vqvae.quantize.tokenize(features.float()), 1)


def encode_plain(vqvae: VQVAE, images: Tensor, labels: Tensor) -> TokenSet:
    """Encode images (N, 3, H, W) in [-1, 1] with labels (N,)."""
    return TokenSet(torch.cat([encode(vqvae, part) for part in images.split(_BATCH)]), labels)


def encode_augmented(
    vqvae: VQVAE, emoji: EmojiSet, images: int, device: torch.device, seed: int, log: Callable[[str], None]
) -> TokenSet:
    """Encode `images` augmented emoji. A class with n emoji is drawn as often as the root of n says."""
    sampler = Sampler(emoji, device, power=0.5)
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = [], []
    for start in range(0, images, _BATCH):
        masters, drawn, mirror = sampler.draw(min(_BATCH, images - start), generator)
        tokens.append(encode(vqvae, augment(masters, mirror, generator)))
        labels.append(drawn)
        if start // _BATCH % 100 == 0:
            log(f"{start} of {images} images")
    return TokenSet(torch.cat(tokens), torch.cat(labels))
