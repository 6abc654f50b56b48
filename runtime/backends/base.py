"""The interface between the scale loop and an inference engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..sampling import Sampling

OnStage = Callable[[str, int | None, float], None]  # graph, its scale or None, seconds


@dataclass(frozen=True)
class StageRun:
    """One finished run of a graph, as an observer sees it. Each tensor is copied to numpy when it is looked up.

    The decoder runs once for each image of a batch, in order. Look up tensors before the observer returns: later runs
    overwrite them.
    """

    graph: str
    scale: int | None  # None for condition and decoder
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


Observe = Callable[[StageRun], None]


@dataclass(frozen=True)
class Plan:
    """What a batch will be asked for, so that a backend prepares no more."""

    scales: int  # how many are stepped
    image: bool  # whether the image is decoded in the end
    asked: bool  # whether anything is asked for before: tokens, logits, previews

    @property
    def whole(self) -> bool:
        """Whether a backend may start the whole image at once in `decode`."""
        return self.image and not self.asked


class Backend(Protocol):
    """Runs the stages of one batch of images: `begin`, then `step` for scale 0, 1 … K - 1, then `decode`.

    Between these calls the state (keys and values, f_hat, the next input) stays in the engine's memory. Only tensors
    that an observer or another method asks for are copied to numpy.
    """

    name: str
    batches: tuple[int, ...] | None  # the batch sizes it supports, including 1; None: any
    launches_whole: bool  # whether a batch that nobody listens to is one launch, and so faster

    def check(self, sampling: Sampling) -> None:
        """Raise BundleError or SettingsError if the graphs, or the engines, cannot draw with these fitted settings."""

    def begin(
        self,
        labels: np.ndarray,
        sampling: Sampling,
        on_stage: OnStage | None = None,
        observe: Observe | None = None,
        plan: Plan | None = None,
    ) -> None:
        """Start a batch for `labels` (B,) int64, drawn with `sampling`.

        Until the next `begin`, `on_stage` gets the time of each run of a stage, at the latest when `decode`, or after
        the last step `tokens`, returns; `observe` gets each run as it ends. Only what is in `plan` may be asked for;
        None: everything. Raises what `check` raises, and OutOfMemoryError.
        """

    def step(
        self, k: int, randoms: np.ndarray, keep: np.ndarray | None = None, kept_tokens: np.ndarray | None = None
    ) -> None:
        """Draw the tokens of scale k and add their codes to f_hat.

        `randoms` are uniforms (B, L) float32, for smooth sampling Gumbel noise (B, L, V). Where `keep` (B, L) bool is
        true, `kept_tokens` (B, L) int32 replace the drawn tokens.
        """

    def drawn(self, k: int) -> np.ndarray:
        """Return the tokens (B, L) int32 that the step of scale k drew; -1 where the logits hold NaN or infinity."""

    def tokens(self, k: int) -> np.ndarray:
        """Return the tokens (B, L) int32 of scale k after `keep` was applied."""

    def logits(self) -> np.ndarray:
        """Return the logits (L, 2B, V) float32 of the latest step, before guidance: B with label, then B without."""

    def decode(self, preview: bool = False) -> np.ndarray:
        """Return the images (B, H, W, 3) uint8, decoded from f_hat after the latest step.

        The decoder is that of the sampling settings. For a preview it is the tiny one if the bundle has it.
        """

    def finite(self) -> np.ndarray:
        """Return (B,) bool for the latest `decode`: false if an image had NaN or infinite pixels before rounding."""

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Return the tokens (N, T) int32 of images (N, H, W, 3) uint8; -1 for an image with NaN or infinite features.

        Raises BundleError if the bundle has no encoder.
        """

    def free_batches(self) -> None:
        """Free what is prepared for batches; the next `begin` prepares it again."""

    def close(self) -> None:
        """Release memory and other resources. The backend cannot be used afterwards."""
