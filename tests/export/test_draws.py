"""Where two sound engines may diverge: too wide a rule hides faults, too narrow a rule fails on other processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.model import sampler
from export.model.reference import draw, probabilities
from export.verify.draws import BLOCK, Parting, allowed
from export.verify.tolerances import misses
from runtime.bundle.precision import Precision
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling
from tests.export.agreement import draws

FILTERS = [(0, 0.0), (5, 0.0), (0, 0.5), (50, 0.9), (1, 0.0), (0, 0.999999), (400, 0.95), (2, 1e-6), (0, 1.0)]


def drawn(logits: np.ndarray, uniforms: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Draw by the definition: logits (..., V), uniforms (...) -> tokens (...) int32."""
    wide = torch.from_numpy(logits).double()
    return draw(probabilities(wide, top_k, top_p), torch.from_numpy(uniforms)).numpy()


def contexts(spread: float, count: int = 800, vocabulary: int = 512) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    logits = (random.standard_normal((count, vocabulary)) * spread).astype(np.float32)
    return logits, random.random(count, np.float32)


@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_what_an_error_of_the_logits_changes_is_allowed(top_k: int, top_p: float, spread: float) -> None:
    logits, uniforms = contexts(spread)
    sampling = Sampling(4.0, top_k, top_p)
    assert allowed(logits, uniforms, drawn(logits, uniforms, top_k, top_p), sampling).all()
    for error in (1e-4, 1e-2):
        noise = np.random.default_rng(8).uniform(-error, error, logits.shape)
        tokens = drawn(logits + noise, uniforms, top_k, top_p)
        assert allowed(logits, uniforms, tokens, sampling, error).all(), error


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (50, 0.9), (400, 0.95)])
def test_other_faults_are_not(top_k: int, top_p: float) -> None:
    logits, uniforms = contexts(2.0)
    right, sampling = drawn(logits, uniforms, top_k, top_p), Sampling(4.0, top_k, top_p)
    moved = np.abs(uniforms - np.float32(0.003))
    faults = {
        "another uniform": drawn(logits, moved, top_k, top_p),
        "another temperature": drawn(logits * np.float32(1.02), uniforms, top_k, top_p),
        "another top-p": drawn(logits, uniforms, top_k, (top_p or 1.0) - 0.02),
    }
    for name, tokens in faults.items():
        wrong = tokens != right
        assert wrong.sum() > 20, name
        assert allowed(logits[wrong], uniforms[wrong], tokens[wrong], sampling, 1e-4).mean() < 0.1, name


def test_a_token_at_the_edge_of_top_p_moves_the_draw_by_its_mass() -> None:
    """Two engines kept 50 and 51 tokens: their draws differed 2e-4 from a boundary, with logits 4e-5 apart."""
    tail = 0.9999 ** np.arange(50)
    mass = np.concatenate(([0.5, 0.4], 0.1 * tail / tail.sum()))
    one, other = (np.log(mass * np.where(np.arange(52) == 0, 1 + change, 1))[None] for change in (2e-4, -2e-4))
    uniform, sampling = np.array([0.555], np.float32), Sampling(4.0, 0, 0.9)
    first, second = (drawn(logits, uniform, 0, 0.9) for logits in (one, other))
    assert first[0] == 0 and second[0] == 1  # the boundary between them lies at 0.5556, or at 0.5543
    assert allowed(one, uniform, second, sampling, 4e-4).all()
    assert not allowed(one, uniform, second, sampling).any()
    assert not allowed(one, uniform, second + 1, sampling, 4e-4).any()


def test_the_rounding_is_that_of_the_sampler_s_sums() -> None:
    assert BLOCK == sampler.BLOCK


def test_not_a_number_follows_from_nothing() -> None:
    logits, uniforms = contexts(1.0, 10)
    tokens = drawn(logits, uniforms, 0, 0.0)
    logits[:, 3] = np.nan
    assert not allowed(logits, uniforms, tokens, Sampling(4.0, 0, 0.0)).any()


def test_an_infinite_error_and_what_is_no_token_are_never_allowed() -> None:
    logits, uniforms = contexts(1.0, 10)
    tokens, sampling = drawn(logits, uniforms, 0, 0.0), Sampling(4.0, 0, 0.0)
    assert not allowed(logits, uniforms, tokens, sampling, np.inf).any()
    last = np.nextafter(np.ones(10, np.float32), np.float32(0))  # draws the last token
    assert not allowed(logits, last, np.full(10, -1), sampling).any()
    assert not allowed(logits, last, np.full(10, logits.shape[1]), sampling).any()


def test_a_fault_of_the_logits_does_not_explain_itself(tiny_bundle: Path) -> None:
    """Any token follows from logits that are wrong enough, so verification judges their error too."""
    pipeline, sampling = Pipeline(tiny_bundle), Sampling(4.0, 50, 0.9)
    settings = {"cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
    logits: list[np.ndarray] = []
    result = pipeline.generate([1, 2], 3, **settings, on_scale=lambda view: logits.append(view.logits()))  # type: ignore[arg-type]
    wrong = [maps + np.float32(3) * np.random.default_rng(1).standard_normal(maps.shape) for maps in logits]
    altered = [(maps + 1) % pipeline.manifest.model.vocab_size for maps in result.tokens]
    parting = Parting(altered, wrong, draws(pipeline, 2, 3), sampling)
    pipeline.generate([1, 2], 3, **settings, on_scale=parting)  # type: ignore[arg-type]
    found = {"relative": parting.error.relative, "explained": 1.0}
    assert misses(Precision.FP32, "generation", found)[0].startswith("relative")


def test_parting_tells_a_rounding_from_a_fault(tiny_bundle: Path) -> None:
    pipeline, labels, sampling = Pipeline(tiny_bundle), list(range(8)), Sampling(4.0, 50, 0.9)
    settings = {"cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
    logits: list[np.ndarray] = []
    result = pipeline.generate(labels, 3, **settings, on_scale=lambda view: logits.append(view.logits()))  # type: ignore[arg-type]

    def parted(tokens: list[np.ndarray], seed: int = 3) -> Parting:
        parting = Parting(tokens, logits, draws(pipeline, 8, 3), sampling)
        pipeline.generate(labels, seed, **settings, on_scale=parting)  # type: ignore[arg-type]
        return parting

    same = parted(result.tokens)
    assert same.equal.all() and same.share_explained == 1.0 and same.error.largest == 0
    other_seeds = parted(result.tokens, seed=4)
    assert not other_seeds.equal.all()
    assert other_seeds.share_explained < 0.5
    altered = [maps.copy() for maps in result.tokens]
    altered[1][2, 0] = (altered[1][2, 0] + 1) % pipeline.manifest.model.vocab_size
    assert np.flatnonzero(~parted(altered).equal).tolist() == [2]
