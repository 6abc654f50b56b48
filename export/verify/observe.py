"""Observe tensors inside graphs while the real runtime loop runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.bundle.manifest import Graph, Manifest, Tensor

Shapes = Mapping[str, tuple[int | str, ...]]  # float32 tensor inside a graph -> its shape, with the manifest's symbols


def looking_inside(bundle: Path, manifest: Manifest, inner: Mapping[str, Shapes]) -> OnnxRuntimeBackend:
    """Return an ONNX Runtime CPU backend whose graphs also output the tensors `inner` (by graph) to observers."""
    backend = OnnxRuntimeBackend(bundle, manifest)
    for name, shapes in inner.items():
        graph = manifest.graphs[name]
        backend.replace_graph(
            name, *with_outputs(graph, onnx.load(bundle / graph.file, load_external_data=False), shapes)
        )
    return backend


def with_outputs(graph: Graph, model: onnx.ModelProto, shapes: Shapes) -> tuple[Graph, bytes]:
    """Add these tensors to the outputs of the graph `model`; return its manifest entry and its content."""
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in shapes)
    added = (Tensor(name, "float32", shape) for name, shape in shapes.items())
    return replace(graph, outputs=(*graph.outputs, *added)), model.SerializeToString()
