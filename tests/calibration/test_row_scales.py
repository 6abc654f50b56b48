"""Row scales: a graph computes what numpy does, NaN stays NaN, no image is drawn, and the plan may mix scales."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from calibration import collect
from calibration.bench import Bench
from calibration.budget import expected, within_budget
from calibration.make import Request, make_int8
from calibration.plan import DIGITS_ROWS, INT8, INT8_ROWS, MIXED, ROW, default_plan, overridden
from calibration.quantize import Quantizer
from calibration.ranges import CalibrationError
from calibration.record import Settings
from calibration.row_scales import LEAST_GELU, LEAST_MAGNITUDE
from calibration.sensitivity import ALL_DIGITS, measure
from calibration.sites import Site, all_sites
from calibration.target import TARGETS
from export.graphs.signature import Signature
from export.verify.fidelity import Teacher
from runtime import NumericError
from runtime.bundle.manifest import WEIGHTS, Manifest
from runtime.bundle.names import TRANSFORMER
from runtime.pipeline import Pipeline
from tests.runtime.fake_tensorrt import rewrite_manifest

RANDOM = np.random.default_rng(0)
STEP = np.float32(2**-9)  # of the weights: their INT8 products are exact in FP32, in whatever order they are added
ROWS, BATCH, WIDTH, OUT = 5, 2, 24, 8
NO_IMAGES = Settings(channel_scaling="none")


def product(kind: str, target: str, before: str) -> tuple[ort.InferenceSession, np.ndarray, np.ndarray]:
    """Return the INT8 graph of before(x) @ weight + bias, which also returns before(x), the weight and the bias."""
    levels = TARGETS[target].weight_levels
    integers = RANDOM.integers(-levels, levels + 1, (WIDTH, OUT))
    integers[0] = levels
    stored = {"layer.weight": integers.astype(np.float32) * STEP, "layer.bias": RANDOM.random(OUT).astype(np.float32)}
    of_gelu = {"approximate": "tanh"} if before == "Gelu" else {}
    graph = helper.make_graph(
        [
            helper.make_node(before, ["x"], ["a"], **of_gelu),
            helper.make_node("MatMul", ["a", "layer.weight"], ["product"]),
            helper.make_node("Add", ["product", "layer.bias"], ["y"]),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["L", BATCH, WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "a")],
        [onnx.numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    site = Site(
        TRANSFORMER, "layer", "MatMul", "a", ("L", "2B", WIDTH), "product", ("L", "2B", OUT), "layer.weight",
        (WIDTH, OUT),
    )  # fmt: skip
    quantizer = Quantizer(TARGETS[target], {site.key: kind}, {}, {}, stored.__getitem__, fold=False)
    assert quantizer.rewrite(Signature(TRANSFORMER, (), ()), model, [site]).inputs == ()  # no scales are fed
    for name, value in model.graph.initializers.items():
        if name in quantizer.entries:
            entry = quantizer.entries[name]
            value.const_value = ir.tensor(np.asarray(entry.compute(), entry.numpy_dtype), name=name)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, stored["layer.weight"], stored["layer.bias"]


def reference(operand: np.ndarray, weight: np.ndarray, bias: np.ndarray, kind: str, one_sided: bool) -> np.ndarray:
    """Compute the product of `operand` (L, 2B, WIDTH) as the INT8 graph does, operation by operation in float32."""
    number = np.float32
    if one_sided:
        scale = (operand.max(-1, keepdims=True) - number(LEAST_GELU)) * number(1 / 254)
        zero = np.round(number(-127) - number(LEAST_GELU) / scale)
        bias = bias - weight.sum(0) * (scale * zero)
    else:
        scale = np.maximum(np.abs(operand).max(-1, keepdims=True), number(LEAST_MAGNITUDE)) * number(1 / 127)
        zero = number(0)
    steps = operand * (number(1) / scale) + zero
    first = np.clip(np.round(steps), -128, 127)
    total = first @ weight
    if kind == DIGITS_ROWS:
        second = np.clip(np.round((steps - first) * number(254)), -128, 127)
        total = total + (second @ weight) * number(1 / 254)
    result: np.ndarray = total * scale + bias
    return result


@pytest.mark.parametrize("before", ["Neg", "Gelu"])
@pytest.mark.parametrize("kind", [INT8_ROWS, DIGITS_ROWS])
@pytest.mark.parametrize("target", ["trt", "cpu"])
def test_a_product_is_that_of_numpy_bit_for_bit(target: str, kind: str, before: str) -> None:
    session, weight, bias = product(kind, target, before)
    x = RANDOM.standard_normal((ROWS, BATCH, WIDTH)).astype(np.float32)
    x *= np.float32(10) ** np.arange(-2, ROWS - 2, dtype=np.float32)[:, None, None]  # rows of very different size
    x[1, 0] = 0
    found, operand = session.run(None, {"x": x})
    expected = reference(operand, weight, bias, kind, one_sided=before == "Gelu" and kind == INT8_ROWS)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found[1, 0], bias, atol=1e-5)  # of the row of zeros
    exact = operand.astype(np.float64) @ weight + bias
    width = np.abs(operand).max(-1) - (LEAST_GELU if before == "Gelu" else 0)
    error = np.abs(found - exact).max(-1) / width.clip(1e-9)  # of each row, as a share of what its steps cover
    assert error.max() < (0.01 if kind == INT8_ROWS else 4e-5)


@pytest.mark.parametrize("before", ["Neg", "Gelu"])
@pytest.mark.parametrize("kind", [INT8_ROWS, DIGITS_ROWS])
@pytest.mark.parametrize("target", ["trt", "cpu"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_its_row_only(target: str, kind: str, before: str, bad: float) -> None:
    """QuantizeLinear makes a number of NaN, and ReduceMax ignores NaN, wherever it is but at the beginning."""
    session, _, _ = product(kind, target, before)
    x = RANDOM.standard_normal((ROWS, BATCH, WIDTH)).astype(np.float32)
    finite = session.run(["y"], {"x": x})[0]
    for channel in (0, 1, WIDTH - 1):
        broken = x.copy()
        broken[2, 1, channel] = bad
        found = session.run(["y"], {"x": broken})[0]
        assert not np.isfinite(found[2, 1]).any()
        found[2, 1] = finite[2, 1]
        np.testing.assert_array_equal(found, finite)


@pytest.mark.parametrize("target", ["trt", "cpu"])
def test_no_image_is_drawn(
    demo_bundle: Path, int8_bundles: dict[str, Path], tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "Pipeline", None)  # nothing can be drawn for calibration
    stages: list[str] = []
    path = tmp_path / "calibration.json"
    request = Request(target, ROW, settings=NO_IMAGES)
    make_int8(demo_bundle, tmp_path / "out", request, path, lambda stage, done, total: stages.append(stage))
    assert not [stage for stage in stages if "ranges" in stage or "channels" in stage]
    assert not path.exists()
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.step_constants == ()
    assert manifest.provenance.options["pictures"] == 0
    plan = manifest.provenance.options["plan"]
    depth = manifest.model.depth
    assert {kind: len(keys) for kind, keys in plan.items() if kind != "float"} == {
        INT8_ROWS: 3 * depth,
        DIGITS_ROWS: 2 * depth + 1,
    }
    assert "No pictures were drawn" in (tmp_path / "out" / "report.md").read_text()
    monkeypatch.undo()
    teacher = Teacher.draw(Pipeline(demo_bundle), tokens=200)
    found, calibrated = (teacher.compare(Pipeline(out)) for out in (tmp_path / "out", int8_bundles[f"{target}-row"]))
    assert found.kl < 1.4 * calibrated.kl  # which has channel scaling
    assert found.psnr > 60  # the decoder is not quantized


def test_a_plan_mixes_scales(demo_bundle: Path, calibration_file: Path, tmp_path: Path) -> None:
    """Layers with calibrated scales keep their place among the block's inputs."""
    overrides = (("fc2", INT8),)
    for target, inputs in (("trt", 2), ("cpu", 2)):  # scales and zero points
        out = tmp_path / target
        make_int8(demo_bundle, out, Request(target, MIXED, images=32, overrides=overrides), calibration_file)
        manifest = Manifest.load(out)
        assert len(manifest.step_constants) == inputs * manifest.model.depth
        graph = onnx.load(out / manifest.graphs[TRANSFORMER].file, load_external_data=False).graph
        read = {name for node in graph.node for name in node.input}
        assert set(manifest.step_constants) <= read
        assert Teacher.draw(Pipeline(demo_bundle), tokens=100).compare(Pipeline(out)).kl < 0.03


def test_layers_are_measured_with_row_scales(demo_bundle: Path, tmp_path: Path) -> None:
    """Without images: only layers that row scales can make INT8, and a second digit is one of rows too."""
    manifest = Manifest.load(demo_bundle)
    sites = [site for site in all_sites(demo_bundle, manifest) if "blocks.1." in site.name or site.name == "head"]
    sites += [site for site in all_sites(demo_bundle, manifest) if site.name == "decoder.mid.block_1.conv1"]
    calibration = collect.Calibration(collect.fingerprint(manifest), NO_IMAGES)
    path = tmp_path / "sensitivity.json"
    found = measure(Bench(demo_bundle, sites, calibration, "trt", ROW, "mse"), path)
    assert set(found.layers) == {ALL_DIGITS, *(site.key for site in sites if site.has_rows)}
    assert json.loads(path.read_text())["scales"] == ROW
    plan = within_budget(sites, default_plan(sites, ROW), found, found.layers[ALL_DIGITS].kl_of_scales + 1e-9)
    products = {plan[site.key] for site in sites if site.graph == TRANSFORMER and site.name != "head"}
    assert products == {DIGITS_ROWS}
    plan = within_budget(sites, default_plan(sites, ROW), found, 1.0)
    assert {plan[site.key] for site in sites if site.graph == TRANSFORMER} == {INT8_ROWS, "float"}
    assert expected(plan, found).value < 0.02


def test_row_scales_ask_for_rows(demo_bundle: Path) -> None:
    sites = all_sites(demo_bundle, Manifest.load(demo_bundle))
    with pytest.raises(
        CalibrationError, match=r"--set conv1=int8-row: decoder: \S+ is a convolution, which has no rows"
    ):
        overridden(sites, {"conv1": INT8_ROWS})


def test_a_model_with_nan_ends_in_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    """Nothing notices it during calibration, which draws no images; drawing must."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("calib*", "*sensitivity*"))
    with (bundle / WEIGHTS).open("r+b") as file:  # written in place: the graphs know the offsets
        size = int.from_bytes(file.read(8), "little")
        start, _ = json.loads(file.read(size))["blocks.0.ffn.fc1.bias"]["data_offsets"]
        file.seek(8 + size + start + 4 * 5)  # the sixth channel
        file.write(np.float32(np.nan).tobytes())
    rewrite_manifest(bundle, Manifest.load(tiny_bundle))
    for target in ("trt", "cpu"):
        make_int8(bundle, tmp_path / target, Request(target, ROW, settings=NO_IMAGES))
        with pytest.raises(NumericError, match="logits of scale 0 hold NaN or infinity"):
            Pipeline(tmp_path / target, "onnxruntime").generate([1], top_k=4)
