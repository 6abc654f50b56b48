"""Shortcuts with engines, on a fake GPU: narrow profiles, copies of columns, and drafts that run elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from runtime import Pipeline, SettingsError
from runtime.backends.arrays import DeviceArrays, HostArrays
from runtime.backends.base import StageRun
from runtime.backends.cuda import Cuda
from runtime.base_pipeline import Result, ScaleView
from runtime.bundle.engine_record import EngineRecord
from runtime.drafted import DRAFT, DraftedPipeline
from tests.runtime.fake_gpu import FakeGpu, use
from tests.runtime.fake_tensorrt import write_engines

SETTINGS = {"seed": 7, "cfg": 2.0, "top_k": 3, "top_p": 0.5}
LABELS = [0, 1, 5, 3, 4]
K, M0 = 6, 3  # scales of the demo model; the engines have guidance at three of them or more


@pytest.fixture(scope="module")
def demo(fp16_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in FP16, with engines for one picture and for two."""
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    write_engines(bundle, (1, 2), guidance_scales=M0)
    return bundle


@pytest.fixture(autouse=True)
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return use(monkeypatch, FakeGpu())


def equal(first: Result, second: Result) -> bool:
    maps = zip(first.tokens + first.drawn, second.tokens + second.drawn, strict=True)
    return np.array_equal(first.images, second.images) and all(np.array_equal(a, b) for a, b in maps)


def test_columns_are_copied_alike_on_host_and_device() -> None:
    cuda = Cuda()
    for arrays in (HostArrays(), DeviceArrays(cuda)):
        wide, narrow, back = (arrays.zeros((3, columns, 2), np.int32) for columns in (4, 2, 4))
        values = np.arange(24, dtype=np.int32).reshape(3, 4, 2)
        arrays.upload(wide, values)
        arrays.copy_columns(narrow, wide)
        arrays.copy_columns(back, narrow)
        assert np.array_equal(arrays.download(narrow), values[:, :2])
        assert np.array_equal(arrays.download(back)[:, :2], values[:, :2]) and not arrays.download(back)[:, 2:].any()


@pytest.mark.parametrize("guidance_scales", [M0, 5, K])
def test_pictures_are_those_of_onnx_runtime(demo: Path, guidance_scales: int) -> None:
    """As one launch, scale by scale and stage by stage. Engines for three guided scales serve every larger number."""
    expected = Pipeline(demo, "onnxruntime").generate(LABELS, guidance_scales=guidance_scales, **SETTINGS)
    pipeline, logits = Pipeline(demo, "tensorrt"), []

    def on_scale(view: ScaleView) -> None:
        logits.append(view.logits())

    columns: dict[int | None, int] = {}

    def observe(run: StageRun) -> None:
        if run.graph == "transformer":
            columns[run.scale] = run.inputs["x"].shape[1]

    for batch in (1, 2):
        for listener in ({}, {"on_scale": on_scale}, {"observe": observe}, {}):
            found = pipeline.generate(LABELS, batch=batch, guidance_scales=guidance_scales, **SETTINGS, **listener)  # type: ignore[arg-type]
            assert equal(found, expected)
    assert [columns[k] for k in range(K)] == [2 if k < guidance_scales else 1 for k in range(K)]  # the fifth picture
    assert all(np.isfinite(values).all() for values in logits)


def test_shapes_alternate_on_one_pipeline(demo: Path) -> None:
    pipeline, exact = Pipeline(demo, "tensorrt"), Pipeline(demo, "onnxruntime")
    for m in (4, None, 3, 4):
        settings = {"guidance_scales": m, **SETTINGS}
        assert equal(pipeline.generate([3, 4], **settings), exact.generate([3, 4], **settings))


def test_a_picture_is_still_one_launch(demo: Path, gpu: FakeGpu) -> None:
    """The columns are copied once where guidance ends; then x and the logits of each scale."""
    pipeline = Pipeline(demo, "tensorrt")
    for _ in range(2):
        gpu.launched.clear()
        pipeline.generate([3, 4], guidance_scales=5, **SETTINGS)
    caches = 2 * pipeline.manifest.model.depth
    first_narrow = 2 * K  # behind the profiles of both batch sizes
    narrow = first_narrow + (K - M0) + (5 - M0)
    steps = [kernel for k in range(5) for kernel in (f"transformer {K + k}", f"bridge {K + k}")]
    steps += ["copy"] * (2 + caches + 1) + [f"transformer {narrow}", "copy", f"bridge {K + 5}"]
    assert gpu.launched == [["upload", "zero", "condition 1", *steps, "decoder 0", "decoder 0", "download"]]


def test_engines_without_the_profiles_are_refused(demo: Path, tmp_path: Path, fp16_demo_bundle: Path) -> None:
    with pytest.raises(SettingsError) as error:
        Pipeline(demo, "tensorrt").generate([1], guidance_scales=2)
    assert str(error.value).startswith(f"guidance_scales: the engines in {demo}")
    assert str(error.value).endswith(
        " have guidance at 3 scales or more, not at 2; build them with python -m export.engine … --guidance-scales 2"
    )
    shutil.copytree(fp16_demo_bundle, tmp_path / "exact")
    folder = write_engines(tmp_path / "exact")
    assert EngineRecord.load(folder).guidance_scales == K
    pipeline = Pipeline(tmp_path / "exact", "tensorrt")
    with pytest.raises(SettingsError, match="have guidance at 6 scales or more, not at 5; build"):
        pipeline.generate([1], guidance_scales=5)
    assert equal(pipeline.generate([1], guidance_scales=K), pipeline.generate([1]))


@pytest.mark.parametrize("backends", [("onnxruntime", "tensorrt"), ("tensorrt", "onnxruntime")])
def test_drafting_with_another_engine(demo: Path, small_demo_bundle: Path, backends: tuple[str, str]) -> None:
    """The draft may need no profiles without guidance: it stops before."""
    bundles = (small_demo_bundle, demo) if backends[0] == "onnxruntime" else (demo, small_demo_bundle)
    expected = DraftedPipeline(*(Pipeline(path, "onnxruntime") for path in bundles), 2)  # type: ignore[misc]
    found = DraftedPipeline(*(Pipeline(*pair) for pair in zip(bundles, backends, strict=True)), 2)  # type: ignore[misc]
    m = M0 if backends[1] == "tensorrt" else 2
    for batch in (1, 2):
        settings = {"guidance_scales": m, "batch": batch, **SETTINGS}
        assert equal(found.generate(LABELS, **settings), expected.generate(LABELS, **settings))


def test_a_draft_records_and_reports_its_scales_only(demo: Path, demo_bundle: Path, gpu: FakeGpu) -> None:
    """And no decoder. Nothing of it runs after its last scale, so its times are heard when its tokens are read."""
    drafted = DraftedPipeline(Pipeline(demo, "tensorrt"), Pipeline(demo_bundle, "onnxruntime"), 2)
    drafted.generate([1, 2], batch=1, **SETTINGS)
    assert gpu.calls.count("cudaStreamBeginCapture") == 1 + 2
    heard: list[tuple[str, int | None]] = []
    drafted.generate([1], on_stage=lambda graph, scale, seconds: heard.append((graph, scale)), **SETTINGS)
    steps = [(graph, k) for k in range(K) for graph in ("transformer", "bridge")]
    drafts = [(DRAFT + "condition", None), (DRAFT + "step", 0), (DRAFT + "step", 1)]
    assert heard == [*drafts, ("condition", None), *steps, ("decoder", None)]


def test_either_model_makes_room_for_the_other(demo: Path, gpu: FakeGpu) -> None:
    """Memory for the batch of one of them, not of both. Scales are seen once although memory ran out."""
    expected = DraftedPipeline(Pipeline(demo, "onnxruntime"), Pipeline(demo, "onnxruntime"), 2)
    pair = Pipeline(demo, "tensorrt"), Pipeline(demo, "tensorrt")
    base = gpu.used
    pair[1].generate([3, 4], **SETTINGS)
    gpu.total_bytes = gpu.used + (gpu.used - base) // 2
    found, seen = DraftedPipeline(*pair, 2), []
    for labels in ([3, 4], [5, 6], [1, 2, 3]):
        seen.clear()
        result = found.generate(
            labels, on_scale=lambda view: seen.append((view.pictures.start, view.index)), **SETTINGS
        )
        assert equal(result, expected.generate(labels, **SETTINGS))
        assert len(seen) == len(set(seen)) == K * -(-len(labels) // 2)


def test_the_newest_kinds_stay_prepared(demo: Path, gpu: FakeGpu) -> None:
    """Three numbers of guided scales, whatever was drawn before."""
    pipeline = Pipeline(demo, "tensorrt")
    for count, recorded in ((3, 1), (4, 2), (5, 3), (3, 3), (6, 4), (3, 4), (5, 4), (4, 5)):
        pipeline.generate([1], guidance_scales=count, **SETTINGS)
        assert gpu.calls.count("cudaStreamBeginCapture") == recorded, count
