"""INT8 bundles: exact integers, weights stored once, channel scaling that changes nothing, nearly the same images."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors import safe_open

from calibration.ablation import for_all_scales, rows
from calibration.bundle import quantize_bundle
from calibration.make import Request, make_int8
from calibration.plan import DIGITS, FLOAT, INT8, MIXED, QUANTIZED, SCALE, default_plan, overridden
from calibration.ranges import CalibrationError, Histogram
from calibration.record import Calibration
from calibration.sites import GRAPHS, all_sites, find_sites, open_graph
from calibration.target import TARGETS
from export.graphs.simulate import simulate
from export.verify.fidelity import Fidelity, Teacher
from runtime.bundle.manifest import WEIGHTS, Manifest
from runtime.bundle.names import REQUIRED_GRAPHS
from runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def teacher(demo_bundle: Path) -> Teacher:
    return Teacher.draw(Pipeline(demo_bundle), tokens=200)


@pytest.fixture(scope="module")
def naive(
    demo_bundle: Path, calibration: Calibration, teacher: Teacher, tmp_path_factory: pytest.TempPathFactory
) -> Fidelity:
    """What becomes of the demo model if every layer is INT8 with one scale, from the largest magnitude."""
    sites, out = all_sites(demo_bundle, Manifest.load(demo_bundle)), tmp_path_factory.mktemp("naive") / "int8"
    row = rows(demo_bundle, sites, "trt", calibration, calibration, None)[0]
    quantize_bundle(demo_bundle, out, row.calibration, row.plan, row.target, row.method)
    return teacher.compare(Pipeline(out))


def tensor(bundle: Path, name: str) -> np.ndarray:
    with safe_open(bundle / WEIGHTS, framework="numpy") as weights:
        return np.asarray(weights.get_tensor(name))


def ort_operators(path: Path, folder: Path) -> Counter[str]:
    """Return the operators of the graph that ONNX Runtime's optimiser writes."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node)


@pytest.mark.parametrize("name", ["trt", "trt-row"])
def test_rounding_between_int8_products_costs_no_more(
    name: str, int8_bundles: dict[str, Path], teacher: Teacher, tmp_path: Path
) -> None:
    """The trt target is FP16 around its INT8 products: here every FP16 tensor is really rounded."""
    simulate(int8_bundles[name], tmp_path / "simulated")
    exact, rounded = (teacher.compare(Pipeline(path)) for path in (int8_bundles[name], tmp_path / "simulated"))
    assert rounded.kl < 1.1 * exact.kl


@pytest.mark.parametrize(("name", "times"), [("trt", 2.3), ("cpu", 2.25), ("trt-row", 6.3), ("cpu-row", 5)])
def test_naive_int8_is_far_worse(
    naive: Fidelity, teacher: Teacher, int8_bundles: dict[str, Path], name: str, times: float
) -> None:
    ours = teacher.compare(Pipeline(int8_bundles[name]))
    assert ours.kl < naive.kl / times
    assert ours.agreement > 0.86
    assert ours.psnr > max(38, naive.psnr + 5)


def test_two_digits_are_nearly_exact(
    demo_bundle: Path, calibration: Calibration, teacher: Teacher, tmp_path: Path
) -> None:
    """Only the rounding of the weights remains: INT8 weights alone lose as much."""
    sites = all_sites(demo_bundle, Manifest.load(demo_bundle))
    results: dict[str, Fidelity] = {}
    for kind in (DIGITS, "weights"):
        plan = {site.key: kind if site.graph == "transformer" else FLOAT for site in sites}
        quantize_bundle(demo_bundle, tmp_path / kind, calibration, plan, TARGETS["trt"], "mse")
        results[kind] = teacher.compare(Pipeline(tmp_path / kind))
    assert results[DIGITS].kl < 1.5 * results["weights"].kl + 2e-4
    assert results["weights"].kl < 0.003  # 0.007 if ONNX Runtime rounded the activations too


@pytest.mark.parametrize("target", ["trt", "cpu"])
def test_every_int8_weight_is_stored_once(demo_bundle: Path, int8_bundles: dict[str, Path], target: str) -> None:
    bundle = int8_bundles[target]
    plan = default_plan(all_sites(demo_bundle, Manifest.load(demo_bundle)), SCALE)
    with safe_open(bundle / WEIGHTS, framework="numpy") as weights:
        dtypes = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    integers = [name for name in dtypes if name.endswith("weight.int8")]
    assert len(integers) == sum(kind != FLOAT for kind in plan.values())
    assert all(dtypes[name] == "I8" for name in integers)
    floats = [name.replace("int8", "transpose") for name in integers]
    assert not set(floats) & set(dtypes)
    largest = max(abs(int(tensor(bundle, name).min())) for name in integers)
    assert largest <= TARGETS[target].weight_levels
    size = sum(file.stat().st_size for file in bundle.iterdir())
    assert size < 0.5 * sum(file.stat().st_size for file in demo_bundle.iterdir())


@pytest.mark.parametrize(("name", "scales"), [("cpu", SCALE), ("cpu-row", MIXED)])
def test_onnx_runtime_multiplies_integers(
    name: str, scales: str, demo_bundle: Path, int8_bundles: dict[str, Path], tmp_path: Path
) -> None:
    """A Q/DQ pair that is not fused is FP32 arithmetic plus rounding: nothing is faster, and nothing says so."""
    manifest = Manifest.load(int8_bundles[name])
    plan = default_plan(all_sites(demo_bundle, Manifest.load(demo_bundle)), scales)
    fused = {"condition": "MatMulIntegerToFloat", "transformer": "MatMulIntegerToFloat", "decoder": "QLinearConv"}
    for graph, operator in fused.items():
        wanted = sum(kind in QUANTIZED for key, kind in plan.items() if key.startswith(graph))
        operators = ort_operators(int8_bundles[name] / manifest.graphs[graph].file, tmp_path)
        assert operators[operator] == wanted, graph


def test_smoothing_alone_changes_nothing(
    demo_bundle: Path, int8_bundles: dict[str, Path], calibration: Calibration
) -> None:
    """`condition` divides by the scaling and the weight is multiplied by it: the product does not change."""
    outputs = []
    for bundle in (demo_bundle, int8_bundles["cpu"]):
        model = onnx.load(bundle / "condition.onnx", load_external_data=False)
        shutil.copy(bundle / "condition.onnx", bundle / "probe.onnx")
        session = ort.InferenceSession(bundle / "probe.onnx", providers=["CPUExecutionProvider"])
        outputs.append(
            dict(
                zip([o.name for o in model.graph.output], session.run(None, {"labels": np.array([3, 8])}), strict=True)
            )
        )
        (bundle / "probe.onnx").unlink()
    assert calibration.channel_scaling
    for block in range(4):
        vector = calibration.channel_scaling[f"transformer: blocks.{block}.attn.mat_qkv"]
        plain, smoothed = (output["modulation"][block] for output in outputs)
        assert np.abs(vector - 1).max() > 0.05
        for row in (2, 4):
            np.testing.assert_allclose(smoothed[row] * vector, plain[row], atol=0.02)
        np.testing.assert_allclose(smoothed[:2], plain[:2], atol=0.02)  # gates


def test_scales_are_rows_of_the_weight_file(int8_bundles: dict[str, Path], calibration: Calibration) -> None:
    for target, tensors in (("trt", 1), ("cpu", 2)):  # TensorRT's are symmetric by default: no zero points
        manifest = Manifest.load(int8_bundles[target])
        assert len(manifest.step_constants) == tensors * manifest.model.depth
        scales = tensor(int8_bundles[target], "activation_scales_00")
        assert scales.shape == (len(manifest.scales), 4)
        assert len({float(scale) for scale in scales[:, 0]}) == len(manifest.scales)  # each scale has its own
    zeros = tensor(int8_bundles["cpu"], "activation_zero_points_00")
    assert (zeros.shape, zeros.dtype) == (scales.shape, np.uint8)


@pytest.mark.parametrize("name", ["trt", "cpu", "trt-row", "cpu-row"])
def test_every_input_is_read(int8_bundles: dict[str, Path], name: str) -> None:
    """TensorRT drops an input that nothing reads; the runtime would then miss it in the engine."""
    for graph in Manifest.load(int8_bundles[name]).graphs.values():
        model = onnx.load(int8_bundles[name] / graph.file, load_external_data=False)
        read = {name for node in model.graph.node for name in node.input}
        assert {spec.name for spec in graph.inputs} <= read, graph.file


def test_overrides_name_layers_or_kinds_of_them(demo_bundle: Path) -> None:
    sites = all_sites(demo_bundle, Manifest.load(demo_bundle))
    changed = overridden(sites, {"fc2": FLOAT, "transformer: head": INT8})
    assert [changed[f"transformer: blocks.{i}.ffn.fc2"] for i in range(4)] == [FLOAT] * 4
    assert changed["transformer: head"] == INT8
    with pytest.raises(CalibrationError, match="--set fc7=float: expected a layer of the plan"):
        overridden(sites, {"fc7": FLOAT})
    with pytest.raises(CalibrationError, match="--set fc2=int4: expected one of int8, int8x2, int8-row, int8x2-row, w"):
        overridden(sites, {"fc2": "int4"})


def test_a_whole_plan_of_int8_is_written_too(demo_bundle: Path, calibration: Calibration, tmp_path: Path) -> None:
    """Every site can be rewritten, also the head, the projections of attention and the last convolution."""
    sites = all_sites(demo_bundle, Manifest.load(demo_bundle))
    for target in ("trt", "cpu"):
        plan = {site.key: INT8 for site in sites}
        quantize_bundle(demo_bundle, tmp_path / target, calibration, plan, TARGETS[target], "percentile")
        assert Pipeline(tmp_path / target).generate([1], seed=2).images.std() > 10


def without(calibration: Calibration, name: str) -> Calibration:
    histograms = {key: items for key, items in calibration.histograms.items() if key != name}
    return Calibration(
        calibration.bundle, calibration.settings, calibration.pictures, calibration.channel_scaling, histograms
    )


def test_missing_and_empty_ranges_leave_nothing(demo_bundle: Path, calibration: Calibration, tmp_path: Path) -> None:
    plan = default_plan(all_sites(demo_bundle, Manifest.load(demo_bundle)), SCALE)
    name = "transformer: blocks.1.ffn.fc1 input"
    with pytest.raises(CalibrationError, match=rf"{name}: the calibration has no ranges for it"):
        quantize_bundle(demo_bundle, tmp_path / "out", without(calibration, name), plan, TARGETS["trt"], "mse")
    for bad in (Histogram(), Histogram(1.0, low=-np.inf, high=1.0)):
        broken = for_all_scales(calibration)  # a copy
        broken.histograms[name] = [broken.histograms[name][0]] * 5 + [bad]
        with pytest.raises(CalibrationError, match=rf"{name}, scale 5: the calibration has the range"):
            quantize_bundle(demo_bundle, tmp_path / "out", broken, plan, TARGETS["trt"], "minmax")
    assert not list(tmp_path.iterdir())


def test_sites_are_the_products_with_weights(demo_bundle: Path) -> None:
    manifest = Manifest.load(demo_bundle)
    counts = {name: len(find_sites(name, open_graph(demo_bundle, manifest, name))) for name in GRAPHS}
    depth = manifest.model.depth
    assert counts["transformer"] == 4 * depth + 1
    assert counts["condition"] == depth + 1
    convolutions = [
        n for n in onnx.load(demo_bundle / "decoder.onnx", load_external_data=False).graph.node if n.op_type == "Conv"
    ]
    assert counts["decoder"] == len(convolutions) - 1  # the first one reads the graph's input
    assert set(GRAPHS) < set(REQUIRED_GRAPHS)


def test_weights_alone_need_no_scales(demo_bundle: Path, teacher: Teacher, tmp_path: Path) -> None:
    make_int8(demo_bundle, tmp_path / "out", Request("cpu", weights_only=True), tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.step_constants == ()
    assert teacher.compare(Pipeline(tmp_path / "out")).kl < 0.006
