"""The tiny decoder: it draws what is asked of it and previews, the full one draws all else, on every backend."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime import BundleError, Pipeline, SettingsError
from runtime.base_pipeline import ScaleView
from runtime.drafted import DraftedPipeline
from runtime.generate import main as generate
from runtime.sample_set import main as sample_set
from tests.runtime.fake_gpu import FakeGpu, use
from tests.runtime.fake_tensorrt import write_engines
from tests.runtime.toy import HALF, SIDES, reference, write_bundle

LABELS = [0, 1, 5]
SETTINGS = {"seed": 7, "cfg": 2.0, "top_k": 3, "top_p": 0.5}
K = len(SIDES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    write_bundle(folder, tiny=True)
    return folder


@pytest.fixture(params=["onnxruntime", "tensorrt"])
def pipeline(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Pipeline:
    if request.param == "tensorrt":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        use(monkeypatch, FakeGpu())
        shutil.copytree(bundle, tmp_path / "bundle")
        write_engines(tmp_path / "bundle")  # the f_hat of a second toy image would lie at no multiple of 256 bytes
        bundle = tmp_path / "bundle"
    return Pipeline(bundle, request.param)


def is_half(tiny: np.ndarray, full: np.ndarray) -> bool:
    """Return whether pixels are HALF as bright. Toy pixels are whole numbers modulo 256."""
    return bool(((full - tiny / HALF) % 256 < 2).all()) and not np.array_equal(tiny, full)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("listens", [False, True])
def test_it_draws_the_image_if_asked(pipeline: Pipeline, batch: int, listens: bool) -> None:
    listener = {"on_scale": lambda view: None} if listens else {}
    full, tiny, again = (
        pipeline.generate(LABELS, batch=batch, decoder=decoder, **SETTINGS, **listener)  # type: ignore[arg-type]
        for decoder in ("full", "tiny", "full")
    )
    for i, label in enumerate(LABELS):
        wanted = reference(label, 7 + i, 2.0, 1.5)[1]
        assert np.array_equal(full.images[i], wanted) and np.array_equal(again.images[i], wanted)
        assert is_half(tiny.images[i], wanted)
    assert all(np.array_equal(a, b) for a, b in zip(full.tokens, tiny.tokens, strict=True))


@pytest.mark.parametrize("decoder", ["full", "tiny"])
def test_previews_are_its_own_and_the_last_is_the_image(pipeline: Pipeline, decoder: str) -> None:
    previews, of_image = [], []

    def on_scale(view: ScaleView) -> None:
        of_image.append(view.backend.decode())
        previews.append(view.preview())

    result = pipeline.generate([3], decoder=decoder, on_scale=on_scale, **SETTINGS)  # type: ignore[arg-type]
    for k in range(K - 1):
        same = np.array_equal(previews[k], of_image[k])
        assert same if decoder == "tiny" else is_half(previews[k], of_image[k])
    assert np.array_equal(previews[-1], result.images)


def test_without_one_previews_are_full_and_the_option_is_refused(toy_bundle: Path) -> None:
    pipeline = Pipeline(toy_bundle)
    with pytest.raises(BundleError) as error:
        pipeline.generate([1], decoder="tiny")
    assert str(error.value) == (
        "toy: no tiny decoder in this bundle;"
        " export it with --tiny-decoder FILE, which examples.tiny_decoder.distill makes"
    )
    with pytest.raises(SettingsError, match="decoder: expected full or tiny, found 'small'"):
        pipeline.generate([1], decoder="small")
    previews = []
    pipeline.generate([3], on_scale=lambda view: previews.append((view.preview(), view.backend.decode())), **SETTINGS)  # type: ignore[arg-type]
    assert all(np.array_equal(*pair) for pair in previews)


def test_a_draft_needs_none(bundle: Path, toy_bundle: Path) -> None:
    drafted = DraftedPipeline(Pipeline(toy_bundle), Pipeline(bundle), 2)
    found = drafted.generate([3], decoder="tiny", **SETTINGS)
    refiner = Pipeline(bundle)  # the two toy models are equal
    assert np.array_equal(found.images, refiner.generate([3], decoder="tiny", **SETTINGS).images)


def test_the_commands_have_the_option(bundle: Path, tmp_path: Path) -> None:
    options = ["--bundle", bundle, "--decoder", "tiny", "--top-k", 5]
    out = tmp_path / "picture.png"
    found = CliRunner().invoke(generate, list(map(str, [*options, "--label", 1, "--out", out])))
    assert found.exit_code == 0, found.output
    wanted = Pipeline(bundle).generate(1, top_k=5, decoder="tiny").images[0]
    assert np.array_equal(np.asarray(Image.open(out)), wanted)
    drawn = tmp_path / "set"
    found = CliRunner().invoke(sample_set, list(map(str, [*options, "--per-class", 1, "--out", drawn])))
    assert found.exit_code == 0, found.output
    options[3] = "full"
    found = CliRunner().invoke(sample_set, list(map(str, [*options, "--per-class", 1, "--out", drawn])))
    assert "decoder" in found.output and found.exit_code == 1  # images of both in one set would be two sets


def test_what_the_refiner_cannot_draw_is_refused_before_anything_is_drafted(bundle: Path, toy_bundle: Path) -> None:
    """With a large draft that would be minutes of work for nothing."""
    heard: list[str] = []
    drafted = DraftedPipeline(Pipeline(bundle), Pipeline(toy_bundle), 2)
    with pytest.raises(BundleError, match="no tiny decoder in this bundle"):
        drafted.generate([3], decoder="tiny", on_stage=lambda graph, *_: heard.append(graph), **SETTINGS)  # type: ignore[arg-type]
    assert heard == []


def test_a_folder_is_not_claimed_for_what_cannot_be_drawn(toy_bundle: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "set", ["--bundle", toy_bundle, "--top-k", 5, "--per-class", 1]
    found = CliRunner().invoke(sample_set, list(map(str, [*options, "--decoder", "tiny", "--out", out])))
    assert "no tiny decoder in this bundle" in str(found.output) + str(found.exception) and not out.exists()
    found = CliRunner().invoke(sample_set, list(map(str, [*options, "--out", out])))
    assert found.exit_code == 0, found.output


def test_the_last_preview_is_the_image_when_the_draft_draws_all_scales(bundle: Path) -> None:
    previews: list[np.ndarray] = []
    drafted = DraftedPipeline(Pipeline(bundle), Pipeline(bundle), K)
    listener = {"on_scale": lambda view: previews.append(view.preview())}
    result = drafted.generate([3], decoder="tiny", **SETTINGS, **listener)  # type: ignore[arg-type]
    assert len(previews) == K and np.array_equal(previews[-1], result.images)


@pytest.mark.parametrize(("count", "decoders"), [(2, 1), (K, 2)])
def test_a_watched_draft_records_the_decoder_of_its_previews(
    count: int, decoders: int, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny one. Only the last preview of a draft of all scales needs the full one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gpu = use(monkeypatch, FakeGpu())
    shutil.copytree(bundle, tmp_path / "bundle")
    write_engines(tmp_path / "bundle")
    previews: list[np.ndarray] = []
    expected: list[np.ndarray] = []
    Pipeline(bundle).generate([3], on_scale=lambda view: expected.append(view.preview()), **SETTINGS)  # type: ignore[arg-type]
    drafted = DraftedPipeline(Pipeline(tmp_path / "bundle", "tensorrt"), Pipeline(bundle, "onnxruntime"), count)
    drafted.generate([3], on_scale=lambda view: previews.append(view.preview()), **SETTINGS)  # type: ignore[arg-type]
    assert gpu.calls.count("cudaStreamBeginCapture") == 1 + count + 2 * decoders  # condition, scales, f_hat buffers
    assert all(map(np.array_equal, previews, expected)) and len(previews) == K
