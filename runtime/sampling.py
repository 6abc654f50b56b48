"""The sampling settings of a generation, their defaults, and how they change from scale to scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import limits
from .bundle.names import DECODER, TINY_DECODER
from .errors import SettingsError
from .limits import shown

if TYPE_CHECKING:
    import numpy as np  # not imported at run time, so that --help does not wait for it

DECODERS = {"full": DECODER, "tiny": TINY_DECODER}  # their graphs
BATCH = 8  # images drawn together
TOP_K = 900  # default of top_k; with a smaller vocabulary all tokens are kept


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: guidance strength, then the filters top-k and top-p (0 switches a filter off)."""

    cfg: float = 4.0
    top_k: int | None = None  # None: TOP_K or the size of a smaller vocabulary; `fitted` sets the number
    top_p: float = 0.95
    smooth: bool = False  # mix codes instead of drawing one token, as "more smooth" in the published demo
    guidance_scales: int | None = None  # the first scales have guidance, the rest only the label; None: all scales
    decoder: str = "full"  # what makes the image of the tokens, one of DECODERS

    @staticmethod
    def default_top_k(vocab_size: int) -> int:
        """Return the default `top_k` of a vocabulary."""
        return min(TOP_K, vocab_size)

    @staticmethod
    def chosen(sampling: Sampling | None, given: Sampling) -> Sampling:
        """Return `sampling`, or the settings `given` one by one. Raises SettingsError if there are both."""
        if sampling is not None and given != Sampling():
            others = "cfg, top_k, top_p, smooth, guidance_scales or decoder"
            raise SettingsError(f"sampling: expected no {others} with it, found some; remove them")
        return sampling or given

    def fitted(self, vocab_size: int, scales: int) -> Sampling:
        """Return these settings for a model, with numbers as `top_k` and `guidance_scales`.

        Raises SettingsError for a value outside its range, also for a `top_k` larger than the vocabulary.
        """
        top_k = self.default_top_k(vocab_size) if self.top_k is None else self.top_k
        guidance_scales = scales if self.guidance_scales is None else self.guidance_scales
        fitted = replace(self, top_k=top_k, guidance_scales=guidance_scales)
        fitted.check(vocab_size, scales)
        return fitted

    @property
    def tokens_kept(self) -> int:
        """The `top_k` of fitted settings."""
        assert self.top_k is not None, "fitted comes first"
        return self.top_k

    @property
    def decoder_graph(self) -> str:
        """The graph of the decoder."""
        return DECODERS[self.decoder]

    @property
    def scales_guided(self) -> int:
        """The `guidance_scales` of fitted settings."""
        assert self.guidance_scales is not None, "fitted comes first"
        return self.guidance_scales

    def check(self, vocab_size: int, scales: int) -> None:
        """Raise SettingsError for a value outside its range, or of another type."""
        if self.cfg not in limits.CFG:
            raise SettingsError(f"cfg: expected {limits.CFG}, found {shown(self.cfg)}")
        if self.top_k not in limits.Integers(0, vocab_size):
            raise SettingsError(f"top_k: expected 0 (all) to {vocab_size}, found {shown(self.top_k)}")
        if self.top_p not in limits.TOP_P or 0 < self.top_p < limits.LEAST_TOP_P:
            expected = f"0 (all) or {limits.LEAST_TOP_P} to 1"
            raise SettingsError(f"top_p: expected {expected}, found {shown(self.top_p)}")
        if self.guidance_scales not in limits.Integers(1, scales):
            raise SettingsError(f"guidance_scales: expected 1 to {scales}, found {shown(self.guidance_scales)}")
        if not isinstance(self.smooth, bool):
            raise SettingsError(f"smooth: expected True or False, found {shown(self.smooth)}")
        if not isinstance(self.decoder, str) or self.decoder not in DECODERS:
            raise SettingsError(f"decoder: expected {' or '.join(DECODERS)}, found {shown(self.decoder)}")

    def guidance(self, scale: int, scales: int) -> float:
        """Return the guidance t of a scale: it grows linearly from 0 to `cfg`, and is 0 from `guidance_scales` on.

        The logits become (1 + t) * conditional - t * unconditional.
        """
        guided = self.guidance_scales is None or scale < self.guidance_scales
        return self.cfg * scale / (scales - 1) if guided else 0.0

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
