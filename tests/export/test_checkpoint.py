"""Checkpoints: what is read is what the file holds, and a wrong file is named as such before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from export.checkpoint import (
    HOME,
    CheckpointError,
    checkpoint_weights,
    empty_models,
    formula_weights,
    load_models,
)
from export.recipe import Recipe
from tests.conftest import DATA

State = dict[str, torch.Tensor]


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.load(str(DATA / "tiny.toml"))


@pytest.fixture
def states(recipe: Recipe) -> tuple[State, State]:
    """State dicts of VAR and VQVAE as published: with the buffers that only training uses."""
    weights = formula_weights(recipe, 3)
    var, vae = ({n: torch.from_numpy(weights.read(n)) for n in m.state_dict()} for m in empty_models(recipe))
    var["lvl_1L"] = torch.zeros(1, recipe.tokens, dtype=torch.int64)
    var["attn_bias_for_masking"] = torch.zeros(1, 1, recipe.tokens, recipe.tokens)
    vae["quantize.ema_vocab_hit_SV"] = torch.zeros(3, recipe.vocab_size)
    return var, vae


def save(folder: Path, states: tuple[State, State], suffix: str = "pth") -> tuple[Path, Path]:
    paths = folder / f"var_tiny.{suffix}", folder / f"vae_tiny.{suffix}"
    for path, state in zip(paths, states, strict=True):
        if suffix == "safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path)
    return paths


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_are_read_exactly(recipe: Recipe, states: tuple[State, State], suffix: str, tmp_path: Path) -> None:
    weights = checkpoint_weights(recipe, *save(tmp_path, states, suffix))
    for name in weights.readers:
        np.testing.assert_array_equal(weights.read(name), (states[0] | states[1])[name])
    assert weights.source["var_checkpoint"]["file"] == f"var_tiny.{suffix}"
    var, _ = load_models(recipe, weights)
    torch.testing.assert_close(var.head.weight, states[0]["head.weight"], atol=0, rtol=0)


def test_half_precision_files_become_float32(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    halves = tuple({n: t.half() if t.is_floating_point() else t for n, t in s.items()} for s in states)
    weights = checkpoint_weights(recipe, *save(tmp_path, halves))  # type: ignore[arg-type]
    assert weights.read("head.weight").dtype == np.float32


def test_files_are_found_in_the_folder_of_the_environment(
    recipe: Recipe, states: tuple[State, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, states, "safetensors")
    monkeypatch.setenv(HOME, str(tmp_path))
    assert checkpoint_weights(recipe, None, None).read("head.bias").shape == (128,)


def test_the_message_says_where_a_file_was_looked_for(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME, "/no/such/folder")
    with pytest.raises(CheckpointError, match=r"var_tiny\.safetensors in /no/such/folder; .*--var-checkpoint"):
        checkpoint_weights(recipe, None, None)


def test_without_network_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.delenv(HOME, raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(
        CheckpointError, match=r"var_d16\.pth: not in .*FoundationVision/var.*no route.*--var-checkpoint"
    ):
        checkpoint_weights(Recipe.load("var_d16"), None, None)


def test_the_hub_is_asked_for_the_published_names(
    states: tuple[State, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(save(tmp_path, states)[0])

    monkeypatch.delenv(HOME, raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match="expected depth 30, found 1 blocks"):
        checkpoint_weights(Recipe.load("var_d30"), None, None)
    assert asked == [("FoundationVision/var", "var_d30.pth")]


def test_a_truncated_file_is_named(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    for suffix in ("pth", "safetensors"):
        var, vae = save(tmp_path, states, suffix)
        var.write_bytes(var.read_bytes()[: var.stat().st_size // 2])
        with pytest.raises(CheckpointError, match=rf"var_tiny\.{suffix}: no readable checkpoint, truncated"):
            checkpoint_weights(recipe, var, vae)


def test_a_file_of_something_else_is_named(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    var, vae = save(tmp_path, states)
    for content in (b"", b"PNG", b"\x00" * 100):
        var.write_bytes(content)
        with pytest.raises(CheckpointError, match="no readable checkpoint"):
            checkpoint_weights(recipe, var, vae)
    torch.save({"trainer": {"epoch": 3}}, var)
    with pytest.raises(CheckpointError, match="expected a plain state_dict"):
        checkpoint_weights(recipe, var, vae)


def test_code_in_a_pickle_is_not_run(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    var, vae = save(tmp_path, states)
    torch.save({"head.weight": Touch()}, var)
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        checkpoint_weights(recipe, var, vae)
    assert not (tmp_path / "executed").exists()


def test_tensors_must_match_one_for_one(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    var_state, vae_state = states

    def refused(match: str, var: State = var_state, vae: State = vae_state) -> None:
        with pytest.raises(CheckpointError, match=match):
            checkpoint_weights(recipe, *save(tmp_path, (var, vae)))

    refused("1 tensors are missing, first head.bias", {n: t for n, t in var_state.items() if n != "head.bias"})
    refused("1 tensors have no place in the model, first extra", var_state | {"extra": torch.zeros(1)})
    refused(r"head.bias: expected shape \(128,\), found \(64,\)", var_state | {"head.bias": torch.zeros(64)})
    refused("expected depth 1, found 2 blocks", var_state | {"blocks.1.attn.q_bias": var_state["blocks.0.attn.q_bias"]})
    refused("not a checkpoint of VQVAE", vae=var_state)
    refused("expected depth 1, found 0 blocks", var=vae_state)


def test_nan_is_refused(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    states[0]["head.weight"][3, 4] = float("nan")
    weights = checkpoint_weights(recipe, *save(tmp_path, states))
    with pytest.raises(CheckpointError, match=r"head\.weight: holds NaN"):
        weights.read("head.weight")


def test_formula_weights_differ_by_seed_and_name(recipe: Recipe) -> None:
    zero, one = formula_weights(recipe, 0), formula_weights(recipe, 1)
    assert not np.array_equal(zero.read("head.weight"), one.read("head.weight"))
    assert not np.array_equal(zero.read("blocks.0.attn.q_bias"), zero.read("blocks.0.attn.v_bias"))
    np.testing.assert_array_equal(zero.read("head.weight"), formula_weights(recipe, 0).read("head.weight"))
