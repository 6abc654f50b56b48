"""Graphs use only what TensorRT on JetPack 6 (10.3) parses: else the build fails on the user's device."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from runtime.bundle.manifest import Manifest
from tests.conftest import DATA

NEWEST_OPSET = 20
TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "INT64": "INT64", "INT32": "INT32", "UINT8": "UINT8", "BOOL": "BOOL"}
UINT8_CASTS = ("encoder", "decoder")  # the image's bytes go in and out through a Cast


def supported() -> dict[str, set[str]]:
    lines = (DATA / "tensorrt_operators.tsv").read_text().splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return {name: set(types.split()) for name, types in rows}


def used(path: Path) -> dict[str, set[str]]:
    """Return operator -> dtypes of its outputs; for comparisons, whose output is BOOL, those of the first input."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), strict_mode=True)
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found: dict[str, set[str]] = {}
    for node in graph.node:
        compares = node.op_type in ("Greater", "GreaterOrEqual", "Less", "ArgMin")
        kind = onnx.TensorProto.DataType.Name(types[node.input[0] if compares else node.output[0]])
        found.setdefault(node.op_type, set()).add(TYPES[kind])
    return found


@pytest.mark.parametrize("bundle", ["demo_bundle", "fp16_demo_bundle", "shared_bundle", "tiny_bundle"])
def test_operators_and_types(bundle: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(bundle)
    known = supported()
    for name, graph in Manifest.load(folder).graphs.items():
        model = onnx.load(folder / graph.file, load_external_data=False)
        assert model.opset_import[0].version <= NEWEST_OPSET
        for operator, types in used(folder / graph.file).items():
            assert operator in known, f"{name}: {operator}"
            assert types <= known[operator], f"{name}: {operator} in {types - known[operator]}"
        if "UINT8" in used(folder / graph.file).get("Cast", set()):
            assert name in UINT8_CASTS
            assert model.graph.node[-1].op_type == "Cast"  # TensorRT makes bytes at the end of a graph only


def test_the_list_would_notice(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (int64[N] x) => (int64[N] y) { y = Clip(x, x, x) }'
    )
    onnx.save(model, tmp_path / "g.onnx")
    assert not used(tmp_path / "g.onnx")["Clip"] <= supported()["Clip"]


@pytest.mark.parametrize("bundle", ["demo_bundle", "fp16_demo_bundle"])
def test_axes_are_constants(bundle: str, request: pytest.FixtureRequest) -> None:
    """The parser accepts only constant axes for reductions, Squeeze, Unsqueeze and Slice."""
    folder: Path = request.getfixturevalue(bundle)
    for graph in Manifest.load(folder).graphs.values():
        model = onnx.load(folder / graph.file, load_external_data=False).graph
        constants = {tensor.name for tensor in model.initializer}
        constants |= {node.output[0] for node in model.node if node.op_type == "Constant"}
        for node in model.node:
            axes = {"Slice": 3}.get(node.op_type, 1)
            if node.op_type.startswith(("Reduce", "Squeeze", "Unsqueeze", "Slice")) and len(node.input) > axes:
                assert node.input[axes] in constants, f"{graph.file}: {node.name}"
