"""Engines of INT8 bundles: the products of the plan read INT8 in every profile, and the engine is smaller."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from calibration.plan import MIXED, QUANTIZED, SCALE, default_plan
from calibration.sites import all_sites
from export.engine.build import build_engines, target
from export.engine.builder import Options, load_tensorrt
from runtime.bundle.engine_record import EngineRecord
from runtime.bundle.manifest import Manifest
from runtime.errors import SettingsError

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT for RTX has no package for this machine: pip install tensorrt-rtx-cu13"
)


def build(bundle: Path, out: Path, warnings: list[str] | None = None) -> EngineRecord:
    trt = load_tensorrt("tensorrt_rtx")
    options = Options()
    warn = (lambda note: None) if warnings is None else warnings.append
    build_engines(bundle, out, trt, target(trt, "tensorrt_rtx", ("8.6",), options), warn=warn)
    return EngineRecord.load(out)


@pytest.mark.parametrize(("name", "scales"), [("trt", SCALE), ("trt-row", MIXED)])
def test_every_product_of_the_plan_reads_int8(
    name: str,
    scales: str,
    int8_bundles: dict[str, Path],
    demo_bundle: Path,
    fp16_engines: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    warnings: list[str] = []
    record = build(int8_bundles[name], tmp_path / "int8", warnings)
    plan = default_plan(all_sites(demo_bundle, Manifest.load(demo_bundle)), scales)
    for graph in ("condition", "transformer", "decoder"):
        wanted = sum(kind in QUANTIZED for key, kind in plan.items() if key.startswith(graph))
        engine = record.engines[graph]
        assert engine.int8_planned == wanted > 0
        if graph != "condition":  # whose small products TensorRT may join
            assert len(engine.int8_built) == len(engine.profiles)
            assert min(engine.int8_built) >= wanted
    assert not warnings
    assert "INT8 products" in (tmp_path / "int8" / "report.md").read_text()
    half = EngineRecord.load(fp16_engines[1])
    assert half.engines["transformer"].int8_planned == 0
    weights = [r.engines["transformer"].weight_bytes for r in (record, half)]
    assert weights[0] < 0.65 * weights[1]  # the head, in FP32, weighs much in a small model


def test_fake_quantization_is_said(int8_bundles: dict[str, Path], tmp_path: Path) -> None:
    """A bundle that plans more INT8 products than its graph has gets a warning."""
    bundle = tmp_path / "bundle"
    shutil.copytree(int8_bundles["trt"], bundle)
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["provenance"]["options"]["plan"]["int8"].append("decoder: one more")
    path.write_text(json.dumps(document))
    warnings: list[str] = []
    build(bundle, tmp_path / "engines", warnings)
    planned = EngineRecord.load(tmp_path / "engines").engines["decoder"].int8_planned
    assert f"decoder: TensorRT computes only {planned - 1} of {planned} INT8 products in INT8" in warnings[-1]


def test_the_cpu_emission_is_no_engine(int8_bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="its INT8 is for ONNX Runtime on a CPU; calibrate with --target trt"):
        build(int8_bundles["cpu"], tmp_path / "engines")
    assert not (tmp_path / "engines").exists()
