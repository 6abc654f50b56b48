"""A bundle and the runtime generate what the published code generates: if not, users get images of another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import formula_weights, load_models
from export.model.reference import Generation, generate
from export.sizes import FP32, weight_file
from runtime.base_pipeline import ScaleView
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling
from runtime.uniforms import uniforms
from tests.conftest import DATA
from tests.export.agreement import assert_drawn_alike, share_within_one_step

FILTERS = [(0, 0.0), (1, 0.0), (0, 1.0), (0, 0.999999), (900, 0.95), (0, 0.5), (4096, 0.0), (2, 1e-6)]


def reference(recipe: Recipe, labels: list[int], seed: int, cfg: float, top_k: int, top_p: float) -> Generation:
    counts = [scale.tokens for scale in recipe.scales]
    rows = [uniforms(seed + i, counts) for i in range(len(labels))]
    draws = [np.stack(scale) for scale in zip(*rows, strict=True)]
    return generate(*load_models(recipe, formula_weights(recipe, 0)), labels, draws, Sampling(cfg, top_k, top_p))


def check_golden(bundle: Path, data: Path) -> None:
    golden = np.load(data)
    case = json.loads(str(golden["case"]))
    logits: dict[str, np.ndarray] = {}

    def on_scale(view: ScaleView) -> None:
        logits[f"logits_{view.index}"] = view.logits()

    pipeline = Pipeline(bundle)
    result = pipeline.generate(case["labels"], cfg=case["cfg"], top_k=case["top_k"], top_p=0.0, on_scale=on_scale)
    for k, tokens in enumerate(result.tokens):
        np.testing.assert_array_equal(tokens, golden[f"tokens_{k}"], err_msg=f"scale {k}")
    for name in [name for name in golden.files if name.startswith("logits_")]:
        np.testing.assert_allclose(logits[name], golden[name], atol=2e-4, err_msg=name)
    assert share_within_one_step(golden["image"], result.images) >= 0.999


def test_golden_depth_2(golden_bundle: Path) -> None:
    check_golden(golden_bundle, DATA / "golden_d2.npz")


def test_encoder_finds_the_published_tokens(golden_bundle: Path) -> None:
    golden = np.load(DATA / "golden_encode_d2.npz")
    for k, tokens in enumerate(Pipeline(golden_bundle).encode(golden["image"][None])):
        np.testing.assert_array_equal(tokens, golden[f"encoded_{k}"], err_msg=f"scale {k}")


@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_filters_follow_their_definition(golden_bundle: Path, top_k: int, top_p: float) -> None:
    labels, seed, cfg = [3, 207, 1000], 40, 3.0
    expected = reference(Recipe.load(str(DATA / "golden_d2.toml")), labels, seed, cfg, top_k, top_p)
    assert_drawn_alike(expected, Pipeline(golden_bundle), labels, seed, Sampling(cfg, top_k, top_p))


def test_shared_adaln_at_512_pixels(shared_bundle: Path) -> None:
    recipe = Recipe.load(str(DATA / "shared_d2.toml"))
    expected = reference(recipe, [5, 980], 7, 4.0, 900, 0.95)
    assert expected.images.shape == (2, 512, 512, 3)
    assert_drawn_alike(expected, Pipeline(shared_bundle), [5, 980], 7, Sampling(4.0, 900, 0.95))


def test_no_l2_norm_and_other_sizes(tiny_bundle: Path) -> None:
    expected = reference(Recipe.load(str(DATA / "tiny.toml")), [0, 9, 10], 1, 2.0, 50, 0.9)
    assert_drawn_alike(expected, Pipeline(tiny_bundle), [0, 9, 10], 1, Sampling(2.0, 50, 0.9))


def test_a_picture_does_not_depend_on_its_batch(golden_bundle: Path) -> None:
    pipeline, labels = Pipeline(golden_bundle), [1, 22, 333, 444, 999]
    together = pipeline.generate(labels, seed=11, batch=3)
    for i, label in enumerate(labels):
        alone = pipeline.generate([label], seed=11 + i)
        for k, tokens in enumerate(alone.tokens):
            np.testing.assert_array_equal(tokens[0], together.tokens[k][i], err_msg=f"picture {i}, scale {k}")
        assert np.abs(alone.images[0].astype(int) - together.images[i]).max() <= 1


@pytest.mark.full
def test_golden_d16(tmp_path: Path) -> None:
    recipe, out = Recipe.load("var_d16"), tmp_path / "bundle"
    export_bundle(recipe, formula_weights(recipe, 0), out)
    check_golden(out, DATA / "golden_d16.npz")
    size = sum(file.stat().st_size for file in out.iterdir())
    shutil.rmtree(out)
    assert size <= 1.05 * weight_file(recipe.model, FP32)
