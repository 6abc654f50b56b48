"""The real runtime loop, with a look at tensors inside its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.bundle.manifest import Graph, Manifest, Tensor

Shapes = Mapping[str, tuple[int | str, ...]]  # float32 tensor inside a graph -> its shape, symbols as in the manifest


def looking_inside(bundle: Path, manifest: Manifest, inner: Mapping[str, Shapes]) -> OnnxRuntimeBackend:
    """ONNX Runtime on the CPU whose observers also see these tensors inside graphs, by graph, among the outputs."""
    backend = OnnxRuntimeBackend(bundle, manifest)
    for name, shapes in inner.items():
        graph = manifest.graphs[name]
        backend.replace_graph(
            name, *with_outputs(graph, onnx.load(bundle / graph.file, load_external_data=False), shapes)
        )
    return backend


def with_outputs(graph: Graph, model: onnx.ModelProto, shapes: Shapes) -> tuple[Graph, bytes]:
    """The graph `model` with these tensors among its outputs: what a manifest would say of it, and its content."""
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in shapes)
    added = (Tensor(name, "float32", shape) for name, shape in shapes.items())
    return replace(graph, outputs=(*graph.outputs, *added)), model.SerializeToString()
