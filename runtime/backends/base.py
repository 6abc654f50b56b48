"""What the scale loop asks of an inference engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..sampling import Sampling

OnStage = Callable[[str, int | None, float], None]  # graph, its scale or None, seconds


@dataclass(frozen=True)
class StageRun:
    """One run of a graph that has just ended, for an observer to look at: each tensor is copied when it is asked for.

    The decoder runs once for each picture of a batch, in their order. A tensor that is looked up after the observer has
    returned may hold what a later run wrote.
    """

    graph: str
    scale: int | None  # None: condition and decoder
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


Observe = Callable[[StageRun], None]


class Backend(Protocol):
    """The stages of one batch of pictures: `begin`, `step` for scale 0, 1 … K - 1, then `decode`.

    Between these calls everything (keys and values, f_hat, the next input) stays where the engine keeps it.
    Only what an observer or the other methods ask for travels to numpy, so what nobody asks for costs nothing.
    """

    name: str
    batches: tuple[int, ...] | None  # how many pictures it can draw together, 1 among them; None: any number

    def begin(
        self, labels: np.ndarray, sampling: Sampling, on_stage: OnStage | None = None, observe: Observe | None = None
    ) -> None:
        """Starts a batch that is drawn with `sampling`. `labels` (B,) int64.

        Until the next `begin`, `on_stage` hears how long each run of a stage took, at the latest when `decode` returns,
        and `observe` is shown each run as it ends. Raises BundleError for smooth sampling without its graph.
        """

    def step(
        self, k: int, randoms: np.ndarray, keep: np.ndarray | None = None, kept_tokens: np.ndarray | None = None
    ) -> None:
        """Draws the tokens of scale k and adds them to f_hat.

        `randoms` are uniforms (B, L) float32, for smooth sampling Gumbel noise (B, L, V). Where `keep` (B, L) bool is
        true, `kept_tokens` (B, L) int32 replace the tokens drawn.
        """

    def drawn(self, k: int) -> np.ndarray:
        """(B, L) int32: what scale k, already stepped, drew; -1 where the logits hold NaN or infinity."""

    def tokens(self, k: int) -> np.ndarray:
        """(B, L) int32: the same after `keep`."""

    def logits(self) -> np.ndarray:
        """(L, 2B, V) float32 of the latest step, before guidance: B columns with label, then B without."""

    def decode(self) -> np.ndarray:
        """(B, H, W, 3) uint8: the pictures as f_hat is after the latest step."""

    def finite(self) -> np.ndarray:
        """(B,) bool: false for a picture of the latest `decode` whose pixels were NaN or infinite before rounding."""

    def encode(self, images: np.ndarray) -> np.ndarray:
        """(N, T) int32: the tokens of pictures (N, H, W, 3) uint8, -1 in one whose features hold NaN or infinity.

        Raises BundleError without an encoder.
        """
