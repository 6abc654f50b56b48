"""Recipes: the published sizes, and one clear message for a wrong file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import UNUSED_BUFFERS, empty_models, formula_weights
from runtime.errors import SettingsError
from tests.conftest import DATA

MILLIONS = {"var_d16": 310, "var_d20": 600, "var_d24": 1034, "var_d30": 2011, "var_d36": 2353}


@pytest.mark.parametrize("name", MILLIONS)
def test_published_sizes(name: str) -> None:
    recipe = Recipe.load(name)
    var, _ = empty_models(recipe)
    parameters = sum(p.numel() for p in var.parameters()) / 1e6
    assert abs(parameters / MILLIONS[name] - 1) < 0.02
    assert recipe.image_size == (512 if name == "var_d36" else 256)
    assert recipe.tokens == (2240 if name == "var_d36" else 680)


def test_tensor_names_and_shapes_are_the_published_ones() -> None:
    published = json.loads((DATA / "published_d16.json").read_text())
    for kind, model in zip(("var", "vae"), empty_models(Recipe.load("var_d16")), strict=True):
        expected = {n: shape for n, shape in published[kind].items() if n not in UNUSED_BUFFERS}
        assert {n: list(t.shape) for n, t in model.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth = ", "not a TOML file"),
        ("depth = 2", "missing keys ch, patch_nums"),
        ("depht = 2", "unknown keys depht"),
        ("depth = true", "depth: expected .*int.*, found True"),
        ("depth = 0", "depth: expected 1 to 256, found 0"),
        ("patch_nums = [0, 4]", "patch_nums: expected entries of 1 to 1024, found 0"),
        ("patch_nums = [1, 4, 4]", "patch_nums: expected growing sides"),
        ("patch_nums = [1]", "patch_nums: expected 2 to 64 entries, found 1"),
        ("ch = 48", "ch: expected a multiple of 32"),
        ("vocab_size = 63", "vocab_size: expected 64 to 1048576, found 63"),
        ("width = 65\nheads = 2", r"width: expected a multiple of heads \(2\), found 65"),
        ("heads = -1", "heads: expected 1 or more, found -1"),
        ("quant_resi = 1.5", "quant_resi: expected 0 to 1, found 1.5"),
        ("quant_resi = nan", "holds a number that is not finite"),
        ("share_quant_resi = 65", "share_quant_resi: expected 0 to 64, found 65"),
        ("quant_conv_ks = 2", "quant_conv_ks: expected 1, 3, 5, 7, found 2"),
        ("mlp_ratio = inf", "holds a number that is not finite"),
        ("norm_eps = 0", "norm_eps: expected above 0 to 1, found 0.0"),
    ],
)
def test_a_wrong_recipe_is_named(text: str, message: str, tmp_path: Path) -> None:
    lines = (DATA / "tiny.toml").read_text().splitlines()
    key = text.split(" ")[0]
    if "missing" not in message:
        text = "\n".join([*[line for line in lines if not line.startswith(f"{key} ")], text])
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        Recipe.load(str(path))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"no recipe 'var_d17'; known are .*var_d16.*var_demo"):
        Recipe.load("var_d17")


def test_class_names_lie_beside_the_recipe_and_are_counted(tmp_path: Path) -> None:
    lines = (DATA / "tiny.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(lines + 'classes = "names"\n')
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij") + "\n")
    assert Recipe.load(str(path)).class_list == tmp_path / "names.txt"
    for wrong, message in (
        ("imagenet", "classes: .*expected 10 lines, one for each class, found 1000"),
        ("elsewhere", "classes: .*elsewhere"),
    ):
        path.write_text(lines + f'classes = "{wrong}"\n')
        with pytest.raises(SettingsError, match=message):
            Recipe.load(str(path))


def test_names_that_no_file_can_have_are_files_that_are_not_there(tmp_path: Path) -> None:
    """A name of 5,000 characters ended in a traceback: the system refuses even to look for such a file."""
    text = (Path(__file__).parents[1] / "data" / "tiny.toml").read_text()
    path = tmp_path / "recipe.toml"
    path.write_text(f'classes = "{"9" * 5000}"\n{text}')
    with pytest.raises(SettingsError, match="classes"):
        Recipe.load(str(path))
    path.write_text(f'checkpoints = "{"9" * 5000}"\nhub = "{"a" * 5000}"\n{text}')
    Recipe.load(str(path))


def test_a_precision_that_is_none_is_refused_before_the_work(tmp_path: Path) -> None:
    recipe = Recipe.load(str(DATA / "tiny.toml"))
    with pytest.raises(SettingsError, match="precision: expected fp32 or fp16, found 'int8 for trt'"):
        export_bundle(recipe, formula_weights(recipe, 0), tmp_path / "bundle", "int8 for trt")
    assert not (tmp_path / "bundle").exists()
