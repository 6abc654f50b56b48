"""What the scale loop asks of an inference engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..sampling import Sampling

OnStage = Callable[[str, int | None, float], None]  # graph, its scale or None, seconds
Outputs = dict[str, dict[str, np.ndarray]]  # graph -> tensor -> values


class Backend(Protocol):
    """The stages of one batch of pictures: `begin`, `step` for scale 0, 1 … K - 1, then `decode`.

    Between these calls everything (keys and values, f_hat, the next input) stays where the engine keeps it.
    Only what the other methods return travels to numpy, so what nobody asks for costs nothing.
    """

    name: str
    batches: tuple[int, ...] | None  # how many pictures it can draw together, 1 among them; None: any number

    def begin(self, labels: np.ndarray, on_stage: OnStage | None = None, smooth: bool = False) -> None:
        """Starts a batch. `labels` (B,) int64. Raises BundleError for `smooth` sampling without its graph.

        Until the next `begin`, `on_stage` hears how long each run of a stage took, at the latest when `decode` returns.
        """

    def step(
        self,
        k: int,
        randoms: np.ndarray,
        guidance: float,
        sampling: Sampling,
        keep: np.ndarray | None = None,
        kept_tokens: np.ndarray | None = None,
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
