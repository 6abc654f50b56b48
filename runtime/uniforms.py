"""The random numbers of a picture: one uniform per token, the same on every machine and in every language."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import SettingsError
from .limits import Integers, shown


def uniforms(seed: int, counts: Sequence[int]) -> list[np.ndarray]:
    """The uniforms in [0, 1) of the picture `seed`, scale after scale: `counts[k]` float32 each.

    They are the uint32 words of the Philox4x64-10 counter generator with key `seed`, the low word of each 64
    bits first, shifted right by 8 and multiplied by 2**-24. Spelt out, because numpy promises to keep a bit
    generator's stream, but not what `Generator.random` makes of it.
    """
    total = sum(counts)
    raw = np.random.Philox(key=seed).random_raw((total + 1) // 2)  # uint64
    words = raw.astype("<u8").view("<u4")[:total]
    values = (words >> 8).astype(np.float32) * np.float32(2**-24)
    return np.split(values, np.cumsum(counts)[:-1])


def gumbel_noise(seed: int, counts: Sequence[int], vocab_size: int) -> list[np.ndarray]:
    """Gumbel noise of the picture `seed` for smooth sampling, scale after scale: (counts[k], V) float32 each.

    -log(-log(u)) in float64, u = (w + 1/2) * 2**-24 of the 24-bit numbers w that `uniforms` is made of, but with the
    second word of the generator's key 1. It is drawn here, not in the graph: no two engines have the same generator.
    """
    total = sum(counts) * vocab_size
    raw = np.random.Philox(key=np.array([seed, 1], np.uint64)).random_raw((total + 1) // 2)  # uint64
    words = raw.astype("<u8").view("<u4")[:total]
    noise = -np.log(-np.log(((words >> 8) + 0.5) * 2**-24))
    shaped = noise.astype(np.float32).reshape(-1, vocab_size)
    return np.split(shaped, np.cumsum(counts)[:-1])


def check_seed(seed: int, pictures: int) -> None:
    """Raises SettingsError unless `seed`, `seed` + 1 … one for each picture fit into 64 bits."""
    if seed not in Integers(0, 2**64 - pictures):
        raise SettingsError(f"seed: expected 0 to 2**64 - {pictures} for {pictures} picture(s), found {shown(seed)}")
