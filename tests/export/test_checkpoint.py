"""Checkpoints: reading returns what the file holds, and a wrong file is refused before any work."""

from __future__ import annotations

import argparse
import dataclasses
import fractions
import os
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from export.checkpoint.file import read_checkpoint
from export.checkpoint.recipe import Recipe
from export.checkpoint.recipe_text import recipe_of, recipe_text
from export.checkpoint.weights import (
    HOME,
    CheckpointError,
    checkpoint_weights,
    empty_models,
    formula_weights,
    load_models,
)
from runtime.errors import VarEdgeError
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
    var["lvl_1L"] = torch.cat([torch.full((1, s.tokens), k) for k, s in enumerate(recipe.scales)], 1)
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


def test_a_truncated_file_is_named(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    for suffix in ("pth", "safetensors"):
        var, vae = save(tmp_path, states, suffix)
        var.write_bytes(var.read_bytes()[: var.stat().st_size // 2])
        found = "not a readable checkpoint: truncated" if suffix == "pth" else "expected .* bytes, as its header says"
        with pytest.raises(CheckpointError, match=rf"var_tiny\.{suffix}: {found}"):
            checkpoint_weights(recipe, var, vae)


def test_a_file_of_something_else_is_named(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    var, vae = save(tmp_path, states)
    for content in (b"", b"PNG", b"\x00" * 100):
        var.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            checkpoint_weights(recipe, var, vae)
    torch.save({"trainer": {"epoch": 3}}, var)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        checkpoint_weights(recipe, var, vae)


def test_code_in_a_pickle_is_not_run(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    var, vae = save(tmp_path, states)
    torch.save({"head.weight": Touch()}, var)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        checkpoint_weights(recipe, var, vae)
    assert not (tmp_path / "executed").exists()


def test_tensors_must_match_one_for_one(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    var_state, vae_state = states

    def refused(match: str, var: State = var_state, vae: State = vae_state) -> None:
        with pytest.raises(CheckpointError, match=match):
            checkpoint_weights(recipe, *save(tmp_path, (var, vae)))

    refused("1 tensors are missing, first head.bias", {n: t for n, t in var_state.items() if n != "head.bias"})
    refused("1 tensors are not in the model, first extra", var_state | {"extra": torch.zeros(1)})
    refused(r"head.bias: expected shape \(128,\), found \(64,\)", var_state | {"head.bias": torch.zeros(64)})
    refused(
        "expected depth = 1, found 2; change the recipe",
        var_state | {"blocks.1.attn.q_bias": var_state["blocks.0.attn.q_bias"]},
    )
    refused("expected a VQVAE, found a VAR; give it as --var-checkpoint", vae=var_state)
    refused("expected a VAR, found a VQVAE; give it as --vae-checkpoint", var=vae_state)


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


class Custom(dict):
    """Settings in a class that exists only in the trainer's code."""


def wrappings(var: State, vae: State) -> dict[str, tuple[object, str | None]]:
    """Return what people save, and where the VAR is in it; None if it is the whole file."""
    trainer = {"config": {"prog_it": 0}, "var_wo_ddp": var, "vae_local": vae, "var_opt": {"state": {0: {"step": 1}}}}
    args = argparse.Namespace(depth=1, pn="1_2_4", when=fractions.Fraction(1, 2), own=Custom(a=1))
    halves = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in var.items()}
    return {
        "the official trainer's": ({"epoch": 1, "trainer": trainer, "args": args}, "trainer.var_wo_ddp"),
        "state_dict": ({"state_dict": OrderedDict(var), 3: Custom(b=var["head.bias"])}, "state_dict"),
        "model": ({"model": var, "epoch": 3}, "model"),
        "DistributedDataParallel": ({f"module.{name}": tensor for name, tensor in var.items()}, None),
        "compiled, twice": ({f"module._orig_mod.{name}": tensor for name, tensor in var.items()}, None),
        "parameters": ({name: torch.nn.Parameter(t, t.is_floating_point()) for name, t in var.items()}, None),
        "the averaged one": ({"model": halves, "model_ema": var}, "model_ema"),
        "a dictionary of one's own class": ({"model": Custom(var), "args": Custom(num_heads=1)}, "model"),
        "beside an expanded tensor": ({"model": var, "mask": torch.zeros(1).expand(9, 9)}, "model"),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_every_way_of_saving_is_read(recipe: Recipe, states: tuple[State, State], legacy: bool, tmp_path: Path) -> None:
    _, vae = save(tmp_path, states)
    for name, (content, within) in wrappings(*states).items():
        path = tmp_path / "var.PT"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        weights = checkpoint_weights(recipe, path, vae)
        np.testing.assert_array_equal(weights.read("head.weight"), states[0]["head.weight"], err_msg=name)
        assert weights.source["var_checkpoint"].get("within") == within, name


def test_a_tensor_stored_twice_is_not_chosen_between(
    recipe: Recipe, states: tuple[State, State], tmp_path: Path
) -> None:
    var, vae = states
    twice = var | {f"module.{name}": tensor + 1 for name, tensor in var.items()}
    with pytest.raises(CheckpointError, match=r"pos_start: expected a dense .*, found one that the file holds twice"):
        checkpoint_weights(recipe, *save(tmp_path, (twice, vae)))


def pickled(path: Path, content: bytes) -> Path:
    """Return a .pth file with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(16))
    return path


def test_what_a_pickle_builds_on_a_tensor_does_not_change_it(tmp_path: Path) -> None:
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0(K\x04t(K\x01t\x89}tR"
    named = b"}X\x07\0\0\0pos_1LC" + tensor
    assert read_checkpoint(pickled(tmp_path / "good.pth", named + b"s.")).parts["var"][0].tensors["pos_1LC"].read
    state = b"}X\x05\0\0\0shape(K\x63tsb"
    with pytest.raises(CheckpointError, match="'Stored' object has no attribute '__dict__'"):
        read_checkpoint(pickled(tmp_path / "built.pth", named + state + b"s."))


def test_a_key_whose_hash_would_not_end_is_not_hashed(tmp_path: Path) -> None:
    doubled = b")" + b"2\x86" * 60  # each tuple holds the previous one twice
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(pickled(tmp_path / "key.pth", b"}" + doubled + b"Ns."))


def test_one_file_serves_for_both_models(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    torch.save({"var_wo_ddp": states[0], "vae_local": states[1]}, tmp_path / "both.pth")
    weights = checkpoint_weights(recipe, tmp_path / "both.pth", None)
    name = "quantize.embedding.weight"
    np.testing.assert_array_equal(weights.read(name), states[1][name])


def test_two_copies_are_not_chosen_between(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    _, vae = save(tmp_path, states)
    other = {name: tensor.clone() for name, tensor in states[0].items()}
    torch.save({"best": states[0], "last": other}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"expected one VAR, found 2 \(best, last\)"):
        checkpoint_weights(recipe, tmp_path / "two.pth", vae)


ODD: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "sparse": (lambda t: t.to_sparse(), "found one sparse"),
    "quantized": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "found one quantized"),
    "meta": (lambda t: t.to("meta"), "found one on the meta device"),
    "complex": (lambda t: t.to(torch.complex64), "found one of type complex64"),
    "integer": (lambda t: t.long(), "found one of type int64"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_named(recipe: Recipe, states: tuple[State, State], kind: str, tmp_path: Path) -> None:
    change, message = ODD[kind]
    states[0]["head.weight"] = change(states[0]["head.weight"])
    with pytest.raises(CheckpointError, match=rf"head\.weight: expected a dense floating-point tensor, {message}"):
        checkpoint_weights(recipe, *save(tmp_path, states))


@pytest.mark.parametrize("legacy", [False, True])
def test_damage_is_one_line(recipe: Recipe, states: tuple[State, State], legacy: bool, tmp_path: Path) -> None:
    var, vae = save(tmp_path, states)
    torch.save(states[0], var, _use_new_zipfile_serialization=not legacy)
    whole, draw = var.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in (draw.randrange(len(whole)), draw.randrange(4000), len(whole) - 1 - draw.randrange(8000)):
            damaged[place] ^= 1 << draw.randrange(8)
        var.write_bytes(damaged[: draw.choice([len(whole), draw.randrange(len(whole))])])
        try:
            weights = checkpoint_weights(recipe, var, vae)
            for name in weights.readers:
                weights.read(name)
        except CheckpointError as error:
            assert str(error).isprintable()
            assert len(str(error).replace(str(tmp_path), "")) <= 300


def test_a_changed_byte_of_a_tensor_is_noticed(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    var, vae = save(tmp_path, states)
    content = bytearray(var.read_bytes())
    place = content.index(states[0]["head.weight"].numpy().tobytes())
    content[place : place + 64] = bytes(64)
    var.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"head\.weight: damaged: .* is not what its checksum says"):
        checkpoint_weights(recipe, var, vae).read("head.weight")


def test_compressed_records_are_refused_before_they_are_unpacked(
    recipe: Recipe, states: tuple[State, State], tmp_path: Path
) -> None:
    var, vae = save(tmp_path, states)
    with zipfile.ZipFile(var) as archive, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    with pytest.raises(CheckpointError, match="is compressed, which torch"):
        checkpoint_weights(recipe, tmp_path / "bomb.pth", vae)


def test_only_regular_files_are_opened(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    _, vae = save(tmp_path, states)
    os.mkfifo(tmp_path / "fifo")
    for path, kind in (
        (tmp_path / "fifo", "a FIFO"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a directory"),
    ):
        with pytest.raises(CheckpointError, match=f"expected a (regular )?file, found {kind}"):
            checkpoint_weights(recipe, path, vae)


CONTRADICTIONS: dict[str, tuple[dict[str, object], str]] = {
    "levels": ({"patch_nums": (1, 3, 4)}, r"expected patch_nums = \[1, 3, 4\], found \[1, 2, 4\]"),
    "heads": ({"attn_l2_norm": True}, "expected attn_l2_norm = true, found false"),
    "phi count": ({"share_quant_resi": 2}, "expected share_quant_resi = 2, found 4"),
    "phi for each scale": ({"share_quant_resi": 0}, "expected share_quant_resi = 0, found 4"),
    "no phi": ({"quant_resi": 0.0}, "quant_resi = 0 means no phi convolutions, found 4"),
    "kernel": ({"quant_conv_ks": 1}, "expected quant_conv_ks = 1, found 3"),
    "classes": ({"num_classes": 9}, "expected num_classes = 9, found 10"),
    "MLP": ({"mlp_ratio": 2.0}, "expected mlp_ratio = 2.0, found 4.0"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_names_the_setting(
    recipe: Recipe, states: tuple[State, State], case: str, tmp_path: Path
) -> None:
    change, message = CONTRADICTIONS[case]
    with pytest.raises(CheckpointError, match=message):
        checkpoint_weights(dataclasses.replace(recipe, **change), *save(tmp_path, states))  # type: ignore[arg-type]


def test_levels_that_are_none_are_refused(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    states[0]["lvl_1L"][0, 3] = 2**62
    with pytest.raises(CheckpointError, match="lvl_1L holds other numbers"):
        checkpoint_weights(recipe, *save(tmp_path, states))


def test_the_printed_recipe_is_that_of_the_file(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    trained = {"args": {"num_heads": 1, "norm_eps": 1e-6}, "var_wo_ddp": states[0], "vae_local": states[1]}
    torch.save(trained, tmp_path / "both.pth")
    text = recipe_text(tmp_path / "both.pth", None)
    (tmp_path / "mine.toml").write_text(text)
    found = Recipe.load(str(tmp_path / "mine.toml"))
    checkpoint_weights(found, None, None)
    for setting in ("depth", "width", "heads", "patch_nums", "ch", "ch_mult", "num_res_blocks", "vocab_size"):
        assert getattr(found, setting) == getattr(recipe, setting), setting
    assert "norm_eps = 1e-06  # from the trainer's arguments" in text
    assert "using_znorm = false  # the published value: the file does not tell; check it" in text


def test_a_checkpoint_is_exported_by_the_recipe_read_off_it(
    recipe: Recipe, states: tuple[State, State], tmp_path: Path
) -> None:
    trained = {"args": {"num_heads": 1}, "var_wo_ddp": states[0], "vae_local": states[1]}
    torch.save(trained, tmp_path / "both.pth")
    found = recipe_of(tmp_path / "both.pth", None)
    (tmp_path / "mine.toml").write_text(recipe_text(tmp_path / "both.pth", None))
    saved = Recipe.load(str(tmp_path / "mine.toml"))
    assert found == dataclasses.replace(saved, name="both")
    weights = checkpoint_weights(found, tmp_path / "both.pth", None)
    np.testing.assert_array_equal(weights.read("head.weight"), states[0]["head.weight"])
    del states[0]["lvl_1L"]
    with pytest.raises(CheckpointError, match="patch_nums cannot be read from it; print the recipe without --out"):
        recipe_of(*save(tmp_path, states))


def test_what_cannot_be_read_must_be_given(recipe: Recipe, states: tuple[State, State], tmp_path: Path) -> None:
    del states[0]["lvl_1L"]
    var, vae = save(tmp_path, states)
    (tmp_path / "mine.toml").write_text(recipe_text(var, vae))
    with pytest.raises(VarEdgeError, match="patch_nums: expected"):
        Recipe.load(str(tmp_path / "mine.toml"))


def test_a_zip_whose_entries_lie_before_the_file_is_damaged(tmp_path: Path) -> None:
    """Reading at a negative place ended in "Invalid argument", without the file's name."""
    path = tmp_path / "damaged.pth"
    torch.save({"word_embed.weight": torch.zeros(2)}, path)
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\6\6") + 48  # where the zip64 end record says that the directory begins
    data[start : start + 8] = (int.from_bytes(data[start : start + 8], "little") + 10**6).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged\.pth: .*truncated or of another kind"):
        read_checkpoint(path)
