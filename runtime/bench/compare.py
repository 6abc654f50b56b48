"""Another way to draw the same pictures, run in turns with the runtime: what slows the machine slows both."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ..pipeline import Maps
from .report import Rival
from .summary import Ratio, Summary

Draw = Callable[[int], Maps]  # draws that many pictures, returns their tokens


class RivalRuns:
    """The runs of one rival with one batch size. The first, which is not timed, is part of making this."""

    def __init__(self, name: str, draw: Draw, batch: int) -> None:
        self._name, self._draw, self._batch = name, draw, batch
        self._tokens = draw(batch)
        self._samples: list[float] = []

    def run(self) -> None:
        """One more timed run."""
        start = time.perf_counter()
        self._draw(self._batch)
        self._samples.append(time.perf_counter() - start)

    def against(self, runtime: Summary, tokens: Maps) -> Rival:
        """The result beside the runtime's, which has run as often and drawn `tokens`."""
        seconds = Summary.of(self._samples)
        return Rival(self._name, seconds, Ratio.of(seconds, runtime), differing_pictures(self._tokens, tokens))


def differing_pictures(first: Maps, second: Maps) -> int:
    """How many of N pictures have at least one other token; both are K maps (N, p*p)."""
    return int((np.concatenate(first, axis=1) != np.concatenate(second, axis=1)).any(axis=1).sum())
