"""Decide which tokens a draw may give if its logits are known up to an error: where two sound engines may diverge.

Two engines never compute the same logits to the last bit. A difference e of the logits moves every cumulative
probability, and the edges of top-k and top-p. If one engine keeps a token on an edge and the other removes it, the draw
shifts by the whole mass of that token. So no fixed distance from a boundary separates rounding from faults, but e does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.verify.metrics import Difference
from runtime.base_pipeline import ScaleView
from runtime.sampling import Sampling

# Rounding of the sampler itself in float32. Of a logit: 30 halvings of 104, and the rounding of a logit below 32.
LOGIT_ROUNDING = 2e-6
# Of a probability: half a unit in the last place for each term of the longest sum (`sampler.cumulative_sum`).
PROBABILITY_ROUNDING = 2.0**-24
BLOCK = 64  # as in the sampler, which cannot be imported without torch


def allowed(
    logits: np.ndarray, uniforms: np.ndarray, tokens: np.ndarray, sampling: Sampling, error: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return whether its uniform can draw each token, for some logits within `error` of those given.

    logits (..., V) after guidance, uniforms and tokens (...), error (...) or one number for all -> (...) bool. False
    where a logit or the error is not finite, and for a token outside the vocabulary. It computes in float64 by sorting,
    as the filters are defined, not as the sampler does.
    """
    x = logits.astype(np.float64)
    wide = np.broadcast_to(np.asarray(error, np.float64), x.shape[:-1])
    known = np.isfinite(x).all(-1) & np.isfinite(wide)
    slack = np.where(known, wide, 0)[..., None] + LOGIT_ROUNDING  # (..., 1)
    # The log-odds of a share of the mass move by at most 2 e, so the share itself by at most e / 2.
    vocabulary = x.shape[-1]
    shift = slack / 2 + (BLOCK + vocabulary / BLOCK) * PROBABILITY_ROUNDING
    certain, possible = _kept(x, slack, shift, sampling)

    weights = np.exp(x - x.max(-1, keepdims=True))
    sure, unsure = weights * certain, weights * (possible & ~certain)
    at = tokens[..., None].astype(np.int64).clip(0, vocabulary - 1)
    own = np.take_along_axis(weights, at, -1)
    before, unsure_before = (_before(mass, at) for mass in (sure, unsure))
    after, unsure_after = (
        mass.sum(-1, keepdims=True) - lower - np.take_along_axis(mass, at, -1)
        for mass, lower in ((sure, before), (unsure, unsure_before))
    )
    lowest = before / (before + own + after + unsure_after)
    highest = (before + unsure_before + own) / (before + unsure_before + own + after)
    u = uniforms[..., None].astype(np.float64)
    inside = (u >= lowest - shift) & (u <= highest + shift) & np.take_along_axis(possible, at, -1)
    result: np.ndarray = inside[..., 0] & (tokens == at[..., 0]) & known
    return result


def _kept(x: np.ndarray, slack: np.ndarray, shift: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return which tokens top-k and top-p certainly keep, and which they may keep: (..., V) bool each."""
    end = np.full((*x.shape[:-1], 1), -np.inf)
    descending = np.concatenate((-np.sort(-x, axis=-1), end), -1)  # (..., V + 1)

    def between(fewest: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return both masks, from the fewest and the most tokens (..., 1) that may be kept."""
        first_removed = np.take_along_axis(descending, fewest, -1)
        last_kept = np.take_along_axis(descending, most - 1, -1)
        return x >= first_removed + 2 * slack, x >= last_kept - 2 * slack

    count = np.full_like(end, sampling.top_k or x.shape[-1], np.int64)
    certain, possible = between(count, count)
    if sampling.top_p:
        kept = descending >= np.take_along_axis(descending, count - 1, -1)
        mass = np.exp(descending - descending[..., :1]) * kept
        unsure = (np.exp(x - x.max(-1, keepdims=True)) * (possible & ~certain)).sum(-1, keepdims=True)
        edge = shift + unsure / mass.sum(-1, keepdims=True)
        above = (mass.cumsum(-1) - mass) / mass.sum(-1, keepdims=True)  # the share of all likelier tokens
        fewest, most = (
            np.maximum(((above < sampling.top_p + sign * edge) & kept).sum(-1, keepdims=True), 1) for sign in (-1, 1)
        )
        certain_p, possible_p = between(fewest, most)
        certain, possible = certain & certain_p, possible & possible_p
    return certain, possible


def _before(mass: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the sum (..., 1) of the mass (..., V) before the indices (..., 1)."""
    cumulative = mass.cumsum(-1)
    result: np.ndarray = np.take_along_axis(cumulative, at, -1) - np.take_along_axis(mass, at, -1)
    return result


class Parting:
    """A hook for `on_scale`: finds where images first diverge from the reference's, and whether the logits explain it.

    Until an image diverges, both models see the same tokens, so their logits differ only by rounding.
    """

    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        logits: Sequence[np.ndarray],
        uniforms: Sequence[np.ndarray],
        sampling: Sampling,
    ) -> None:
        """Take K arrays of the reference: tokens (N, L), logits (N, L, V) after guidance; and the uniforms (N, L)."""
        self._known = list(zip(tokens, logits, uniforms, strict=True))
        self._sampling = sampling
        self.equal = np.ones(len(tokens[0]), bool)  # (N,): images that have not diverged
        self.error = Difference()  # of the logits, wherever both saw the same tokens
        self.parted = self.explained = 0  # differing tokens, in the scales where images first diverged

    def __call__(self, view: ScaleView) -> None:
        rows = slice(view.pictures.start, view.pictures.stop)
        together = self.equal[rows].copy()
        tokens, logits, uniforms = (known[rows][together] for known in self._known[view.index])
        found, found_logits = view.tokens()[together], view.logits()[together]
        if not len(found):
            return
        self.error.add(logits, found_logits)
        differs = tokens != found  # (n, L)
        error = np.abs(found_logits[differs].astype(np.float64) - logits[differs]).max(-1)
        explained = allowed(logits[differs], uniforms[differs], found[differs], self._sampling, error)
        self.parted += int(differs.sum())
        self.explained += int(explained.sum())
        self.equal[rows.start + np.flatnonzero(together)] = ~differs.any(1)

    @property
    def share_explained(self) -> float:
        """The share of diverging draws that the error of the logits explains; 1 if no draw diverged."""
        return self.explained / self.parted if self.parted else 1.0
