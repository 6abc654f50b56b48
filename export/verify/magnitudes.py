"""Measure how near an FP16 bundle comes to overflow: the largest magnitude of every FP16 tensor in real generations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.graphs.simulate import round_to_half, simulate, typed
from export.verify.observe import with_outputs
from runtime.backends.base import StageRun
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.bundle.manifest import Manifest
from runtime.bundle.names import CONDITION, DECODER, TRANSFORMER
from runtime.errors import VarEdgeError
from runtime.files.atomic import scratch_directory
from runtime.pipeline import Pipeline

LIMIT = 32_000.0  # half of the largest FP16 number
LARGEST = "largest"  # output added to a graph: one number for each FP16 tensor


def largest_magnitudes(bundle: Path, labels: Sequence[int], seed: int = 0) -> dict[str, float]:
    """Generate an image per label with the simulated twin of the FP16 `bundle`, and measure magnitudes.

    Returns "graph: tensor" -> the tensor's largest magnitude before rounding, over all scales.
    """
    with scratch_directory(bundle) as twin:
        simulate(bundle, twin)
        manifest = Manifest.load(twin, verify=False)
        backend = OnnxRuntimeBackend(twin, manifest)
        names = {graph: _look_inside(backend, bundle, graph) for graph in (CONDITION, TRANSFORMER, DECODER)}
        largest = {graph: np.zeros(len(tensors), np.float32) for graph, tensors in names.items()}

        def observe(run: StageRun) -> None:
            if run.graph in largest:
                np.maximum(largest[run.graph], run.outputs[LARGEST], out=largest[run.graph])  # NaN stays

        Pipeline(twin, backend, verify=False, finite=False).generate(list(labels), seed, observe=observe)
        return {
            f"{graph}: {name}": float(x)
            for graph, tensors in names.items()
            for name, x in zip(tensors, largest[graph], strict=True)
        }


def check(magnitudes: Mapping[str, float]) -> None:
    """Raise VarEdgeError if a magnitude reaches LIMIT or is not-a-number."""
    for tensor, magnitude in magnitudes.items():  # in the order they are computed: the first is the cause
        if not magnitude < LIMIT:
            found = f"expected below {LIMIT:.0f}, found {magnitude:.3g}"
            advice = "keep it in FP32 (export/graphs/mixed_precision.py)"
            raise VarEdgeError(f"{tensor}: FP16 would overflow: {found}; {advice}")


def _look_inside(backend: OnnxRuntimeBackend, bundle: Path, graph: str) -> list[str]:
    """Add the output LARGEST to a graph of the running twin; return the names of the tensors in it."""
    listed = backend.manifest.graphs[graph]
    model = typed(bundle / listed.file)
    values = round_to_half(model.graph)
    scalars = []
    for value in values:
        magnitude = ir.node("Abs", [value])
        largest = ir.node("ReduceMax", magnitude.outputs, attributes={"keepdims": 0})
        flat = ir.node("Unsqueeze", [largest.outputs[0], _axis(model.graph)])
        for node, suffix in ((magnitude, "magnitude"), (largest, LARGEST), (flat, "row")):
            node.name = node.outputs[0].name = f"{value.name}.{suffix}"
            model.graph.append(node)
        scalars.append(flat.outputs[0])
    joined = ir.node("Concat", scalars, attributes={"axis": 0})
    joined.name = joined.outputs[0].name = LARGEST
    joined.outputs[0].type, joined.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([len(values)])
    model.graph.append(joined)
    backend.replace_graph(graph, *with_outputs(listed, ir.to_proto(model), {LARGEST: (len(values),)}))
    return [str(value.name).removesuffix(".exact") for value in values]


def _axis(graph: ir.Graph) -> ir.Value:
    """Return the constant [0], the axis of Unsqueeze."""
    if f"{LARGEST}.axis" not in graph.initializers:
        tensor = ir.tensor([0], dtype=ir.DataType.INT64, name=f"{LARGEST}.axis")
        graph.initializers.add(ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64)))
    return graph.initializers[f"{LARGEST}.axis"]
