"""Shortcuts draw what the same shortcuts in PyTorch draw: with one likeliest token, and with the default filters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.make import Request, make_int8
from calibration.plan import MIXED
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import checkpoint_weights, formula_weights, load_models
from export.model.reference import Generation
from export.model.reference import generate as generate_exactly
from export.model.shortcuts import Models, generate_drafted, generate_shortened
from runtime.base_pipeline import Result
from runtime.drafted import DraftedPipeline
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling
from tests.conftest import DATA
from tests.export.agreement import draws

SEED = 3
GREEDY, DRAWN = Sampling(3.0, 1, 0.0), Sampling(3.0, 50, 0.9)


def trained(name: str) -> Models:
    recipe = Recipe.load(name)
    return load_models(recipe, checkpoint_weights(recipe, None, None))


@pytest.fixture(scope="module")
def demo() -> Models:
    return trained("var_demo")


def tiny() -> Models:
    recipe = Recipe.load(str(DATA / "tiny.toml"))
    return load_models(recipe, formula_weights(recipe, 0))


def same(found: Result, expected: Generation) -> None:
    for k, (tokens, wanted) in enumerate(zip(found.tokens, expected.tokens, strict=True)):
        np.testing.assert_array_equal(tokens, wanted, err_msg=f"scale {k}")
    error = np.abs(found.images.astype(int) - expected.images)
    assert (error <= 1).mean() >= 0.999


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_guidance_at_the_first_scales(demo_bundle: Path, demo: Models, sampling: Sampling) -> None:
    pipeline, labels = Pipeline(demo_bundle), [3, 12, 29]
    scales = len(pipeline.manifest.scales)
    for m in range(1, scales + 1):
        expected = generate_shortened(demo, labels, draws(pipeline, 3, SEED), sampling, m)
        same(pipeline.generate(labels, SEED, batch=2, sampling=replace(sampling, guidance_scales=m)), expected)
    exact = generate_exactly(*demo, labels, draws(pipeline, 3, SEED), sampling)
    assert all(map(np.array_equal, exact.tokens, expected.tokens))  # of the last, which guides all scales


def test_the_tiny_model(tiny_bundle: Path) -> None:
    pipeline, labels, models = Pipeline(tiny_bundle), [0, 9, 10], tiny()
    for m in (1, 2, 3):
        expected = generate_shortened(models, labels, draws(pipeline, 3, SEED), GREEDY, m)
        same(pipeline.generate(labels, SEED, sampling=replace(GREEDY, guidance_scales=m)), expected)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_drafting(demo_bundle: Path, small_demo_bundle: Path, demo: Models, sampling: Sampling) -> None:
    pair, small = (Pipeline(demo_bundle), Pipeline(small_demo_bundle)), trained("var_demo_small")
    labels, scales, uniforms = [3, 12, 29], len(pair[0].manifest.scales), draws(pair[0], 3, SEED)
    for m in (1, 4, scales):
        drawn = set()
        for count in range(scales + 1):
            expected = generate_drafted(demo, small, labels, uniforms, sampling, m, count)
            found = DraftedPipeline(*pair, count).generate(
                labels, SEED, batch=2, sampling=replace(sampling, guidance_scales=m)
            )
            same(found, expected)
            drawn.add(b"".join(tokens.tobytes() for tokens in found.tokens))
        assert len(drawn) >= scales  # both models may draw the same token at the first scale


def test_drafting_with_two_precisions(tiny_bundle: Path, tmp_path: Path) -> None:
    """What FP32 drafts for INT8 is exact; INT8 draws the rest."""
    make_int8(tiny_bundle, tmp_path / "int8", Request("cpu", MIXED))
    large, small = Pipeline(tiny_bundle), Pipeline(tmp_path / "int8")
    expected = generate_exactly(*tiny(), [3, 9], draws(large, 2, SEED), GREEDY)
    found = DraftedPipeline(large, small, 2).generate([3, 9], SEED, sampling=GREEDY)
    assert all(map(np.array_equal, found.tokens[:2], expected.tokens[:2]))
    rest = small.generate(
        [3, 9],
        SEED,
        keep=[np.full_like(maps, k < 2, bool) for k, maps in enumerate(found.tokens)],
        kept_tokens=found.tokens,
        sampling=GREEDY,
    )
    assert np.array_equal(found.tokens[2], rest.tokens[2])
