"""Products with 8-bit weights are exact also on AVX2 without VNNI, where ONNX Runtime's usual kernels saturate.

Else a plan for TensorRT that is measured on such a processor would lose three times what it loses on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.bench import Bench
from calibration.plan import SCALE
from calibration.record import Calibration
from calibration.sites import all_sites
from runtime.backends.ort_session import Session
from runtime.bundle.manifest import Graph, Manifest, Tensor
from tests.cpuid import avx2_only, reason_for_none

ROWS, INSIDE, OUT = 37, 256, 96


def product(folder: Path, levels: int, dtype: type[np.integer]) -> tuple[Graph, np.ndarray, np.ndarray]:
    """Write the product of a full-range operand with a weight of +-levels; return it, the operand and the result."""
    random, lowest = np.random.default_rng(0), np.iinfo(dtype).min
    a = random.choice(np.array([0, 1, 254, 255]) + lowest, (ROWS, INSIDE)).astype(dtype)
    b = (random.choice(np.array([-1, 1]), (INSIDE, OUT)) * levels).astype(np.int8)
    b[:, :32] = levels  # the same sign throughout: the largest sums
    zero = lowest + 128
    one, ones = np.array(1, np.float32), np.ones(OUT, np.float32)
    constants = {"b": b, "one": one, "ones": ones, "zero": np.array(zero, dtype)}
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["b", "ones"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    shapes = {"a": (ROWS, INSIDE), "y": (ROWS, OUT)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "product.onnx").write_bytes(model.SerializeToString())
    whole = a.astype(np.int64) - zero
    sides = [(Tensor(name, "float32", shape),) for name, shape in shapes.items()]
    return Graph("product.onnx", *sides), whole.astype(np.float32), whole @ b.astype(np.int64)


def on_avx2(code: str, folder: Path, *arguments: object) -> dict[str, float]:
    """Run Python code on AVX2 without VNNI; return the JSON that it prints."""
    if reason := reason_for_none():
        pytest.skip(f"AVX2 kernels are not tested: {reason}")
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | avx2_only(folder), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found: dict[str, float] = json.loads(result.stdout)
    return found


PRODUCT = """
import json, sys
from pathlib import Path
import numpy as np
from tests.calibration.test_saturation import product
from runtime.backends.ort_session import Session
folder, found = Path(sys.argv[1]), {}
for levels in (64, 127):
    for dtype in (np.uint8, np.int8):
        graph, a, expected = product(folder, levels, dtype)
        for exact in (True, False):
            (y,) = Session(folder, graph, 1, exact=exact).run({"a": a}).values()
            found[f"{levels} {dtype.__name__} {exact}"] = float(np.abs(y - expected).max())
print(json.dumps(found))
"""


def test_full_range_products_are_integer_arithmetic_on_avx2(tmp_path: Path) -> None:
    found = on_avx2(PRODUCT, tmp_path, tmp_path)
    for dtype in ("uint8", "int8"):
        assert found[f"127 {dtype} True"] == 0
        assert found[f"64 {dtype} True"] == found[f"64 {dtype} False"] == 0  # the weights of the cpu target
        assert found[f"127 {dtype} False"] > 1e5  # these are the kernels that saturate


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_full_range_products_are_integer_arithmetic_here(dtype: type[np.integer], tmp_path: Path) -> None:
    graph, a, expected = product(tmp_path, 127, dtype)
    np.testing.assert_array_equal(Session(tmp_path, graph, 1, exact=True).run({"a": a})["y"], expected)


SENSITIVITY = """
import json, sys
from pathlib import Path
from tests.calibration.test_saturation import loss_in_two_digits
print(json.dumps({"kl": loss_in_two_digits(*map(Path, sys.argv[1:]))}))
"""


def loss_in_two_digits(bundle: Path, calibration: Path) -> float:
    """Return the mean KL of the scales with all layers in two digits for TensorRT: what rounding the weights costs."""
    sites = all_sites(bundle, Manifest.load(bundle))
    bench = Bench(bundle, sites, Calibration.load(calibration), "trt", SCALE, "mse")
    bench.draw(1)
    return bench.layers(bench.two_digits).kl_of_scales


def test_sensitivity_is_the_same_on_avx2(demo_bundle: Path, calibration_file: Path, tmp_path: Path) -> None:
    found = on_avx2(SENSITIVITY, tmp_path, demo_bundle, calibration_file)["kl"]
    assert found == pytest.approx(loss_in_two_digits(demo_bundle, calibration_file), rel=0.05)  # 2.9 times if saturated
