"""Measure a rival, another way to draw the same images.

Its runs alternate with those of the runtime, so that other load on the machine slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ..base_pipeline import Maps
from .report import Rival
from .summary import Ratio, Summary

Draw = Callable[[int], Maps]  # draws that many images and returns their tokens


class RivalRuns:
    """The runs of one rival with one batch size. The constructor does a first run, which is not timed."""

    def __init__(self, name: str, draw: Draw, batch: int) -> None:
        self._name, self._draw, self._batch = name, draw, batch
        self._tokens = draw(batch)
        self._samples: list[float] = []

    def run(self) -> None:
        """Do one more timed run."""
        start = time.perf_counter()
        self._draw(self._batch)
        self._samples.append(time.perf_counter() - start)

    def against(self, runtime: Summary, tokens: Maps) -> Rival:
        """Return the result compared with the runtime, which has run as often and drawn `tokens`."""
        seconds = Summary.of(self._samples)
        return Rival(self._name, seconds, Ratio.of(seconds, runtime), differing_pictures(self._tokens, tokens))


def differing_pictures(first: Maps, second: Maps) -> int:
    """Return how many of N images differ in at least one token. Both arguments are K maps (N, p*p)."""
    return int((np.concatenate(first, axis=1) != np.concatenate(second, axis=1)).any(axis=1).sum())
