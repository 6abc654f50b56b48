"""Engines are built ahead of time with TensorRT for RTX, which needs no GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from export.engine import build
from export.engine.build import build_engines, check_memory, target
from export.engine.build_log import Layer
from export.engine.builder import Builder, BuildError, Options, load_tensorrt
from runtime import BundleError, SettingsError
from runtime.backends.cuda import gpu
from runtime.bundle.engine_record import Engine, EngineRecord
from runtime.bundle.manifest import File, Manifest

trt = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT for RTX has no package for this machine: pip install tensorrt-rtx-cu13"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export.engine", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture
def built(fp16_engines: tuple[Path, Path]) -> tuple[Path, Path]:
    """A bundle, and the engines that the command built in it."""
    return fp16_engines


def test_the_record_says_what_was_built(built: tuple[Path, Path]) -> None:
    bundle, folder = built
    record, source = EngineRecord.load(folder), Manifest.load(bundle)
    assert folder.name == record.built.tag == f"tensorrt_rtx-{trt.__version__}-sm86"
    assert record.weights_sha256 == source.files["weights.safetensors"].sha256
    assert list(record.engines) == ["condition", "transformer", "bridge", "decoder", "encoder"]
    profiles = record.engines["transformer"].profiles
    assert [shapes["past_k_00"][0] for shapes in profiles] == [scale.offset for scale in source.scales]
    for name, engine in record.engines.items():
        assert engine.source_sha256 == source.files[f"{name}.onnx"].sha256
        assert engine.build_seconds > 0
        assert (folder / engine.file).stat().st_size > engine.weight_bytes > 0
    assert 0 < record.peak_bytes < 8e9


def test_products_run_in_fp16_and_attention_is_one_kernel(built: tuple[Path, Path]) -> None:
    _, folder = built
    engines, depth, scales = EngineRecord.load(folder).engines, 4, 6
    layers = engines["transformer"].layers
    assert layers["gemm Half"] >= 4 * depth * scales  # qkv, proj, fc1, fc2
    assert layers["gemm Float"] == scales  # the head
    assert layers["attention Half"] >= depth * (scales - 1)  # over one or two tokens it may be two products
    assert engines["decoder"].layers["convolution Half"] > 20
    assert "convolution Float" not in engines["decoder"].layers
    report = (folder / "report.md").read_text()
    assert "| transformer | 6 |" in report
    assert "| decoder | convolution |" in report


def test_engines_are_a_bundle_of_their_own(built: tuple[Path, Path]) -> None:
    manifest = Manifest.load(built[1])
    assert manifest.graphs["decoder"].file == "decoder.engine"
    assert {"engine.json", "weights.safetensors", "classes.txt"} < manifest.files.keys()


def test_only_what_changed_is_built_again(fp16_tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(fp16_tiny_bundle, tmp_path / "bundle")
    assert ": built" in run(str(bundle)).stdout
    (folder,) = (bundle / "engines").iterdir()
    before = (folder / "engine.json").read_bytes()
    assert "up to date" in run(str(bundle)).stdout
    assert (folder / "engine.json").read_bytes() == before
    path = folder / "bridge.engine"
    path.write_bytes(path.read_bytes()[:-1])  # damaged
    assert ": built" in run(str(bundle)).stdout


def test_batches_are_added_to_those_that_are_there(built: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(built[0], tmp_path / "bundle")
    assert ": built" in run(str(bundle), "--batches", "2").stdout
    record = EngineRecord.load(bundle / "engines" / built[1].name)
    assert record.batches == (1, 2)
    assert len(record.engines["bridge"].profiles) == 12


def test_a_graph_it_cannot_parse_is_named(fp16_demo_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    model = onnx.load(bundle / "condition.onnx", load_external_data=False)
    node = model.graph.node[0]
    node.op_type, node.name = "Bernoulli", "the_culprit"
    onnx.save(model, bundle / "condition.onnx")
    manifest = Manifest.load(fp16_demo_bundle)
    manifest.files["condition.onnx"] = File.of(bundle / "condition.onnx")
    manifest.write(bundle)
    result = run(str(bundle), "--compute-capability", "8.6")
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "condition.onnx: tensorrt_rtx cannot build it" in result.stderr
    assert "checkBernoulli: [8] false (node 'the_culprit')" in result.stderr
    assert not list(bundle.glob("engines/*"))  # and no half-written directory


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compute-capability", "8.7"], "--compute-capability: expected any of 7.5, 8.0, 8.6"),
        (["--batches", "0"], "--batches: expected at most 64 numbers"),
        (["--trt", "tensorrt", "--compute-capability", "8.6"], "tensorrt"),
    ],
)
def test_wrong_options(fp16_demo_bundle: Path, arguments: list[str], message: str) -> None:
    result = run(str(fp16_demo_bundle), *arguments)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert message in result.stderr


def test_no_bundle(tmp_path: Path) -> None:
    result = run(str(tmp_path))
    assert result.returncode == 1
    assert "no manifest.json, so not a bundle; make onnx makes one" in result.stderr


def test_engines_are_not_built_from_engines(built: tuple[Path, Path]) -> None:
    options = Options()
    built_for = target(load_tensorrt("tensorrt_rtx"), "tensorrt_rtx", ("8.6",), options)
    with pytest.raises(BundleError, match="holds engines, not graphs"):
        build_engines(built[1], None, trt, built_for)


def test_memory_is_checked_before_the_work(fp16_demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.engine.build.available_memory", lambda: 100_000_000)
    with pytest.raises(SettingsError, match=r"building needs 0\.\d\d GB of memory, 0\.10 GB are available"):
        check_memory(fp16_demo_bundle, Manifest.load(fp16_demo_bundle))


def test_a_foreign_timing_cache_is_not_used(fp16_demo_bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(b"from another machine")
    built_for = target(load_tensorrt("tensorrt_rtx"), "tensorrt_rtx", ("8.6",), Options())
    builder = Builder(trt, built_for, Options(), cache)
    graph, shapes = fp16_demo_bundle / "condition.onnx", {"labels": (1,)}
    assert builder.build(graph, [shapes], lambda stage, done, total: None)
    assert builder.foreign_cache() == f"{cache}: not a timing cache of this tensorrt_rtx and GPU; ignored and replaced"
    with pytest.raises(BuildError, match=r"condition\.onnx: tensorrt_rtx cannot build it"):
        builder.build(graph, [{"labels": (0, 7)}], lambda stage, done, total: None)


def test_flags_of_the_builder(monkeypatch: pytest.MonkeyPatch, fp16_demo_bundle: Path) -> None:
    """TF32 changes the draws of FP32 products. A plan that allocates while it runs cannot be recorded."""
    asked: list[dict[str, bool]] = []

    def set_flags(builder: Builder, *parts: Any) -> None:
        names = ("TF32", "REQUIRE_USER_ALLOCATION")
        before = {name: parts[2].get_flag(getattr(trt.BuilderFlag, name)) for name in names}
        original(builder, *parts)
        asked.extend((before, {name: parts[2].get_flag(getattr(trt.BuilderFlag, name)) for name in names}))

    original = Builder._set_flags
    monkeypatch.setattr(Builder, "_set_flags", set_flags)
    built_for = target(load_tensorrt("tensorrt_rtx"), "tensorrt_rtx", ("8.6",), Options())
    builder = Builder(trt, built_for, Options(), None)
    builder.build(fp16_demo_bundle / "condition.onnx", [{"labels": (1,)}], lambda stage, done, total: None)
    before, after = asked
    assert before["TF32"]  # the default, which Polygraphy leaves on
    assert after == {"TF32": False, "REQUIRE_USER_ALLOCATION": True}


def test_engines_with_tf32_are_built_again(fp16_tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(fp16_tiny_bundle, tmp_path / "bundle")
    assert ": built" in run(str(bundle)).stdout
    (folder,) = (bundle / "engines").iterdir()
    record = EngineRecord.load(folder)
    assert record.options["tf32"] is False
    older = {name: value for name, value in record.options.items() if name != "tf32"}  # before it was recorded
    manifest = Manifest.load(folder)
    replace(record, options=older).write(folder)
    manifest.files["engine.json"] = File.of(folder / "engine.json")
    manifest.write(folder)
    assert ": built" in run(str(bundle)).stdout
    assert EngineRecord.load(folder).options["tf32"] is False


@pytest.mark.skipif(gpu() is not None, reason="this machine has a GPU, so nothing is built ahead of time by default")
def test_building_ahead_of_time_says_why(fp16_tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(fp16_tiny_bundle, tmp_path / "bundle")
    assert "Warning: builds ahead of time for 8.6, because: no NVIDIA driver on this machine" in run(str(bundle)).stderr
    assert run(str(bundle), "--compute-capability", "8.6").stderr == ""


def test_layers_that_nothing_shows_are_a_warning(
    int8_bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a pass: the engine may compute in FP16 what was planned in INT8."""
    bundle = shutil.copytree(int8_bundles["trt"], tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    built_for = target(load_tensorrt("tensorrt_rtx"), "tensorrt_rtx", ("8.6",), Options())
    warned: list[str] = []
    folder, _ = build_engines(bundle, None, trt, built_for, warn=warned.append)
    record = EngineRecord.load(folder)
    known = {name: engine for name, engine in record.engines.items() if engine.int8_planned}
    assert known
    assert all(len(engine.int8_built) == len(engine.profiles) for engine in known.values())
    assert not any("cannot tell" in note for note in warned)
    monkeypatch.setattr(Builder, "layers", lambda builder: [])
    build_engines(bundle, None, trt, built_for, force=True, warn=warned.append)
    unknown = [note for note in warned if "cannot tell which of" in note]
    assert len(unknown) == len(known)


def test_an_engine_that_can_be_opened_tells_its_layers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inspector is asked only where products are planned in INT8, and the log is the second source."""
    seen = [Layer("gemm", "Int8", 0), Layer("gemm", "Half", 1)]
    opened: list[bytes] = []
    builder = SimpleNamespace(on_gpu=True, inspect=lambda plan: opened.append(plan) or seen, layers=lambda: [])
    engine = Engine("x.engine", "", ({}, {}), 0.0, 0, {}, 1, ())
    assert build._with_layers(engine, builder, b"plan").int8_built == (1, 0)  # type: ignore[arg-type]
    assert build._with_layers(replace(engine, int8_planned=0), builder, b"plan").layers == {}  # type: ignore[arg-type]
    assert opened == [b"plan"]
    closed = SimpleNamespace(on_gpu=True, inspect=lambda plan: [], layers=lambda: seen)
    assert build._with_layers(engine, closed, b"plan").int8_built == (1, 0)  # type: ignore[arg-type]


def test_records_that_differ_are_not_equal(built: tuple[Path, Path]) -> None:
    record = EngineRecord.load(built[1])
    document = json.loads((built[1] / "engine.json").read_text())
    assert document["batches"] == list(record.batches)
    assert replace(record, options={**record.options, "workspace_bytes": 1}) != record


def test_profiles_without_guidance(built: tuple[Path, Path], tmp_path: Path) -> None:
    """The transformer has one more for each scale from --guidance-scales on, with half the columns."""
    command = [str(built[0]), "--guidance-scales", "5", "--out", str(tmp_path / "engines")]
    assert run(*command).returncode == 0
    record, exact = EngineRecord.load(tmp_path / "engines"), EngineRecord.load(built[1])
    assert (record.guidance_scales, exact.guidance_scales) == (5, 6)
    for name, engine in record.engines.items():
        known = exact.engines[name].profiles
        assert engine.profiles[: len(known)] == known and len(engine.profiles) == len(known) + (name == "transformer")
    inputs = Manifest.load(built[0]).graphs["transformer"].inputs
    guided, narrow = (record.engines["transformer"].profiles[i] for i in (5, 6))
    assert record.unguided_profile(1, 5, 6) == 6
    columns = {spec.name: spec.shape.index("2B") for spec in inputs if "2B" in spec.shape}
    assert columns and all(
        narrow[name] == (*shape[: columns[name]], 1, *shape[columns[name] + 1 :])
        for name, shape in guided.items()
        if name in columns
    )
    assert "up to date" in run(*command).stdout
    assert "built" in run(str(built[0]), "--out", str(tmp_path / "engines")).stdout


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ("7", 1, "--guidance-scales: expected 1 to 6, found 7"),
        ("0", 2, "expected an integer of 1 to 64, found '0'"),
    ],
)
def test_wrong_numbers_of_guided_scales(fp16_demo_bundle: Path, value: str, code: int, message: str) -> None:
    result = run(str(fp16_demo_bundle), "--compute-capability", "8.6", "--guidance-scales", value)
    assert (result.returncode, result.stderr.count("\n")) == (code, 1) and message in result.stderr


def test_keys_that_tensorrt_cannot_address(fp16_tiny_bundle: Path) -> None:
    result = run(str(fp16_tiny_bundle), "--guidance-scales", "2")
    assert result.returncode == 1
    assert "--guidance-scales: TensorRT needs keys at multiples of 256 bytes, those of tiny take 128;" in result.stderr
