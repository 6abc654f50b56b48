"""Assert that the runtime generates what PyTorch generates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.model.reference import Generation
from export.verify.draws import Parting
from export.verify.tolerances import LIMITS
from runtime.base_pipeline import Result
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling
from runtime.uniforms import uniforms


def draws(pipeline: Pipeline, count: int, seed: int) -> list[np.ndarray]:
    """Return the uniforms of `count` images: K arrays (N, L) float32."""
    counts = [scale.tokens for scale in pipeline.manifest.scales]
    return [np.stack(scale) for scale in zip(*(uniforms(seed + i, counts) for i in range(count)), strict=True)]


def parting(reference: Generation, pipeline: Pipeline, seed: int, sampling: Sampling) -> Parting:
    """Return a hook for `on_scale` of a generation that should equal `reference`."""
    return Parting(reference.tokens, reference.logits, draws(pipeline, len(reference.images), seed), sampling)


def assert_sound(found: Parting) -> None:
    """Assert that the logits agree within FP32, and that their error explains every token that differs."""
    assert found.error.relative <= LIMITS["fp32"]["transformer"]["relative"]
    assert found.share_explained == 1.0


def assert_drawn_alike(
    reference: Generation, pipeline: Pipeline, labels: Sequence[int], seed: int, sampling: Sampling
) -> None:
    """Assert that the runtime generates the reference's images, and the same pixels from the reference's tokens."""
    found = parting(reference, pipeline, seed, sampling)
    settings = {"cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
    result = pipeline.generate(labels, seed, **settings, on_scale=found)  # type: ignore[arg-type]
    assert_sound(found)
    assert_same_pixels(reference, result, found, pipeline, labels)


def assert_same_pixels(
    reference: Generation, result: Result, found: Parting, pipeline: Pipeline, labels: Sequence[int]
) -> None:
    """Assert that equal tokens make equal pixels. Images that diverged are generated from the reference's tokens."""
    if not found.equal.all():
        keep = [np.ones_like(tokens, bool) for tokens in reference.tokens]
        result = pipeline.generate(labels, keep=keep, kept_tokens=reference.tokens)
    error = np.abs(result.images.astype(int) - reference.images)
    assert (error <= 1).mean() >= 0.999


def share_within_one_step(expected: np.ndarray, images: np.ndarray) -> float:
    """Return the share of values within 1/255. expected (N, 3, H, W) in [0, 1], images (N, H, W, 3) uint8."""
    error = np.abs(images.transpose(0, 3, 1, 2) - expected.astype(np.float64) * 255)
    return float((error <= 1).mean())
