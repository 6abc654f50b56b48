"""The sampling settings of a generation, their defaults, and how they change from scale to scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import limits
from .errors import SettingsError
from .limits import shown

if TYPE_CHECKING:
    import numpy as np  # not imported at run time, so that --help does not wait for it

BATCH = 8  # images drawn together
TOP_K = 900  # default of top_k; with a smaller vocabulary all tokens are kept


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: guidance strength, then the filters top-k and top-p (0 switches a filter off)."""

    cfg: float = 4.0
    top_k: int | None = None  # None: TOP_K or the size of a smaller vocabulary; `fitted` sets the number
    top_p: float = 0.95
    smooth: bool = False  # mix codes instead of drawing one token, as "more smooth" in the published demo

    @staticmethod
    def default_top_k(vocab_size: int) -> int:
        """Return the default `top_k` of a vocabulary."""
        return min(TOP_K, vocab_size)

    def fitted(self, vocab_size: int) -> Sampling:
        """Return these settings for a vocabulary, with a number as `top_k`.

        Raises SettingsError for a value outside its range, also for a `top_k` larger than the vocabulary.
        """
        fitted = replace(self, top_k=self.default_top_k(vocab_size) if self.top_k is None else self.top_k)
        fitted.check(vocab_size)
        return fitted

    @property
    def tokens_kept(self) -> int:
        """The `top_k` of fitted settings."""
        assert self.top_k is not None, "fitted comes first"
        return self.top_k

    def check(self, vocab_size: int) -> None:
        """Raise SettingsError for a value outside its range."""
        if self.cfg not in limits.CFG:
            raise SettingsError(f"cfg: expected {limits.CFG}, found {shown(self.cfg)}")
        if self.top_k not in limits.Integers(0, vocab_size):
            raise SettingsError(f"top_k: expected 0 (all) to {vocab_size}, found {shown(self.top_k)}")
        if self.top_p not in limits.TOP_P or 0 < self.top_p < limits.LEAST_TOP_P:
            expected = f"0 (all) or {limits.LEAST_TOP_P} to 1"
            raise SettingsError(f"top_p: expected {expected}, found {shown(self.top_p)}")

    def guidance(self, scale: int, scales: int) -> float:
        """Return the guidance t of a scale, which grows linearly from 0 to `cfg`.

        The logits become (1 + t) * conditional - t * unconditional.
        """
        return self.cfg * scale / (scales - 1)

    def sharpness(self, scale: int, scales: int) -> float:
        """Return the factor of a scale by which smooth sampling multiplies the logits."""
        return 1 + scale / (scales - 1)

    def temperature(self, scale: int, scales: int) -> float:
        """Return the temperature of a scale: smooth sampling mixes codes by a softmax over logits with noise."""
        return max(0.27 * (1 - 0.95 * scale / (scales - 1)), 0.005)


def guided(logits: np.ndarray, guidance: float) -> np.ndarray:
    """Return logits (B, L, V) after classifier-free guidance of (L, 2B, V): B columns with label, then B without."""
    columns, size = logits.swapaxes(0, 1), logits.shape[1] // 2
    conditional, unconditional = columns[:size], columns[size:]  # (B, L, V) each
    t = logits.dtype.type(guidance)
    result: np.ndarray = (1 + t) * conditional - t * unconditional
    return result


EVALUATION = Sampling(cfg=1.5, top_p=0.96)  # the settings of the published FID
