"""Draw random batches of emoji, in which emoji with many skin tones are not more frequent than others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from examples.demo_model.data import EmojiSet


class Sampler:
    """Draws emoji with replacement. All skin tones of an emoji together count as one emoji.

    `power` balances the classes: the frequency of a class with n emoji is proportional to n ** power. With 0 all
    classes are equally frequent, with 1 all emoji are.
    """

    def __init__(self, emoji: EmojiSet, device: torch.device, power: float):
        self.masters = torch.from_numpy(emoji.images).to(device)  # (N, 3, 128, 128) uint8
        self.labels = torch.from_numpy(emoji.labels).to(device)  # (N,)
        self.mirror = torch.from_numpy(emoji.mirror)  # (N,)
        _, base, tones = np.unique(emoji.bases, return_inverse=True, return_counts=True)
        weights = 1 / tones[base]  # (N,)
        members = np.bincount(emoji.labels + 1, weights)  # emoji of label -1, 0, 1 ...
        self.weights = torch.from_numpy(weights * members[emoji.labels + 1] ** (power - 1))

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return masters (batch, 3, 128, 128) uint8, labels (batch,) and mirror flags (batch,)."""
        chosen = torch.multinomial(self.weights, batch, replacement=True, generator=generator)
        on_device = chosen.to(self.masters.device)
        return self.masters[on_device], self.labels[on_device], self.mirror[chosen]
