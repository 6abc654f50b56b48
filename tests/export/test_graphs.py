"""The graph files are valid and small, and compute the same whether symbolic or static."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.graphs.trace import IR_VERSION, OPSET
from runtime.bundle.manifest import Manifest


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bundle", ["golden_bundle", "shared_bundle", "tiny_bundle"])
def test_every_graph_is_valid_and_pinned(bundle: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(bundle)
    graphs = Manifest.load(folder).graphs
    assert {"condition", "transformer", "bridge", "decoder", "encoder"} <= graphs.keys()
    for graph in graphs.values():
        onnx.checker.check_model(folder / graph.file, full_check=True)
        model = onnx.load(folder / graph.file, load_external_data=False)
        assert model.ir_version == IR_VERSION
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]


def test_no_shape_arithmetic_is_left(golden_bundle: Path) -> None:
    """Engines would run it on the host, and static steps could not be derived from the symbolic graph."""
    for graph in Manifest.load(golden_bundle).graphs.values():
        nodes = onnx.load(golden_bundle / graph.file, load_external_data=False).graph.node
        assert not {node.op_type for node in nodes} & {"Shape", "Expand", "SequenceAt", "If", "Loop", "NonZero"}


def test_all_weights_lie_in_one_file(golden_bundle: Path) -> None:
    """A weight inside a graph file would be stored again for each of ten steps."""
    for graph in Manifest.load(golden_bundle).graphs.values():
        for tensor in onnx.load(golden_bundle / graph.file, load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where.get("location") == "weights.safetensors" or len(tensor.raw_data) <= 65536, tensor.name


def test_static_steps_equal_the_symbolic_one(golden_bundle: Path) -> None:
    manifest = Manifest.load(golden_bundle)
    symbolic = session(golden_bundle / manifest.graphs["transformer"].file)
    random = np.random.default_rng(0)
    for k, scale in enumerate(manifest.scales):
        step = manifest.graphs[f"transformer_b1_{k:02d}"]
        assert step.inputs[0].shape == (scale.tokens, 2, manifest.model.width)
        inputs = {t.name: random.standard_normal(t.shape, dtype=np.float32) for t in step.inputs}  # type: ignore[arg-type]
        for tensor, expected, found in zip(
            step.outputs, symbolic.run(None, inputs), session(golden_bundle / step.file).run(None, inputs), strict=True
        ):
            assert found.shape == tensor.shape
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"scale {k}: {tensor.name}")
