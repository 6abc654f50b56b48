"""The sampler in the bridge graph: a wrong one draws plausible, but wrong, images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from scipy.stats import chisquare

from export.model.reference import probabilities
from export.model.sampler import drawn, filtered
from runtime.bundle.manifest import Manifest


class BridgeSampler:
    """Returns the `drawn` output of a bundle's bridge."""

    def __init__(self, bundle: Path):
        graph = Manifest.load(bundle).graphs["bridge"]
        self._session = ort.InferenceSession(bundle / graph.file, providers=["CPUExecutionProvider"])
        self._shapes = {tensor.name: tensor.shape for tensor in graph.inputs}

    def __call__(self, logits: np.ndarray, uniforms: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
        """Draw (L,) from logits (L, V), the same in both halves, and uniforms (L,)."""
        length = len(logits)
        pixels = self._shapes["upsample"][1]
        f_hat = (1, *self._shapes["f_hat"][1:])
        inputs = {
            "logits": np.stack((logits, logits), axis=1).astype(np.float32),
            "f_hat": np.zeros(f_hat, np.float32),
            "uniforms": uniforms[None].astype(np.float32),
            "guidance": np.ones(1, np.float32),
            "top_k": np.array([top_k]),
            "top_p": np.array([top_p], np.float32),
            "keep": np.zeros((1, length), bool),
            "kept_tokens": np.zeros((1, length), np.int32),
            "upsample": np.zeros((length, pixels), np.float32),
            "phi": np.zeros(1, np.int64),
            "downsample": np.zeros((pixels, 1), np.float32),
            "next_positions": np.zeros(1, np.int64),
        }
        return self._session.run(["drawn"], inputs)[0][0]


@pytest.fixture(scope="module")
def bridge(tiny_bundle: Path) -> BridgeSampler:
    return BridgeSampler(tiny_bundle)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (20, 0.0), (0, 0.8), (40, 0.9), (1, 0.0), (0, 1.0)])
def test_draws_have_the_filtered_distribution(bridge: BridgeSampler, top_k: int, top_p: float) -> None:
    random = np.random.default_rng(1)
    logits, count = random.standard_normal(128) * 2, 40_000
    uniforms = random.random(count, dtype=np.float32)
    tokens = bridge(np.broadcast_to(logits, (count, 128)), uniforms, top_k, top_p)
    expected = probabilities(torch.from_numpy(logits), top_k, top_p).numpy() * count
    found = np.bincount(tokens, minlength=128)
    assert not found[expected == 0].any()
    frequent = expected >= 5
    observed = np.append(found[frequent], found[~frequent].sum())
    wanted = np.append(expected[frequent], expected[~frequent].sum())
    if (wanted > 0).sum() > 1:  # one token alone was checked above
        assert chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


def test_chi_square_notices_another_distribution(bridge: BridgeSampler) -> None:
    """The test above can fail: top-p 0.8 is not top-p 0.7."""
    random = np.random.default_rng(1)
    logits, count = random.standard_normal(128) * 2, 40_000
    tokens = bridge(np.broadcast_to(logits, (count, 128)), random.random(count, dtype=np.float32), 0, 0.8)
    other = probabilities(torch.from_numpy(logits), 0, 0.7).numpy()
    kept = other > 0
    found = np.bincount(tokens, minlength=128)[kept]
    assert chisquare(found, other[kept] * found.sum()).pvalue < 1e-3 or (~kept)[tokens].any()


@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 127, 128])
@pytest.mark.parametrize("top_p", [0.0, 1e-6, 0.3, 0.999999, 1.0])
def test_the_same_tokens_are_kept_as_by_sorting(top_k: int, top_p: float) -> None:
    logits = torch.randn(200, 128, generator=torch.Generator().manual_seed(2)) * 3
    kept = filtered(logits, torch.tensor([top_k]), torch.tensor([top_p])) > 0
    # Where a mass lies at top_p within float32, either side is right.
    low, high = (probabilities(logits, top_k, max(top_p + d, 0.0) if top_p else 0.0) > 0 for d in (-1e-6, 1e-6))
    assert ((kept == low) | (kept == high)).all()


def test_ends_of_the_interval() -> None:
    logits = torch.tensor([[0.0, -200.0, 1.0, 1.0]] * 3).repeat(1, 32)  # what weighs nothing is never drawn
    weights = filtered(logits, torch.tensor([0]), torch.tensor([0.0]))
    tokens = drawn(weights, torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert tokens[0] == 0
    assert tokens[2] == 127
    assert (weights[0, tokens] > 0).all()


def test_equal_logits_are_kept_together() -> None:
    logits = torch.zeros(1, 128)
    logits[0, 5:8] = 2.0
    kept = filtered(logits, torch.tensor([2]), torch.tensor([0.0])) > 0
    assert kept.nonzero()[:, 1].tolist() == [5, 6, 7]
