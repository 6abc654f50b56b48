"""Editing keeps the part it is asked to keep, as the published demo does, for every kind of image that users have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from PIL import Image

from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import formula_weights, load_models
from export.model.reference import Generation, PyTorchBackend
from runtime import Pipeline, SettingsError
from runtime.base_pipeline import ScaleView
from runtime.bundle.manifest import Manifest, Model
from runtime.edit import main
from runtime.editing import Box, greyed, keep_masks, kept_cells
from runtime.images import read_mask, read_picture
from runtime.sampling import Sampling
from tests.conftest import DATA
from tests.export.agreement import assert_same_pixels, assert_sound, parting, share_within_one_step
from tests.runtime.toy import SIDES

GRIDS = [(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), (1, 2, 3, 4, 6, 8)]
IMAGES = DATA.parents[1] / "docs" / "images"
FACE = IMAGES / "neutral_face.png"


def edit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def model(golden_bundle: Path) -> Model:
    return Manifest.load(golden_bundle).model


@pytest.mark.parametrize("mode", ["inpaint", "outpaint"])
def test_golden_edits(golden_bundle: Path, mode: str) -> None:
    golden, given = np.load(DATA / f"golden_edit_{mode}_d2.npz"), np.load(DATA / "golden_encode_d2.npz")
    case = json.loads(str(golden["case"]))
    pipeline = Pipeline(golden_bundle)
    for k, tokens in enumerate(pipeline.encode(given["image"][None])):
        np.testing.assert_array_equal(tokens, given[f"encoded_{k}"], err_msg=f"encoded, scale {k}")
    result = pipeline.edit(
        given["image"], tuple(case["box"]), case["mode"], case["labels"], cfg=case["cfg"], top_k=1, top_p=0.0
    )
    for k, drawn in enumerate(result.drawn):
        np.testing.assert_array_equal(drawn, golden[f"tokens_{k}"], err_msg=f"drawn, scale {k}")
    assert share_within_one_step(golden["image"] / 65535, result.images) >= 0.999


@pytest.mark.parametrize(
    ("bundle", "region", "mode", "label"),
    [
        ("golden_d2", (0.2, 0.1, 0.7, 0.9), "inpaint", 207),  # class-conditional
        ("golden_d2", "disc", "outpaint", 980),
        ("shared_d2", (0.1, 0.1, 0.8, 0.8), "inpaint", "none"),
        ("shared_d2", (0.3, 0.25, 0.9, 0.6), "outpaint", 5),
    ],
)
def test_edits_are_those_of_pytorch(
    request: pytest.FixtureRequest, bundle: str, region: Box | str, mode: str, label: int | str
) -> None:
    path: Path = request.getfixturevalue(bundle.replace("d2", "bundle"))
    recipe = Recipe.load(str(DATA / f"{bundle}.toml"))
    backend = PyTorchBackend(*load_models(recipe, formula_weights(recipe, 0)))
    side = recipe.image_size
    y, x = np.mgrid[:side, :side] - side / 2
    shape = y**2 + x**2 < (side / 3) ** 2 if region == "disc" else region
    given, settings = noise(side, side, 3), {"seed": 3, "cfg": 3.0, "top_k": 100, "top_p": 0.0}
    logits: list[np.ndarray] = []
    by_pytorch = Pipeline(path, backend)
    reference = by_pytorch.edit(
        given, shape, mode, [label] * 2, **settings, on_scale=lambda view: logits.append(view.logits())
    )
    expected, pipeline = Generation(reference.images, reference.tokens, logits), Pipeline(path)
    found = parting(expected, pipeline, 3, Sampling(3.0, 100, 0.0))
    result = pipeline.edit(given, shape, mode, [label] * 2, **settings, on_scale=found)
    assert_sound(found)
    assert_same_pixels(expected, result, found, pipeline, pipeline.classes.labels([label] * 2))


@pytest.mark.parametrize("sides", GRIDS)
def test_masks_are_pytorch_s_bilinear_resize(sides: tuple[int, ...]) -> None:
    """The masks are equal bit for bit; else cells that a box covers by exactly a half would differ from PyTorch."""
    draw, size = np.random.default_rng(0), sides[-1]
    for _ in range(400):
        (top, bottom), (left, right) = (np.sort(draw.choice(size + 1, 2, replace=False)) for _ in range(2))
        kept = draw.random((size, size)) < 0.5 if draw.random() < 0.2 else np.zeros((size, size), bool)
        kept[top:bottom, left:right] = True
        for keep in (kept, ~kept):
            grey = torch.from_numpy(keep).float()[None, None]
            for side, mask in zip(sides, keep_masks(keep, sides), strict=True):
                expected = F.interpolate(grey, size=(side, side), mode="bilinear", align_corners=False) > 0.5
                assert mask.shape == (1, side * side)
                assert side == 1 or np.array_equal(mask, expected.reshape(1, -1).numpy()), side


def test_the_first_scale_is_always_kept() -> None:
    assert keep_masks(np.zeros((3, 3), bool), SIDES)[0].all()
    assert not keep_masks(np.zeros((3, 3), bool), SIDES)[1].any()


def test_edges_round_half_to_even(model: Model) -> None:
    inside = kept_cells((0.5 / 16, 1.5 / 16, 2.5 / 16, 0.5), "outpaint", model)  # 0.5, 1.5, 2.5 of 16 cells
    assert np.argwhere(inside).min(0).tolist() == [0, 2]
    assert np.argwhere(inside).max(0).tolist() == [1, 7]
    assert np.array_equal(kept_cells((0.5 / 16, 1.5 / 16, 2.5 / 16, 0.5), "inpaint", model), ~inside)


def test_a_mask_is_worth_its_box(model: Model) -> None:
    mask = np.zeros((256, 256), bool)
    mask[58:192, 64:250] = True  # by cells of 16: 3.6 to 12, 4 to 15.6
    for mode in ("inpaint", "outpaint"):
        box = kept_cells((4 / 16, 4 / 16, 12 / 16, 1.0), mode, model)
        assert np.array_equal(kept_cells(mask, mode, model), box)


def test_greyed_shows_what_is_kept() -> None:
    kept = np.array([[True, False], [False, False]])
    shown = greyed(np.full((4, 4, 3), 7, np.uint8), kept)
    assert (shown[:2, :2] == 7).all()
    assert (shown[2:] == 160).all() and (shown[:2, 2:] == 160).all()


@pytest.mark.parametrize(
    ("region", "mode", "message"),
    [
        ((0.2, 0.2, 0.2, 0.8), "inpaint", r"box: expected 0 <= y0 < y1 <= 1 .* found 0.2,0.2,0.2,0.8"),
        ((0.5, 0.2, 0.4, 0.8), "inpaint", "box: expected"),
        ((-0.1, 0.2, 0.4, 0.8), "inpaint", "box: expected"),
        ((0.1, 0.2, 0.4, 1.01), "inpaint", "box: expected"),
        ((0.1, float("nan"), 0.4, 1), "inpaint", "box: expected"),
        ((0.1, 0.1, 0.12, 0.9), "outpaint", "box: 0.1,0.1,0.12,0.9 rounds to none of the 16 x 16 tokens"),
        (np.zeros((256, 256), bool), "inpaint", "mask: covers none of the 16 x 16 tokens"),
        (np.zeros((256, 255), bool), "inpaint", r"mask: expected \(256, 256\) bool, found \(256, 255\) bool"),
        (np.zeros((256, 256), np.uint8), "inpaint", r"mask: expected .* found \(256, 256\) uint8"),
        ((0, 0, 1, 1), "paint", "mode: expected inpaint or outpaint, found 'paint'"),
    ],
)
def test_wrong_regions(model: Model, region: Box | np.ndarray, mode: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        kept_cells(region, mode, model)


def test_a_picture_of_the_model_s_size_is_taken_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(noise(32, 32, 3)).save(tmp_path / "picture.png")
    assert np.array_equal(read_picture(tmp_path / "picture.png", 32), noise(32, 32, 3))


def test_another_shape_loses_its_margins(tmp_path: Path) -> None:
    wide = np.zeros((20, 100, 3), np.uint8)
    wide[:, 40:60] = (0, 255, 0)  # the middle square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    middle = read_picture(tmp_path / "wide.png", 16)[:, 3:-3]  # further out the filter reaches over the edge
    assert np.array_equal(middle, np.full((16, 10, 3), (0, 255, 0), np.uint8))


def test_shrinking_averages(tmp_path: Path) -> None:
    checks = np.indices((256, 256)).sum(0) % 2 * np.uint8(255)
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "checks.png")
    assert np.abs(read_picture(tmp_path / "checks.png", 32).astype(int) - 127).max() <= 2


def test_orientation_is_honoured(tmp_path: Path) -> None:
    upright = noise(32, 32, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "turned.png", 32), upright)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), 255),  # what is transparent is white, whatever colour it hides
        ("LA", (0, 0), 255),
        ("L", 90, 90),
        ("1", 1, 255),
        ("P", 0, 0),
        ("I;16", 90 * 257, 90),
        ("CMYK", (0, 0, 0, 255), 0),
    ],
)
def test_every_kind_of_pixel(tmp_path: Path, mode: str, value: Any, expected: int) -> None:
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    Image.new(mode, (20, 20), value).save(path)
    assert np.array_equal(read_picture(path, 16), np.full((16, 16, 3), expected, np.uint8))


def test_a_mask_is_cut_like_its_picture(tmp_path: Path) -> None:
    paint = np.zeros((64, 128), np.uint8)
    paint[:32, 32:64] = 255
    paint[:, :32] = 255  # cut off
    Image.fromarray(paint).save(tmp_path / "mask.png")
    Image.fromarray(noise(64, 128, 3)).save(tmp_path / "picture.png")
    mask = read_mask(tmp_path / "mask.png", tmp_path / "picture.png", 32)
    assert mask[:16, :16].all()
    assert mask.sum() == 16 * 16


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(-10 * np.log10((((first.astype(float) - second) / 255) ** 2).mean()))


@pytest.mark.parametrize(
    ("name", "label", "box", "mode", "cfg", "seed"),
    [
        ("smirking_face", "smiley", (0.5, 0.0, 1.0, 1.0), "inpaint", 2.0, 275),
        ("clock_face", "clock", (0.0, 0.0, 1.0, 0.5), "outpaint", 2.0, 166),
    ],
)
def test_the_figures_keep_what_they_show_as_kept(
    demo_bundle: Path, name: str, label: str, box: Box, mode: str, cfg: float, seed: int
) -> None:
    """One token from the edge, what is kept is as close to the given image as its reconstruction, within 4.5 dB.

    At the edge the coarse scales reach into it. What is not kept is farther away.
    """
    pipeline = Pipeline(demo_bundle)
    picture = read_picture(IMAGES / f"{name}.png", 64)
    reconstructed = pipeline.edit(picture, (0.0, 0.0, 1.0, 1.0), "outpaint").images[0]
    cells = kept_cells(box, mode, pipeline.manifest.model)
    around = np.pad(cells, 1, mode="edge")
    inside = cells & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    side = 64 // len(cells)
    kept, inner = (chosen.repeat(side, 0).repeat(side, 1) for chosen in (cells, inside))
    edited = pipeline.edit(picture, box, mode, [label] * 6, cfg=cfg, seed=seed, top_k=20, top_p=0.5).images
    best = psnr(reconstructed[inner], picture[inner])
    assert min(psnr(image[inner], picture[inner]) for image in edited) >= best - 4.5
    assert max(psnr(image[~kept], reconstructed[~kept]) for image in edited) < best


def test_command(demo_bundle: Path, tmp_path: Path) -> None:
    out, dump = tmp_path / "edit.png", tmp_path / "dump.npz"
    Image.fromarray(noise(90, 70, 4)).save(tmp_path / "picture.png")
    box = ["--box", "0.25,0.25,0.75,1", "--label", "animal face,none"]
    common = ["--bundle", demo_bundle, "--image", tmp_path / "picture.png", *box, "--seed", 3, "--top-k", 5]
    result = edit(*common, "--out", out, "--dump", dump)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{out}: 2 edit(s) in ")
    pipeline = Pipeline(demo_bundle)
    picture = read_picture(tmp_path / "picture.png", 64)
    expected = pipeline.edit(picture, (0.25, 0.25, 0.75, 1.0), labels=["animal face", 29], seed=3, top_k=5)
    sheet = np.asarray(Image.open(out))
    assert np.array_equal(np.concatenate([sheet[:, :64], sheet[:, -64:]]), np.concatenate(list(expected.images)))
    dump = np.load(dump)
    assert all(np.array_equal(dump[f"drawn_{k}"], drawn) for k, drawn in enumerate(expected.drawn))

    assert edit(*common, "--out", out, "--compare").exit_code == 0
    assert np.asarray(Image.open(out)).shape == (64, 4 * 64 + 3 * 4, 3)
    assert np.array_equal(np.asarray(Image.open(out))[:, :64], picture)


def test_a_mask_instead_of_a_box(demo_bundle: Path, tmp_path: Path) -> None:
    paint = np.zeros((128, 128), np.uint8)
    paint[:64] = 255
    Image.fromarray(noise(128, 128)).save(tmp_path / "picture.png")
    Image.fromarray(paint).save(tmp_path / "mask.png")
    common = ["--bundle", demo_bundle, "--image", tmp_path / "picture.png", "--mode", "outpaint", "--out"]
    assert edit(*common, tmp_path / "a.png", "--mask", tmp_path / "mask.png").exit_code == 0
    assert edit(*common, tmp_path / "b.png", "--box", "0,0,0.5,1").exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def write_text(path: Path) -> None:
    path.write_text("no picture")


def write_half(path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-5000])


def write_small(path: Path) -> None:
    Image.fromarray(noise(7, 64, 3)).save(path)


def write_good(path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(path)


@pytest.mark.parametrize(
    ("write", "arguments", "code", "message"),
    [
        (
            write_text,
            ["--box", "0,0,1,1"],
            1,
            "photo.png: cannot be read as an image (unknown format); give a PNG",
        ),
        (write_half, ["--box", "0,0,1,1"], 1, "photo.png: cannot be read as an image"),
        (write_small, ["--box", "0,0,1,1"], 1, "or more pixels on each side, found 64 x 7"),
        (lambda path: None, ["--box", "0,0,1,1"], 1, "photo.png: there is no such file"),
        (write_good, ["--box", "0,0,1"], 1, "box: expected four numbers such as 0.25,0.25,0.75,0.75, found '0,0,1'"),
        (write_good, ["--box", "0,0,1,2"], 1, "box: expected 0 <= y0 < y1 <= 1"),
        (write_good, ["--box", "0,0,0.01,1"], 1, "rounds to none of the "),
        (write_good, ["--mask", FACE], 1, "neutral_face.png: expected 64 x 64 pixels like photo.png, found 128"),
        (write_good, ["--box", "0,0,1,1", "--label", "30"], 1, "label: expected 0 to 29"),
        (write_good, ["--box", "0,0,1,1", "--label", "no such"], 1, "label 'no such': no class has this name"),
        (write_good, ["--box", "0,0,1,1", "--top-k", "5000"], 1, "top_k: expected 0 (all) to 2048"),
        (write_good, ["--box", "0,0,1,1", "--out", "edit.jpg"], 1, "ends in .png"),
        (write_good, ["--box", "0,0,1,1", "--animation", "edit.mp4"], 1, "ends in .webp or .gif"),
        (write_good, [], 2, "Expected one of '--box' and '--mask'"),
        (write_good, ["--box", "0,0,1,1", "--mask", FACE], 2, "Expected one of '--box' and '--mask'"),
    ],
)
def test_mistakes(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    arguments: list[object],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("photo.png"))
    before = list(tmp_path.iterdir())
    result = edit("--bundle", demo_bundle, "--image", "photo.png", *arguments)
    assert result.exit_code == code
    assert message in result.output
    if code == 1:
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == before


def test_a_bundle_without_encoder(toy_bundle: Path, tmp_path: Path) -> None:
    write_good(tmp_path / "picture.png")
    result = edit("--bundle", toy_bundle, "--image", tmp_path / "picture.png", "--box", "0,0,1,1", "--top-k", 2)
    assert result.exit_code == 1
    assert (
        result.output
        == f"Error: {toy_bundle}: no encoder, which editing needs; make onnx exports the bundle with one\n"
    )


def test_previews_of_an_edit_end_with_it(demo_bundle: Path) -> None:
    previews: list[np.ndarray] = []

    def on_scale(view: ScaleView) -> None:
        previews.append(view.preview())

    result = Pipeline(demo_bundle).edit(noise(64, 64, 3), (0.0, 0.0, 0.5, 1.0), on_scale=on_scale)
    assert len(previews) == 6
    assert np.array_equal(previews[-1], result.images)
