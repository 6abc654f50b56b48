"""The host side of the TensorRT backend on a fake GPU: bindings, profiles, offsets, recording, launches, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime import BundleError, Pipeline, SettingsError
from runtime.backends import tensorrt as backend_module
from runtime.backends.base import StageRun
from runtime.backends.cuda import Gpu
from runtime.bench.benchmark import benchmark
from runtime.bench.plot import write_plot
from runtime.bench.report import Settings
from runtime.bench.tables import print_report
from runtime.bundle.engine_record import FILE_NAME, EngineRecord
from runtime.bundle.manifest import Manifest
from runtime.pipeline import ScaleView
from tests.runtime.fake_gpu import BUILT, GPU, FakeCuda, fake_tensorrt, rewrite_manifest, write_engines

SETTINGS = {"seed": 7, "cfg": 2.0, "top_k": 3, "top_p": 0.5}
LABELS = [0, 1, 5, 3, 4]


@pytest.fixture(scope="module")
def demo(fp16_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in FP16 with engines for one picture and for two."""
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    write_engines(bundle, (1, 2))
    return bundle


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return use(monkeypatch, FakeCuda())


def use(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, version: str = "1.7.0") -> FakeCuda:
    monkeypatch.setattr(backend_module, "Cuda", lambda: cuda)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda flavour: fake_tensorrt(cuda, version))
    return cuda


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_pictures_are_those_of_onnx_runtime(demo: Path, batch: int) -> None:
    """If an address, offset or profile was wrong, some token would differ."""
    expected = Pipeline(demo, "onnxruntime").generate(LABELS, **SETTINGS)
    pipeline = Pipeline(demo, "tensorrt")
    for _ in range(2):
        found = pipeline.generate(LABELS, batch=batch, **SETTINGS)
        assert np.array_equal(found.images, expected.images)
        assert all(np.array_equal(a, b) for a, b in zip(found.tokens, expected.tokens, strict=True))


@pytest.mark.usefixtures("cuda")
def test_int8_engines_get_the_scales_of_each_scale(int8_bundles: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(int8_bundles["trt"], tmp_path / "bundle")
    write_engines(tmp_path / "bundle")
    expected = Pipeline(tmp_path / "bundle", "onnxruntime").generate(LABELS[:2], **SETTINGS)
    found = Pipeline(tmp_path / "bundle", "tensorrt").generate(LABELS[:2], **SETTINGS)
    assert all(np.array_equal(a, b) for a, b in zip(found.tokens, expected.tokens, strict=True))
    assert np.array_equal(found.images, expected.images)


@pytest.mark.usefixtures("cuda")
def test_encoding_and_keeping(demo: Path) -> None:
    expected, found = Pipeline(demo, "onnxruntime"), Pipeline(demo, "tensorrt")
    tokens = expected.encode(expected.generate([2, 3]).images)
    assert all(map(np.array_equal, found.encode(expected.generate([2, 3]).images), tokens))
    keep = [np.arange(maps.shape[1])[None] % 2 == 0 for maps in tokens]
    results = [pipeline.generate([5, 6], keep=keep, kept_tokens=tokens, **SETTINGS) for pipeline in (expected, found)]
    for a, b in zip(results[0].tokens + results[0].drawn, results[1].tokens + results[1].drawn, strict=True):
        assert np.array_equal(a, b)


def test_one_graph_for_each_stage_and_nothing_else_for_a_picture(demo: Path, cuda: FakeCuda) -> None:
    """Allocations, waits and single calls between the stages would take longer than the small scales."""
    pipeline = Pipeline(demo, "tensorrt")
    pipeline.generate([1, 2], **SETTINGS)
    cuda.calls.clear()
    cuda.launched.clear()
    pipeline.generate([3, 4], **SETTINGS)
    scales = len(pipeline.manifest.scales)
    steps = [["upload", f"transformer {scales + k}", f"bridge {scales + k}"] for k in range(scales)]
    assert cuda.launched == [["upload", "zero", "condition 1"], *steps, ["decoder 0", "decoder 0"]]
    drawing = cuda.calls[: cuda.calls.index("download")]
    assert drawing == ["synchronize", *["launch"] * (scales + 2)]
    # Images and whether they are finite, then the tokens of each scale.
    downloads = ["download", "download", "synchronize", *["download", "synchronize"] * scales]
    assert cuda.calls[len(drawing) :] == downloads


@pytest.mark.usefixtures("cuda")
def test_previews_and_stops_fit_between_the_stages(demo: Path) -> None:
    previews: dict[str, list[np.ndarray]] = {"onnxruntime": [], "tensorrt": []}
    for name, kept in previews.items():
        pipeline = Pipeline(demo, name)

        def stop(view: ScaleView) -> None:
            raise KeyboardInterrupt

        def preview(view: ScaleView, kept: list[np.ndarray] = kept) -> None:
            kept.extend((view.preview(), view.tokens(), view.logits()))

        with pytest.raises(KeyboardInterrupt):
            pipeline.generate([4, 4], on_scale=stop, **SETTINGS)
        pipeline.generate([1, 2], on_scale=preview, **SETTINGS)
    for a, b in zip(*previews.values(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.usefixtures("cuda")
def test_an_observer_sees_what_it_sees_on_a_cpu(demo: Path) -> None:
    """This includes inputs that the CUDA graph of a whole scale would have overwritten."""
    seen: dict[str, list[StageRun]] = {"onnxruntime": [], "tensorrt": []}
    for name, runs in seen.items():

        def observe(run: StageRun, runs: list[StageRun] = runs) -> None:
            runs.append(StageRun(run.graph, run.scale, dict(run.inputs), dict(run.outputs)))

        pipeline = Pipeline(demo, name)
        observed = pipeline.generate([3, 4], observe=observe, **SETTINGS)
        assert np.array_equal(pipeline.generate([3, 4], **SETTINGS).images, observed.images)
    for expected, found in zip(*seen.values(), strict=True):
        assert (expected.graph, expected.scale) == (found.graph, found.scale)
        for a, b in ((expected.inputs, found.inputs), (expected.outputs, found.outputs)):
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[tensor], b[tensor]) for tensor in a)


@pytest.mark.usefixtures("cuda")
def test_the_manifest_is_that_of_the_engines(demo: Path) -> None:
    """As in C++, a pipeline and its backend describe the same graphs."""
    pipeline = Pipeline(demo, "tensorrt")
    assert isinstance(pipeline.backend, backend_module.TensorRTBackend)
    assert pipeline.manifest is pipeline.backend.manifest
    assert {graph.file.rpartition(".")[2] for graph in pipeline.manifest.graphs.values()} == {"engine"}


@pytest.mark.usefixtures("cuda")
def test_stages_are_timed_on_the_device(own_bundle: Path) -> None:
    write_engines(own_bundle)
    heard: list[tuple[str, int | None, float]] = []
    Pipeline(own_bundle, "tensorrt").generate([1], on_stage=lambda *stage: heard.append(stage), **SETTINGS)
    assert [stage[:2] for stage in heard] == [("condition", None), *(("step", k) for k in range(3)), ("decoder", None)]
    assert all(seconds > 0 for _, _, seconds in heard)


@pytest.mark.usefixtures("cuda")
def test_a_directory_of_engines_is_a_bundle_of_its_own(own_bundle: Path, tmp_path: Path) -> None:
    expected = Pipeline(own_bundle, "onnxruntime").generate([2], **SETTINGS)
    moved = tmp_path / "on the device"
    write_engines(own_bundle).rename(moved)
    pipeline = Pipeline(moved)  # auto
    assert pipeline.backend.name == "tensorrt_rtx 1.7.0 on Fake RTX"
    assert np.array_equal(pipeline.generate([2], **SETTINGS).images, expected.images)
    with pytest.raises(BundleError, match="only --backend tensorrt"):
        Pipeline(moved, "onnxruntime")


@pytest.mark.usefixtures("cuda")
def test_engines_can_be_measured(demo: Path, tmp_path: Path) -> None:
    """make bench shows every stage of engines, in its tables and in its plot."""
    (folder,) = (demo / "engines").iterdir()
    settings = Settings("tensorrt", None, (1, 2), 2, "3", 0, 4.0, 20, 0.9, False, None)
    report = benchmark(folder, settings)
    shown = {(stage.graph, stage.scale) for stage in report.batches[1].stages}
    assert shown == {("condition", None), ("decoder", None), *(("step", k) for k in range(6))}
    assert report.bundle.loaded_weight_bytes > (folder / "transformer.engine").stat().st_size
    print_report(report)
    write_plot(tmp_path / "plot.png", report)


@pytest.mark.parametrize(
    ("gpu", "version", "message"),
    [
        (Gpu("Orin", "8.7", 1), "1.7.0", r"built for sm_86, this GPU is Orin, sm_87; run make engine"),
        (GPU, "1.8.0", r"built with tensorrt_rtx 1\.7\.0, this machine has 1\.8\.0; run make"),
    ],
)
def test_engines_of_another_machine(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, gpu: Gpu, version: str, message: str
) -> None:
    use(monkeypatch, FakeCuda(gpu), version)
    write_engines(own_bundle)
    with pytest.raises(BundleError, match=message):
        Pipeline(own_bundle, "tensorrt")
    assert "engines not used: " in Pipeline(own_bundle).backend.name  # auto says why it uses another backend


def test_engines_that_promise_to_run_elsewhere(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeCuda(Gpu("Later", "8.9", 1)), "1.9.0")
    write_engines(own_bundle, built=replace(BUILT, hardware_compatible=True, version_compatible=True))
    assert Pipeline(own_bundle, "tensorrt").generate([1], **SETTINGS).images.any()


@pytest.mark.usefixtures("cuda")
def test_engines_of_another_bundle(own_bundle: Path) -> None:
    folder = write_engines(own_bundle)
    manifest, record = Manifest.load(folder), EngineRecord.load(folder)
    replace(record, weights_sha256="0" * 64).write(folder)
    rewrite_manifest(folder, manifest)
    with pytest.raises(BundleError, match="built from another bundle"):
        Pipeline(own_bundle, "tensorrt")


@pytest.mark.usefixtures("cuda")
def test_damaged_engines(own_bundle: Path) -> None:
    folder = write_engines(own_bundle)
    path, manifest = folder / "bridge.engine", Manifest.load(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=r"bridge\.engine: expected \d+ bytes, found \d+"):
        Pipeline(own_bundle, "tensorrt")
    path.write_bytes(whole.replace(b"bridge", b"brigde", 1))
    with pytest.raises(BundleError, match=r"bridge\.engine: altered"):
        Pipeline(own_bundle, "tensorrt")
    path.write_bytes(b"not an engine at all")
    rewrite_manifest(folder, manifest)
    with pytest.raises(BundleError, match="TensorRT cannot read it: bad magic number; run make engine"):
        Pipeline(own_bundle, "tensorrt")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["tensors"].pop("tokens"), "tokens: engine and manifest differ"),
        (lambda plan: plan["tensors"].update(tokens=("out", "int64")), "tokens: engine and manifest differ"),
        (lambda plan: plan["profiles"].pop(), "expected 3 profiles, found 2"),
        (lambda plan: plan["profiles"][1].update(keep=[1, 9]), r"profile 1: keep: expected \(1, 4\), found \(1, 9\)"),
    ],
)
def test_engines_unlike_their_manifest(own_bundle: Path, change: object, message: str) -> None:
    folder = write_engines(own_bundle)
    manifest, path = Manifest.load(folder), folder / "bridge.engine"
    plan = json.loads(path.read_text())
    change(plan)  # type: ignore[operator]
    path.write_text(json.dumps(plan))
    rewrite_manifest(folder, manifest)
    with pytest.raises(BundleError, match=message):
        Pipeline(own_bundle, "tensorrt")


@pytest.mark.usefixtures("cuda")
def test_a_record_that_cannot_be_read(own_bundle: Path) -> None:
    folder = write_engines(own_bundle)
    (folder / FILE_NAME).write_text('{"schema_version": 1}')
    with pytest.raises(BundleError, match=r"engine\.json: expected schema_version 2, found 1"):
        Pipeline(own_bundle, "tensorrt")


@pytest.mark.usefixtures("cuda")
def test_an_engine_that_is_not_there(own_bundle: Path) -> None:
    """With "auto" it ended in a KeyError, where ONNX Runtime could have drawn."""
    folder = write_engines(own_bundle)
    manifest, record = Manifest.load(folder), EngineRecord.load(folder)
    replace(record, engines={name: engine for name, engine in record.engines.items() if name != "bridge"}).write(folder)
    rewrite_manifest(folder, manifest)
    with pytest.raises(BundleError, match="no engine bridge; run make engine again"):
        Pipeline(own_bundle, "tensorrt")


@pytest.mark.usefixtures("cuda")
def test_no_engines(own_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no engines in engines/; make engine builds them"):
        Pipeline(own_bundle, "tensorrt")


def test_no_gpu_is_never_another_backend(own_bundle: Path) -> None:
    write_engines(own_bundle)
    with pytest.raises(SettingsError, match=r"NVIDIA|CUDA|cuda-python"):
        Pipeline(own_bundle, "tensorrt")
