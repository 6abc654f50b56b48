"""The C++ runtime draws what the Python runtime draws: the same directory, seed and settings, the same picture."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import formula_weights
from runtime.drafted import DraftedPipeline
from runtime.errors import BundleError, SettingsError
from runtime.pipeline import Pipeline
from tests.conftest import DATA, Shared
from tests.cpp.conftest import DEPENDENCIES, run
from tests.cpp.dumps import Case, assert_equal, drawn_by_cpp, drawn_by_python
from tests.cpp.test_core import BAD_ARGUMENT, BAD_BUNDLE
from tests.export.test_variants import CFG, LABEL, SEED, exported
from tests.runtime.toy import write_bundle

# 64 combinations of label, seed, guidance and both filters, and batches that end in some of other sizes.
COMBINATIONS = [
    Case((label,), seed, cfg, top_k, top_p)
    for (label, seed), cfg, (top_k, top_p) in itertools.product(
        [(0, 0), (7, 1), (28, 2**32 + 5), (29, 2**64 - 1)],
        [0.0, 1.5, 4.0, 7.25],
        [(0, 0.0), (1, 0.0), (300, 0.9), (2048, 1e-6)],
    )
]
BATCHES = [Case(tuple(range(5)), 11, 3.0, 600, 0.96, batch) for batch in (1, 2, 8)]
# Guidance at the first scales only, of the six that the demo model has: one picture, and three in batches of two.
GUIDED = [Case((3,), 11, 3.5, 200, 0.8, guidance_scales=scales) for scales in range(1, 7)]
GUIDED += [Case((3, 12, 28), 5, 7.25, 600, 0.96, 2, guidance_scales=scales) for scales in (1, 4, 5)]
# The first scales drafted: of three pictures in batches of two, and alone.
DRAFTED = [Case((3, 12, 7), 5, 3.5, 200, 0.8, 2, draft_scales=scales) for scales in (0, 1, 4, 6)]
DRAFTED += [Case((3,), 5, 3.5, 200, 0.8, draft_scales=4), Case((3,), 5, 3.5, 200, 0.8, 8, False, 3, 4)]


def test_64_combinations(release: Path, demo_bundle: Path, tmp_path: Path) -> None:
    cases = COMBINATIONS + BATCHES
    found = drawn_by_cpp([release / "tests" / "dump"], demo_bundle, cases, tmp_path / "out")
    assert_equal(drawn_by_python(demo_bundle, cases), found, cases)
    assert len({drawn.tokens.tobytes() for drawn in found[:64]}) >= 30  # the settings do change what is drawn


@pytest.mark.parametrize("which", ["fp16", "cpu", "cpu-row", "trt-row"])
def test_other_precisions(
    which: str,
    release: Path,
    fp16_demo_bundle: Path,
    int8_bundles: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Keys and values in FP16; scales and zero points by step."""
    bundle = fp16_demo_bundle if which == "fp16" else int8_bundles[which]
    cases = COMBINATIONS[8:16]
    found = drawn_by_cpp([release / "tests" / "dump"], bundle, cases, tmp_path / "out")
    assert_equal(drawn_by_python(bundle, cases), found, cases)


def test_guidance_at_the_first_scales(release: Path, smooth_demo_bundle: Path, tmp_path: Path) -> None:
    """With all six scales it is the exact path, bit for bit; each number draws something else."""
    exact = replace(GUIDED[0], guidance_scales=None)
    cases = [*GUIDED, exact]
    found = drawn_by_cpp([release / "tests" / "dump"], smooth_demo_bundle, cases, tmp_path / "out")
    assert_equal(drawn_by_python(smooth_demo_bundle, cases), found, cases)
    assert_equal([found[-1]], [found[5]], [exact])
    assert len({drawn.images.tobytes() for drawn in found[:6]}) == 6
    smooth = [replace(GUIDED[3], smooth=True)]
    found = drawn_by_cpp([release / "tests" / "dump"], smooth_demo_bundle, smooth, tmp_path / "out")
    for a, b in zip(drawn_by_python(smooth_demo_bundle, smooth), found, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)


@pytest.mark.parametrize("which", ["fp16", "cpu"])
def test_guidance_in_other_precisions(
    which: str, release: Path, fp16_demo_bundle: Path, int8_bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Keys and values of 2 bytes; scales of INT8 that depend on the scale of the image."""
    bundle = fp16_demo_bundle if which == "fp16" else int8_bundles[which]
    found = drawn_by_cpp([release / "tests" / "dump"], bundle, GUIDED[-2:], tmp_path / "out")
    assert_equal(drawn_by_python(bundle, GUIDED[-2:]), found, GUIDED[-2:])


def test_drafts(release: Path, demo_bundle: Path, int8_bundles: dict[str, Path], tmp_path: Path) -> None:
    """FP32 drafts for INT8. No scale is the refiner alone; all scales are the tokens of the draft alone."""
    refiner, program = int8_bundles["cpu"], [release / "tests" / "dump"]
    found = drawn_by_cpp(program, refiner, DRAFTED, tmp_path / "out", draft=demo_bundle)
    assert_equal(drawn_by_python(refiner, DRAFTED, demo_bundle), found, DRAFTED)
    alone = [replace(DRAFTED[0], draft_scales=0)]
    assert_equal(drawn_by_cpp(program, refiner, alone, tmp_path / "out"), [found[0]], alone)
    large = drawn_by_cpp(program, demo_bundle, alone, tmp_path / "out")
    np.testing.assert_array_equal(large[0].tokens, found[3].tokens)
    np.testing.assert_array_equal(found[2].tokens[0], found[4].tokens[0])  # in a batch and alone


def test_drafts_of_another_model(release: Path, demo_bundle: Path, small_demo_bundle: Path, tmp_path: Path) -> None:
    """One with other weights but for those of the VQVAE: what is drafted is its own, what follows is not."""
    cases = [Case((0, 9), 3, 2.0, 50, 0.9, draft_scales=scales) for scales in range(7)]
    found = drawn_by_cpp([release / "tests" / "dump"], small_demo_bundle, cases, tmp_path / "out", draft=demo_bundle)
    assert_equal(drawn_by_python(small_demo_bundle, cases, demo_bundle), found, cases)
    assert len({drawn.tokens.tobytes() for drawn in found}) >= 6


def test_models_that_do_not_fit(release: Path, tiny_bundle: Path, demo_bundle: Path, tmp_path: Path) -> None:
    """The words of Python, with the number of the status before."""
    old, other = (Path(shutil.copytree(tiny_bundle, tmp_path / name)) for name in ("old", "other"))
    for bundle, digest in ((old, None), (other, "0" * 64)):
        document = json.loads((bundle / "manifest.json").read_text())
        document["provenance"]["source"].pop("vqvae_sha256")
        if digest:
            document["provenance"]["source"]["vqvae_sha256"] = digest
        (bundle / "manifest.json").write_text(json.dumps(document))
    case = Case((0,), 3, 2.0, 50, 0.9, draft_scales=1)
    for draft, status, error in (
        (demo_bundle, BAD_ARGUMENT, SettingsError),
        (old, BAD_BUNDLE, BundleError),
        (other, BAD_ARGUMENT, SettingsError),
    ):
        with pytest.raises(error) as refused:
            drawn_by_python(tiny_bundle, [case], draft)
        command = [release / "tests" / "dump", tiny_bundle, tmp_path / "out", "1", "0", draft]
        result = subprocess.run(command, input=case.line, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (1, f"{status}: {refused.value}\n")


def test_other_models(release: Path, tiny_bundle: Path, shared_bundle: Path, tmp_path: Path) -> None:
    """Three scales without class names; 512 pixels with shared AdaLN."""
    for bundle, case in (
        (tiny_bundle, Case((0, 9), 3, 2.0, 50, 0.9)),
        (shared_bundle, Case((980,), 3, 4.0, 900, 0.95)),
    ):
        found = drawn_by_cpp([release / "tests" / "dump"], bundle, [case], tmp_path / "out")
        assert_equal(drawn_by_python(bundle, [case]), found, [case])


def test_a_model_of_other_settings(release: Path, shared: Shared, tmp_path: Path) -> None:
    """Heads of 30, a vocabulary of 200, a first scale of 2 x 2, a phi for each scale: drawn and edited."""
    bundle = exported("many at once", shared)
    cases = [Case((LABEL,), SEED, CFG, 1, 0.0), Case((3, 6, 7), 5, 3.0, 150, 0.9, 2)]
    found = drawn_by_cpp([release / "tests" / "dump"], bundle, cases, tmp_path / "drawn")
    assert_equal(drawn_by_python(bundle, cases), found, cases)
    with np.load(DATA / "variants.npz") as golden:
        np.testing.assert_array_equal(found[0].tokens[0], golden["many at once: tokens"])
    check_edit(release, bundle, (0.2, 0.4, 0.8, 1.0), "inpaint", 3, tmp_path)


def test_the_example_writes_the_picture(release: Path, demo_bundle: Path, tmp_path: Path) -> None:
    options = ("--seed", "5", "--cfg", "3.5", "--top-k", "200", "--top-p", "0.8")
    run(release / "examples" / "var_edge_generate", demo_bundle, "3,12", *options, "--out", tmp_path / "picture.png")
    result = Pipeline(demo_bundle, "onnxruntime").generate([3, 12], 5, 3.5, 200, 0.8)
    for i, image in enumerate(result.images):
        with Image.open(tmp_path / f"picture_{i}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), image)
    lines = (Path(__file__).parents[2] / "runtime/cpp/examples/generate.cpp").read_text().splitlines()
    assert len(lines) <= 85


def test_the_example_drafts(release: Path, demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path) -> None:
    options = ("--seed", "5", "--guidance-scales", "5", "--draft", demo_bundle, "--draft-scales", "3")
    program, out = release / "examples" / "var_edge_generate", tmp_path / "picture.png"
    run(program, fp16_demo_bundle, "3", *options, "--out", out)
    draft, refiner = (Pipeline(bundle, "onnxruntime") for bundle in (demo_bundle, fp16_demo_bundle))
    result = DraftedPipeline(draft, refiner, 3).generate([3], 5, guidance_scales=5)
    with Image.open(out) as picture:
        np.testing.assert_array_equal(np.asarray(picture), result.images[0])


def test_previews(release: Path, demo_bundle: Path, tmp_path: Path) -> None:
    run(release / "examples" / "var_edge_preview", demo_bundle, "4", tmp_path, "9")
    previews: list[np.ndarray] = []
    pipeline = Pipeline(demo_bundle, "onnxruntime")
    pipeline.generate([4], 9, top_k=900, on_scale=lambda view: previews.append(view.preview()[0]))
    for k, image in enumerate(previews):
        with Image.open(tmp_path / f"scale_{k}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), image)


@pytest.fixture(scope="module")
def imitated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with a tiny decoder."""
    bundle = tmp_path_factory.mktemp("imitated") / "bundle"
    write_bundle(bundle, tiny=True)
    return bundle


IMITATED = [Case((0, 1, 5), 7, 2.0, 3, 0.5, batch, decoder=which) for batch in (1, 2) for which in ("full", "tiny")]


def test_the_tiny_decoder(release: Path, imitated: Path, tmp_path: Path) -> None:
    """The tokens of the full one, other pixels."""
    program = [release / "tests" / "dump"]
    found = drawn_by_cpp(program, imitated, IMITATED, tmp_path / "out")
    assert_equal(drawn_by_python(imitated, IMITATED), found, IMITATED)
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    assert not np.array_equal(found[0].images, found[1].images)


def test_a_bundle_without_a_tiny_decoder(release: Path, toy: Path, imitated: Path, tmp_path: Path) -> None:
    """The words of Python, with the number of the status before. A draft needs none."""
    program = release / "tests" / "dump"
    for scales, draft in ((0, None), (2, imitated)):  # refused before anything is drafted
        case = replace(IMITATED[1], draft_scales=scales)
        with pytest.raises(BundleError) as refused:
            drawn_by_python(toy, [case], draft)
        command = [program, toy, tmp_path / "out", "1", "0", *([draft] if draft else [])]
        result = subprocess.run(command, input=case.line, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (1, f"{BAD_BUNDLE}: {refused.value}\n")
    case = replace(IMITATED[1], draft_scales=2)
    found = drawn_by_cpp([program], imitated, [case], tmp_path / "out", draft=toy)
    assert_equal(drawn_by_python(imitated, [case], toy), found, [case])


def test_previews_of_the_tiny_decoder(release: Path, imitated: Path, tmp_path: Path) -> None:
    """The last preview is the picture, of the full decoder."""
    run(release / "examples" / "var_edge_preview", imitated, "4", tmp_path, "9")
    previews: list[np.ndarray] = []
    result = Pipeline(imitated, "onnxruntime").generate([4], 9, on_scale=lambda v: previews.append(v.preview()[0]))
    for k, image in enumerate(previews):
        with Image.open(tmp_path / f"scale_{k}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), image)
    np.testing.assert_array_equal(previews[-1], result.images[0])


def test_smooth_sampling(release: Path, smooth_demo_bundle: Path, tmp_path: Path) -> None:
    """Plain and smooth by turns. The noise passes through two logarithms, whose last bit is each library's own."""
    cases = [Case((3, 12), 5, 3.5, 200, 0.8, 8, smooth) for smooth in (True, False, True)]
    found = drawn_by_cpp([release / "tests" / "dump"], smooth_demo_bundle, cases, tmp_path / "out")
    for a, b in zip(drawn_by_python(smooth_demo_bundle, cases), found, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        assert (np.abs(a.images.astype(int) - b.images) <= 1).mean() >= 0.9999


@pytest.mark.parametrize("mode", ["inpaint", "outpaint"])
@pytest.mark.parametrize("box", [(0.25, 0.25, 0.75, 0.75), (0.0, 0.06, 0.45, 1.0), (0.1875, 0.3, 0.8125, 0.9)])
def test_edits(
    mode: str, box: tuple[float, float, float, float], release: Path, smooth_demo_bundle: Path, tmp_path: Path
) -> None:
    check_edit(release, smooth_demo_bundle, box, mode, 12, tmp_path)


def test_an_edit_with_shortcuts(release: Path, demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path) -> None:
    """The draft keeps what the edit keeps."""
    box = (0.25, 0.25, 0.75, 0.75)
    check_edit(release, demo_bundle, box, "inpaint", 12, tmp_path, guidance_scales=4)
    check_edit(release, fp16_demo_bundle, box, "inpaint", 12, tmp_path, guidance_scales=5, draft=demo_bundle)


def check_edit(
    release: Path,
    bundle: Path,
    box: tuple[float, float, float, float],
    mode: str,
    label: int,
    tmp_path: Path,
    engines: Path | None = None,
    machine: Mapping[str, str] | None = None,
    guidance_scales: int | None = None,
    draft: Path | None = None,
) -> None:
    """Python edits with the bundle; C++ does with it or its engines, in an environment with these variables.

    `draft` is the bundle of a model that drafts four scales.
    """
    alone = pipeline = Pipeline(bundle, "onnxruntime")
    if draft:
        pipeline = DraftedPipeline(Pipeline(draft, "onnxruntime"), alone, 4)
    image = alone.generate([4], 9).images[0]
    (tmp_path / "image").write_bytes(image.tobytes())
    options = [*map(repr, box), mode, str(label), "7", "0", str(guidance_scales or 0)]
    if draft:
        options += [str(draft), "4"]
    arguments = [engines or bundle, tmp_path / "image", tmp_path / "out", *options]
    run(release / "tests" / "edit", *arguments, env=os.environ | (machine or {}))
    expected = pipeline.edit(image, box, mode, [label], seed=7, guidance_scales=guidance_scales)
    data = (tmp_path / "out").read_bytes()
    tokens = np.concatenate(expected.tokens, axis=1)
    np.testing.assert_array_equal(np.frombuffer(data[: tokens.nbytes], "<i4"), tokens[0])
    np.testing.assert_array_equal(np.frombuffer(data[tokens.nbytes :], np.uint8), expected.images.ravel())


@pytest.fixture(scope="session")
def emulated(arm64: Path, emulator: list[str | Path]) -> list[str | Path]:
    """tests/dump.cpp for aarch64, and what runs it here."""
    libraries = f"{arm64}:{DEPENDENCIES / 'onnxruntime-arm64' / 'lib'}"
    return [*emulator, "-E", f"LD_LIBRARY_PATH={libraries}", arm64 / "tests" / "dump"]


def assert_equal_on_aarch64(emulated: list[str | Path], bundle: Path, cases: list[Case], out: Path) -> None:
    """The tokens are equal, pictures within the last bit of another processor."""
    found = drawn_by_cpp(emulated, bundle, cases, out, timeout=3600)
    for case, a, b in zip(cases, drawn_by_python(bundle, cases), found, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens, err_msg=str(case))
        assert (np.abs(a.images.astype(int) - b.images) <= 1).mean() >= 0.999


def test_on_aarch64(emulated: list[str | Path], tiny_bundle: Path, tmp_path: Path) -> None:
    """As on a Jetson's CPU. The model is small: emulated, a picture of the demo model takes minutes."""
    cases = [Case((3, 9), 5, 3.5, 100, 0.8), Case((0, 4, 5), 1, 2.0, 50, 0.9, 2), Case((2, 2), 2**63, 0.0, 1, 0.0)]
    assert_equal_on_aarch64(emulated, tiny_bundle, cases, tmp_path / "out")


@pytest.mark.full
def test_the_demo_model_on_aarch64(emulated: list[str | Path], demo_bundle: Path, tmp_path: Path) -> None:
    cases = [COMBINATIONS[14], Case((3, 12), 5, 3.5, 200, 0.8)]
    assert_equal_on_aarch64(emulated, demo_bundle, cases, tmp_path / "out")


@pytest.mark.full
def test_golden_d16(release: Path, tmp_path: Path) -> None:
    """The tokens of the published code."""
    golden = np.load(DATA / "golden_d16.npz")
    case = json.loads(str(golden["case"]))
    recipe, bundle = Recipe.load("var_d16"), tmp_path / "bundle"
    export_bundle(recipe, formula_weights(recipe, 0), bundle)
    wanted = Case(tuple(case["labels"]), 0, case["cfg"], case["top_k"], 0.0)
    (drawn,) = drawn_by_cpp([release / "tests" / "dump"], bundle, [wanted], tmp_path / "out")
    expected = np.concatenate([golden[f"tokens_{k}"] for k in range(len(recipe.patch_nums))], axis=1)
    shutil.rmtree(bundle)
    np.testing.assert_array_equal(drawn.tokens, expected)
