"""The tiny decoder: distilled from a bundle alone, exported into it, and refused where it does not belong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from examples.demo_model import loop
from examples.tiny_decoder import distill, rollouts
from examples.tiny_decoder.distill import main as distil
from examples.tiny_decoder.stage import TinyDecoderStage
from export.__main__ import main as export
from export.checkpoint.file import CheckpointError
from export.checkpoint.recipe import RECIPES, Recipe
from export.checkpoint.tiny_decoder import shipped
from export.checkpoint.weights import checkpoint_weights, empty_models
from export.model.tiny_decoder import TinyDecoder
from export.verify.__main__ import main as verify_command
from export.verify.check import Row
from export.verify.run import verify
from runtime.bundle.manifest import WEIGHTS, File, Manifest
from runtime.bundle.names import TINY_DECODER
from runtime.bundle.weight_file import read_header
from runtime.errors import SettingsError
from runtime.pipeline import Pipeline

SHARE = 0.05  # of the decoder's FLOP


def command(entry: object, *arguments: object) -> Result:
    return CliRunner().invoke(entry, [str(argument) for argument in arguments])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def distilled(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distilled")
    arguments = [demo_bundle, "--images", 64, "--steps", 40, "--folder", folder / "work", "--device", "cpu"]
    found = command(distil, *arguments, "--out", folder / "tiny.safetensors")
    assert found.exit_code == 0, found.output
    return folder / "tiny.safetensors"


@pytest.mark.parametrize("name", [path.stem for path in RECIPES.glob("*.toml")])
def test_it_takes_a_twentieth_of_the_decoders_work(name: str) -> None:
    recipe = Recipe.load(name)
    _, vqvae = empty_models(recipe)
    f_hat = torch.zeros(1, recipe.code_size, recipe.grid, recipe.grid, device="meta")
    with torch.device("meta"):
        tiny = TinyDecoder(recipe.model)
    with FlopCounterMode(display=False) as full:
        vqvae.decode(f_hat)
    with FlopCounterMode(display=False) as small:
        image = tiny(f_hat)
    assert image.shape == (1, 3, recipe.image_size, recipe.image_size)
    assert small.get_total_flops() <= SHARE * full.get_total_flops()


def test_a_few_steps_teach_it_something(distilled: Path, demo_bundle: Path) -> None:
    """40 steps give 18 dB on held-out rollouts; an untrained one draws grey at 5 dB."""
    state = torch.load(next((distilled.parent / "work").rglob("tiny.pt")), weights_only=True)
    assert state["step"] == 40
    tiny = TinyDecoder(Manifest.load(demo_bundle, verify=False).model)
    tiny.load_state_dict({name: tensor.float() for name, tensor in load_file(distilled).items()})
    f_hat, images = held_out(distilled)
    with torch.no_grad():
        found = (tiny(torch.from_numpy(f_hat)).permute(0, 2, 3, 1).clamp(-1, 1).numpy() + 1) * 127.5
    assert 10 * np.log10(255**2 / np.mean((found - images) ** 2)) > 14


def held_out(distilled: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(next((distilled.parent / "work").rglob("0000.npz"))) as stored:
        return stored["f_hat"][-8:], stored["images"][-8:]


def test_the_rollouts_are_what_the_decoder_makes_of_f_hat(distilled: Path, demo_bundle: Path) -> None:
    f_hat, images = held_out(distilled)
    decoder = onnxruntime.InferenceSession(demo_bundle / "decoder.onnx")
    found = np.concatenate([decoder.run(["image"], {"f_hat": row[None]})[0] for row in f_hat])
    assert np.abs(found.astype(int) - images).max() <= 1
    assert np.abs(images[::2].astype(int) - images[1::2]).max() > 10  # finished images and previews alternate


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_exported_graph_computes_it(distilled: Path, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "bundle"
    model = ["--model", "var_demo", "--precision", precision, "--out", out]
    found = command(export, *model, "--tiny-decoder", distilled)
    assert found.exit_code == 0, found.output
    manifest = Manifest.load(out)
    assert manifest.provenance.source["tiny_decoder"]["file"] == distilled.name
    session = onnxruntime.InferenceSession(out / manifest.graphs[TINY_DECODER].file)
    f_hat, _ = held_out(distilled)
    image, finite = session.run(None, {"f_hat": f_hat})
    tiny = TinyDecoder(manifest.model)
    tiny.load_state_dict({name: tensor.float() for name, tensor in load_file(distilled).items()})
    with torch.no_grad():
        expected = (tiny(torch.from_numpy(f_hat)).permute(0, 2, 3, 1).clamp(-1, 1).numpy() * 0.5 + 0.5) * 255
    assert np.abs(image - expected).max() <= (1 if precision == "fp32" else 3)
    assert finite.all()
    _, finite = session.run(None, {"f_hat": np.where(np.arange(8).reshape(8, 1, 1, 1) == 3, np.nan, f_hat)})
    assert finite.tolist() == [True] * 3 + [False] + [True] * 4


@pytest.mark.parametrize("name", ["var_demo", "var_demo_small"])
def test_the_demo_models_have_one(name: str) -> None:
    """It would be left out, without a word, if it were not of their VQVAE."""
    recipe = Recipe.load(name)
    found = shipped(recipe, checkpoint_weights(recipe, None, None))
    assert found == RECIPES / "demo" / "tiny_demo.safetensors"


def test_verify_compares_it(distilled: Path, fp16_demo_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert not command(export, "--model", "var_demo", "--out", out, "--tiny-decoder", distilled).exit_code
    (row,) = rows_of_the_tiny_decoder(out, distilled)
    assert row.verdict == "passed" and row.metrics["psnr"] > 65
    (row,) = rows_of_the_tiny_decoder(out, None)
    assert row.remark == "the reference has none to compare with"  # the shipped one is another
    with pytest.raises(CheckpointError, match="not what the bundle's tiny decoder was made of: expected SHA-256"):
        verify([out], pictures=1, tiny_decoder=RECIPES / "demo" / "tiny_demo.safetensors")
    without = fp16_demo_bundle
    entries = verify([without, out], pictures=1, tiny_decoder=distilled).entries  # of one model
    verdicts = {e.artifact.path: row.verdict for e in entries for row in e.rows if row.stage == "tiny decoder"}
    assert verdicts == {without: "absent", out: "passed"}
    with_other_weights(out)
    (row,) = rows_of_the_tiny_decoder(out, distilled)
    assert row.verdict == "FAILED" and "psnr" in row.remark


def test_a_wrong_tiny_decoder_is_bisected(distilled: Path, demo_bundle: Path, tmp_path: Path) -> None:
    """Against a new export with the same tiny decoder, and against a bundle."""
    exact, wrong = tmp_path / "exact", tmp_path / "wrong"
    assert not command(export, "--model", "var_demo", "--out", exact, "--tiny-decoder", distilled).exit_code
    shutil.copytree(exact, wrong)
    with_other_weights(wrong)
    for options in ({"tiny_decoder": distilled}, {"against": exact}):
        (entry,) = verify([wrong], pictures=1, with_bisect=True, **options).entries
        assert [row.stage for row in entry.failed] == ["tiny decoder"]
        assert str(entry.finding).startswith("decoder_tiny: Conv "), entry.finding


def test_what_verify_cannot_compare_is_refused(distilled: Path, demo_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--tiny-decoder: .* has none to compare; export it with --tiny-decoder"):
        verify([demo_bundle], pictures=1, tiny_decoder=distilled)
    against = command(verify_command, demo_bundle, "--against", demo_bundle, "--tiny-decoder", distilled)
    assert (against.exit_code, "--against takes the place of" in against.output) == (2, True)
    both = [tmp_path / "theirs", tmp_path / "shipped"]
    assert not command(export, "--model", "var_demo", "--out", both[0], "--tiny-decoder", distilled).exit_code
    assert not command(export, "--model", "var_demo", "--out", both[1]).exit_code
    with pytest.raises(SettingsError, match=r"has another tiny decoder than .*theirs; verify them one by one"):
        verify(both, pictures=1)


def rows_of_the_tiny_decoder(bundle: Path, file: Path | None) -> list[Row]:
    (entry,) = verify([bundle], pictures=1, tiny_decoder=file).entries
    return [row for row in entry.rows if row.stage == "tiny decoder"]


def with_other_weights(bundle: Path) -> None:
    """Scale one bias of the tiny decoder in the weight file, and let the manifest agree."""
    manifest, path = Manifest.load(bundle), bundle / WEIGHTS
    tensor = read_header(path)["tiny_decoder.up.1.bias"]
    with path.open("r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(start + tensor.start)
        values = np.frombuffer(file.read(tensor.end - tensor.start), "<f4")
        file.seek(start + tensor.start)
        file.write((values + 0.1).astype("<f4").tobytes())
    replace(manifest, files=manifest.files | {WEIGHTS: File.of(path)}).write(bundle)


def test_a_file_of_another_model_is_refused_in_one_line(distilled: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "bundle", tmp_path / "other.safetensors"
    found = command(export, "--model", "var_demo", "--out", out, "--tiny-decoder", tmp_path / "none")
    assert f"--tiny-decoder: no file {tmp_path / 'none'}" in found.output
    save_file(load_file(distilled), other)  # says nothing about the VQVAE
    found = command(export, "--model", "var_demo", "--out", out, "--tiny-decoder", other)
    assert f"{other}: imitates the decoder of another VQVAE; distil one from a bundle of this model" in found.output
    found = command(export, "--model", "var_d16", "--random-weights", 0, "--out", out, "--tiny-decoder", distilled)
    assert f"{distilled}: not a tiny decoder for the sizes of var_d16" in found.output
    assert found.exit_code == 1
    assert not out.exists()


def test_a_run_interrupted_while_it_trains_ends_as_if_it_were_not(
    distilled: Path, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = next((distilled.parent / "work").rglob("rollouts"))
    shutil.copytree(rollouts, tmp_path / "work" / rollouts.parent.name / "rollouts")
    arguments = [demo_bundle, "--images", 64, "--steps", 40, "--folder", tmp_path / "work", "--device", "cpu"]
    arguments += ["--out", tmp_path / "tiny.safetensors"]
    losses, whole_loss = 0, TinyDecoderStage.loss

    def interrupted(stage: TinyDecoderStage, *batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal losses
        losses += 1
        if losses == 22:  # 21 steps are done
            raise KeyboardInterrupt
        return whole_loss(stage, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(distill, "Settings", partial(loop.Settings, save_every=0))
        patch.setattr(TinyDecoderStage, "loss", interrupted)
        assert command(distil, *arguments).exit_code == 1
    assert not (tmp_path / "tiny.safetensors").exists()
    found = command(distil, *arguments)
    assert "at step 21" in found.output
    assert (tmp_path / "tiny.safetensors").read_bytes() == distilled.read_bytes()


def test_a_run_interrupted_while_it_draws_draws_only_the_rest(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[range] = []

    def draw(pipeline: Pipeline, seeds: range, images: int, progress: object) -> rollouts.Pairs:
        if seeds.start and seeds not in drawn:
            drawn.append(seeds)
            raise KeyboardInterrupt
        drawn.append(seeds)
        model = pipeline.manifest.model
        f_hat = np.full((2 * len(seeds), model.code_size, model.grid, model.grid), seeds.start, np.float32)
        return f_hat, np.zeros((2 * len(seeds), 8, 8, 3), np.uint8)

    monkeypatch.setattr(rollouts, "_draw", draw)
    with Pipeline(demo_bundle) as pipeline:
        with pytest.raises(KeyboardInterrupt):
            rollouts.rollouts(pipeline, 128, tmp_path)
        f_hat, _ = rollouts.rollouts(pipeline, 128, tmp_path)
    assert drawn == [range(64), range(64, 128), range(64, 128)]
    assert f_hat[:, 0, 0, 0].tolist() == [0] * 128 + [64] * 128


@pytest.mark.parametrize("damage", ["truncated", "empty", "no checkpoint"])
@pytest.mark.parametrize("name", ["tiny.pt", "0000.npz"])
def test_a_damaged_file_of_an_earlier_run_is_one_line(
    distilled: Path, demo_bundle: Path, tmp_path: Path, name: str, damage: str
) -> None:
    shutil.copytree(distilled.parent / "work", tmp_path / "work")
    file = next((tmp_path / "work").rglob(name))
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "no checkpoint": b"{}" * 500}[damage])
    out = tmp_path / "tiny.safetensors"
    arguments = [demo_bundle, "--images", 64, "--steps", 44, "--folder", tmp_path / "work", "--device", "cpu"]
    found = command(distil, *arguments, "--out", out)
    assert found.exit_code == 1 and not out.exists()
    (line,) = found.output.splitlines()
    assert line.startswith(f"Error: {file}: truncated, or ") and "; remove it to " in line
