"""Smooth sampling mixes codes as the published demo does: if not, its images differ."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import formula_weights, load_models
from export.model.reference import PyTorchBackend
from runtime.backends.base import Backend
from runtime.errors import BundleError
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling
from runtime.uniforms import gumbel_noise
from tests.conftest import DATA
from tests.export.agreement import share_within_one_step

LABELS = [7, 980]


def golden_noise(k: int, tokens: int, vocab_size: int) -> np.ndarray:
    """Return the noise (2, L, V) of the golden cases."""
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(f"noise-{k}".encode())))
    return -np.log(generator.standard_exponential((2, tokens, vocab_size), np.float32).clip(1e-12))


def drawn(backend: Backend, noise: list[np.ndarray], sampling: Sampling) -> np.ndarray:
    """Generate images with this noise."""
    backend.begin(np.array(LABELS, np.int64), sampling)
    for k, values in enumerate(noise):
        backend.step(k, values)
    return backend.decode()


@pytest.mark.parametrize("case", ["smooth_d2", "smooth_filtered_d2"])
@pytest.mark.parametrize("engine", ["runtime", "pytorch"])
def test_golden(case: str, engine: str, golden_bundle: Path) -> None:
    golden = np.load(DATA / f"golden_{case}.npz")
    settings = json.loads(str(golden["case"]))
    sampling = Sampling(settings["cfg"], settings.get("top_k", 0), settings.get("top_p", 0.0), smooth=True)
    pipeline = Pipeline(golden_bundle, "onnxruntime")
    sampling = sampling.fitted(pipeline.manifest.model.vocab_size, len(pipeline.manifest.scales))
    backend: Backend = pipeline.backend
    if engine == "pytorch":
        recipe = Recipe.load(str(DATA / "golden_d2.toml"))
        backend = PyTorchBackend(*load_models(recipe, formula_weights(recipe, 0)))
    model = pipeline.manifest.model
    noise = [golden_noise(k, side**2, model.vocab_size) for k, side in enumerate(model.patch_nums)]
    images = drawn(backend, noise, sampling)
    for k in range(len(noise)):
        np.testing.assert_array_equal(backend.tokens(k), golden[f"tokens_{k}"], err_msg=f"scale {k}")
    assert share_within_one_step(golden["image"], images) >= 0.999


def test_noise_is_gumbel_and_the_picture_s_own() -> None:
    first, again, other = (np.concatenate(list(gumbel_noise(seed, [1, 4, 9], 4096))) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all()
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.02
    assert abs(first.mean() - np.euler_gamma) < 0.02
    assert abs(first.var() - np.pi**2 / 6) < 0.05


def test_a_seed_draws_the_same_alone_and_in_a_batch(smooth_demo_bundle: Path) -> None:
    """The demo model, in batches of plain and of smooth sampling, and with kept tokens."""
    pipeline = Pipeline(smooth_demo_bundle, "onnxruntime")
    together = pipeline.generate([0, 5], seed=3, smooth=True)
    plain = pipeline.generate([5], seed=4)
    alone = pipeline.generate([5], seed=4, smooth=True)
    np.testing.assert_array_equal(alone.images[0], together.images[1])
    assert (np.abs(alone.images.astype(int) - plain.images) > 8).mean() > 0.02  # it is another image
    keep = [np.ones_like(tokens, bool) for tokens in plain.tokens]
    kept = pipeline.generate([9], seed=1, smooth=True, keep=keep, kept_tokens=plain.tokens)
    np.testing.assert_array_equal(kept.images, plain.images)  # all of it kept: nothing is left to mix


def test_a_bundle_without_the_graph_says_which_option_adds_it(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no graph for smooth sampling; make onnx SMOOTH=1"):
        Pipeline(tiny_bundle, "onnxruntime").generate([1], smooth=True)
