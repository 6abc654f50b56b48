"""What it means that the runtime draws what PyTorch draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.model.reference import Generation
from export.verify.draws import Parting
from export.verify.tolerances import LIMITS
from runtime.pipeline import Pipeline, Result
from runtime.sampling import Sampling
from runtime.uniforms import uniforms


def draws(pipeline: Pipeline, count: int, seed: int) -> list[np.ndarray]:
    """The uniforms of `count` pictures: K arrays (N, L) float32."""
    counts = [scale.tokens for scale in pipeline.manifest.scales]
    return [np.stack(scale) for scale in zip(*(uniforms(seed + i, counts) for i in range(count)), strict=True)]


def parting(reference: Generation, pipeline: Pipeline, seed: int, sampling: Sampling) -> Parting:
    """A hook for `on_scale` of a generation that should be `reference`."""
    return Parting(reference.tokens, reference.logits, draws(pipeline, len(reference.images), seed), sampling)


def assert_sound(found: Parting) -> None:
    """Fails unless the logits agree as FP32 does, and every other token follows from what they differ in."""
    assert found.error.relative <= LIMITS["fp32"]["transformer"]["relative"]
    assert found.share_explained == 1.0


def assert_drawn_alike(
    reference: Generation, pipeline: Pipeline, labels: Sequence[int], seed: int, sampling: Sampling
) -> None:
    """Fails unless the runtime draws the reference's pictures, and from its tokens the same pixels."""
    found = parting(reference, pipeline, seed, sampling)
    settings = {"cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
    result = pipeline.generate(labels, seed, **settings, on_scale=found)  # type: ignore[arg-type]
    assert_sound(found)
    assert_same_pixels(reference, result, found, pipeline, labels)


def assert_same_pixels(
    reference: Generation, result: Result, found: Parting, pipeline: Pipeline, labels: Sequence[int]
) -> None:
    """Fails unless equal tokens make equal pixels. Where pictures have parted they are drawn from the reference's."""
    if not found.equal.all():
        keep = [np.ones_like(tokens, bool) for tokens in reference.tokens]
        result = pipeline.generate(labels, keep=keep, kept_tokens=reference.tokens)
    error = np.abs(result.images.astype(int) - reference.images)
    assert (error <= 1).mean() >= 0.999


def share_within_one_step(expected: np.ndarray, images: np.ndarray) -> float:
    """Share of values within 1/255. expected (N, 3, H, W) in [0, 1], images (N, H, W, 3) uint8."""
    error = np.abs(images.transpose(0, 3, 1, 2) - expected.astype(np.float64) * 255)
    return float((error <= 1).mean())
