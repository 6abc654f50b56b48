"""FP16 bundles have the dtypes of the policy, round as hardware does, and are nearly the same model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import Weights, formula_weights
from export.graphs.simulate import round_to_half, simulate, typed
from export.sizes import FP32, weight_file
from export.verify.fidelity import Fidelity, compare
from export.verify.magnitudes import LIMIT, check, largest_magnitudes
from runtime import Pipeline, SettingsError, VarEdgeError
from runtime.bundle.manifest import Manifest
from tests.conftest import DATA

IN_FLOAT32 = ("LayerNormalization", "InstanceNormalization", "Softmax", "ReduceL2", "Div", "Sigmoid", "ArgMin", "Exp")


def simulated(bundle: Path, folder: Path) -> Pipeline:
    simulate(bundle, folder)
    return Pipeline(folder, "onnxruntime")


def is_faithful(result: Fidelity) -> None:
    for scale in result.scales:
        assert scale.interval[1] >= 0.995, scale.side  # which ties flip depends on the processor's order of sums
        assert scale.kl <= 1e-4, scale.side
        assert scale.widest_miss < 4, scale.side  # a token is missed only where the reference itself hardly decides
    assert result.psnr >= 45


def test_types_follow_the_policy(fp16_demo_bundle: Path) -> None:
    manifest = Manifest.load(fp16_demo_bundle)
    for graph in manifest.graphs.values():
        for node in typed(fp16_demo_bundle / graph.file).graph:
            operand = node.inputs[0] if node.inputs else None
            if node.op_type in IN_FLOAT32 and operand is not None:
                assert operand.dtype == ir.DataType.FLOAT, f"{graph.file}: {node.name}"
    transformer = list(typed(fp16_demo_bundle / "transformer.onnx").graph)
    products = [node for node in transformer if node.op_type == "MatMul"]
    in_float32 = [node.inputs[1].name for node in products if node.outputs[0].dtype == ir.DataType.FLOAT]
    assert in_float32 == ["head.weight.transpose"]
    dtypes = {spec.name: spec.dtype for spec in manifest.graphs["transformer"].inputs}
    assert dtypes["past_k_00"] == dtypes["past_v_03"] == "float16"
    assert dtypes["x"] == dtypes["modulation_00"] == "float32"


def test_only_the_decoder_adds_residuals_in_fp16(fp16_demo_bundle: Path) -> None:
    """A quarter of the decoder's memory traffic; in the other graphs residuals decide tokens."""
    for name, graph in Manifest.load(fp16_demo_bundle).graphs.items():
        model = typed(fp16_demo_bundle / graph.file).graph
        sums = [node for node in model if node.op_type == "Add" and not _reads_a_weight(node)]
        dtypes = {node.outputs[0].dtype for node in sums if len(node.outputs[0].shape or ()) == 4}
        if name == "decoder":
            assert dtypes == {ir.DataType.FLOAT16}
        else:
            assert ir.DataType.FLOAT16 not in {node.outputs[0].dtype for node in sums}, name


def _reads_a_weight(node: ir.Node) -> bool:
    return any(value is not None and value.is_initializer() for value in node.inputs)


def test_weights_are_stored_once_in_half_the_bytes(fp16_demo_bundle: Path, demo_bundle: Path) -> None:
    sizes = [(bundle / "weights.safetensors").stat().st_size for bundle in (fp16_demo_bundle, demo_bundle)]
    assert sizes[0] < 0.56 * sizes[1]  # head, codebook, class embedding and resize matrices stay


def test_the_bundle_runs_as_it_is(fp16_demo_bundle: Path, demo_bundle: Path) -> None:
    """ONNX Runtime computes it in float32, so images of equal tokens differ only by the rounding of weights."""
    expected = Pipeline(demo_bundle).generate([3, 4], seed=1)
    keep = [np.ones_like(tokens, bool) for tokens in expected.tokens]
    found = Pipeline(fp16_demo_bundle).generate([3, 4], seed=1, keep=keep, kept_tokens=expected.tokens)
    assert np.abs(found.images.astype(int) - expected.images).mean() < 0.5


def test_simulated_values_are_fp16(fp16_demo_bundle: Path, tmp_path: Path) -> None:
    """Each FP16 tensor of the simulation holds only FP16 values; without simulation, ONNX Runtime's do not."""
    model = typed(fp16_demo_bundle / "transformer.onnx")
    exact = [value.name for value in round_to_half(model.graph)]
    proto = ir.to_proto(model)
    names = [str(name).removesuffix(".exact") for name in exact if str(name).endswith(".exact")][:20]
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    shutil.copy(fp16_demo_bundle / "weights.safetensors", tmp_path)
    onnx.save(proto, tmp_path / "g.onnx")
    session = ort.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    random, sizes = np.random.default_rng(0), {"2B": 2, "L": 4, "S": 1}
    inputs = {
        spec.name: random.standard_normal([sizes.get(a, a) for a in spec.shape]).astype(np.float32)  # type: ignore[misc, call-overload]
        for spec in Manifest.load(fp16_demo_bundle).graphs["transformer"].inputs
    }
    for name, value in zip(names, session.run(names, inputs), strict=True):
        assert np.array_equal(value, value.astype(np.float16).astype(np.float32)), name


def test_the_demo_model_stays_itself(demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path) -> None:
    is_faithful(compare(Pipeline(demo_bundle), simulated(fp16_demo_bundle, tmp_path / "simulated")))


def test_the_comparison_notices_another_model(tiny_bundle: Path, other_tiny_bundle: Path) -> None:
    result = compare(Pipeline(tiny_bundle), Pipeline(other_tiny_bundle), tokens=200)
    assert max(scale.kl for scale in result.scales) > 1e-4
    assert compare(Pipeline(tiny_bundle), Pipeline(tiny_bundle), tokens=50).scales[1].agreement == 1


def test_nothing_comes_near_overflow(fp16_demo_bundle: Path) -> None:
    found = largest_magnitudes(fp16_demo_bundle, [0, 9, 21])
    assert len(found) > 100
    assert any(name.startswith("decoder: add") for name in found)  # the residuals
    assert 1 < max(found.values()) < LIMIT
    check(found)


def test_a_planted_overflow_is_caught(fp16_demo_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    path = bundle / "transformer.onnx"
    model = onnx.load(path, load_external_data=False)
    scale = numpy_helper.from_array(np.float32(1e5), "too_much")
    model.graph.initializer.append(scale)
    cast = next(node for node in model.graph.node if node.op_type == "Cast" and node.output[0].endswith(".to_float16"))
    model.graph.node.insert(
        list(model.graph.node).index(cast), onnx.helper.make_node("Mul", [cast.input[0], "too_much"], ["huge"])
    )
    cast.input[0] = "huge"
    onnx.save(model, path)
    manifest = Manifest.load(fp16_demo_bundle)
    manifest.files["transformer.onnx"] = type(manifest.files["transformer.onnx"]).of(path)
    manifest.write(bundle)
    with pytest.raises(VarEdgeError, match=r"transformer: huge: FP16 would overflow: expected below 32000"):
        check(largest_magnitudes(bundle, [0]))


@pytest.mark.slow
def test_a_weight_beyond_fp16_is_refused(tmp_path: Path) -> None:
    recipe = Recipe.load(str(DATA / "tiny.toml"))
    weights = formula_weights(recipe, 0)
    name = "blocks.0.ffn.fc1.weight"

    def huge() -> np.ndarray:
        return np.asarray(weights.read(name) * np.float32(1e6))

    with pytest.raises(SettingsError, match=r"fc1\.weight\S*: holds \S+, FP16 ends at 65504; use --precision fp32"):
        export_bundle(recipe, Weights({**weights.readers, name: huge}, {}), tmp_path / "bundle", "fp16")
    assert not list(tmp_path.iterdir())


def test_only_fp16_is_simulated(demo_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a bundle in fp16 or int8 for trt, found fp32"):
        simulate(demo_bundle, tmp_path / "out")


@pytest.mark.full
def test_d16_at_full_size(tmp_path: Path) -> None:
    recipe = Recipe.load("var_d16")
    for precision in ("fp32", "fp16"):
        export_bundle(recipe, formula_weights(recipe, 0), tmp_path / precision, precision)
    size = sum(file.stat().st_size for file in (tmp_path / "fp16").iterdir())
    assert size < 0.52 * weight_file(recipe.model, FP32)
    check(largest_magnitudes(tmp_path / "fp16", [207]))
    is_faithful(compare(Pipeline(tmp_path / "fp32"), simulated(tmp_path / "fp16", tmp_path / "simulated")))
    shutil.rmtree(tmp_path)
