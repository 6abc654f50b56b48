"""Engines are built ahead of time with TensorRT for RTX, which needs no GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.engine.build import build_engines, check_memory, target
from export.engine.build_log import counted, int8_products
from export.engine.builder import Builder, BuildError, Options, load_tensorrt
from runtime import BundleError, SettingsError
from runtime.bundle.engine_record import EngineRecord
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
    result = run(str(bundle))
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


def test_plans_for_rtx_allocate_nothing_while_they_run(monkeypatch: pytest.MonkeyPatch, fp16_demo_bundle: Path) -> None:
    asked: list[bool] = []

    def recordable(builder: Builder, *parts: Any) -> None:
        original(builder, *parts)
        asked.append(parts[2].get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION))

    original = Builder._recordable
    monkeypatch.setattr(Builder, "_recordable", recordable)
    built_for = target(load_tensorrt("tensorrt_rtx"), "tensorrt_rtx", ("8.6",), Options())
    builder = Builder(trt, built_for, Options(), None)
    builder.build(fp16_demo_bundle / "condition.onnx", [{"labels": (1,)}], lambda stage, done, total: None)
    assert asked == [True]


def test_layers_are_counted_by_kind_and_type() -> None:
    def layer(name: str, kind: str, dtype: str) -> str:
        tensor = f"{{ Name: t, Dimensions: [1], Datatype: {dtype}, Format: (Linear) x }}"
        return (
            f"Name: {name}, LayerType: {kind}, Inputs: [ {tensor}], Constants: [], Outputs: [ {tensor}], TacticName: x"
        )

    log = "\n".join(
        [
            layer("node_MatMul_1_myl0_9", "gemm", "Int8"),
            layer("__myl_FcAddMulTanh_myl1_3", "runtime_fusion", "Half"),
            layer("_gemm_mha_v2_myl1_5", "kgen", "Half"),
            layer("__myl_MoveConc_myl0_1", "kgen", "Float"),
        ]
    )
    assert counted([("VERBOSE", log)]) == {"attention Half": 1, "gemm Half": 1, "gemm Int8": 1, "other Float": 1}
    assert int8_products([("VERBOSE", log)], profiles=2) == (1, 0)


def test_records_that_differ_are_not_equal(built: tuple[Path, Path]) -> None:
    record = EngineRecord.load(built[1])
    document = json.loads((built[1] / "engine.json").read_text())
    assert document["batches"] == list(record.batches)
    assert replace(record, options={**record.options, "workspace_bytes": 1}) != record
