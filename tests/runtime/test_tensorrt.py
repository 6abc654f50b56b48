"""The host side of the TensorRT backend on a fake GPU: bindings, profiles, offsets, recording, launches, refusals."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from runtime import BundleError, Pipeline, SettingsError, VarEdgeError
from runtime.backends.base import StageRun
from runtime.backends.tensorrt import TensorRTBackend
from runtime.backends.trt_engine import stream_reader
from runtime.base_pipeline import ScaleView
from runtime.bench.benchmark import benchmark
from runtime.bench.plot import write_plot
from runtime.bench.report import Settings
from runtime.bench.tables import print_report
from runtime.bundle.engine_record import FILE_NAME, Built, EngineRecord
from runtime.bundle.manifest import Manifest
from runtime.errors import OutOfMemoryError
from runtime.generate import main as generate
from tests.runtime.fake_gpu import FakeGpu, use
from tests.runtime.fake_tensorrt import (
    BUILT,
    SERVER,
    FakeContext,
    FakeEngine,
    FakeRuntimeCache,
    FakeRuntimeConfig,
    fake_tensorrt,
    rewrite_manifest,
    write_engines,
)

SETTINGS = {"seed": 7, "cfg": 2.0, "top_k": 3, "top_p": 0.5}
LABELS = [0, 1, 5, 3, 4]


@pytest.fixture(scope="module")
def demo(fp16_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in FP16 with engines for one picture and for two."""
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    write_engines(bundle, (1, 2))
    return bundle


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return use(monkeypatch, FakeGpu())


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_pictures_are_those_of_onnx_runtime(demo: Path, batch: int) -> None:
    """If an address, offset or profile was wrong, some token would differ."""
    expected = Pipeline(demo, "onnxruntime").generate(LABELS, **SETTINGS)
    pipeline = Pipeline(demo, "tensorrt")
    for _ in range(2):
        found = pipeline.generate(LABELS, batch=batch, **SETTINGS)
        assert np.array_equal(found.images, expected.images)
        assert all(np.array_equal(a, b) for a, b in zip(found.tokens, expected.tokens, strict=True))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_precision(precision: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Nine images with engines for one and for eight. INT8 has scales of its own for each scale."""
    source = (
        request.getfixturevalue("int8_bundles")["trt"]
        if precision == "int8"
        else request.getfixturevalue("demo_bundle")
    )
    bundle = tmp_path / "bundle"
    shutil.copytree(source, bundle)
    write_engines(bundle, (1, 8))
    labels = [*range(9)]
    expected = Pipeline(bundle, "onnxruntime").generate(labels, **SETTINGS)
    found = Pipeline(bundle, "tensorrt").generate(labels, batch=8, **SETTINGS)
    assert all(np.array_equal(a, b) for a, b in zip(found.tokens, expected.tokens, strict=True))
    assert np.abs(found.images.astype(int) - expected.images.astype(int)).max() <= 1


@pytest.mark.usefixtures("gpu")
def test_encoding_and_keeping(demo: Path) -> None:
    expected, found = Pipeline(demo, "onnxruntime"), Pipeline(demo, "tensorrt")
    tokens = expected.encode(expected.generate([2, 3]).images)
    assert all(map(np.array_equal, found.encode(expected.generate([2, 3]).images), tokens))
    keep = [np.arange(maps.shape[1])[None] % 2 == 0 for maps in tokens]
    results = [pipeline.generate([5, 6], keep=keep, kept_tokens=tokens, **SETTINGS) for pipeline in (expected, found)]
    for a, b in zip(results[0].tokens + results[0].drawn, results[1].tokens + results[1].drawn, strict=True):
        assert np.array_equal(a, b)


def drawn_with(gpu: FakeGpu, pipeline: Pipeline, **settings: object) -> list[str]:
    """Return the CUDA calls of the second of two equal generations."""
    for _ in range(2):
        gpu.calls.clear()
        gpu.launched.clear()
        pipeline.generate([3, 4], **SETTINGS, **settings)  # type: ignore[arg-type]
    return gpu.calls


def test_a_whole_picture_is_one_launch(demo: Path, gpu: FakeGpu) -> None:
    """One upload, the kernels, one download: nothing else may cost time between the small scales."""
    pipeline = Pipeline(demo, "tensorrt")
    calls = drawn_with(gpu, pipeline)
    scales = len(pipeline.manifest.scales)
    steps = [kernel for k in range(scales) for kernel in (f"transformer {scales + k}", f"bridge {scales + k}")]
    assert gpu.launched == [["upload", "zero", "condition 1", *steps, "decoder 0", "decoder 0", "download"]]
    assert calls == ["cudaStreamSynchronize", "cudaGraphLaunch", "cudaStreamSynchronize"]


def test_one_launch_for_each_stage_if_someone_listens(demo: Path, gpu: FakeGpu) -> None:
    pipeline = Pipeline(demo, "tensorrt")
    calls = drawn_with(gpu, pipeline, on_scale=lambda view: None)
    scales = len(pipeline.manifest.scales)
    steps = [["upload", f"transformer {scales + k}", f"bridge {scales + k}"] for k in range(scales)]
    assert gpu.launched == [["upload", "zero", "condition 1"], *steps, ["decoder 0", "decoder 0", "download"]]
    assert calls == ["cudaStreamSynchronize", *["cudaGraphLaunch"] * (scales + 2), "cudaStreamSynchronize"]


def test_every_batch_size_is_recorded_once(demo: Path, gpu: FakeGpu) -> None:
    """Five images at a time of two: sizes 2, 2, 1, and again for the next five."""
    pipeline = Pipeline(demo, "tensorrt")
    pipeline.generate(LABELS, batch=2, **SETTINGS)
    gpu.calls.clear()
    pipeline.generate(LABELS, batch=2, **SETTINGS)
    assert not {"cudaStreamBeginCapture", "cudaMalloc"} & set(gpu.calls)


@pytest.mark.parametrize(
    ("flavour", "version"),
    [(SERVER, version) for version in ("10.3.0", "10.7.0", "10.8.0", "10.9.0", "10.13.3", "11.4.0")]
    + [(BUILT, "1.7.0")],
)
def test_every_generation_of_tensorrt(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, flavour: Built, version: str
) -> None:
    """10.7 and 10.8 have a reader that crashes; 11 has no older one; TensorRT for RTX makes contexts in another way."""
    gpu = FakeGpu()
    use(monkeypatch, gpu, fake_tensorrt(gpu, version, flavour.flavour))
    write_engines(own_bundle, built=replace(flavour, version=version))
    expected = Pipeline(own_bundle, "onnxruntime").generate([1, 2], **SETTINGS)
    assert np.array_equal(Pipeline(own_bundle, "tensorrt").generate([1, 2], **SETTINGS).images, expected.images)


def test_an_engine_is_read_without_a_copy(tmp_path: Path, gpu: FakeGpu) -> None:
    """TensorRT asks for all weights at once, and does not ask again if it gets less."""
    path, size = tmp_path / "large.engine", 200 << 20
    with path.open("wb") as file:
        file.truncate(size)
    for version, flavour in (("10.3.0", "tensorrt"), ("10.13.0", "tensorrt"), ("1.7.0", "tensorrt_rtx")):
        reader = stream_reader(fake_tensorrt(gpu, version, flavour), path)
        answer = reader.read(size)
        assert isinstance(answer, memoryview)  # of the mapped file
        assert (len(answer), answer.readonly, len(reader.read(1))) == (size, True, 0)


def test_kernels_are_compiled_once_for_all_processes(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_engines(own_bundle)
    compiled = []
    kept = tmp_path / "cache" / "var-edge" / f"{BUILT.tag}.kernels"
    for _ in range(3):
        gpu = FakeGpu()
        trt = fake_tensorrt(gpu)
        use(monkeypatch, gpu, trt)
        Pipeline(own_bundle, "tensorrt").generate([1], **SETTINGS)
        compiled.append(len(trt.compiled))
        if len(compiled) == 2:
            kept.write_bytes(b"of another GPU")
    assert compiled == [8, 0, 8]
    kept.unlink()
    kept.mkdir()  # cannot be read or written, which is no error
    Pipeline(own_bundle, "tensorrt").generate([1], **SETTINGS)


def test_what_other_threads_do_spoils_no_recording(demo: Path, gpu: FakeGpu) -> None:
    """Any library may use the default stream at any time."""
    gpu.spoil = lambda: gpu.use_default_stream()  # type: ignore[assignment, return-value]
    assert Pipeline(demo, "tensorrt").generate([3], **SETTINGS).images.any()


def test_an_error_inside_a_recording_ends_it(demo: Path, gpu: FakeGpu) -> None:
    """A stream that is still recorded refuses everything."""

    def fail() -> None:
        gpu.spoil = lambda: None
        raise KeyboardInterrupt

    pipeline = Pipeline(demo, "tensorrt")
    gpu.spoil = fail
    with pytest.raises(KeyboardInterrupt):
        pipeline.generate([3], **SETTINGS)
    expected = Pipeline(demo, "onnxruntime").generate([3], **SETTINGS)
    assert np.array_equal(pipeline.generate([3], **SETTINGS).images, expected.images)


def test_memory_is_freed(demo: Path, gpu: FakeGpu) -> None:
    """By `close`, at the end of a `with` block, and by the garbage collector."""
    with Pipeline(demo, "tensorrt") as pipeline:
        pipeline.encode(pipeline.generate(LABELS, batch=2, **SETTINGS).images[:1])
        assert gpu.used
    with pytest.raises(SettingsError, match="pipeline: closed; load the bundle again"):
        pipeline.generate([1])
    pipeline.close()
    assert not gpu.used
    assert not gpu.pinned

    pipeline = Pipeline(demo, "tensorrt")
    pipeline.generate([1], on_stage=lambda *_: None, **SETTINGS)
    del pipeline
    gc.collect()
    assert (gpu.used, gpu.pinned, gpu.streams, gpu.graphs, gpu.events) == (0, {}, {}, set(), [])


def test_after_out_of_memory_fewer_pictures_can_be_drawn(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the failed attempt had allocated is free again although its error is still being looked at."""
    gpu = use(monkeypatch, FakeGpu())
    expected = Pipeline(demo, "onnxruntime").generate([3, 4], **SETTINGS)
    pipeline = Pipeline(demo, "tensorrt")
    base = gpu.used
    pipeline.generate([3], **SETTINGS)
    one = gpu.used - base
    pipeline.close()

    pipeline = Pipeline(demo, "tensorrt")
    gpu.total_bytes = gpu.used + one + one // 2  # enough for one image, not for two
    with pytest.raises(OutOfMemoryError, match="draw fewer pictures at once") as kept:
        pipeline.generate([3, 4], **SETTINGS)
    found = pipeline.generate([3, 4], batch=1, **SETTINGS)
    assert np.array_equal(found.images, expected.images)
    assert kept.value

    # With the arrays for one image in memory, those for two do not fit. So the former are freed.
    gpu.total_bytes = gpu.used - one + 2 * one + one // 2
    assert np.array_equal(pipeline.generate([3, 4], **SETTINGS).images, expected.images)


def test_out_of_memory_for_another_way_to_draw(demo: Path, gpu: FakeGpu) -> None:
    """The graphs of single stages are recorded later than that of a whole image, on the same arrays."""
    pipeline = Pipeline(demo, "tensorrt")
    pipeline.generate([3], **SETTINGS)
    instantiate, refused = gpu.cudaGraphInstantiate, iter([True])

    def once(graph: int, flags: int) -> tuple[int, int]:
        return (2, 0) if next(refused, False) else instantiate(graph, flags)

    gpu.cudaGraphInstantiate = once  # type: ignore[method-assign]
    assert pipeline.generate([3], on_scale=lambda view: None, **SETTINGS).images.any()


def test_without_a_home(own_bundle: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels cannot be kept, which is no error, and nothing is written into the working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", dict[int, object]().__getitem__)
    write_engines(own_bundle)
    assert Pipeline(own_bundle, "tensorrt").generate([1], **SETTINGS).images.any()
    assert list(Path().iterdir()) == []


def test_kernels_of_the_encoder_are_kept(demo: Path, gpu: FakeGpu, tmp_path: Path) -> None:
    """It is loaded when the first image is edited, after the others were saved."""
    pipeline = Pipeline(demo, "tensorrt")
    pipeline.encode(pipeline.generate([3], **SETTINGS).images)
    assert "encoder 0" in (tmp_path / "cache" / "var-edge" / f"{BUILT.tag}.kernels").read_text()


def test_out_of_memory_inside_tensorrt(demo: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT only says it in its log."""
    pipeline = Pipeline(demo, "tensorrt")
    run = FakeContext.execute_async_v3

    def refuse(context: FakeContext, stream: int) -> bool:
        pipeline.backend._log.logger.log("ERROR", "Error Code 1: Cuda Runtime (out of memory)")  # type: ignore[attr-defined]
        return False

    monkeypatch.setattr(FakeContext, "execute_async_v3", refuse)
    with pytest.raises(OutOfMemoryError, match="out of memory\\); draw fewer pictures at once"):
        pipeline.generate([3, 4], **SETTINGS)
    monkeypatch.setattr(FakeContext, "execute_async_v3", run)
    assert pipeline.generate([3, 4], **SETTINGS).images.any()


def test_a_profile_that_is_refused(demo: Path, gpu: FakeGpu) -> None:
    pipeline = Pipeline(demo, "tensorrt")
    engine = pipeline.backend._engines["condition"]  # type: ignore[attr-defined]
    engine._engine.profiles_in_use.add(0)
    with pytest.raises(VarEdgeError, match=r"condition\.engine: profile 0: .* profile 0 is in use by another context"):
        pipeline.generate([3], **SETTINGS)


def test_an_earlier_complaint_is_not_the_reason(demo: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT also logs errors in calls that succeed, such as a tactic that does not fit into memory."""
    pipeline = Pipeline(demo, "tensorrt")
    pipeline.backend._log.logger.log("ERROR", "a tactic ran out of memory")  # type: ignore[attr-defined]
    monkeypatch.setattr(FakeContext, "set_tensor_address", lambda *_: False)
    with pytest.raises(VarEdgeError, match="refuses its address: TensorRT gives no reason") as error:
        pipeline.generate([3], **SETTINGS)
    assert not isinstance(error.value, OutOfMemoryError)


@pytest.mark.parametrize("method", ["create_runtime_cache", "serialize"])
def test_kernels_that_tensorrt_cannot_keep(
    own_bundle: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Its functions return None when they fail."""
    where = FakeRuntimeCache if method == "serialize" else FakeRuntimeConfig
    monkeypatch.setattr(where, method, lambda self: None)
    write_engines(own_bundle)
    assert Pipeline(own_bundle, "tensorrt").generate([1], **SETTINGS).images.any()


def test_an_image_is_edited_although_batches_fill_the_memory(demo: Path, gpu: FakeGpu) -> None:
    pipeline = Pipeline(demo, "tensorrt")
    images = pipeline.generate([3, 4], **SETTINGS).images
    gpu.total_bytes = gpu.used  # nothing is left for the encoder
    assert all(map(np.array_equal, pipeline.encode(images), Pipeline(demo, "onnxruntime").encode(images)))


def test_batches_make_room_for_the_context_of_the_encoder(
    demo: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is created when the encoder first runs, after its engine and arrays were allocated."""
    pipeline = Pipeline(demo, "tensorrt")
    images = pipeline.generate([3], **SETTINGS).images
    create, refused = FakeEngine.create_execution_context, iter([True])

    def once(engine: FakeEngine, **options: Any) -> Any:
        if not next(refused, False):
            return create(engine, **options)
        engine.trt.logger.log("ERROR", "Error Code 1: Cuda Runtime (out of memory)")
        return None

    monkeypatch.setattr(FakeEngine, "create_execution_context", once)
    used = gpu.used
    assert all(map(np.array_equal, pipeline.encode(images), Pipeline(demo, "onnxruntime").encode(images)))
    assert gpu.used < used


def test_commands_do_not_stop_a_gpu_to_show_progress(
    demo: Path, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--bundle", str(demo), "--label", "3", "--backend", "tensorrt", "--out", str(tmp_path / "a.png")]
    launches = []
    for more in ([], ["--animation", str(tmp_path / "a.webp")]):
        gpu.launched.clear()
        result = CliRunner().invoke(generate, [*command, *more])
        assert result.exit_code == 0, result.output
        launches.append(len(gpu.launched))
    scales = len(Manifest.load(demo).scales)
    assert launches == [1, 2 * scales + 2]  # with an animation, also the decoder after every scale


@pytest.mark.usefixtures("gpu")
def test_smooth_sampling(smooth_demo_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(smooth_demo_bundle, bundle)
    write_engines(bundle, (1, 2))
    expected = Pipeline(bundle, "onnxruntime").generate(LABELS, smooth=True, seed=5)
    pipeline = Pipeline(bundle, "tensorrt")
    for batch in (1, 2):
        found = pipeline.generate(LABELS, smooth=True, seed=5, batch=batch)
        assert np.abs(found.images.astype(int) - expected.images.astype(int)).max() <= 1
        assert all(map(np.array_equal, found.tokens, expected.tokens))
    plain = Pipeline(bundle, "onnxruntime").generate([3], **SETTINGS)
    assert np.array_equal(pipeline.generate([3], **SETTINGS).images, plain.images)


@pytest.mark.usefixtures("gpu")
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


@pytest.mark.usefixtures("gpu")
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


@pytest.mark.usefixtures("gpu")
def test_the_manifest_is_that_of_the_engines(demo: Path) -> None:
    """As in C++, a pipeline and its backend describe the same graphs."""
    pipeline = Pipeline(demo, "tensorrt")
    assert isinstance(pipeline.backend, TensorRTBackend)
    assert pipeline.manifest is pipeline.backend.manifest
    assert {graph.file.rpartition(".")[2] for graph in pipeline.manifest.graphs.values()} == {"engine"}


@pytest.mark.usefixtures("gpu")
def test_stages_are_timed_on_the_device(own_bundle: Path) -> None:
    write_engines(own_bundle)
    heard: list[tuple[str, int | None, float]] = []
    Pipeline(own_bundle, "tensorrt").generate([1], on_stage=lambda *stage: heard.append(stage), **SETTINGS)
    assert [stage[:2] for stage in heard] == [("condition", None), *(("step", k) for k in range(3)), ("decoder", None)]
    assert all(seconds > 0 for _, _, seconds in heard)


@pytest.mark.usefixtures("gpu")
def test_a_directory_of_engines_is_a_bundle_of_its_own(own_bundle: Path, tmp_path: Path) -> None:
    expected = Pipeline(own_bundle, "onnxruntime").generate([2], **SETTINGS)
    moved = tmp_path / "on the device"
    write_engines(own_bundle).rename(moved)
    pipeline = Pipeline(moved)  # auto
    assert pipeline.backend.name == "tensorrt_rtx 1.7.0 on Fake RTX"
    assert np.array_equal(pipeline.generate([2], **SETTINGS).images, expected.images)
    with pytest.raises(BundleError, match="only --backend tensorrt"):
        Pipeline(moved, "onnxruntime")


@pytest.mark.usefixtures("gpu")
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
        (("Orin", "8.7"), "1.7.0", r"built for sm_86, this GPU is Orin, sm_87; run make engine"),
        (("Fake RTX", "8.6"), "1.8.0", r"built with tensorrt_rtx 1\.7\.0, this machine has 1\.8\.0; run make"),
    ],
)
def test_engines_of_another_machine(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, gpu: tuple[str, str], version: str, message: str
) -> None:
    fake = FakeGpu(*gpu)
    use(monkeypatch, fake, fake_tensorrt(fake, version))
    write_engines(own_bundle)
    with pytest.raises(BundleError, match=message):
        Pipeline(own_bundle, "tensorrt")
    assert "engines not used: " in Pipeline(own_bundle).backend.name  # auto says why it uses another backend


def test_engines_that_promise_to_run_elsewhere(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu("Later", "8.9")
    use(monkeypatch, gpu, fake_tensorrt(gpu, "10.14.1", "tensorrt"))
    write_engines(own_bundle, built=replace(SERVER, hardware_compatible=True, version_compatible=True))
    assert Pipeline(own_bundle, "tensorrt").generate([1], **SETTINGS).images.any()


@pytest.mark.usefixtures("gpu")
def test_engines_of_another_bundle(own_bundle: Path) -> None:
    folder = write_engines(own_bundle)
    manifest, record = Manifest.load(folder), EngineRecord.load(folder)
    replace(record, weights_sha256="0" * 64).write(folder)
    rewrite_manifest(folder, manifest)
    with pytest.raises(BundleError, match="built from another bundle"):
        Pipeline(own_bundle, "tensorrt")


@pytest.mark.usefixtures("gpu")
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


@pytest.mark.usefixtures("gpu")
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


@pytest.mark.usefixtures("gpu")
def test_a_record_that_cannot_be_read(own_bundle: Path) -> None:
    folder = write_engines(own_bundle)
    (folder / FILE_NAME).write_text('{"schema_version": 1}')
    with pytest.raises(BundleError, match=r"engine\.json: expected schema_version 3, found 1"):
        Pipeline(own_bundle, "tensorrt")


@pytest.mark.usefixtures("gpu")
def test_an_engine_that_is_not_there(own_bundle: Path) -> None:
    """With "auto" it ended in a KeyError, where ONNX Runtime could have drawn."""
    folder = write_engines(own_bundle)
    manifest, record = Manifest.load(folder), EngineRecord.load(folder)
    replace(record, engines={name: engine for name, engine in record.engines.items() if name != "bridge"}).write(folder)
    rewrite_manifest(folder, manifest)
    with pytest.raises(BundleError, match="no engine bridge; run make engine again"):
        Pipeline(own_bundle, "tensorrt")


@pytest.mark.usefixtures("gpu")
def test_no_engines(own_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no engines in engines/; make engine builds them"):
        Pipeline(own_bundle, "tensorrt")


def test_no_gpu_is_never_another_backend(own_bundle: Path) -> None:
    write_engines(own_bundle)
    with pytest.raises(SettingsError, match=r"NVIDIA|CUDA|cuda-python"):
        Pipeline(own_bundle, "tensorrt")
