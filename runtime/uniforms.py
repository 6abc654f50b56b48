"""The random numbers of an image: one uniform per token, the same on every machine and in every language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .errors import SettingsError
from .limits import Integers, shown


def uniforms(seed: int, counts: Sequence[int]) -> list[np.ndarray]:
    """Return the uniforms in [0, 1) of the image with this seed: for each scale k, `counts[k]` float32.

    They are the uint32 words of the Philox4x64-10 counter generator with key `seed`, the low word of each 64 bits
    first, shifted right by 8 and multiplied by 2**-24. The code does this itself, because numpy guarantees the stream
    of a bit generator, but not how `Generator.random` converts it.
    """
    total = sum(counts)
    raw = np.random.Philox(key=seed).random_raw((total + 1) // 2)  # uint64
    words = raw.astype("<u8").view("<u4")[:total]
    values = (words >> 8).astype(np.float32) * np.float32(2**-24)
    return np.split(values, np.cumsum(counts)[:-1])


def gumbel_noise(seed: int, counts: Sequence[int], vocab_size: int) -> Iterator[np.ndarray]:
    """Yield the Gumbel noise of the image with this seed: for each scale k, (counts[k], V) float32.

    Smooth sampling uses it. The noise is -log(-log(u)) in float64 with u = (w + 1/2) * 2**-24. The 24-bit numbers w
    are made as in `uniforms`, but the second word of the generator's key is 1. The noise is drawn here and not in the
    graph, because no two engines have the same generator. It is made when it is asked for, so a GPU draws meanwhile.
    """
    generator = np.random.Philox(key=np.array([seed, 1], np.uint64))
    words = np.empty(0, "<u4")
    for count in counts:
        size = count * vocab_size
        raw = generator.random_raw((size - len(words) + 1) // 2)  # uint64
        words = np.concatenate([words, raw.astype("<u8").view("<u4")])
        noise = -np.log(-np.log(((words[:size] >> 8) + 0.5) * 2**-24))
        words = words[size:]
        yield noise.astype(np.float32).reshape(count, vocab_size)


def check_seed(seed: int, pictures: int) -> None:
    """Raise SettingsError unless the seeds of all images, `seed`, `seed` + 1 …, fit into 64 bits."""
    if seed not in Integers(0, 2**64 - pictures):
        raise SettingsError(f"seed: expected 0 to 2**64 - {pictures} for {pictures} image(s), found {shown(seed)}")
