"""Models with other settings: their tokens and images are those of the published code.

`variants.npz` holds what that code generated and encoded, with the weights of `--random-weights`: see
tests/data/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import formula_weights, load_models
from export.model.reference import PyTorchBackend, generate
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling
from tests.conftest import DATA, Shared

BASE: dict[str, Any] = {
    "depth": 2, "patch_nums": (1, 2, 3, 4), "ch": 32, "num_classes": 10, "vocab_size": 128, "code_size": 16,
    "var_checkpoint": "var.pth", "vae_checkpoint": "vae.pth",
}  # fmt: skip
LONG = (1, 2, 3, 4, 5, 6, 7)
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "one phi for each of 4 scales": {"share_quant_resi": 0},
    "one phi for each of 7 scales": {"share_quant_resi": 0, "patch_nums": LONG},
    "one phi for all scales": {"share_quant_resi": 1},
    "two phis": {"share_quant_resi": 2},
    "five phis of 7 scales": {"share_quant_resi": 5, "patch_nums": LONG},
    "no phi": {"quant_resi": 0.0},
    "quant_resi 0.25": {"quant_resi": 0.25},
    "quant_resi 1": {"quant_resi": 1.0},
    "using_znorm": {"using_znorm": True},
    "quant_conv_ks 1": {"quant_conv_ks": 1},
    "quant_conv_ks 5": {"quant_conv_ks": 5},
    "quant_conv_ks 7": {"quant_conv_ks": 7},
    "4 heads of 32": {"heads": 4},
    "4 heads of 32, no L2 norm": {"heads": 4, "attn_l2_norm": False},
    "3 heads of 33": {"width": 99, "heads": 3, "mlp_ratio": 2.5},
    "5 heads of 13, no L2 norm": {"width": 65, "heads": 5, "attn_l2_norm": False},
    "one head": {"width": 64, "heads": 1, "depth": 3},
    "mlp_ratio 2.6667": {"mlp_ratio": 2.6667},
    "norm_eps 0.1": {"norm_eps": 0.1},
    "shared AdaLN": {"shared_aln": True, "width": 96, "heads": 3, "depth": 3},
    "first scale 2 x 2": {"patch_nums": (2, 4, 6)},
    "two scales": {"patch_nums": (1, 4)},
    "1000 codes": {"vocab_size": 1000},
    "100 codes of 5": {"vocab_size": 100, "code_size": 5},
    "one class": {"num_classes": 1},
    "ch 64": {"ch": 64},
    "many at once": {
        "share_quant_resi": 0, "quant_resi": 0.3, "using_znorm": True, "quant_conv_ks": 1, "width": 90, "heads": 3,
        "mlp_ratio": 3.0, "norm_eps": 1e-5, "attn_l2_norm": False, "shared_aln": True, "depth": 3, "num_classes": 7,
        "patch_nums": (2, 3, 5), "vocab_size": 200, "code_size": 12,
    },
}  # fmt: skip
SEED, LABEL, CFG = 0, 0, 4.0


def recipe_of(name: str) -> Recipe:
    return Recipe(name="variant", **BASE | VARIANTS[name])


def exported(name: str, shared: Shared) -> Path:
    """The bundle of this variant."""
    recipe = recipe_of(name)
    return shared(f"variant {name}", lambda out: export_bundle(recipe, formula_weights(recipe, SEED), out))


def picture(recipe: Recipe) -> np.ndarray:
    """Return an image (1, H, W, 3) uint8 of random squares of 8 x 8 pixels."""
    side = recipe.image_size // 8
    squares = np.random.default_rng(5).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    return squares.repeat(8, 1).repeat(8, 2)


def check(name: str, tokens: list[np.ndarray], images: np.ndarray, encoded: np.ndarray) -> None:
    with np.load(DATA / "variants.npz") as golden:
        np.testing.assert_array_equal(np.concatenate(tokens, 1)[0], golden[f"{name}: tokens"])
        np.testing.assert_array_equal(encoded[0], golden[f"{name}: encoded"])
        assert np.abs(images[0].astype(int) - golden[f"{name}: image"]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_draws_and_encodes_as_published(name: str) -> None:
    recipe = recipe_of(name)
    var, vqvae = load_models(recipe, formula_weights(recipe, SEED))
    uniforms = [np.zeros((1, scale.tokens), np.float32) for scale in recipe.scales]
    drawn = generate(var, vqvae, [LABEL], uniforms, Sampling(CFG, 1, 0.0))
    check(name, drawn.tokens, drawn.images, PyTorchBackend(var, vqvae).encode(picture(recipe)))


@pytest.mark.parametrize("name", ["many at once", "no phi"])
def test_a_bundle_draws_and_encodes_as_published(name: str, shared: Shared) -> None:
    recipe = recipe_of(name)
    pipeline = Pipeline(exported(name, shared))
    drawn = pipeline.generate([LABEL], cfg=CFG, top_k=1, top_p=0.0)
    check(name, drawn.tokens, drawn.images, np.concatenate(pipeline.encode(picture(recipe)), 1))
